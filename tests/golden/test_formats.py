"""What an earlier version wrote opens: datasets, runs, artifacts and retrainings of each format generation."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.disk.dataset import DatasetManifest
from jobs import evaluate, status
from jobs.registry.registry import Registry
from tests.golden.frozen import ARTIFACTS, GENERATIONS, copy_frozen
from tests.golden.losses import COMMON, config_of, events, one_rank, train
from training.fit.run import Run
from training.ship.predict import Predictor

ROOT = Path(__file__).parents[2]
FROZEN = sorted(path.name for path in GENERATIONS.glob("v*") if path.is_dir())
DAYS = [f"2024010{day}" for day in range(1, 6)]
STEPS_AN_EPOCH = 20


@pytest.fixture(scope="module", params=FROZEN)
def frozen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that tests leave as it is."""
    return copy_frozen(request.param, tmp_path_factory.mktemp("frozen") / request.param)


@pytest.fixture
def alone(tmp_path: Path):
    with one_rank(tmp_path):
        yield


def test_nothing_frozen_names_a_machine(frozen: Path) -> None:
    for path in (path for path in frozen.rglob("*") if path.is_file()):
        content = path.read_bytes().replace(str(frozen).encode(), b"")
        assert not [name for name in (b"/work/", b"/home/", b"/root") if name in content], path
    kept = GENERATIONS / frozen.name
    assert sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) < 1_500_000


def test_a_dataset_is_trained_on(frozen: Path, alone: None, tmp_path: Path) -> None:
    manifest = DatasetManifest.load(frozen / "dataset")
    assert {name: split.num_rows for name, split in manifest.splits.items()} == {"train": 633, "valid": 80, "test": 80}
    assert (manifest.num_input_rows, manifest.rejected.num_rows, manifest.num_duplicates) == (806, 7, 6)
    metrics = train(tmp_path / "run", config_of(frozen, COMMON))
    assert (metrics["train"]["epochs"], metrics["train"]["rows"]) == (1, 633)
    # The frozen run's first epoch was this one, up to what other instructions and later models make of it.
    assert events(tmp_path / "run", "evaluation")[0]["train_loss"] == pytest.approx(
        events(frozen / "run", "evaluation")[0]["train_loss"], rel=0.02
    )


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_run_evaluates_as_it_did(frozen: Path, run_here: Callable[..., Any], split: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(frozen / "run", tmp_path / "run"))
    before = Run(run).read(f"evaluation/{split}.json")
    code, out, error = run_here(evaluate.main, "--run", run, "--split", split)
    assert code == 0, error
    found = json.loads(out.splitlines()[-1])
    assert {name: found[name] for name in before["metrics"]} == pytest.approx(before["metrics"], abs=1e-6)
    assert Run(run).read(f"evaluation/{split}.json")["curves"].keys() == before["curves"].keys()
    if split == "valid":  # and as it did in training
        trained = Run(frozen / "run").read("metrics.json")["valid"]
        assert {name: found[name] for name in trained} == pytest.approx(trained, abs=1e-6)


def test_a_run_goes_on(frozen: Path, alone: None, tmp_path: Path) -> None:
    run = Path(shutil.copytree(frozen / "run", tmp_path / "run"))
    before = events(run, "evaluation")
    metrics = train(run, config_of(frozen, ("training.max_epochs=3",)), resume=True)
    assert (metrics["train"]["epochs"], metrics["train"]["steps"]) == (3, 3 * STEPS_AN_EPOCH)
    evaluations = events(run, "evaluation")
    assert evaluations[:2] == before and len(evaluations) == 3
    undisturbed = tmp_path / "undisturbed"
    train(undisturbed, config_of(frozen, ("training.max_epochs=3",)))
    assert evaluations[2]["train_loss"] == pytest.approx(events(undisturbed, "evaluation")[2]["train_loss"], rel=0.02)


