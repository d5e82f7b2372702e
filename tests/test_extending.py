"""docs/extending.md: its diffs are of this tree. (tests/training/test_plugins.py runs its plugins.)"""

import re

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
