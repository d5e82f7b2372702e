"""Parquet and ORC: every type that a column may have, rows by group, damaged files."""

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet
import pytest

from features.log_format import LogError, LogFormat
from features.raw_block import Wanted
from features.read import columnar
from features.read.columnar import ParquetGroups, RowTexts
from features.read.portions import plan_portions, read_portion
from tests.features.read.whole import read_blocks, read_whole
from tests.oracles.row_reader import read_rows

PARQUET = LogFormat("parquet")
BINARY_LISTS = [[b"x"], [], [b"\xff"], None]
TYPES: list[tuple[pa.DataType, list[Any], pa.DataType, list[Any]]] = [
    (pa.int8(), [1, None], pa.int8(), [1, None]),
    (pa.uint64(), [2**64 - 1, None], pa.uint64(), [2**64 - 1, None]),
    (pa.float64(), [1.5, None], pa.float64(), [1.5, None]),
    (pa.bool_(), [True, None], pa.bool_(), [True, None]),
    (pa.decimal128(5, 2), [decimal.Decimal("1.50"), None], pa.decimal128(5, 2), [decimal.Decimal("1.50"), None]),
    (pa.decimal256(50, 2), [decimal.Decimal("1.50"), None], pa.decimal256(50, 2), [decimal.Decimal("1.50"), None]),
    (pa.string(), ["x", ""], pa.string(), ["x", None]),
    (pa.large_string(), ["NA", "y"], pa.string(), [None, "y"]),
    (pa.binary(), [b"x", None], pa.string(), ["x", None]),
    (pa.large_binary(), [b"x", None], pa.string(), ["x", None]),
    (pa.dictionary(pa.int8(), pa.string()), ["x", None], pa.string(), ["x", None]),
    (pa.date32(), [datetime.date(2020, 1, 2), None], pa.date32(), [datetime.date(2020, 1, 2), None]),
    (pa.time64("us"), [datetime.time(1, 2, 3), None], pa.time64("us"), [datetime.time(1, 2, 3), None]),
    (pa.null(), [None, None], pa.string(), [None, None]),
    (pa.list_(pa.int64()), [[1, None], None], pa.list_(pa.int64()), [[1, None], None]),
    (pa.large_list(pa.large_string()), [["x"], []], pa.list_(pa.string()), [["x"], []]),
    (pa.list_(pa.int32(), 2), [[1, 2], [3, 4]], pa.list_(pa.int32()), [[1, 2], [3, 4]]),
    (pa.list_(pa.binary()), [[b"x"], None], pa.list_(pa.string()), [["x"], None]),
]


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    pyarrow.parquet.write_table(table, path, **options)
    return path


@pytest.mark.parametrize(("kind", "values", "expected_kind", "expected"), TYPES, ids=lambda part: str(part)[:20])
def test_types_of_columns(tmp_path: Path, kind, values, expected_kind, expected) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"c": pa.array(values, kind), "unneeded": [{"x": 1}, None]}))
    wanted = Wanted(("c",), lists=frozenset("c"))
    [(_, block)] = read_blocks(path, LogFormat("parquet", null_values=("NA",)), wanted)
    assert block.columns["c"].type == expected_kind and block.columns["c"].to_pylist() == expected
    assert list(block.columns) == ["c"] and [json.loads(block.lines.text(i)).keys() for i in (0, 1)] == [{"c"}] * 2


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_times_of_any_unit(tmp_path: Path, unit: str, zone: str | None) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"t": pa.array([1_700_000_000, None], pa.timestamp(unit, zone))}))
    [(_, block)] = read_blocks(path, PARQUET, Wanted(("t",)))
    assert pa.types.is_timestamp(block.columns["t"].type) and block.columns["t"].null_count == 1
    assert block.lines.text(0)[:9] in ('{"t": "20', '{"t": "19') and block.lines.text(1) == '{"t": null}'


def test_half_floats() -> None:
    is_bad = np.zeros(2, np.bool_)
    found = columnar._to_plain(pa.array([np.float16(1.5), None], pa.float16()), is_bad)
    assert found.type == pa.float32() and found.to_pylist() == [1.5, None] and not is_bad.any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"x": 1}], r"a\.parquet: column 'c' has type struct<x: int64>: a raw column must be text, a number"),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "column 'c' has type map<string, int64"),
        ([[1]], "column 'c' has type list<"),
        ([[[1]]], "column 'c' has type list<"),
        (pa.array([1], pa.duration("s")), r"column 'c' has type duration\[s\]"),
    ],
)
def test_types_that_nothing_can_be_made_of(tmp_path: Path, values: Any, message: str) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"c": values}))
    with pytest.raises(LogError, match=message):
        read_whole(path, PARQUET, Wanted(("c",)))
    with pytest.raises(LogError, match=r"a\.parquet has no column 'd'; it has: c; .*input\.format\.optional"):
        read_whole(path, PARQUET, Wanted(("d",)))


def test_fields_of_objects_and_optional_columns(tmp_path: Path) -> None:
    table = pa.table({"u": [{"i": 1, "v": {"w": "x"}}, None], "a.b": ["p", "q"], "a": [{"b": 1}, {"b": 2}]})
    path = write(tmp_path / "a.parquet", table)
    wanted = Wanted(("u.v.w", "a.b", "n", "u.i", "u.z"), frozenset("n"), optional=frozenset(["n", "u.z"]))
    [(_, block)] = read_blocks(path, PARQUET, wanted)
    assert {name: values.to_pylist() for name, values in block.columns.items()} == {
        "u.v.w": ["x", None],
        "a.b": ["p", "q"],
        "n": [None, None],
        "u.i": [1, None],
        "u.z": [None, None],
    }
    assert block.absent == ("n", "u.z") and block.columns["n"].type == pa.float64()


