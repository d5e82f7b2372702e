"""Libffm and libsvm files against a parser in plain Python."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.log_format import LogError, LogFormat
from features.raw_block import Wanted
from features.read.libffm import NOT_LIBFFM
from tests.features.read.whole import CUTS, read_whole

LIBFFM = LogFormat("libffm")
WANTED = Wanted(("label", "field_1", "field_2", "value_1", "index"), lists=frozenset(["field_2"]))
WORDS = st.sampled_from(
    ["1", "0", "+1", "1:5:1", "1:6:0.5", "2:7:1", "2:8:1", "1:2", "2:1", "x", "1:", ":1:1", "1:2:3:4"]
)
TEXTS = st.lists(st.lists(WORDS, max_size=4).map(" ".join), max_size=8).map("\n".join)


def expect(text: str) -> tuple[list, list]:
    rows, rejected = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        label, *items = line.split() or [None]
        if label is None:
            continue
        matches = [re.fullmatch(r"(?:(\d+):)?([^:]+):([^:]+)", item) for item in items]
        if ":" in label or not all(matches):
            rejected.append((number, NOT_LIBFFM))
            continue
        parts = [(field or feature, feature, value) for field, feature, value in (m.groups() for m in matches if m)]
        of_1 = [(feature, value) for field, feature, value in parts if field == "1"]
        if len(of_1) > 1:
            rejected.append((number, "field 1 has several features"))
            continue
        feature, value = of_1[0] if of_1 else (None, None)
        of_2 = [feature for field, feature, _ in parts if field == "2"]
        every = [feature for _, feature, _ in parts]
        rows.append((number, {"label": label, "field_1": feature, "field_2": of_2, "value_1": value, "index": every}))
    return rows, rejected


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_rows_are_those_of_python_whatever_the_cuts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.ffm"
    path.write_text(text)
    for cut in CUTS:
        rows, rejected = read_whole(path, LIBFFM, WANTED, *cut)
        shown = [(number, row) for number, _, _, row in rows], [(number, reason) for number, _, _, reason in rejected]
        assert shown == expect(text)


def test_libsvm_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.svm"
    path.write_text("1 3:0.5 7:2\n\n0 7:1e3\n")
    rows, rejected = read_whole(path, LIBFFM, Wanted(("label", "value_3", "value_7")))
    assert not rejected and [list(row.values()) for *_, row in rows] == [["1", "0.5", "2"], ["0", None, "1e3"]]


def test_a_column_that_no_such_log_has(tmp_path: Path) -> None:
    path = tmp_path / "a.ffm"
    path.write_text("1 1:1:1\n")
    with pytest.raises(LogError, match=r"a\.ffm has no column 'user': a libffm log has label, index, field_N"):
        read_whole(path, LIBFFM, Wanted(("user",)))
