"""Positions in an epoch, and the dataset a run belongs to: what goes on, what is refused, and what is said."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from features.disk.artifact import ArtifactError
from features.disk.dataset import DatasetManifest
from jobs import attribute, compare_tables, evaluate, export
from jobs.cli.config import load_config
from jobs.cli.errors import ConfigError
from jobs.launch import run_guard
from jobs.pages.report_files import read_run
from jobs.pages.report_page import render_report
from tests.features.test_fingerprint import TINY_VERSION_1, age
from tests.stand_ins.tiny_dataset import write_tiny_dataset
from tests.stand_ins.tiny_model import train_tiny
from tests.training.fit.test_run import fit_until
from training.config import TrainingConfig
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.data.row_order import RowOrder
from training.fit.position import PositionError
from training.fit.run import Run, find_warm_start, train_rank
from training.model.embedding import FieldEmbedding
from training.sharding import checkpoint
from training.ship.export import load_best
from training.ship.predict import Predictor

ROOT = Path(__file__).parents[3]
SETTINGS = """
[pipeline]
output = "unused"
[training]
from_data = []
dataset = "{dataset}"
max_epochs = 3
global_batch_size = 32
evaluation_batch_size = 32
reader.num_streams = 4
checkpoint.every_steps = 4
[training.model]
embedding_dim = 8
easy.hidden_units = [8]
hard.hidden_units = [16, 8]
"""
INSIDE, AT_END = 4, 6
"""Steps of checkpoints inside the first epoch and at its end, of 192 rows in batches of 32."""

Begin = Callable[..., tuple[Run, Path]]


@pytest.fixture
def begin(tmp_path: Path, one_rank: None) -> Begin:
    """``begin(step)``: a run interrupted after a step's checkpoint, its dataset in ``dataset``; and its config file."""
    from tests.stand_ins.tiny_dataset import TINY_FEATURES

    def make(step: int | None) -> tuple[Run, Path]:
        path, run = tmp_path / "tiny.toml", Run(tmp_path / "run")
        write_tiny_dataset(tmp_path / "dataset")
        path.write_text(TINY_FEATURES + SETTINGS.format(dataset=tmp_path / "dataset"))
        run.path.mkdir()
        fit_until(run, prepare(run, path, resume=False), step)
        return run, path

    return make


def prepare(run: Run, path: Path, *overrides: str, resume: bool = True) -> TrainingConfig:
    """What jobs.train does before any worker starts."""
    return run_guard.prepare_run(run.path, load_config([str(path)], list(overrides)), resume=resume).training


def rebuild(path: Path, **options: Any) -> None:
    """Other rows of the same vocabularies, in the same folder."""
    write_tiny_dataset(path.parent / "dataset", **{"seed": 9, **options})


def said_by_the_guard(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == run_guard.__name__]


def warnings(run: Run) -> list[str]:
    events = map(json.loads, run.history.read_text().splitlines())
    return [event["message"] for event in events if event["event"] == "warning"]


# ---------------------------------------------------------------------------------------------------- inside an epoch


def test_other_rows_inside_an_epoch_are_refused(begin: Begin) -> None:
    run, path = begin(INSIDE)
    config, before = prepare(run, path), run.read("dataset.json")
    rebuild(path)
    words = [sys.executable, "-m", "jobs.train", "--config", str(path), "--run", str(run.path), "--resume"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "step 4 of epoch 1) the rows were 192 of train (fingerprint " in done.stderr
    assert "or start a new --run" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(PositionError, match=r"and are 192 of train \(fingerprint"):
        train_rank(run, config)  # as after a worker's death, when nothing is prepared anew
    assert run.read("dataset.json") == before
    write_tiny_dataset(path.parent / "dataset")  # as it was
    assert train_rank(run, prepare(run, path))["train"]["steps"] == 18 and not warnings(run)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("training.reader.shuffle=false", PositionError, r"training\.reader\.shuffle was true and is false\. Set"),
        ("training.reader.shuffle_row_groups=3", PositionError, r"shuffle_row_groups was 2 and is 3\. Set"),
        ("training.reader.num_streams=8", ConfigError, r"cannot change training\.reader\.num_streams"),
        ("training.seed=1", ConfigError, r"cannot change training\.seed"),
        ("training.global_batch_size=64", ConfigError, r"cannot change training\.global_batch_size"),
        ('features.sparse=[{name="user",encoding={kind="hash",num_buckets=50}}]', ValueError, "another feature schema"),
    ],
)
def test_another_order_inside_an_epoch_is_refused(begin: Begin, override: str, error: Any, message: str) -> None:
    run, path = begin(INSIDE)
    with pytest.raises(error, match=message):
        prepare(run, path, override)


