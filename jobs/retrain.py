"""Retrain once: preprocess what is new, check it, train a candidate, hold it against the champion, promote or refuse.

Every step leaves a file that says it is done, so a retraining that is killed anywhere goes on where it was when it is
started again, and one that is done does nothing. All of it is in one folder:

    partitions/DATE/     datasets, each going on with the one before     checks/DATE.json   may it be trained on?
    profiles/DATE.json   what its columns look like                      windows/DATE/      what a candidate trains on
    runs/DATE/           the candidate, its artifact in it               verdicts/DATE.json what became of it
    registry/            versions of the model                           last.json          what the last one came to
"""

import contextlib
import dataclasses
import fcntl
import json
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.dataset import MANIFEST_NAME, DatasetManifest
from features.profile import DataProfile, measure, total
from features.window import SOURCE_SPLIT, join
from jobs.command import absolute, config_parser, parse_config_arguments, run_program, write_json
from jobs.config import Config, ConfigError
from jobs.data_checks import Checks, Delivery, Result, check, order_partitions
from jobs.registry import ModelVersion, Registry
from jobs.retraining import RetrainConfig, Todo, date_key, find_partitions, plan
from pipeline.config import FilesSplit

if TYPE_CHECKING:
    from training.gate import Verdict

TRAINED_TAG, RUN_TAG = "trained_on", "run"
"""Of a version: the dates that it has seen, and the folder of its run, which the next candidate begins from."""


def main() -> int:
    parser = config_parser(
        "jobs.retrain",
        "Train on what is new and promote the model if it is no worse.",
        "python -m jobs.retrain --config mine.toml --as-of 2014-10-28",
    )
    parser.add_argument("--as-of", metavar="DATE", help="as if it were this day; without it, all there is")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    arguments, config = parse_config_arguments(parser)
    if config.retrain is None:
        raise ConfigError("config key 'retrain' is missing: see python -m jobs.retrain --help and README.md")
    retraining = Retraining(absolute(config.retrain.root), config, config.retrain, _settings(arguments))
    as_of = None if arguments.as_of is None else date_key(arguments.as_of)
    if arguments.dry_run:
        print(_describe(retraining.look(as_of)))
        return 0
    with retraining.alone():
        summary, text = retraining.run(as_of)
        write_json(retraining.root / "last.json", summary)
    print(text)
    return 0


def _settings(arguments: Namespace) -> list[str]:
    """The same config for the programs that are started from here."""
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    return [*(word for path in arguments.config for word in ("--config", path)), *overrides]


