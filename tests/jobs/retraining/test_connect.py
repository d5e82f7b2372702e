"""A retraining looks for its Ray cluster before it builds a day."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import retrain
from jobs.launch.connection import ADDRESS
from tests.jobs.test_retrain import CONFIG, write_day


def test_a_dead_address_is_told_before_a_day_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.format(folder=tmp_path) + "retries = 0\n", encoding="utf-8")
    write_day(tmp_path, 1)
    monkeypatch.setenv(ADDRESS, "127.0.0.1:1")
    code, _, errors = run_here(retrain.main, "--config", tmp_path / "c.toml")
    assert code == 1 and "RAY_ADDRESS=127.0.0.1:1: nothing answers there" in errors, errors
    ended = json.loads((tmp_path / "retrain" / "last.json").read_text())
    assert (ended["step"], ended["verdict"]) == ("connect", "failed")
    assert not list((tmp_path / "retrain").glob("partitions/*"))