def test_what_no_batch_depends_on_may_change(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    run, path = begin(INSIDE)
    same = ("num_workers=2", "reader.prefetch_batches=3", "evaluation_batch_size=8", "reader.cache_bytes=99")
    prepare(run, path, *(f"training.{setting}" for setting in same))
    assert said_by_the_guard(caplog) == []


def test_each_field_of_an_order_is_compared(begin: Begin) -> None:
    run, path = begin(INSIDE)
    order = RowOrder.of_training(DatasetManifest.load(path.parent / "dataset"), prepare(run, path))
    assert RowOrder.from_json(json.loads(json.dumps(order.to_json()))) == order
    assert order.differences(order) == []
    for field in fields(RowOrder):
        value = getattr(order, field.name)
        other = {bool: not value, str: "other"}.get(type(value), 77)
        assert len(order.differences(replace(order, **{field.name: other}))) == 1, field.name
    reader = Reader(Dataset.open(path.parent / "dataset"), "train", prepare(run, path))
    assert (order.num_rows, order.shuffle, order.seed) == (reader.num_rows, reader.shuffle, reader.seed)


def test_an_old_checkpoint_goes_on_with_a_word(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    run, path = begin(INSIDE)
    file = run.checkpoints / "step=000000004" / "checkpoint.json"
    meta = json.loads(file.read_text())
    del meta["progress"]["order"]
    file.write_text(json.dumps(meta))
    config = prepare(run, path)
    [said] = said_by_the_guard(caplog)
    assert said.startswith("checkpoint") and "cannot be checked" in said
    train_rank(run, config)
    [warning] = warnings(run)
    assert "has seen 4 steps of" in warning
    last = checkpoint.newest(run.checkpoints)
    assert last is not None and last.progress["order"]["num_rows"] == 192


# -------------------------------------------------------------------------------------------------- at an epoch's end


def test_other_rows_at_an_epochs_end_go_on_with_a_word(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    run, path = begin(AT_END)
    rebuild(path, train=((64,), (32,)))
    config = prepare(run, path, "training.reader.shuffle=false")
    other, order = said_by_the_guard(caplog)
    assert "is not the dataset that" in other and "train has 96 rows" in other
    assert order.startswith("from epoch 2 on, training reads another order of rows: the rows were 192 of train")
    assert "training.reader.shuffle was true and is false" in order
    assert train_rank(run, config)["train"]["steps"] == AT_END + 2 * 3
    assert any("from epoch 2 on" in warning for warning in warnings(run))
    assert run.trained_on().rows["train"].num_rows == 96


# ------------------------------------------------------------------------------------------------ what the run was of


def said(error: str) -> str:
    """What a program said, without its remarks on a model of noise."""
    return "".join(line for line in error.splitlines(keepends=True) if not line.startswith("warning: it "))


def test_another_dataset_than_the_runs_is_said(begin: Begin, run_here: Any) -> None:
    run, path = begin(None)
    code, out, error = run_here(evaluate.main, "--run", run.path)
    assert (code, said(error)) == (0, "")
    data = json.loads(out.splitlines()[-1])["data"]
    assert data["is_own"] is True and data["rows"] == data["trained_on"]["rows"] == 20
    rebuild(path, seed=0, test=((9,),))
    code, out, error = run_here(evaluate.main, "--run", run.path)
    assert code == 0 and "warning: " in error
    assert "test has 9 rows (fingerprint " in error and "where the run's dataset had 20 rows" in error
    data = json.loads(out.splitlines()[-1])["data"]
    assert (data["is_own"], data["rows"], data["trained_on"]["rows"]) == (False, 9, 20)
    assert run.read("evaluation/test.json")["data"] == data
    code, out, error = run_here(evaluate.main, "--run", run.path, "--dataset", path.parent / "dataset")
    assert (code, said(error)) == (0, "") and json.loads(out.splitlines()[-1])["data"] == data  # named, so intended


def test_each_program_says_that_the_runs_dataset_is_another_now(begin: Begin, run_here: Any, tmp_path: Path) -> None:
    run, path = begin(None)
    assert "is not what this run was trained on" not in render_report(read_run(run.path))
    rebuild(path, seed=0, test=((9,),))
    log = tmp_path / "made.csv"
    log.write_text("user,genres,device,age,row,price\nu,a|b,mobile,33,1,2.5\n")
    programs = {
        attribute.main: ("--split", "test", "--repeats", 1),
        compare_tables.main: ("--split", "test", "--seconds", 0),
        export.main: ("--output", tmp_path / "artifact", "--golden-input", log),
    }
    for program, more in programs.items():
        code, out, error = run_here(program, "--run", run.path, *more)
        assert code == 0 and error.startswith(f"warning: {path.parent / 'dataset'} is not what {run.path} was trained")
        assert "test has 9 rows (fingerprint " in error and len(error.splitlines()) == 1, program.__module__
        if program is not export.main:
            assert json.loads(out.splitlines()[-1])["data"]["is_own"] is False
            assert run_here(program, "--run", run.path, "--dataset", path.parent / "dataset", *more)[2] == ""
    files = read_run(run.path)
    assert files.attribution["data"] == files.tables["data"]
    assert "is not what this run was trained on: test has 9 rows (fingerprint " in render_report(files)
    assert run_here(evaluate.main, "--run", run.path)[0] == 0
    words = "test was scored on another dataset, 9 rows (fingerprint "
    assert words in render_report(read_run(run.path)) and "trained on had 20 rows" in render_report(read_run(run.path))


# ------------------------------------------------------------------------------------------------- a model's choices


def test_a_model_pools_as_its_config_says(begin: Begin) -> None:
    run, path = begin(INSIDE)
    text = path.read_text().replace("max_length = 3", 'max_length = 3\npooling = "sum"')
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"--resume cannot change features\.sparse\.genres\.pooling"):
        prepare(run, path)
    config, other = load_config([str(path)]), Run(path.parent / "other")
    other.path.mkdir()
    prepare(other, path, resume=False)
    train_rank(other, config.training, schema=config.features)  # of the same dataset, whose schema says "mean"
    assert Dataset.open(config.training.dataset).manifest.schema.sparse[1].pooling == "mean"
    best = load_best(other)
    [embedding] = (part for part in best.model.modules() if isinstance(part, FieldEmbedding))
    assert "genres" not in embedding.mean_pooled
    evaluated = other.read("evaluation/valid.json")["metrics"]["logloss"]
    from training.judge.metrics import evaluate as compute

    assert compute(best.score("valid"))["logloss"] == pytest.approx(evaluated, abs=1e-9)


# ---------------------------------------------------------------------------------------- what earlier versions wrote


def make_old(run: Run, dataset: Path) -> None:
    """A run as a version left it that had fingerprints of version 1 and kept no rows."""
    found = run.read("dataset.json")
    run.write(
        "dataset.json",
        {
            "dataset": str(dataset),
            "schema_fingerprint": TINY_VERSION_1,
            "learnt_fingerprint": found["learnt_fingerprint"],
        },
    )


def test_an_old_dataset_trains_and_an_old_run_goes_on_and_warms(
    begin: Begin, run_here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = begin(AT_END)
    dataset = path.parent / "dataset"
    age(dataset)
    make_old(run, dataset)
    config = prepare(run, path)
    assert capsys.readouterr().err == ""
    make_old(run, dataset)
    assert train_rank(run, config)["train"]["steps"] == 18
    warm = find_warm_start(replace(config, warm_start=str(run.path)), Dataset.open(dataset))
    assert warm is not None and warm.step in (6, 12, 18)
    code, out, error = run_here(evaluate.main, "--run", run.path)
    assert (code, said(error)) == (0, "") and json.loads(out.splitlines()[-1])["data"]["is_own"] is None


def test_an_old_artifact_scores_the_same(tmp_path: Path) -> None:
    artifact = train_tiny(tmp_path, seed=1)
    path = artifact / "artifact.json"
    description = json.loads(path.read_text())
    assert description["trained_on"]["rows"]["train"]["num_rows"] == 192
    old = {k: v for k, v in description.items() if k not in ("fingerprint_version", "trained_on")}
    path.write_text(json.dumps({**old, "schema_fingerprint": TINY_VERSION_1}))
    Predictor.load(artifact)
    path.write_text(json.dumps(old))
    with pytest.raises(ArtifactError, match="another feature schema"):
        Predictor.load(artifact)
    path.write_text(json.dumps({**description, "fingerprint_version": 3}))
    with pytest.raises(ArtifactError, match="was made by a newer version"):
        Predictor.load(artifact)
