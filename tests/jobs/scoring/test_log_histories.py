"""Raw logs scored by a model whose histories are built: a row sees what a store of its user's events gives."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch.distributed as dist
from pydantic import TypeAdapter
from safetensors.torch import load_file

from features.disk.artifact import WEIGHTS_NAME
from features.disk.dataset import DatasetError, DatasetManifest
from features.disk.trained_on import TrainedOn
from features.dwell import dwell_seconds
from features.history import DwellFilter, History, UserEvent, UserHistory
from features.log_format import LogError
from features.raw_block import RawBlock, Slices
from jobs import score
from jobs.cli.config import Config, parse_config
from jobs.launch.dataset_build import run_build
from jobs.scoring.score_folder import plan_job, score_folder
from pipeline.build import histories
from pipeline.build.exchange import read_block
from pipeline.build.log_events import part_finisher, write_log_users
from tests.pipeline.build.test_histories import LENGTH, features, has_values, make_log, write_log
from training.config import DINHistory, MLPEncoder, ModelConfig, TrainingConfig
from training.data.opened_dataset import Dataset
from training.fit.run import Run, train_rank
from training.ship.export import export
from training.ship.predict import Predictor

HISTORY = History("user", lag="20s")
Row = dict[str, Any]


class Days(NamedTuple):
    """Three days of a log, datasets of the first two, and a model of the first."""

    rows: list[list[Row]]
    datasets: list[Path]
    artifact: Path


@pytest.fixture(scope="module")
def days(spark, tmp_path_factory: pytest.TempPathFactory) -> Days:
    return make_days(spark, tmp_path_factory.mktemp("days"))


def make_days(spark, folder: Path, **history: Any) -> Days:
    rows: list[list[Row]] = [list(make_log(30 + day, 300, first=300 * day, seconds=600)) for day in range(3)]
    datasets, configs = [], []
    for day in range(2):
        dataset = folder / f"dataset-{day}"
        pipeline: Row = {"output": str(dataset), "input": {"train": write_log(folder / f"{day}.csv", rows[day])}}
        pipeline |= {"base": str(datasets[-1])} if datasets else {}
        pipeline |= {"dedupe": ["row"]}  # no row is twice
        given = {
            "features": features(**{"splits": ["train"], **history}),
            "pipeline": pipeline,
            "training": {"dataset": str(dataset)},
        }
        configs.append(parse_config(given))
        run_build(spark, configs[-1])
        datasets.append(dataset)
    return Days(rows, datasets, train(folder, Dataset.open(datasets[0]), configs[0]))


def train(folder: Path, dataset: Dataset, config: Config) -> Path:
    """A model whose scores depend on histories."""
    model = ModelConfig(
        embedding_dim=8,
        embedding_init_std=0.5,
        easy=MLPEncoder((8,)),
        hard=MLPEncoder((16,)),
        sequences={"clicks": DINHistory(hidden_units=(8,))},
    )
    training = TrainingConfig(dataset=str(dataset.path), model=model, global_batch_size=64, max_epochs=2)
    run = Run(folder / "run")
    run.write(
        "config.json", {**config.to_dict(), "training": TypeAdapter(TrainingConfig).dump_python(training, mode="json")}
    )
    run.write_dataset(TrainedOn.of(dataset.path, dataset.manifest).to_json())
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        train_rank(run, training)
    finally:
        dist.destroy_process_group()
    export(run, folder / "artifact")
    return folder / "artifact"


def expected(days: Days, before: list[Row], scored: list[Row], history: History = HISTORY) -> list[float]:
    """Probabilities of rows that carry what a store gives; labels of ``scored`` count where they have any."""
    stores: dict[str, UserHistory] = {}
    for number, row in enumerate([*before, *scored]):
        store = stores.setdefault(row["user"], UserHistory(history))
        if has_values(row) and row.get("click") == "1":
            dwell = float(row["dwell"]) if history.dwell and row["dwell"] else None
            store.add(UserEvent(int(row["time"]), number, row, dwell))
    seen = [stores[row["user"]].at(int(row["time"]), LENGTH) for row in scored]
    rows = [with_history(row, events) for row, events in zip(scored, seen, strict=True)]
    for row, events in zip(rows, seen, strict=True):
        row["clicks__dwell"] = [event.dwell for event in events]
    assert sum(len(row["clicks__item"]) for row in rows) > 50 or not before
    return Predictor.load(days.artifact).predict(rows).tolist()


def with_history(row: Row, events: list[UserEvent]) -> Row:
    lists = {f"clicks__{part}": [event.value[part] for event in events] for part in ("item", "cate", "time")}
    return {**row, **lists}


def without(rows: list[Row], *names: str) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def score_here(run_here, days: Days, inputs: list[str], output: Path, *more: object) -> tuple[int, list[float], str]:
    """The local engine, in this process: exit code, probabilities, what stderr says."""
    code, _, said = run_here(score.main, "--artifact", days.artifact, "--input", *inputs, "--output", output, *more)
    return code, read_scores(output) if output.exists() else [], said


def read_scores(path: Path) -> list[float]:
    with path.open(newline="") as file:
        return [float(row["probability"] or "nan") for row in csv.DictReader(file)]


def test_rows_see_what_came_before_and_earlier_rows_of_the_log(
    days: Days, spark, run_here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "_ROWS_A_TASK", 100)
    first, second, third = days.rows
    logs = {
        "known": (second, first, days.datasets[0]),
        "unlabelled": (without(second, "click", "event"), first, days.datasets[0]),
        "later vocabulary": (third, [*first, *second], days.datasets[1]),
        "alone": (first, [], None),
    }
    for name, (scored, before, base) in logs.items():
        log = write_log(tmp_path / f"{name}.csv", scored)
        more = [] if base is None else ["--history", base]
        code, found, said = score_here(run_here, days, [log], tmp_path / f"{name}.scores", *more)
        assert code == 0, said
        assert found == pytest.approx(expected(days, before, scored), abs=1e-6), name
        job = plan_job(str(days.artifact), [log], str(tmp_path / name), base=None if base is None else str(base))
        score_folder(spark, job, portion_bytes=4_000)
        assert read_scores(tmp_path / name / f"{name}.csv") == pytest.approx(found, abs=1e-6), name
    known, unlabelled = (read_scores(tmp_path / f"{name}.scores") for name in ("known", "unlabelled"))
    assert known != pytest.approx(unlabelled, abs=1e-3)


def test_what_a_build_leaves_out_is_an_event_of_a_log_and_that_is_said(days: Days, run_here, tmp_path: Path) -> None:
    rows = days.rows[0]
    log, output = write_log(tmp_path / "log.csv", [*rows[:100], *rows[:100]]), tmp_path / "scores.csv"
    code, said, _ = run_here(score.main, "--artifact", days.artifact, "--input", log, "--output", output)
    assert code == 0 and read_scores(output) == pytest.approx(expected(days, [], [*rows[:100], *rows[:100]]), abs=1e-6)
    told = (
        "histories made of the log's rows: clicks; history.splits of clicks and pipeline.dedupe leave none of the log's"
    )
    assert told in said and told in (tmp_path / "scores.csv.json").read_text()


def test_rows_of_a_log_are_events_of_a_history_of_another_split(days: Days, tmp_path: Path) -> None:
    predictor = Predictor.load(days.artifact)
    schema, rows = predictor.schema, days.rows[0]
    columns = {name: pa.array([row[name] or None for row in rows]) for name in rows[0]}
    places = np.arange(len(rows))
    block = RawBlock(columns, places, places, Slices(np.empty(0, np.uint8), places, places))
    found = []
    for splits in (("train",), ("valid",)):
        [clicks] = schema.sequence
        assert clicks.history is not None
        own = replace(schema, sequence=(replace(clicks, history=replace(clicks.history, splits=splits)),))
        write_log_users(tmp_path, splits[0], own, part_finisher(own, predictor.learnt), block, 0)
        found.append(read_block(tmp_path, f"events-0-{splits[0]}"))
    assert found[0].equals(found[1]) and len(found[0]) > 50


def test_dwell_times_weigh_the_events_of_a_log_that_is_scored(spark, run_here, tmp_path: Path) -> None:
    days = make_days(spark, tmp_path, dwell={"column": "dwell", "min_seconds": 0}, dwell_weights=True)
    first, second, _ = days.rows
    log = write_log(tmp_path / "second.csv", second)
    code, found, said = score_here(run_here, days, [log], tmp_path / "scores", "--history", days.datasets[0])
    assert code == 0, said
    history = History("user", lag="20s", dwell=DwellFilter("dwell", 0))
    assert found == pytest.approx(expected(days, first, second, history), abs=1e-6)
    job = plan_job(str(days.artifact), [log], str(tmp_path / "folder"), base=str(days.datasets[0]))
    score_folder(spark, job, portion_bytes=4_000)
    assert read_scores(tmp_path / "folder" / "second.csv") == pytest.approx(found, abs=1e-6)
    unknown = [{**row, "dwell": ""} for row in second]
    code, other, said = score_here(
        run_here, days, [write_log(tmp_path / "u.csv", unknown)], tmp_path / "u", "--history", days.datasets[0]
    )
    assert code == 0 and other != pytest.approx(found, abs=1e-4), said
    weights = load_file(days.artifact / WEIGHTS_NAME)["dwell_weights.clicks"]
    cut_off = Dataset.open(days.datasets[0]).dwell_cut_offs["clicks"]
    assert weights.max() == weights[cut_off] > weights[cut_off - 1] and 30 < dwell_seconds(cut_off) < 40


def test_files_of_a_log_see_each_other_and_malformed_rows_are_no_events(days: Days, run_here, tmp_path: Path) -> None:
    rows = days.rows[0]
    bad = [{**row, "time": "soon", "click": "1"} for row in rows[:5]]
    write_log(tmp_path / "a.csv", [*bad, *rows[:200]])
    write_log(tmp_path / "b.csv", rows[200:])
    inputs = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    code, _, _ = score_here(run_here, days, inputs, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert code == 1 and [row["error"] for row in found[:5]] == ["timestamp 'time' is missing or unreadable"] * 5
    probabilities = [float(row["probability"]) for row in found[5:]]
    assert probabilities == pytest.approx(expected(days, [], rows), abs=1e-6)


def test_a_log_that_carries_its_histories_is_used_as_it_is(days: Days, run_here, tmp_path: Path) -> None:
    rows = []
    for row in days.rows[1]:
        before = {"item": "i3", "cate": row["cate"], "time": str(int(row["time"]) - 30)}
        rows.append(with_history(row, [UserEvent(int(before["time"]), 0, before)]))
    texts = [{**row, **{name: " ".join(row[name]) for name in row if name.startswith("clicks__")}} for row in rows]
    wanted = Predictor.load(days.artifact).predict(rows).tolist()
    _, found, _ = score_here(run_here, days, [write_log(tmp_path / "log.csv", texts)], tmp_path / "out.csv")
    assert found == pytest.approx(wanted, abs=1e-6)
    part = write_log(tmp_path / "part.csv", without(texts, "clicks__time"))
    words = r"part\.csv has a part of the columns of sequence 'clicks', and lacks 'clicks__time'"
    with pytest.raises(LogError, match=words):
        score_folderless(days, part, tmp_path)


def score_folderless(days: Days, log: str, tmp_path: Path, *more: str) -> None:
    """The local engine as a function, whose errors are not printed."""
    from argparse import Namespace

    from jobs.scoring.local_engine import score_here as run

    base = more[0] if more else None
    run(Namespace(artifact=str(days.artifact), registry="", input=[log], output=str(tmp_path / "x.csv"), history=base))


@pytest.mark.parametrize(
    ("lacking", "word"),
    [
        (("click",), "nothing says what the histories of sequence 'clicks' are: give a log with column 'click'"),
        (("user",), r"log\.csv has no column 'user', without which the history 'clicks' of a row is not known: add it"),
    ],
)
def test_what_histories_need_is_said(days: Days, tmp_path: Path, lacking: tuple[str, ...], word: str) -> None:
    log = write_log(tmp_path / "log.csv", without(days.rows[1], *lacking))
    with pytest.raises(LogError, match=word):
        score_folderless(days, log, tmp_path)


def test_histories_of_other_ids_are_refused(days: Days, spark, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", days.rows[1][:50])
    output = str(tmp_path / "other")
    given = {
        "features": features(splits=["train"]),
        "pipeline": {"output": output, "input": {"train": log}},
        "training": {"dataset": output},
    }
    run_build(spark, parse_config(given))
    assert DatasetManifest.load(output).histories is not None
    with pytest.raises(DatasetError, match="was built with other vocabularies"):
        score_folderless(days, log, tmp_path, output)
