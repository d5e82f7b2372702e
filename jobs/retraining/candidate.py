"""Candidate: a model that may replace the champion, from its window of data to its version in the registry."""

import dataclasses
import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.disk.artifact import is_artifact
from features.disk.atomic import write_json
from features.disk.dataset import DatasetManifest
from features.disk.run_folder import (
    ARTIFACT_FOLDER,
    CHECKS_NAME,
    CONFIG_NAME,
    GATE_NAME,
    REPORT_NAME,
    RunError,
    RunFolder,
    evaluation_name,
)
from features.disk.window import OtherWindow, join
from jobs.cli.child_process import ProgramError, run_module
from jobs.cli.config_arguments import hand_on
from jobs.registry.model_versions import ModelVersion
from jobs.retraining.partitions import build_compared
from jobs.retraining.retrain_folder import REBUILT_TAG, RUN_TAG, TABLES_TAG, TRAINED_TAG, RetrainFolder
from jobs.retraining.todo import Todo
from training.config import TrainingConfig

if TYPE_CHECKING:
    from training.judge.gate import Verdict

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """Candidate of one retraining; its steps are idempotent and reuse what an earlier try has finished.

    Attributes:
        place: folder of the retraining.
        todo: partitions to train on and to compare on.
        day: newest partition, on which it is compared with the champion.
        champion: version that it is compared with; None: it is the first candidate.
    """

    place: RetrainFolder
    todo: Todo
    day: str
    champion: ModelVersion | None

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.place.run(self.day)

    @property
    def window(self) -> Path:
        """Folder of its dataset."""
        return self.place.window(self.day)

    def join(self) -> DatasetManifest:
        """Join the partitions into one dataset; a run on other partitions, begun before one came late, is deleted."""
        names = {"train": self.todo.train, "valid": (self.todo.valid,), "test": (self.day,)}
        folders = {split: [self.place.partition(n) for n in found if n] for split, found in names.items()}
        try:
            return join(folders, self.window)
        except OtherWindow:
            for stale in (self.run, self.window, self.place.compared(self.day)):
                shutil.rmtree(stale, ignore_errors=True)
            return join(folders, self.window)

    @property
    def has_other_features(self) -> bool:
        """Whether the champion was trained on other features, or on vocabularies that the window does not go on with.

        The latter is so of a champion that a rollback brought back: its features were those of an earlier chain of
        builds, of which the newest days are gone.
        """
        if not self.place.rules.other_features or self.champion is None:
            return False
        run = RunFolder(self.place.run_of(self.champion))
        schema = run.schema()
        if schema.fingerprint != self.place.config.features.fingerprint:
            return True
        return not DatasetManifest.load(self.window).load_learnt(self.window).extends(run.learnt(schema))

    def encode_for_champion(self) -> None:
        """Build the day's rows for a champion of other features, with the vocabularies that it knows."""
        assert self.champion is not None
        run = self.place.run_of(self.champion)
        build_compared(self.place, self.day, RunFolder(run).schema(), self.place.window(run.name))

    def train(self) -> None:
        """Train, or resume a training that was killed."""
        if RunFolder(self.run).is_finished:
            return
        training = dataclasses.replace(self.place.config.training, dataset=str(self.window))
        if self.todo.is_warm and self.champion is not None:
            training = dataclasses.replace(
                training,
                warm_start=str(self.place.run_of(self.champion)),
                warm_start_other_features=self.has_other_features,
            )
        self._drop_run_of_other_vectors(training)
        config = dataclasses.replace(self.place.config, training=training)
        resolved = hand_on(config, self.place.config_file(self.day))
        resume = ["--resume"] if self.run.exists() else []
        run_module("jobs.train", *resolved, "--run", str(self.run), *resume)

    def _drop_run_of_other_vectors(self, training: TrainingConfig) -> None:
        """Delete a run that was begun with files of vectors that were replaced since: it could not go on."""
        if not (training.model.vectors or training.model.pretrained) or not (self.run / CONFIG_NAME).is_file():
            return
        from training.fit.run import Run
        from training.fit.vectors import changed_vectors, settle_vectors

        if changed := changed_vectors(Run(self.run).config().model, settle_vectors(training.model)):
            _log.warning("%s is begun anew: %s", self.run, "; ".join(changed))
            shutil.rmtree(self.run)

    def judge(self) -> tuple["Verdict", dict[str, Any]]:
        """Compare both models on the newest partition, with tables in their served precision.

        Returns:
            The gate's verdict, and the metrics of "candidate" and, if there is a champion, "champion".
        """
        import numpy as np

        from training.data.columns import read_columns
        from training.data.opened_dataset import Dataset
        from training.data.reader import Reader
        from training.fit.run import Run
        from training.judge.gate import judge
        from training.judge.metrics import curves, evaluate
        from training.ship.export import load_best

        rules, dataset, run = self.place.rules, Dataset.open(self.window), Run(self.run)
        candidate = load_best(run, dataset)
        served = candidate.with_tables(rules.tables)
        scores = served.score("test")
        metrics, before = {"candidate": evaluate(scores)}, None
        if self.champion is not None:
            is_other = self.has_other_features
            rows = Dataset.open(self.place.compared_window(self.day)) if is_other else dataset
            champion = load_best(Run(self.place.run_of(self.champion)), rows)
            tables: Any = self.champion.tags.get(TABLES_TAG, "float32")
            theirs = champion.with_tables(tables).score("test")
            if not np.array_equal(theirs.labels, scores.labels):
                raise RunError(
                    f"the rows of {self.day} that the candidate's features and the champion's can be read of are not "
                    f"the same ({len(scores.labels):,} and {len(theirs.labels):,}), so the two cannot be compared: "
                    "mend the rows that only one of them rejects"
                )
            before = theirs.logits
            metrics["champion"] = evaluate(replace(scores, logits=before))
        reader = Reader(dataset, "test", candidate.config)
        columns = read_columns(reader, reader.num_rows) if rules.segments else {}
        verdict = judge(
            scores.logits,
            before,
            scores.labels,
            scores.weights,
            config=rules.gate,
            segments={name: columns[name] for name in rules.segments},
            group_ids=scores.group_ids,
            unquantized=None if served is candidate else candidate.score("test").logits,
        )
        run.write(evaluation_name("test"), {"metrics": metrics["candidate"], "curves": curves(scores)})
        run.write(GATE_NAME, {"day": self.day, "verdict": verdict.to_json(), "metrics": metrics})
        return verdict, metrics

    def export(self) -> None:
        """Export the artifact, unless it is there."""
        if not is_artifact(self.run / ARTIFACT_FOLDER):
            output = ("--output", str(self.run / ARTIFACT_FOLDER), "--tables", self.place.rules.tables)
            run_module("jobs.export", "--run", str(self.run), *output)

    def report(self) -> None:
        """Make the run's report; a failure is logged and does not stop the retraining."""
        used = [*self.todo.train, self.todo.valid, self.day]
        write_json(self.run / CHECKS_NAME, {name: self.place.checks(name) for name in used if name})
        try:
            if self.place.rules.tables != "float32":
                run_module("jobs.compare_tables", "--run", str(self.run), "--split", "test")
            run_module("jobs.report", "--run", str(self.run))
        except ProgramError as error:
            _log.warning("%s: the version has no report", error)

    def register(self, metrics: dict[str, Any]) -> int:
        """Register the artifact and its report as the model's next version; return its number."""
        from training.fit.run import Run

        warm_from = self.champion if self.todo.is_warm else None
        seen = [] if warm_from is None else self.place.trained_on(warm_from)
        trained = sorted({*seen, *self.todo.train})
        rebuilt = {name: number for name in trained if (number := self.place.num_rebuilds(name))}
        root, report = self.place.root, self.run / REPORT_NAME
        return self.place.registry().register(
            self.place.rules.model,
            self.run / ARTIFACT_FOLDER,
            metrics={name: value for name, value in metrics.items() if isinstance(value, int | float)},
            params={
                "training": dataclasses.asdict(Run(self.run).config().optimizer),
                "tested_on": self.day,
            },
            tags={
                TRAINED_TAG: json.dumps(trained),
                **({REBUILT_TAG: json.dumps(rebuilt)} if rebuilt else {}),
                RUN_TAG: str(self.run.relative_to(root)),
                TABLES_TAG: self.place.rules.tables,
            },
            extra=[report] if report.exists() else [],
        )


def carry_out(place: RetrainFolder, verdict: dict[str, Any]) -> dict[str, Any]:
    """Promote or refuse as decided, once, so that a later rollback stays; return the verdict, marked as done."""
    registry, version = place.registry(), verdict["version"]
    if verdict["verdict"] == "promoted":
        registry.promote(place.rules.model, version)
    else:
        failed = [rule for rule in verdict["gate"]["rules"] if not rule["passed"]]
        reasons = [f"{rule['name']}: {rule['reason'] or rule['threshold']}" for rule in failed]
        registry.refuse(place.rules.model, version, reasons)
    verdict = {**verdict, "is_done": True}
    place.write(place.verdict_file(verdict["day"]), verdict)
    return verdict
