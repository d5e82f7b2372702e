"""Losses are what they were: bit for bit on a machine that was recorded, to a tolerance elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.losses import (
    LOGLOSS_TOLERANCES,
    LOSS_TOLERANCES,
    LOSSES,
    METRIC_TOLERANCE,
    NUM_LOSSES,
    RUNS,
    identity,
    record,
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(LOSSES.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return record(tmp_path_factory.mktemp("losses"))


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_as_it_was(golden: dict[str, Any], found: dict[str, Any], run: str) -> None:
    if identity() in golden["exact"]:
        exact = golden["exact"][identity()][run]
        assert (found[run]["losses"], found[run]["weights"]) == (exact["losses"], exact["weights"])
        metrics, recorded = (
            {name: float.fromhex(text) for name, text in values["valid"].items()} for values in (found[run], exact)
        )
        assert metrics == pytest.approx(recorded, rel=METRIC_TOLERANCE)
    expected = golden["portable"][run]
    assert numbers(found[run]["losses"]) == pytest.approx(numbers(expected["losses"]), rel=LOSS_TOLERANCES[run])
    ours, theirs = (float.fromhex(values["valid"]["logloss"]) for values in (found[run], expected))
    assert ours == pytest.approx(theirs, rel=LOGLOSS_TOLERANCES[run])


def test_what_is_recorded_is_whole(golden: dict[str, Any]) -> None:
    for recorded in (golden["portable"], *golden["exact"].values()):
        assert list(recorded) == list(RUNS)
        for run in recorded.values():
            losses = numbers(run["losses"])
            assert len(set(losses)) == NUM_LOSSES and all(0 < loss < 3 for loss in losses)


def test_another_seed_or_learning_rate_is_noticed(golden: dict[str, Any], tmp_path: Path) -> None:
    changes = {"seed": ("training.seed=2024",), "rate": ("training.optimizer.learning_rate=0.01001",)}
    expected = numbers(golden["portable"]["fused"]["losses"])
    for run in record(tmp_path, changes).values():
        assert numbers(run["losses"]) != pytest.approx(expected, rel=LOSS_TOLERANCES["fused"])


def numbers(texts: list[str]) -> list[float]:
    return [float.fromhex(text) for text in texts]
