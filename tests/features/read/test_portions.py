"""Streams, formats and paths: compressed files, what is no text, columns that the path names, Delta tables."""

import bz2
import gzip
import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from features.log_format import LogError, LogFormat
from features.raw_block import Wanted
from features.read.delta import list_delta_files
from features.read.portions import Portion, plan_portions, read_portion
from tests.features.read.whole import read_whole

AB = Wanted(("a", "b"))
TEXT = "a,b\n" + "".join(f"{i},{random.Random(i).random()}\n" for i in range(5000))
ROWS = [tuple(line.split(",")) for line in TEXT.splitlines()[1:]]


def packed(kind: str, data: bytes) -> bytes:
    if kind in ("gz", "bz2"):
        return {"gz": gzip.compress, "bz2": bz2.compress}[kind](data)
    codec = {"zst": "zstd", "zstd": "zstd"}.get(kind, kind)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def values(path: Path) -> list[tuple]:
    rows, rejected = read_whole(path, LogFormat(), AB, step=1000)
    assert not rejected
    return [tuple(row.values()) for *_, row in rows]


KINDS = ["gz", "bz2", "zst", "zstd", "lz4"]


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_files_of_one_or_more_members(tmp_path: Path, kind: str) -> None:
    data, half = TEXT.encode(), len(TEXT) // 2
    for name in (f"a.csv.{kind}", f"A.CSV.{kind.upper()}", "a.csv"):
        path = tmp_path / name
        path.write_bytes(packed(kind, data))
        assert values(path) == ROWS and len(plan_portions(str(path), path.stat().st_size, LogFormat(), 10)) == 1
        path.write_bytes(packed(kind, data[:half]) + packed(kind, data[half:]))
        assert values(path) == ROWS


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_files_that_are_cut_off_or_something_else(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.csv.{kind}"
    data = packed(kind, TEXT.encode())
    damage = [data[:-3], data[: len(data) // 2], data[:20]]
    if kind in ("gz", "bz2"):  # the others have sums of their bytes only where their writer was asked for them
        damage.append(data[:50] + bytes(30) + data[80:])
    for damaged in damage:
        path.write_bytes(damaged)
        with pytest.raises(LogError, match=rf"a\.csv\.{kind} cannot be read"):
            values(path)
    path.write_text(TEXT)
    with pytest.raises(LogError, match=rf"a\.csv\.{kind} cannot be read: its name says .* rename or repair it"):
        values(path)
    path.write_bytes(b"")
    assert values(path) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04xxxx", "it is a zip archive: unpack it"),
        (b"\xfd7zXZ\x00xxxx", "it is compressed by xz: use gzip"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "it is a tar archive: unpack it"),
        (gzip.compress(bytes(257) + b"ustar\x0000" + bytes(300), mtime=0), "it is a tar archive: unpack it"),
    ],
    ids=["zip", "xz", "tar", "tar.gz"],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(LogError, match=f"a.csv is no text, {message}"):
        values(path)


@pytest.mark.parametrize("text", ["BZh9,b\n1,2\n", "ORC,b\n1,2\n", "PAR,b\n1,2\n"])
def test_text_that_begins_like_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    rows, _ = read_whole(path, LogFormat(), Wanted(("b",)))
    assert [row for *_, row in rows] == [{"b": "2"}]


def test_absent_and_shortened_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(LogError, match=r"a\.csv cannot be read"):
        list(read_portion(Portion(str(path)), LogFormat(), AB))
    path.write_text(TEXT)
    portion = plan_portions(str(path), len(TEXT), LogFormat())[0]
    path.write_text(TEXT[:-5])
    with pytest.raises(LogError, match=r"a\.csv has become shorter while it was read"):
        list(read_portion(portion, LogFormat(), AB))


def write_kind(folder: Path, kind: str) -> tuple[Path, LogFormat]:
    path = folder / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.table({"a": ["1"], "b": ["2"]}), path)
    else:
        path.write_text({"csv": "a,b\n1,2\n", "jsonl": '{"a": 1, "b": 2}\n', "libffm": "1 1:2:3\n"}[kind])
    return path, LogFormat(kind)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "libffm"])
