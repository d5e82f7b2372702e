"""Lists of candidates: a naive oracle says which rows a list makes, whatever the format and wherever files are cut."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

import features.read.candidates as candidates
from features.log_format import Candidates, LogError, LogFormat, Lookup
from features.raw_block import RawBlock, Wanted
from features.read.candidates import MAX_CANDIDATES, ListCounts
from features.read.log_reader import LogReader
from features.read.portions import misplaced, plan_portions
from features.schema import Values
from tests.features.read.whole import CUTS

SUFFIXED = Candidates("seen", "item", label="clicked", label_separator="-", list_id="page", position="place")
CLICKED = Candidates("seen", "item", label="clicked", clicked="chosen", list_id="page", position="place")
ROWS = ("user", "history", "item", "clicked", "page", "place")
TO_SCORE = ("user", "history", "item", "page", "place")


def read(
    path: Path, log_format: LogFormat, columns: tuple[str, ...] = ROWS, cut: tuple[int, int] = CUTS[0], **more: Any
) -> tuple[list[RawBlock], ListCounts]:
    """All blocks of a file, numbered as in the file, and the counts of its lists."""
    lookups, values = more.pop("lookups", ()), more.pop("values", Values())
    reader = LogReader(log_format, lookups, Wanted(columns, lists=frozenset({"history"}), **more), values)
    tables = reader.find_tables(str(path))
    wanted = reader.wanted_of_file(tables)
    portions = plan_portions(str(path), path.stat().st_size, log_format, cut[0])

    def once(index: int) -> tuple[list[RawBlock], Any]:
        reading = reader.read(portions[index], wanted, tables, {}, step=cut[1])
        return list(reading), reading.end

    found = [once(index) for index in range(len(portions))]
    while wrong := misplaced(portions, [end for _, end in found]):
        for index, portion in wrong.items():
            portions[index] = portion
            found[index] = once(index)
    blocks, counts, before = [], ListCounts(), 0
    for of_portion, end in found:
        for block in of_portion:
            block.numbers[:] += before
            block.rejected[:] = [line._replace(number=line.number + before) for line in block.rejected]
        blocks += of_portion
        counts.add(end.lists)
        before += end.num_lines
    return blocks, counts


def rows_of(blocks: list[RawBlock]) -> Iterator[dict[str, Any]]:
    """Rows as dicts of texts and numbers, with the number of their line."""
    for block in blocks:
        columns = {name: values.to_pylist() for name, values in block.columns.items()}
        for name, values in block.lists.items():
            columns[name] = [a if a is not None else b for a, b in zip(values.to_pylist(), columns[name], strict=True)]
        for row in range(len(block)):
            yield {"line": int(block.numbers[row]), **{name: values[row] for name, values in columns.items()}}


def rejected_of(blocks: list[RawBlock]) -> list[tuple[int, str]]:
    return [(line.number, line.reason) for block in blocks for line in block.rejected]


# ------------------------------------------------------------------------------------------------------- naive oracle


def a_log(seed: int, count: int = 60) -> list[dict[str, Any]]:
    """Lines of a log of lists: now and then an empty list, a missing one, twice the same candidate, no page."""
    rng = random.Random(seed)
    lines = []
    for number in range(count):
        items = [rng.choice(["N1", "N-2", "é3", "4", "N-1-0", "x" * 40]) for _ in range(rng.choice([0, 1, 1, 2, 7]))]
        lines.append(
            {
                "user": f"u{rng.randrange(9)}",
                "history": [f"N{rng.randrange(9)}" for _ in range(rng.randrange(4))],
                "page": f"p{number}" if rng.random() < 0.8 else None,
                "items": items,
                "clicks": [rng.randrange(2) for _ in items],
            }
        )
    return lines


def expected(lines: list[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    """Rows of good lists, one after the other; a page without an id has none here."""
    found = []
    for number, line in enumerate(lines, first):
        for place, (item, clicked) in enumerate(zip(line["items"], line["clicks"], strict=True), start=1):
            own = {"line": number, "user": line["user"], "history": " ".join(line["history"]) or None}
            found.append({**own, "page": line["page"], "place": place, "item": item, "clicked": str(clicked)})
    return found


def without_made_ids(rows: Iterator[dict[str, Any]], lines: list[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    """The rows with no page where the log had none; the ids that were made are one a line and unlike any other."""
    found, made = [], {}
    for row in rows:
        assert row["page"] is not None
        if lines[row["line"] - first]["page"] is None:
            assert made.setdefault(row["line"], row["page"]) == row["page"]
            row["page"] = None
        history = row["history"]
        row["history"] = (" ".join(history) if isinstance(history, list) else history) or None
        row["clicked"] = str(row["clicked"])
        found.append(row)
    assert len(set(made.values())) == len(made)
    return found


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("seed", range(3))
def test_suffixed_text_as_the_oracle_says(tmp_path: Path, seed: int, cut: tuple[int, int]) -> None:
    path, lines = tmp_path / "log.tsv", a_log(seed)
    with path.open("w") as file:
        file.write("user\tpage\thistory\tseen\n")
        for line in lines:
            seen = " ".join(f"{item}-{clicked}" for item, clicked in zip(line["items"], line["clicks"], strict=True))
            file.write(f"{line['user']}\t{line['page'] or ''}\t{' '.join(line['history'])}\t{seen}\n")
    blocks, counts = read(path, LogFormat("tsv", candidates=SUFFIXED), cut=cut)
    assert without_made_ids(rows_of(blocks), lines, 2) == expected(lines, 2)
    assert not rejected_of(blocks)
    num_empty = sum(not line["items"] for line in lines)
    num_rows = sum(len(line["items"]) for line in lines)
    assert counts == ListCounts(len(lines) - num_empty, num_empty, 0, num_rows, 0)
    offsets = [int(offset) for block in blocks for offset in block.offsets]
    assert offsets == sorted(set(offsets))  # a row's identity, whatever the portions are


@pytest.mark.parametrize("cut", CUTS)
def test_json_arrays_and_clicks_as_the_oracle_says(tmp_path: Path, cut: tuple[int, int]) -> None:
    path, lines = tmp_path / "log.jsonl", a_log(7)
    with path.open("w") as file:
        for line in lines:
            chosen = sorted({i for i, clicked in zip(line["items"], line["clicks"], strict=True) if clicked})
            line["clicks"] = [int(item in chosen) for item in line["items"]]  # twice the same is clicked twice
            row = {"user": line["user"], "page": line["page"], "history": line["history"]}
            file.write(json.dumps({**row, "seen": line["items"] or None, "chosen": chosen}) + "\n")
    blocks, counts = read(path, LogFormat("jsonl", candidates=CLICKED), cut=cut)
    assert without_made_ids(rows_of(blocks), lines, 1) == expected(lines, 1)
    assert counts.num_unseen == 0 and counts.num_rejected == 0


@pytest.mark.parametrize("kind", [pa.large_list(pa.int32()), pa.list_(pa.float64()), pa.list_(pa.string())])
def test_parquet_lists_as_the_oracle_says(tmp_path: Path, kind: pa.DataType) -> None:
    rng, lines = random.Random(1), []
    for number in range(300):
        items = [rng.randrange(1, 50) for _ in range(rng.randrange(5))]
        lines.append({"user": number % 7, "items": items, "chosen": [*items[:1], 99]})
    as_kind = str if pa.types.is_string(kind.value_type) else int
    table = pa.table(
        {
            "user": pa.array([line["user"] for line in lines], pa.uint32()),
            "seen": pa.array([[*map(as_kind, line["items"])] for line in lines], kind),
            "chosen": pa.array([[*map(as_kind, line["chosen"])] for line in lines], kind),
        }
    )
    path = tmp_path / "log.parquet"
    pq.write_table(table, path, row_group_size=64)
    blocks, counts = read(path, LogFormat("parquet", candidates=CLICKED), ("user", "item", "clicked", "page", "place"))
    whole = [(r["line"], r["user"], int(r["item"]), r["clicked"], r["place"]) for r in rows_of(blocks)]
    assert whole == [
        (number, line["user"], item, int(item in line["chosen"]), place)
        for number, line in enumerate(lines, start=1)
        for place, item in enumerate(line["items"], start=1)
    ]
    assert counts.num_unseen == len(lines)  # 99 was never shown
    assert counts.num_lines == len(lines)
    parts, _ = read(path, LogFormat("parquet", candidates=CLICKED), ("user", "item", "clicked", "page"), (1, 1))
    offsets = [int(offset) for block in parts for offset in block.offsets]
    assert offsets == [int(offset) for block in blocks for offset in block.offsets] == sorted(set(offsets))
    pages = [row["page"] for row in rows_of(parts)]
    assert pages == [row["page"] for row in rows_of(blocks)]
    assert len(set(pages)) == counts.num_lists
    hashes = {(row["line"], block.lines.text(i)) for block in blocks for i, row in enumerate(rows_of([block]))}
    assert len(hashes) == counts.num_lists  # all rows of a list have its line


# ------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ("N1-0 N2", "column 'seen': a candidate has no label behind '-'"),
        ("N1-0 N2-x", "column 'seen': a candidate has no label behind '-'"),
        ("N1-0 N2-", "column 'seen': a candidate has no label behind '-'"),
        ("N1-0 -1", "column 'seen': a candidate has no value"),
        (" ".join(["N1-0"] * (MAX_CANDIDATES + 1)), "more than 16,384 candidates"),
    ],
)
def test_a_faulty_list_is_rejected_whole(tmp_path: Path, seen: str, reason: str) -> None:
    path = tmp_path / "log.tsv"
    path.write_text(f"user\tseen\nu1\tN3-1 N4-0\nu2\t{seen}\nu3\t\nu4\tN5-0\nu5\n")
    blocks, counts = read(path, LogFormat("tsv", candidates=SUFFIXED), ("user", "item", "clicked"))
    assert [(row["user"], row["item"]) for row in rows_of(blocks)] == [("u1", "N3"), ("u1", "N4"), ("u4", "N5")]
    assert rejected_of(blocks) == [(3, reason), (6, "wrong number of columns")]
    assert counts == ListCounts(2, 1, 1, 3, 0)


def test_rejected_lines_stay_in_order_among_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.tsv"
    lists = ["a-0 b-1", "bad", "c-0", "", "d-1 e-0 f-0", "bad", "bad"]
    path.write_text("user\tseen\n" + "".join(f"u\t{seen}\n" for seen in lists))
    monkeypatch.setattr(candidates, "_BLOCK_ROWS", 1)
    blocks, _ = read(path, LogFormat("tsv", candidates=SUFFIXED), ("user", "item", "clicked"))
    assert [len(block) for block in blocks] == [2, 1, 3]  # a list is never in two blocks
    order = [n for b in blocks for n in sorted([*b.numbers.tolist(), *(line.number for line in b.rejected)])]
    assert order == sorted(order)
    assert [number for number, _ in rejected_of(blocks)] == [3, 7, 8]


def test_rows_of_a_list_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.tsv"
    path.write_text(f"user\tseen\nu1\ta-0 b-1\n{'u' * 5000}\t{' '.join(['c-0'] * 300)}\n")
    monkeypatch.setattr(candidates, "MAX_EXPLODED_BYTES", 1 << 20)
    blocks, counts = read(path, LogFormat("tsv", candidates=SUFFIXED), ("user", "item", "clicked"))
    assert [row["item"] for row in rows_of(blocks)] == ["a", "b"]
    [(number, reason)] = rejected_of(blocks)
    assert number == 3 and reason.startswith("rows of more than 1 MiB")
    assert counts.num_rejected == 1


def test_an_array_with_a_missing_candidate_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"seen": [1, None], "chosen": [1]}, {"seen": "1 2", "chosen": "2"}, {"seen": [], "chosen": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    blocks, counts = read(path, LogFormat("jsonl", candidates=CLICKED), ("item", "clicked"))
    assert [(row["item"], row["clicked"]) for row in rows_of(blocks)] == [("1", 0), ("2", 1)]
    assert rejected_of(blocks) == [(1, "column 'seen': a candidate has no value")]
    assert counts == ListCounts(1, 1, 1, 2, 0)


def test_a_columnar_file_of_too_many_lists_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"seen": pa.array([[3], [4], [5]], pa.list_(pa.int32()))}), path)
    monkeypatch.setattr(candidates, "MAX_ROWS_OF_LISTS", 2)
    with pytest.raises(LogError, match="more than 2 rows that are lists: cut it into files"):
        read(path, LogFormat("parquet", candidates=CLICKED), ("item",))


def test_separators_side_by_side_make_no_candidate(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_text("user\tseen\nu\t a-0   b-1 \n")
    blocks, _ = read(path, LogFormat("tsv", candidates=SUFFIXED), ("item", "clicked", "place"))
    assert [(row["item"], row["clicked"], row["place"]) for row in rows_of(blocks)] == [("a", "0", 1), ("b", "1", 2)]


# ------------------------------------------------------------------------------------------------------------ to score


def test_lists_to_score_need_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_text("user\tseen\nu1\tN-1-0 N2-1\nu2\tN2 Nx\nu3\tN2-1 N3\n")
    blocks, counts = read(path, LogFormat("tsv", candidates=SUFFIXED), ("user", "item"))
    assert [(row["user"], row["item"]) for row in rows_of(blocks)] == [
        ("u1", "N-1"), ("u1", "N2"), ("u2", "N2"), ("u2", "Nx"),
    ]  # fmt: skip
    assert rejected_of(blocks) == [(4, "column 'seen': some candidates have a label behind '-', others none")]
    assert counts.num_rejected == 1


def test_labels_that_nobody_asked_for_are_counted(tmp_path: Path) -> None:
    """An id that ends like a label loses its end: nothing in a text tells the two apart, and a label behind it does."""
    path = tmp_path / "log.tsv"
    path.write_text("seen\nN-17 N-4\nN-17-0 N-4-0\nNx Ny\nN-1 Nx\n")
    blocks, counts = read(path, LogFormat("tsv", candidates=SUFFIXED), ("item",))
    assert [row["item"] for row in rows_of(blocks)] == ["N", "N", "N-17", "N-4", "Nx", "Ny"]
    assert (counts.num_cut, counts.num_lists, counts.num_rejected) == (2, 3, 1)
    _, counts = read(path, LogFormat("tsv", candidates=SUFFIXED), ("item", "clicked"))
    assert counts.num_cut == 0


def test_a_log_to_score_needs_no_clicks(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"seen": pa.array([[3, 4], [5]], pa.list_(pa.int32()))}), path)
    blocks, _ = read(path, LogFormat("parquet", candidates=CLICKED), ("item",))
    assert [row["item"] for row in rows_of(blocks)] == [3, 4, 5]
    with pytest.raises(LogError, match="has no column 'chosen'"):
        read(path, LogFormat("parquet", candidates=CLICKED), ("item", "clicked"))


# ------------------------------------------------------------------------------------------------------ other columns


def test_a_table_is_joined_to_candidates(tmp_path: Path) -> None:
    (tmp_path / "news.tsv").write_text("item\tcate\na\tsport\nb\tmusic\n")
    path = tmp_path / "log.tsv"
    path.write_text("user\tseen\nu1\ta-0 b-1 c-0\n")
    lookup = Lookup("news.tsv", "item", LogFormat("tsv"))
    blocks, _ = read(path, LogFormat("tsv", candidates=SUFFIXED), ("cate", "clicked"), lookups=(lookup,))
    assert [row["cate"] for row in rows_of(blocks)] == ["sport", "music", None]


def test_columns_of_the_line_are_told_from_those_of_candidates(tmp_path: Path) -> None:
    """What one line repeats is read once: neither what is made of a list nor what a table gives its candidates."""
    (tmp_path / "news.tsv").write_text("item\tcate\na\tsport\nb\tmusic\n")
    path = tmp_path / "log.tsv"
    path.write_text("user\thistory\tcate\tseen\nu1\tx\tc\ta-0 b-1\nu2\ty\tc\ta-0\n")
    lookup = Lookup("news.tsv", "item", LogFormat("tsv"))
    [block], _ = read(path, LogFormat("tsv", candidates=SUFFIXED), (*ROWS, "cate"), lookups=(lookup,))
    assert block.of_lines == {"user", "history", "page"}
    repeats = block.repeats
    assert repeats is not None and (repeats.firsts.tolist(), repeats.places.tolist()) == ([0, 2], [0, 0, 1])
    fewer = block.take(np.array([False, True, True])).repeats
    assert fewer is not None and fewer.firsts.tolist() == [0, 1]


def test_a_list_is_rejected_whole_where_one_key_is_no_category(tmp_path: Path) -> None:
    (tmp_path / "news.tsv").write_text("item\tcate\n1\tsport\n2\tmusic\n")
    path = tmp_path / "log.parquet"
    lists = pa.array([[1.0, 2.5], [2.0, 1.0]], pa.list_(pa.float64()))
    pq.write_table(pa.table({"seen": lists, "chosen": lists}), path)
    lookup = Lookup("news.tsv", "item", LogFormat("tsv"))
    blocks, _ = read(path, LogFormat("parquet", candidates=CLICKED), ("cate", "clicked"), lookups=(lookup,))
    assert [(row["line"], row["cate"]) for row in rows_of(blocks)] == [(2, "music"), (2, "sport")]
    assert [number for number, _ in rejected_of(blocks)] == [1, 1]


def test_the_lists_column_is_there_for_whom_wants_it(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_text("user\tseen\nu1\ta-0 b-1\n")
    blocks, _ = read(path, LogFormat("tsv", candidates=SUFFIXED), ("item", "clicked", "seen"))
    assert [row["seen"] for row in rows_of(blocks)] == ["a-0 b-1", "a-0 b-1"]
    blocks, _ = read(path, LogFormat("tsv", candidates=SUFFIXED), ("item", "clicked"))
    assert "seen" not in blocks[0].columns


@pytest.mark.parametrize(("name", "key"), [("item", "name"), ("clicked", "label"), ("place", "position")])
def test_a_made_column_that_the_log_has_is_refused(tmp_path: Path, name: str, key: str) -> None:
    path = tmp_path / "log.tsv"
    path.write_text(f"user\tseen\t{name}\nu1\ta-0\t1\n")
    with pytest.raises(LogError, match=rf"has a column '{name}'.*candidates\.{key} another name"):
        read(path, LogFormat("tsv", candidates=SUFFIXED), ("user", "item", "clicked"))


def test_a_made_column_in_json_lines_or_a_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"seen": "a-0"}\n{"seen": "b-0", "place": 3}\n')
    with pytest.raises(LogError, match=r"log.jsonl has a column 'place'.*candidates\.position another name"):
        read(path, LogFormat("jsonl", candidates=SUFFIXED), ("item", "clicked"))
    (tmp_path / "users.tsv").write_text("user\titem\nu1\tx\n")
    path = tmp_path / "log.tsv"
    path.write_text("user\tseen\nu1\ta-0\n")
    lookup = Lookup("users.tsv", "user", LogFormat("tsv"))
    with pytest.raises(LogError, match=r"users.tsv has a column 'item'.*candidates\.name another name"):
        read(path, LogFormat("tsv", candidates=SUFFIXED), ("item", "clicked"), lookups=(lookup,))


def test_null_tokens_are_candidates_like_others(tmp_path: Path) -> None:
    """A token that means missing is missing in the feature, and keeps its place in the list."""
    path = tmp_path / "log.tsv"
    path.write_text("user\tseen\nu1\tNA b\n")
    blocks, _ = read(path, LogFormat("tsv", candidates=SUFFIXED), ("item",), values=Values(null_tokens=("NA",)))
    assert [row["item"] for row in rows_of(blocks)] == ["NA", "b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label": "c"}, "a label is a name and a source"),
        ({"clicked": "c"}, "a label is a name and a source"),
        ({"label": "c", "clicked": "d", "label_separator": "-"}, "give one of them"),
        ({"name": "seen"}, "two of its columns have one name: seen"),
        ({"separator": ""}, "cannot be empty"),
    ],
)
def test_a_config_that_cannot_be_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Candidates(**{"column": "seen", "name": "item", **given})


def test_formats_without_lists_refuse_them() -> None:
    with pytest.raises(ValidationError, match="libffm log has no lists"):
        LogFormat("libffm", candidates=SUFFIXED)
    with pytest.raises(ValidationError, match="has a row a key"):
        Lookup("a", "b", LogFormat(candidates=SUFFIXED))
