"""docs/extending.md: its diffs are of this tree. (tests/training/test_plugins.py runs its plugins.)"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stand_ins.plugin import PAGE

DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
CHANGES = [
    (name, hunk)
    for diff in DIFFS
    for name, hunks in re.findall(r"^--- a/(\S+)\n\+\+\+ b/\1\n((?:[-+ @].*\n|\n)+?)(?=^--- |\Z)", diff, re.M)
    for hunk in re.split(r"^@@.*\n", hunks, flags=re.M)[1:]
]


def test_the_page_has_diffs() -> None:
    assert len(DIFFS) >= 3 and len(CHANGES) >= len(DIFFS)


@pytest.mark.parametrize(("name", "hunk"), CHANGES, ids=[f"{name}-{n}" for n, (name, _) in enumerate(CHANGES)])
def test_a_diff_still_fits(name: str, hunk: str) -> None:
    """What a hunk changes, or lies beside, is there: another file, or other lines, cost something else."""
    before = "".join(line[1:] or "\n" for line in hunk.splitlines(keepends=True) if not line.startswith("+"))
    text = (PAGE.parents[1] / name).read_text(encoding="utf-8")
    assert before.strip("\n") in text, f"{name} has no lines\n{before}"


GROWN = """
import pyarrow, pyarrow.feather, pyarrow.parquet
from features.log_format import LogFormat
from features.raw_block import Wanted
from features.read.portions import Portion, read_portion
from features.schema import HashEncoding, SparseFeature
from training.judge.metrics import evaluate
from training.judge.scores import Scores

table = pyarrow.table({"user": ["a", None, "b"] * 1000, "price": [1.5, 2.0, None] * 1000})
pyarrow.parquet.write_table(table, "log.parquet")
pyarrow.feather.write_feather(table, "log.arrow", compression="uncompressed")
for kind in ("arrow", "parquet"):
    blocks = list(read_portion(Portion(f"log.{kind}"), LogFormat(kind=kind), Wanted(("user", "price"))))
    assert pyarrow.concat_tables(pyarrow.table(block.columns) for block in blocks).to_pylist() == table.to_pylist()
assert evaluate(Scores.of([0.0, 0.0], [0, 1]))["brier"] == 0.25
steps = SparseFeature("price", HashEncoding(num_buckets=64), steps=(1.0, 10.0))
assert [column.shape for column in steps.kind.columns(steps)] == [(2,)]
"""


def test_the_diffs_together_give_what_the_page_says(tmp_path: Path) -> None:
    for room in ("features", "training"):
        shutil.copytree(PAGE.parents[1] / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        applied = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, capture_output=True, text=True)
        assert applied.returncode == 0, applied.stderr
    ran = subprocess.run([sys.executable, "-c", GROWN], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