def test_a_run_is_a_warm_start(frozen: Path, alone: None, tmp_path: Path) -> None:
    losses = {}
    for start in ("cold", "warm"):
        more = (f"training.warm_start={frozen}/run",) if start == "warm" else ()
        metrics = train(tmp_path / start, config_of(frozen, (*COMMON, *more)))
        losses[start] = metrics["train"]["loss"]
    assert losses["warm"] < losses["cold"] - 0.02


@pytest.mark.parametrize(("artifact", "tables"), zip(ARTIFACTS, ("float32", "int8"), strict=True))
def test_an_artifact_scores_as_it_did(frozen: Path, artifact: str, tables: str) -> None:
    scored = [json.loads(line) for line in (frozen / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    predictor = Predictor.load(frozen / artifact)  # which replays its golden rows
    expected = [row[tables] for row in scored]
    np.testing.assert_allclose(predictor.predict([row["row"] for row in scored]), expected, rtol=0, atol=1e-6)
    assert len(set(expected)) == 20


# ----------------------------------------------------------------------------------------------------------- retraining


def configs(frozen: Path) -> list[str]:
    return ["--config", str(frozen / "config.toml"), "--config", str(frozen / "retrain.toml")]


def test_a_retraining_is_read(frozen: Path, run_here: Callable[..., Any], tmp_path: Path) -> None:
    code, out, error = run_here(status.main, *configs(frozen), "--json", "--output", tmp_path / "status.html")
    assert code == 0, error
    found = json.loads(out)
    assert found["notes"] == []
    assert (found["champion"]["version"], found["champion"]["trained_on"]) == (2, DAYS[:2])
    assert [(r["day"], r["verdict"], r["champion_version"]) for r in found["retrainings"]] == [
        (DAYS[2], "promoted", 1),
        (DAYS[3], "promoted", 2),
    ]
    states = {partition["name"]: partition["state"] for partition in found["partitions"]}
    assert states == dict(zip(DAYS, ["trained on", "trained on", "checked", "checked", "not yet seen"], strict=True))
    assert found["next"] == {"build": [DAYS[4]], "train": [DAYS[2]], "valid": DAYS[3], "test": DAYS[4], "is_warm": True}
    assert set(found["drift"][DAYS[3]]) >= {"user", "price"}
    assert "<html" in (tmp_path / "status.html").read_text(encoding="utf-8")


def test_a_champion_is_fetched_and_scores(frozen: Path) -> None:
    registry = Registry.open(None, frozen / "retrain" / "registry", must_exist=True)
    champion = registry.champion("ctr")
    assert champion is not None and [version.version for version in registry.list("ctr")] == [2, 1]
    assert [promotion.version for promotion in registry.history("ctr")] == [1, 2]
    predictor = Predictor.load(registry.fetch("models:/ctr@champion"))
    scored = [json.loads(line) for line in (frozen / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = predictor.predict([row["row"] for row in scored])
    assert np.isfinite(scores).all() and len(set(scores)) > 10


@pytest.mark.slow
def test_one_more_day_is_retrained(frozen: Path, tmp_path: Path) -> None:
    own = copy_frozen(frozen.name, tmp_path / "own")
    command = [sys.executable, "-m", "jobs.retrain", *configs(own)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = json.loads((own / "retrain" / "last.json").read_text(encoding="utf-8"))
    assert (last["day"], last["trained_on"], last["is_warm"]) == (DAYS[4], [DAYS[2]], True)
    assert (last["verdict"], last["version"]) == ("promoted", 3), done.stdout
    registry = Registry.open(None, own / "retrain" / "registry", must_exist=True)
    champion = registry.champion("ctr")
    assert champion is not None and champion.version == 3
    assert json.loads(champion.tags["trained_on"]) == DAYS[:3]
    before, newest = (DatasetManifest.load(own / "retrain" / "partitions" / day) for day in DAYS[3:])
    learnt = [
        part.load_learnt(own / "retrain" / "partitions" / day)
        for part, day in zip((before, newest), DAYS[3:], strict=True)
    ]
    assert learnt[1].extends(learnt[0])
