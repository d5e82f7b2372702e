"""jobs.plan as a user runs it: a terabyte over 64 ranks, what is written, what is refused and what would fit."""

import functools
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.disk.dataset import DatasetManifest
from jobs import plan
from jobs.cli.argument_types import num_bytes
from tests.stand_ins.tiny_dataset import TINY_FEATURES

ROOT = Path(__file__).parents[2]
TERABYTE = ROOT / "jobs/configs/plans/criteo_1tb.toml"
CONFIG = (
    TINY_FEATURES
    + """\
[pipeline]
output = "unused"
[training]
model.embedding_dim = 8
"""
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_here: Callable[..., tuple[int, str, str]]) -> Run:
    return functools.partial(run_here, plan.main)


def write_config(folder: Path, dataset: Path) -> Path:
    path = folder / "tiny.toml"
    path.write_text(f'{CONFIG}dataset = "{dataset}"\n')
    return path


def test_a_terabyte_over_64_ranks(tmp_path: Path):
    cluster = ("--world-size", "64", "--device-memory", "80GiB")
    job = subprocess.run(
        [sys.executable, "-m", "jobs.plan", "--config", TERABYTE, *cluster, "--output", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert job.returncode == 0, job.stderr
    assert job.stderr == ""
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 << 20  # KiB, of the largest child so far
    found = json.loads((tmp_path / "plan.json").read_text())
    weights = sum(table["bytes"] for table in found["tables"])
    assert found["fits"] and 1.0e12 < weights < 1.1e12 and found["total"]["weights"] == weights
    sizes = [rank["bytes"] for rank in found["ranks"]]
    assert len(sizes) == 64 and max(sizes) <= found["reserve"]["left"] + found["reserve"]["fixed"]
    for name in ("bytes", "ms"):
        values, balance = [rank[name] for rank in found["ranks"]], found["balance"][name]
        assert (balance["largest"], balance["mean"]) == (max(values), pytest.approx(sum(values) / 64))
        assert f"largest / mean {max(values) / (sum(values) / 64):.2f}" in job.stdout
    lines = [line.split() for line in job.stdout.splitlines()]
    printed = {int(words[0]): int(words[1]) for words in lines if len(words) == 13 and words[0].isdecimal()}
    assert printed == {rank["rank"]: rank["num_shards"] for rank in found["ranks"]}

    page = (tmp_path / "plan.html").read_text()
    assert "C20__hard" in page and "largest / mean" in page
    assert not re.search(r"<(?:link|img|iframe|script)[^>]*\s(?:src|href)=", page)  # opens without a network


def test_a_plan_that_does_not_fit(tmp_path: Path, run: Run):
    config = write_config(tmp_path, tmp_path / "none")
    config.write_text(config.read_text().replace('"vocabulary"', '"hash", num_buckets = 100_000'))
    arguments = ["--config", config, "--device-memory", "4MiB", "--output", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/plan.html").write_text("of an older plan")
    narrow = [f"training.model.{side}.hidden_units=[8]" for side in ("easy", "hard")]
    narrow.append("training.global_batch_size=64")
    code, out, error = run(*arguments, "--world-size", 1, *narrow)
    assert (code, out) == (1, "")
    assert error.startswith("error: 8 tables do not fit on 1 x 4.0 MiB") and "more than there is" in error
    found = json.loads((tmp_path / "out/plan.json").read_text())
    assert not found["fits"] and found["missing_bytes"] > 0 and found["tables"][0] in ("device__hard", "device__easy")
    assert not (tmp_path / "out/plan.html").exists()
    assert len(found["changes"]) >= 2
    for change in found["changes"]:
        assert change["change"] in error
        code, out, error_after = run(*arguments, "--world-size", 1, *narrow, *change["change"].split())
        assert code == 0, error_after
        again = json.loads((tmp_path / "out/plan.json").read_text())
        assert again["balance"] == change["balance"]


def test_tables_have_the_rows_that_the_dataset_learnt(tmp_path: Path, run: Run, make_dataset: Callable[..., Any]):
    tiny = make_dataset()
    where = ("--world-size", 2, "--device-memory", "1GiB", "--output", tmp_path / "out")
    code, _, error = run("--config", write_config(tmp_path, tiny.path), *where)
    assert code == 0, error
    tables = json.loads((tmp_path / "out/plan.json").read_text())["tables"]
    assert {table["feature"]: table["rows"] for table in tables} == tiny.num_embeddings
    assert {table["stream"] for table in tables} == {"easy", "hard"}

    code, _, error = run("--config", write_config(tmp_path, tmp_path / "none"), *where)
    assert code == 1 and "device (vocabulary)" in error and "jobs.build_dataset" in error

    code, _, error = run("--config", write_config(tmp_path, tiny.path), *where, 'features.label="other"')
    assert code == 1 and "another feature schema" in error
    assert DatasetManifest.load(tiny.path) == tiny.manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--device-memory", "80 bananas"], "is no size such as 80GiB"),
        (["--device-memory", "0"], "is no size such as 80GiB"),
        (["--world-size", "0"], "is no whole number above 0"),
        (["--world-size", "12", "--local-world-size", "8"], "is not a multiple of --local-world-size 8"),
        (["training.model.embeding_dim=4"], "did you mean 'embedding_dim'"),
    ],
)
def test_usage_errors(tmp_path: Path, run: Run, changes: list[str], message: str):
    usual = ["--config", TERABYTE, "--world-size", 8, "--device-memory", "80GiB", "--output", tmp_path / "out"]
    code, _, error = run(*usual, *changes)
    assert code == 2 and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("80GiB", 80 * 2**30), ("40GB", 40 * 10**9), ("1.5 tib", 3 * 2**39), ("512M", 512 * 10**6), ("4096", 4096)],
)
def test_sizes(text: str, expected: int):
    assert num_bytes(text) == expected