@dataclass(frozen=True)
class Retraining:
    """One log, one model, one folder."""

    root: Path
    config: Config
    rules: RetrainConfig
    settings: list[str]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder.

        Raises:
            ValueError: another retraining holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another retraining is at work in {self.root}: wait for it to end") from None
            yield

    # -------------------------------------------------------------------------------------------------------- the state

    def folder(self, kind: str, date: str) -> Path:
        return self.root / kind / date

    def note(self, kind: str, date: str) -> Path:
        """A JSON file of a date."""
        path = self.root / kind / f"{date}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def built(self) -> list[str]:
        return sorted(path.parent.name for path in self.root.glob(f"partitions/*/{MANIFEST_NAME}"))

    def stopped(self) -> dict[str, Any]:
        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in self.root.glob("checks/*.json")}
        return {date: checks for date, checks in found.items() if checks["level"] == "stop"}

    def registry(self) -> Registry:
        return Registry.open(self.rules.registry, self.root / "registry")

    def champion(self) -> ModelVersion | None:
        has_one = self.rules.registry is not None or (self.root / "registry").is_dir()
        return self.registry().champion(self.rules.model) if has_one else None

    def look(self, as_of: str | None) -> Todo:
        """What is to be done as things are."""
        champion = self.champion()
        trained = None if champion is None else json.loads(champion.tags[TRAINED_TAG])
        dates = list(find_partitions(self.rules.partitions))
        if not dates:
            raise ValueError(f"no partition is there: nothing matches {self.rules.partitions}")
        return plan(dates, as_of, self.built(), self.stopped(), trained, self.rules)

    # -------------------------------------------------------------------------------------------------------- the steps

    def run(self, as_of: str | None) -> tuple[dict[str, Any], str]:
        """All steps; returns what became of the newest day, for programs and for a person."""
        started = time.perf_counter()
        self._clean()
        files = find_partitions(self.rules.partitions)
        if dates := self.look(as_of).build:
            self.build({date: files[date] for date in dates})
        for date in self.built():
            if not self.note("checks", date).exists():
                self.check(date)
        todo = self.look(as_of)
        if todo.test is None:
            return self._nothing(as_of)
        verdict_file = self.note("verdicts", todo.test)
        if verdict_file.exists():
            return json.loads(verdict_file.read_text(encoding="utf-8")), f"{todo.test}: done before"
        window = join(
            {
                "train": [self.folder("partitions", date) for date in todo.train],
                "test": [self.folder("partitions", todo.test)],
            },
            self.folder("windows", todo.test),
        )
        self.train(todo)
        return self.decide(todo, window, started)

    def _clean(self) -> None:
        """Remove what a killed retraining left, and carry out what it had decided."""
        for leftover in self.root.glob("windows/.*"):
            shutil.rmtree(leftover)
        for path in sorted(self.root.glob("verdicts/*.json")):
            verdict = json.loads(path.read_text(encoding="utf-8"))
            if not verdict["is_done"]:
                self._carry_out(verdict)

    def _nothing(self, as_of: str | None) -> tuple[dict[str, Any], str]:
        champion = self.champion()
        serving, stopped = champion and champion.version, self.stopped()
        newest = max((date for date in self.built() if as_of is None or date <= as_of), default=None)
        if newest in stopped:
            summary = {"day": newest, "verdict": "stopped", "stopped_by": "data checks", "champion_version": serving}
            return summary, f"{newest} is not trained on: {self.note('checks', newest)} says why"
        summary = {"day": newest, "verdict": "nothing", "stopped_by": None, "champion_version": serving}
        return summary, "nothing is new: there is no day before the newest one that the champion has not seen"

    def build(self, files: Mapping[str, tuple[str, ...]]) -> None:
        """Preprocess partitions; the vocabularies of each go on with those of the newest one that was built."""
        from jobs.build_dataset import build, check, describe
        from pipeline.session import start_spark, stop_spark

        base = self._last_built()
        spark, num_bytes = None, sum(Path(path).stat().st_size for paths in files.values() for path in paths)
        try:
            for date, paths in files.items():
                pipeline = dataclasses.replace(
                    self.config.pipeline,
                    output=str(self.folder("partitions", date)),
                    base=None if base is None else str(self.folder("partitions", base)),
                    input=dataclasses.replace(self.config.pipeline.input, train=paths, valid=(), test=()),
                    split=FilesSplit(),
                )
                config = dataclasses.replace(self.config, pipeline=pipeline)
                check(config)
                spark = spark or start_spark(pipeline.spark, num_bytes=num_bytes)
                print(f"partition {date}\n{describe(build(spark, config))}", flush=True)
                base = date
        finally:
            if spark is not None:
                stop_spark(spark)

    def _last_built(self) -> str | None:
        """The partition at the end of the chain: no other goes on with it."""
        bases = {}
        for date in self.built():
            base = DatasetManifest.load(self.folder("partitions", date)).config["pipeline"].get("base")
            bases[date] = None if base is None else Path(base).name
        ends = set(bases) - set(bases.values())
        return max(ends) if ends else None

    def check(self, date: str) -> Checks:
        """Hold a partition against those before it, and keep what came of it."""
        found = self._twin(date) or self._compare(date)
        print(f"checks of {date}:\n{found.table()}", flush=True)
        write_json(self.note("checks", date), found.to_json())
        return found

    def _compare(self, date: str) -> Checks:
        folder = self.folder("partitions", date)
        manifest = DatasetManifest.load(folder)
        before = [d for d in self.built() if d < date and d not in self.stopped() and self.note("profiles", d).exists()]
        profiles = [DataProfile.load(self.note("profiles", d)) for d in before[-self.rules.window :]]
        reference = total(profiles) if profiles else None
        profile = measure(folder, manifest, SOURCE_SPLIT, None if reference is None else reference.bins)
        profile.save(self.note("profiles", date))
        return check(manifest, profile, reference, self.rules.checks)

    def _twin(self, date: str) -> Checks | None:
        """What is to be said of a partition that was delivered before under another name."""
        deliveries = [Delivery.of(d, DatasetManifest.load(self.folder("partitions", d))) for d in self.built()]
        twin = order_partitions(deliveries, [d for d in deliveries if d.name != date]).duplicates.get(date)
        if twin is None:
            return None
        return Checks((Result("duplicate", None, 1.0, None, "rows of its own", "stop", f"it has the rows of {twin}"),))

    def train(self, todo: Todo) -> None:
        """Train the candidate, or go on with it."""
        assert todo.test is not None
        run, more = self.folder("runs", todo.test), [f"training.dataset={self.folder('windows', todo.test)}"]
        champion = self.champion()
        if todo.is_warm and champion is not None:
            more.append(f"training.warm_start={champion.tags[RUN_TAG]}")
        if not (run / "metrics.json").exists():
            self._call("train", *self.settings, "--run", str(run), *(["--resume"] if run.exists() else []), *more)

    def decide(self, todo: Todo, window: DatasetManifest, started: float) -> tuple[dict[str, Any], str]:
        """Judge the candidate, register it, and promote or refuse it."""
        assert todo.test is not None
        champion, registry = self.champion(), self.registry()
        verdict, metrics = self._judge(todo.test, champion)
        version = self._register(registry, todo, champion, metrics["candidate"])
        word = "promoted" if verdict.passed else "refused"
        summary = {
            "day": todo.test,
            "verdict": word,
            "stopped_by": None if verdict.passed else "gate",
            "version": version,
            "champion_version": version if verdict.passed else champion and champion.version,
            "auc": metrics["candidate"]["auc"],
            "logloss": metrics["candidate"]["logloss"],
            "trained_on": list(todo.train),
            "train_rows": window.split("train").num_rows,
            "is_warm": todo.is_warm,
            "metrics": metrics,
            "gate": verdict.to_json(),
            "is_done": False,
            "seconds": round(time.perf_counter() - started, 1),
        }
        # Before it is carried out: killed in between, a retraining would not know any more what it had decided.
        write_json(self.note("verdicts", todo.test), summary)
        summary = self._carry_out(summary)
        head = f"{todo.test}: version {version} {word}, trained on {', '.join(todo.train)}"
        return summary, f"{verdict.table()}\n{head}, {summary['seconds']:.0f} s"

    def _carry_out(self, verdict: dict[str, Any]) -> dict[str, Any]:
        """Promote or refuse as was decided; once, as somebody may roll back later. Returns the verdict that says so."""
        registry, version = self.registry(), verdict["version"]
        if verdict["verdict"] == "promoted":
            registry.promote(self.rules.model, version)
        else:
            failed = [rule for rule in verdict["gate"]["rules"] if not rule["passed"]]
            reasons = [f"{rule['name']}: {rule['reason'] or rule['threshold']}" for rule in failed]
            registry.refuse(self.rules.model, version, reasons)
        verdict = {**verdict, "is_done": True}
        write_json(self.note("verdicts", verdict["day"]), verdict)
        return verdict

    def _judge(self, date: str, champion: ModelVersion | None) -> tuple["Verdict", dict[str, Any]]:
        """Score the newest partition with both models."""
        from training.columns import read_columns
        from training.export import load_best
        from training.gate import judge
        from training.metrics import evaluate
        from training.run import Dataset, Run

        dataset = Dataset.open(self.folder("windows", date))
        candidate = load_best(Run(self.folder("runs", date)), dataset)
        logits, labels, weights, group_ids = candidate.score("test")
        metrics, before = {"candidate": evaluate(logits, labels, weights, group_ids)}, None
        if champion is not None:
            before = load_best(Run(Path(champion.tags[RUN_TAG])), dataset).score("test")[0]
            metrics["champion"] = evaluate(before, labels, weights, group_ids)
        reader = dataset.reader("test", candidate.config)
        columns = read_columns(reader, reader.num_rows) if self.rules.segments else {}
        verdict = judge(
            logits,
            before,
            labels,
            weights,
            config=self.rules.gate,
            segments={name: columns[name] for name in self.rules.segments},
            group_ids=group_ids,
        )
        return verdict, metrics

    def _register(self, registry: Registry, todo: Todo, champion: ModelVersion | None, metrics: dict[str, Any]) -> int:
        assert todo.test is not None
        run = self.folder("runs", todo.test)
        if not (run / "artifact" / "artifact.json").exists():
            self._call("export", "--run", str(run), "--output", str(run / "artifact"))
        seen = [] if champion is None or not todo.is_warm else json.loads(champion.tags[TRAINED_TAG])
        tags = {TRAINED_TAG: json.dumps(sorted({*seen, *todo.train})), RUN_TAG: str(run)}
        return registry.register(
            self.rules.model,
            run / "artifact",
            metrics={name: value for name, value in metrics.items() if isinstance(value, int | float)},
            params={"training": dataclasses.asdict(self.config.training)["optimizer"], "tested_on": todo.test},
            tags=tags,
        )

    def _call(self, program: str, *arguments: str) -> None:
        """Run one of our programs; its Spark or Ray ends with it.

        Raises:
            ValueError: it failed; it has said why.
        """
        command = [sys.executable, "-m", f"jobs.{program}", *arguments]
        print(f"$ {' '.join(command[1:])}", flush=True)
        done = subprocess.run(command, check=False)  # noqa: S603
        if done.returncode:
            raise ValueError(f"jobs.{program} failed with exit code {done.returncode}; the champion stays")


def _describe(todo: Todo) -> str:
    lines = [f"would build and check {', '.join(todo.build) or 'nothing'}"]
    if todo.test is None:
        lines.append("would train nothing" + (" before that is checked" if todo.build else ": nothing is new"))
    else:
        start = "from the champion" if todo.is_warm else "from nothing"
        lines.append(f"would train {start} on {', '.join(todo.train)} and compare on {todo.test}, if checks allow it")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