def test_bytes_that_are_no_text_reject_their_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet", pa.table({"b": [b"x", b"\xff", b"y", None], "l": [[b"x"], [], [b"\xff"], None]})
    )
    rows, rejected = read_whole(path, PARQUET, Wanted(("b", "l"), lists=frozenset("l")))
    assert [(number, offset, row) for number, offset, _, row in rows] == [
        (1, 0, {"b": "x", "l": ["x"]}),
        (4, 3, {"b": None, "l": None}),
    ]
    assert rejected == [
        (2, 1, '{"b": "\ufffd", "l": []}', "not UTF-8 text"),
        (3, 2, '{"b": "y", "l": ["\ufffd"]}', "not UTF-8 text"),
    ]


@pytest.mark.parametrize("num_bytes", [1, 500, 10**9])
def test_rows_are_those_of_the_old_reader_whatever_the_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setattr(columnar, "MAX_BLOCK_ROWS", 7)
    table = pa.table(
        {"a": list(range(100)), "s": [f"x{i % 3}" for i in range(100)], "l": [[i] * (i % 3) for i in range(100)]}
    )
    path = write(tmp_path / "a.parquet", table, row_group_size=16)
    rows, rejected = read_whole(path, PARQUET, Wanted(("a", "s", "l"), lists=frozenset("l")), num_bytes)
    assert not rejected and [row for *_, row in rows] == list(read_rows(str(path), PARQUET))
    assert [(number, offset) for number, offset, *_ in rows] == [(i + 1, i) for i in range(100)]
    assert [json.loads(line) for _, _, line, _ in rows] == table.to_pylist()
    portions = plan_portions(str(path), path.stat().st_size, PARQUET, num_bytes)
    assert len(portions) == (7 if num_bytes == 1 else len(portions)) and portions[-1].end == 7
    reading = read_portion(portions[-1], PARQUET, Wanted(()))
    assert sum(map(len, reading)) == reading.end.num_lines == 100 - 16 * portions[-1].start


def test_row_texts_are_slices(tmp_path: Path) -> None:
    texts = RowTexts({"a": pa.array([1, 2, 3])}, np.arange(3)).take(np.array([True, False, True]))
    assert [texts.text(i) for i in (0, 1)] == ['{"a": 1}', '{"a": 3}']
    assert (
        bytes(texts.data) == b'{"a": 1}{"a": 3}'
        and texts.starts.tolist() == [0, 8]
        and texts.lengths.tolist() == [8, 8]
    )


def test_orc_by_stripe(tmp_path: Path) -> None:
    path = tmp_path / "a.orc"
    table = pa.table({"a": list(range(50_000)), "u": [{"i": str(i)} for i in range(50_000)], "l": [["x"]] * 50_000})
    pyarrow.orc.write_table(table, path, stripe_size=100_000)
    assert pyarrow.orc.ORCFile(path).nstripes > 2
    rows, rejected = read_whole(path, LogFormat("orc"), Wanted(("u.i", "a", "l"), lists=frozenset("l")))
    assert not rejected and [row for *_, row in rows] == [{"u.i": str(i), "a": i, "l": ["x"]} for i in range(50_000)]
    assert [(number, offset) for number, offset, *_ in rows] == [(i + 1, i) for i in range(50_000)]


@pytest.mark.parametrize("kind", ["parquet", "orc"])
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.bin"
    table = pa.table({"a": list(range(1000)), "s": ["x", "y"] * 500})
    if kind == "orc":
        pyarrow.orc.write_table(table, path)
    else:
        write(path, table)
    good = path.read_bytes()
    with pytest.raises(LogError, match=r"b\.csv is no text, it is (ORC|Parquet): set pipeline\.input\.format\.kind"):
        (tmp_path / "b.csv").write_bytes(good)
        read_whole(tmp_path / "b.csv", LogFormat(), Wanted(("a",)))
    damaged = [b"", b"x", good[:-4], good[: len(good) // 2]]
    if kind == "parquet":  # ORC has no sums of its bytes
        damaged.append(bytes(20) + good[20:])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(LogError, match=r"a\.bin"):
            read_whole(path, LogFormat(kind), Wanted(("a", "s")))


def test_twice_named_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table([pa.array([1]), pa.array([2]), pa.array([3])], ["a", "a", "b"]))
    with pytest.raises(LogError, match=r"a\.parquet has column 'a' twice"):
        read_whole(path, PARQUET, Wanted(("a",)))
    assert [row for *_, row in read_whole(path, PARQUET, Wanted(("b",)))[0]] == [{"b": 3}]


def test_groups_are_cut_by_their_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"a": list(range(1000))}), row_group_size=100)
    size = ParquetGroups(str(path)).sizes[0]
    portions = plan_portions(str(path), path.stat().st_size, PARQUET, 3 * size)
    assert [(portion.start, portion.end) for portion in portions][:2] == [(0, 3), (3, 6)]


def test_a_name_of_a_column_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"user": ["a"], "seen": [1]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"seen", b"s\xacen"))
    with pytest.raises(LogError, match=r"a\.parquet cannot be read as a Parquet file: .*invalid start byte"):
        read_whole(path, LogFormat("parquet"), Wanted(("user",)))
