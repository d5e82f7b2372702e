"""Lookups: side tables joined to blocks by the text of a key, as the old reader joined them row by row."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from features.log_format import LogError, LogFormat, Lookup
from features.raw_block import Wanted
from features.read.lookup import load_lookup
from features.read.portions import column_names
from tests.features.read.whole import read_blocks
from tests.oracles.row_encoder import to_text
from tests.oracles.row_reader import read_rows

CSV = LogFormat()


def test_a_join_gives_the_rows_of_the_old_reader(tmp_path: Path) -> None:
    log, users = tmp_path / "log.csv", tmp_path / "users.csv"
    log.write_text("user,age,item\n1,9,a\n2,9,b\n3,9,c\n,9,d\n")
    users.write_text("user,age,city\n1,30,x\n2,,y\n4,50,z\n")
    lookup = Lookup("users.csv", "user", CSV)
    [(_, block)] = read_blocks(log, CSV, Wanted(("user", "age", "item")))
    joined, num_matched = load_lookup(str(users), lookup).join(block, block.columns["user"])
    found = [dict(zip(joined.columns, row, strict=True)) for row in zip(*joined.columns.values(), strict=True)]
    shown = [{name: value.as_py() for name, value in row.items()} for row in found]
    assert shown == list(read_rows(str(log), CSV, (lookup,))) and num_matched == 2
    some, _ = load_lookup(str(users), lookup).join(block, block.columns["user"], wanted=("city",))
    assert some.columns["age"].to_pylist() == ["9"] * 4 and some.columns["city"].to_pylist() == ["x", "y", None, None]


def test_keys_of_any_type_meet_as_text(tmp_path: Path) -> None:
    users = tmp_path / "users.parquet"
    pyarrow.parquet.write_table(pa.table({"u": [1.0, 2.0], "big": pa.array([2**64 - 1, None], pa.uint64())}), users)
    table = load_lookup(str(users), Lookup("users.parquet", "u", LogFormat("parquet")))
    assert table.keys.to_pylist() == [to_text(1.0), "2"] and table.columns["big"].to_pylist() == [2**64 - 1, None]


def test_lists_of_a_json_table(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('{"i": 1, "tags": ["x", 2]}\n{"i": 2, "tags": "y", "more": 1}\n')
    table = load_lookup(str(items), Lookup("items.jsonl", "i", LogFormat("jsonl")), frozenset(["tags"]))
    log = tmp_path / "log.csv"
    log.write_text("i\n2\n1\n5\n")
    [(_, block)] = read_blocks(log, CSV, Wanted(("i",)))
    joined, num_matched = table.join(block, block.columns["i"])
    assert num_matched == 2 and joined.lists["tags"].to_pylist() == [None, ["x", "2"], None]
    assert joined.columns["tags"].to_pylist() == ["y", None, None] and joined.columns["more"].to_pylist() == [
        "1",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,age\n1,30\n1,31\n", r"users\.csv: key 'user' is missing or twice: '1'"),
        ("user,age\n,30\n", r"users\.csv: key 'user' is missing or twice: None"),
        ("id,age\n1,30\n", r"users\.csv has no column 'user' \(the lookup's key\); it has: id, age"),
        ("user,age\n1\n", r"users\.csv line 2: wrong number of columns"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "users.csv"
    path.write_text(text)
    with pytest.raises(LogError, match=message):
        load_lookup(str(path), Lookup("users.csv", "user", CSV))


def test_a_table_is_read_once_until_its_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text("user,age\n1,30\n")
    lookup = Lookup("users.csv", "user", CSV)
    table = load_lookup(str(path), lookup)
    assert load_lookup(str(path), lookup) is table
    os.utime(path, (1, 1))
    assert load_lookup(str(path), lookup) is not table
    with pytest.raises(LogError, match="cannot be read"):
        load_lookup(str(tmp_path / "none.csv"), lookup)


def test_names_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nx\n{"b": 1}\n{"c": 1}\n')
    assert column_names(str(path), LogFormat("jsonl")) == ("a", "b", "c")
    assert column_names(str(path), LogFormat("jsonl"), 3) == ("a", "b")
    assert column_names(str(path), LogFormat("tsv", header=False, columns=("x{1..2}",))) == ("x1", "x2")
