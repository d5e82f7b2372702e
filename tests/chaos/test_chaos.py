"""The suite's own arithmetic: a row that is lost or doubled is noticed, and so is a case that fails."""

import json
from pathlib import Path

import pytest

from tests.chaos import suite
from tests.chaos.ledger import rows_of
from tests.chaos.outcome import Outcome, Skipped, Unexpected


def write_books(ledger: Path, attempt: int, *books: list[dict]) -> None:
    folder = ledger / str(attempt)
    folder.mkdir(parents=True)
    for rank, book in enumerate(books):
        lines = "".join(json.dumps(entry) + "\n" for entry in book)
        (folder / f"rank={rank}").write_text(lines + '{"rows": [9')  # killed in the middle of a line


@pytest.mark.parametrize(
    ("resumed", "counts"),
    [
        ({"rows": [4]}, {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}),
        ({"rows": [3, 4]}, {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}),
        ({"rows": []}, {0: 1, 1: 1, 2: 1, 3: 1, 5: 1}),
    ],
)
def test_rows_count_in_the_weights_that_they_are_in(tmp_path: Path, resumed: dict, counts: dict) -> None:
    """Rows 4 and 5 were trained on before the crash too, but after the last checkpoint."""
    first = [{"rows": [0, 1]}, {"saved": 1}, {"rows": [4]}, {"saved": 2}]
    write_books(tmp_path, 1, first, [{"rows": [2, 3]}, {"saved": 1}, {"rows": [5]}])
    write_books(tmp_path, 2, [], [])
    write_books(tmp_path, 3, [{"restored": 1}, resumed, {"rows": [5]}, {"saved": 2}])
    assert rows_of(tmp_path, 2) == counts


def fails(folder: Path, seed: int) -> Outcome:
    raise Unexpected("it did not")


def skips(folder: Path, seed: int) -> Outcome:
    raise Skipped("no right to")


def loses(folder: Path, seed: int) -> Outcome:
    return Outcome(seed, 0, None)


def doubles(folder: Path, seed: int) -> Outcome:
    return Outcome(0, 2, True)


def differs(folder: Path, seed: int) -> Outcome:
    return Outcome(0, 0, seed == 1)


def fine(folder: Path, seed: int) -> Outcome:
    return Outcome(0, 0, True)


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_case_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    cases = {case.__name__: case for case in (fails, skips, loses, doubles, differs, fine)}
    monkeypatch.setattr(suite, "CASES", cases)
    rows = suite.run(list(cases), 2, tmp_path / "chaos.json", at_once)
    assert json.loads((tmp_path / "chaos.json").read_text()) == rows
    by_name = {row["case"]: row for row in rows}
    assert {name for name, row in by_name.items() if suite.is_amiss(row)} == {"fails", "loses", "doubles", "differs"}
    assert by_name["fails"]["failures"] == ["seed 0: Unexpected: it did not", "seed 1: Unexpected: it did not"]
    assert (by_name["skips"]["times"], by_name["skips"]["skipped"]) == (0, "no right to")
    counted = ("times", "rows_lost", "rows_doubled", "weights_equal")
    assert tuple(by_name["loses"][name] for name in counted) == (2, 1, 0, None)
    assert tuple(by_name["doubles"][name] for name in counted) == (2, 0, 4, True)
    assert by_name["differs"]["weights_equal"] is False
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["differs", "doubles", "fails", "loses"]