def test_columns_of_the_path(tmp_path: Path, kind: str) -> None:
    path, log_format = write_kind(tmp_path, kind)
    first = "label" if kind == "libffm" else "a"
    partition = {"country": "us", "day": "7", "n": "x", "none": None, "unneeded": "1"}
    wanted = Wanted(("country", first, "day", "n", "none"), numbers=frozenset(["day", "n"]))
    [block] = read_portion(Portion(str(path)), log_format, wanted, partition=partition)
    assert {name: values.to_pylist() for name, values in block.columns.items()} == {
        "country": ["us"],
        first: ["1"],
        "day": [7.0],
        "n": ["x"],
        "none": [None],
    }
    assert block.absent == ()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_that_file_and_path_both_have(tmp_path: Path, kind: str) -> None:
    path, log_format = write_kind(tmp_path, kind)
    with pytest.raises(LogError, match=r"has column 'b', and so has its path: rename one of them"):
        list(read_portion(Portion(str(path)), log_format, AB, partition={"b": "1"}))
    [block] = read_portion(Portion(str(path)), log_format, Wanted(("a",)), partition={"b": "1"})
    assert block.columns["a"].to_pylist() == ["1"]


def test_current_files_of_a_delta_table(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="the extra delta is not installed")
    folder = str(tmp_path / "t")
    table = pa.table({"a": ["1", "2", "3", "4"], "country": ["us", "de", "us", None]})
    deltalake.write_deltalake(folder, table, partition_by=["country"])
    more = pa.table({"a": ["9"], "country": ["fr fr/x"], "new": ["n"]})
    deltalake.write_deltalake(folder, more, mode="append", schema_mode="merge")
    deltalake.DeltaTable(folder).delete("a = '2'")
    found = []
    for file in list_delta_files(folder):
        wanted = Wanted(("a", "country", "new"), optional=frozenset(file.columns))
        [portion] = plan_portions(file.path, Path(file.path).stat().st_size, LogFormat("delta"))
        for block in read_portion(portion, LogFormat("delta"), wanted, partition=file.partition):
            found += list(zip(*(values.to_pylist() for values in block.columns.values()), strict=True))
    assert sorted(found) == [("1", "us", None), ("3", "us", None), ("4", None, None), ("9", "fr fr/x", "n")]
    with pytest.raises(LogError, match="cannot be read as a Delta table"):
        list_delta_files(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("protocol", "configuration", "words"),
    [
        ({"minReaderVersion": 2, "minWriterVersion": 5}, {"delta.columnMapping.mode": "name"}, "renames columns"),
        (
            {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["deletionVectors"]},
            {},
            "marks deleted rows in files of its own",
        ),
    ],
)
def test_delta_tables_whose_files_alone_would_be_misread(
    tmp_path: Path, protocol: dict[str, Any], configuration: dict[str, str], words: str
) -> None:
    deltalake = pytest.importorskip("deltalake", reason="the extra delta is not installed")
    deltalake.write_deltalake(str(tmp_path / "t"), pa.table({"a": ["1"]}))
    log = tmp_path / "t" / "_delta_log" / "00000000000000000000.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if "protocol" in line:
            line["protocol"] = {"writerFeatures": protocol.get("readerFeatures"), **protocol}
        if "metaData" in line:
            line["metaData"]["configuration"] = configuration
            schema = json.loads(line["metaData"]["schemaString"])
            names = {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "a"}
            schema["fields"][0]["metadata"] = names if configuration else {}
            line["metaData"]["schemaString"] = json.dumps(schema)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(LogError, match=words):
        list_delta_files(str(tmp_path / "t"))


def test_a_delta_table_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "deltalake", None)
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    [package] = project["optional-dependencies"]["delta"]
    with pytest.raises(LogError, match=f"library deltalake: pip install '{package}'"):
        list_delta_files(str(tmp_path))
