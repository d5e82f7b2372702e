"""Logs as people have them: what is read, what is said of it, and what the cure that a message names does."""

import gzip
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet
import pytest

from features.disk.dataset import DatasetError, DatasetManifest
from features.log_files import find_files
from features.log_format import LogError

USER = {"name": "user", "encoding": {"kind": "vocabulary"}}
CLICKS = {"label": "click", "sparse": [USER]}


@pytest.fixture
def warned(build, tmp_path: Path):
    """``warned(features, pipeline) -> (manifest, dataset, warnings)``."""

    def run(features: dict, pipeline: dict, folder: str = "dataset"):
        manifest, dataset = build(features, pipeline, folder)
        warnings = json.loads((dataset / "build.json").read_text())["warnings"]
        assert list(manifest.warnings) == warnings
        return manifest, dataset, warnings

    return run


def csv(path: Path, lines: list[str], header: str = "user,click") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


CLICK_LINES = [f"u{i % 7},{i % 2}" for i in range(40)]


def test_hidden_folders_are_left_out_with_a_word_and_empty_files_are_no_error(warned, tmp_path: Path) -> None:
    csv(tmp_path / "logs" / "a b:c.csv", CLICK_LINES)
    csv(tmp_path / "logs" / ".tmp" / "x.csv", CLICK_LINES)
    (tmp_path / "logs" / "quiet.csv").touch()
    manifest, _, warnings = warned(CLICKS, {"input": {"train": str(tmp_path / "logs")}})
    assert manifest.num_input_rows == 40
    assert any(".tmp" in said for said in warnings) and any("quiet.csv" in said for said in warnings)


@pytest.mark.parametrize(
    ("header", "line", "encoding", "cure"),
    [
        ("user;click", "u{};{}", "utf-8", r'set pipeline\.input\.format\.separator = ";"'),
        ("user\tclick", "u{}\t{}", "utf-8", r'set pipeline\.input\.format\.separator = "\\t"'),
        ("User,Click", "u{},{}", "utf-8", "'User' is another name than 'user': write it as the file does"),
        ("user, click", "u{}, {}", "utf-8", "' click' is another name than 'click'"),
        ("user,click", "u{},{}", "utf-16-le", 'looks like UTF-16: set pipeline.input.format.encoding = "UTF-16-LE"'),
        ("user,clicks", "u{},{}", "utf-8", "if older files may lack it, name it in pipeline.input.format.optional"),
        ("user,click", "ü{},{}", "latin-1", "set pipeline.input.format.encoding to the encoding of the files"),
        ("user,click", "u{},{},x", "utf-8", "see separator, quote and columns of pipeline.input.format"),
        ("user,click", "u{},yes {}", "utf-8", 'is a rule: features.label = "click == VALUE"'),
        ("user,click", "u{},7{}", "utf-8", 'is a rule: features.label = "click == VALUE"'),
    ],
)
def test_a_log_that_cannot_be_read_says_what_to_do(
    header: str, line: str, encoding: str, cure: str, build, tmp_path: Path
) -> None:
    lines = [header, *(line.format(i % 7, i % 2) for i in range(40))]
    (tmp_path / "log.csv").write_text("\n".join(lines), encoding=encoding)
    with pytest.raises(LogError, match=cure):
        build(CLICKS, {"input": {"train": str(tmp_path / "log.csv")}})


def test_a_json_array_is_no_json_lines(build, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(json.dumps([{"user": "u", "click": 1}]))
    with pytest.raises(LogError, match="a line of JSON lines is one object; an array"):
        build(CLICKS, {"input": {"train": str(tmp_path / "log.json"), "format": {"kind": "jsonl"}}})


def test_times_in_the_wrong_unit_leave_no_row_to_train_on(build, tmp_path: Path) -> None:
    lines = [f"u{i % 7},{i % 2},{1_700_000_000_000 + i}" for i in range(40)]
    log = csv(tmp_path / "log.csv", lines, "user,click,t")
    features = {**CLICKS, "timestamp": {"column": "t", "format": "unix"}}
    split = {"kind": "time", "valid_from": "2023-11-14T22:13:50"}
    with pytest.raises(LogError, match=r"no row is left for the training split: .*these look like milliseconds"):
        build(features, {"input": {"train": log}, "split": split})


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "csv.zst", "parquet", "orc"])
def test_a_name_that_is_no_text(kind: str, warned, tmp_path: Path) -> None:
    """It is in the manifest, in rejected lines and in warnings, and what the manifest says leads to it."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/logs/day \xff\n." + kind.encode()))
    path.parent.mkdir()
    table = pa.table(
        {"user": [*(f"u{i % 7}" for i in range(40)), "u1"], "click": [*(str(i % 2) for i in range(40)), "x"]}
    )
    file = io.BytesIO()
    {"parquet": pyarrow.parquet.write_table, "orc": pyarrow.orc.write_table}.get(kind, pyarrow.csv.write_csv)(
        table, file
    )
    pack = {"csv.gz": gzip.compress, "csv.zst": lambda data: pa.compress(data, "zstd", asbytes=True)}
    path.write_bytes(pack.get(kind, bytes)(file.getvalue()))
    given = {"train": str(tmp_path / "logs"), "format": {"kind": kind.split(".")[0]}}
    manifest, dataset, _ = warned(CLICKS, {"input": given, "quality": {"max_rejected_fraction": 0.1}})
    (named,) = manifest.inputs["train"]
    assert named == f"{tmp_path}/logs/day \\xff\n.{kind}" and find_files(named).files[0].real == str(path)
    (rejected,) = dataset.glob("version-*/rejected/*")
    assert json.loads(rejected.read_text())["file"] == named


def test_a_file_given_twice_is_read_once(warned, tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", CLICK_LINES)
    (tmp_path / "link.csv").symlink_to(path)
    manifest, _, warnings = warned(CLICKS, {"input": {"train": [path, str(tmp_path / "link.csv")]}})
    assert manifest.num_input_rows == 40 and any("read once" in said for said in warnings)


def test_the_manifest_keeps_the_state_of_every_file_that_was_read(build, tmp_path: Path) -> None:
    one, two = (csv(tmp_path / "logs" / f"{name}.csv", CLICK_LINES) for name in ("one", "two"))
    users = csv(tmp_path / "users.csv", [f"u{i},{i}" for i in range(7)], "user,age")
    features = {"label": "click", "sparse": [USER, {"name": "age", "encoding": {"kind": "hash", "num_buckets": 9}}]}
    lookup = {"path": users, "key": "user", "format": {"kind": "csv"}}
    manifest, dataset = build(features, {"input": {"train": f"{tmp_path}/logs", "lookups": [lookup]}})
    found = [(file.path, file.num_bytes, file.modified) for file in manifest.input_files]
    states = [(path, Path(path).stat()) for path in (one, two, users)]
    assert found == [(path, state.st_size, state.st_mtime_ns) for path, state in states]
    assert DatasetManifest.load(dataset).input_files == manifest.input_files


@pytest.mark.parametrize("num_bytes", [1 << 25, 200, 64])
def test_a_line_break_inside_quotes_is_one_row_wherever_the_log_is_cut(
    build, read_split, tmp_path: Path, num_bytes: int
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,note,click\n" + "".join(f'u{i},"a\n{i},""b""\n",{i % 2}\n' for i in range(60)))
    features = {**CLICKS, "carry": ["note"]}
    pipeline = {"input": {"train": str(path)}, "spark": {"max_partition_bytes": num_bytes}}
    manifest, dataset = build(features, pipeline)
    assert manifest.num_input_rows == 60 and manifest.rejected.num_rows == 0
    assert sorted(read_split(manifest, dataset)["note"].to_pylist()) == sorted(f'a\n{i},"b"\n' for i in range(60))


def test_an_open_quote_costs_its_line_alone(build, tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", [*CLICK_LINES, '"u,1', *CLICK_LINES])
    pipeline = {"input": {"train": path}, "quality": {"max_rejected_fraction": 0.5}}
    manifest, dataset = build(CLICKS, pipeline)
    assert manifest.splits["train"].num_rows == 80 and manifest.rejected.num_rows == 1
    [line] = (dataset / manifest.rejected.path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["number"] == 42


def test_encodings_escapes_and_nested_keys(build, read_split, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("user,click\n北京,1\n上海,0\n".encode("gbk"))
    manifest, dataset = build(CLICKS, {"input": {"train": str(tmp_path / "a.csv"), "format": {"encoding": "GBK"}}}, "a")
    assert manifest.load_learnt(dataset).vocabularies["user"] == ["上海", "北京"]
    (tmp_path / "b.csv").write_text('user,click\n"a \\"b\\", c",1\nx,0\n')
    manifest, dataset = build(CLICKS, {"input": {"train": str(tmp_path / "b.csv"), "format": {"escape": "\\"}}}, "b")
    assert manifest.load_learnt(dataset).vocabularies["user"] == ['a "b", c', "x"]
    (tmp_path / "c.jsonl").write_text('{"user": {"id": 7}, "click": 1}\n{"user": {}, "click": 0}\n')
    features = {"label": "click", "sparse": [{**USER, "columns": ["user.id"]}]}
    manifest, dataset = build(
        features, {"input": {"train": str(tmp_path / "c.jsonl"), "format": {"kind": "jsonl"}}}, "c"
    )
    assert manifest.load_learnt(dataset).vocabularies["user"] == ["7"]


def test_columns_of_the_path_and_columns_that_older_files_lack(warned, tmp_path: Path) -> None:
    csv(tmp_path / "country=us" / "a.csv", CLICK_LINES)
    csv(tmp_path / "country=de" / "a.csv", ["u1,x,1", "u2,,0"], "user,coupon,click")
    features = {**CLICKS, "sparse": [USER, *({**USER, "name": name} for name in ("country", "coupon"))]}
    pipeline = {"input": {"train": str(tmp_path / "country=*")}}
    with pytest.raises(LogError, match=r"has no column 'coupon'.*pipeline\.input\.format\.optional"):
        warned(features, pipeline)
    pipeline["input"]["format"] = {"optional": ["coupon"]}  # type: ignore[assignment]
    manifest, dataset, warnings = warned(features, pipeline)
    assert manifest.load_learnt(dataset).vocabularies == {
        "user": [f"u{i}" for i in range(7)], "country": ["de", "us"], "coupon": ["x"]
    }  # fmt: skip
    assert any("'coupon' is missing in all rows of" in said for said in warnings)


def test_parquet_of_many_types(build, read_split, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table(
        {
            "user": pa.array([2**64 - 1, 1, None], pa.uint64()),
            "t": pa.array(np.array([10**18, 10**18, 10**18], "datetime64[ns]")),
            "city": pa.array(["a", "b", "a"]).dictionary_encode(),
            "price": pa.array([1, 2, 3], pa.decimal128(5, 2)),
            "tags": pa.array([["x", "y"], [], None], pa.large_list(pa.large_string())),
            "click": pa.array([True, False, True]),
            "unused": pa.array([{"a": 1}] * 3),
        }
    )
    pyarrow.parquet.write_table(table, path)
    features = {
        "label": "click",
        "timestamp": {"column": "t"},
        "sparse": [USER, {**USER, "name": "city"}, {**USER, "name": "tags", "separator": ","}],
        "dense": [{"name": "price"}],
    }
    manifest, dataset = build(features, {"input": {"train": str(path), "format": {"kind": "parquet"}}})
    assert manifest.load_learnt(dataset).vocabularies == {
        "user": ["1", "18446744073709551615"], "city": ["a", "b"], "tags": ["x", "y"]
    }  # fmt: skip
    rows = read_split(manifest, dataset)
    assert set(rows["timestamp"].to_pylist()) == {10**9} and sorted(rows["price"].to_pylist()) == [1.0, 2.0, 3.0]


def test_what_looks_odd_is_told_and_the_named_setting_cures_it(warned, tmp_path: Path) -> None:
    lines = [f'{i % 5}{"" if i % 2 else ".0"},"[{i % 3}, 7]",{"NULL" if i % 4 else i % 3},{i % 2}' for i in range(120)]
    path = csv(tmp_path / "a.csv", lines, "user,tags,city,click")
    features = {**CLICKS, "sparse": [USER, {**USER, "name": "tags", "separator": ","}, {**USER, "name": "city"}]}
    manifest, dataset, warnings = warned(features, {"input": {"train": path}}, "odd")
    assert len(manifest.load_learnt(dataset).vocabularies["user"]) == 10
    for cure in ("null_tokens = ['NULL']", "whole_floats = true", "list_literals = true"):
        assert any(cure in said for said in warnings), cure
    values = {"null_tokens": ["NULL"], "whole_floats": True, "list_literals": True}
    manifest, dataset, warnings = warned({**features, "values": values}, {"input": {"train": path}}, "cured")
    assert manifest.load_learnt(dataset).vocabularies == {
        "user": list("01234"), "tags": ["0", "1", "2", "7"], "city": ["0", "1", "2"]
    }  # fmt: skip
    assert warnings == []


def test_rows_without_a_key_are_no_duplicates_and_rows_without_a_group_are_spread(
    warned, read_split, tmp_path: Path
) -> None:
    lines = [f"{i % 10 if i % 2 else ''},{'u1' if i % 3 else ''},{i % 2}" for i in range(600)]
    path = csv(tmp_path / "a.csv", lines, "request,user,click")
    split = {"kind": "hash", "column": "user", "valid": 0.3, "test": 0.3}
    manifest, _, warnings = warned(CLICKS, {"input": {"train": path}, "dedupe": ["request"], "split": split})
    assert manifest.num_duplicates == 300 - 5
    assert any("300 rows lack a part of their key" in said for said in warnings)
    assert {"train", "valid"} <= set(manifest.splits), "equal raw rows stay together, others are spread"
    many = [f"{i},{'' if i % 3 else 'bot'},{i % 2}" for i in range(600)]
    path = csv(tmp_path / "b.csv", many, "request,user,click")
    manifest, _, warnings = warned(CLICKS, {"input": {"train": path}, "split": split}, "b")
    assert any(said.startswith("user 'bot' has 33% of all rows") for said in warnings)
    assert min(found.num_rows for found in manifest.splits.values()) > 60


def test_a_degenerate_build_speaks(warned, tmp_path: Path) -> None:
    lines = [f"u{i % 3},same,,{1_700_000_000_000 + i},{int(i < 50)},{0 if i else 1e9}" for i in range(100)]
    path = csv(tmp_path / "a.csv", lines, "user,one,none,t,click,price")
    side = csv(tmp_path / "side.csv", ["U1,x"], "user,brand")
    hashed = {"encoding": {"kind": "hash", "num_buckets": 3}}
    features = {
        "label": "click",
        "timestamp": {"column": "t"},
        "sparse": [{"name": name, **hashed} for name in ("user", "one", "none", "brand")],
        "dense": [{"name": "price", "standardise": True}],
    }
    lookups = [{"path": side, "key": "user", "format": {"kind": "csv"}}]
    quality = {"odd": {"max_deviations": 5}}
    times = {"kind": "time", "valid_from": "2100-01-01"}
    pipeline = {"input": {"train": path, "lookups": lookups}, "quality": quality}
    _, _, warnings = warned(features, pipeline)
    said = "\n".join(warnings)
    for part in (
        "feature 'one' has one value in every training row",
        "feature 'none' is missing in every training row",
        "side.csv has the key of 0.0% of all rows",
        "these look like milliseconds",
        "standard deviations from its mean",
        "of its 3 values share an id",
    ):
        assert part in said, part
    times["valid_from"] = "2023-11-14T22:13:20.050"
    features["timestamp"] = {"column": "t", "format": "unix_ms"}
    features["label"] = "click"
    _, _, warnings = warned(features, {**pipeline, "split": {"kind": "time", "valid_from": "2023-11-14T22:13:21"}}, "b")
    assert any("split 'valid' has no rows" in one for one in warnings)


def test_labels_as_text_and_files_without_a_row(warned, tmp_path: Path) -> None:
    csv(tmp_path / "logs" / "a.csv", ["u1,buy", "u2,view", "u3,cart", "u4,view"], "user,behaviour")
    features = {"label": "behaviour in buy, cart", "sparse": [USER]}
    manifest, *_ = warned(features, {"input": {"train": str(tmp_path / "logs")}})
    assert manifest.split("train").label_rate == 0.5
    (tmp_path / "logs" / "b.csv").write_text("user,behaviour\nu1,buy,1\nu2\n")
    pipeline = {"input": {"train": str(tmp_path / "logs")}, "quality": {"max_rejected_fraction": 0.5}}
    _, _, warnings = warned(features, pipeline)
    assert any("no line is a row in" in said and "b.csv" in said for said in warnings)


def test_archives_and_damaged_files_are_refused_by_name(build, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04....")
    with pytest.raises(LogError, match=r"a\.zip.*unpack"):
        build(CLICKS, {"input": {"train": str(tmp_path / "a.zip")}})
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"user,click\n" + b"u,1\n" * 9999)[:-9])
    with pytest.raises((LogError, DatasetError), match=r"b\.csv\.gz cannot be read"):
        build(CLICKS, {"input": {"train": str(tmp_path / "b.csv.gz")}})


def test_a_delta_table_is_read_by_its_log(warned, read_split, tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="the extra delta is not installed")
    folder = str(tmp_path / "table")
    rows = pa.table(
        {
            "user": [f"u{i % 7}" for i in range(40)],
            "click": [i % 2 for i in range(40)],
            "country": ["us" if i % 3 else "fr fr/x" for i in range(39)] + [None],
            "day": [i % 5 for i in range(40)],
        }
    )
    deltalake.write_deltalake(folder, rows, partition_by=["country", "day"])
    younger = pa.table({"user": ["new"], "click": [1], "country": ["de"], "day": [9], "price": [2.5]})
    deltalake.write_deltalake(folder, younger, mode="append", schema_mode="merge")
    deltalake.DeltaTable(folder).delete("user = 'u3'")
    features = {
        "label": "click",
        "sparse": [
            {**USER, "name": "user_id", "columns": ["user"]},
            {"name": "country", "encoding": {"kind": "vocabulary"}},
        ],
        "dense": [{"name": "price"}, {"name": "day"}],
        "carry": ["user"],
    }
    manifest, dataset, warnings = warned(features, {"input": {"train": folder, "format": {"kind": "delta"}}})
    expected = pa.concat_tables([rows, younger], promote_options="default").to_pylist()
    expected = [row for row in expected if row["user"] != "u3"]
    assert manifest.num_input_rows == len(expected) == 35
    table = read_split(manifest, dataset)
    found = sorted(zip(table["user"].to_pylist(), table["day"].to_pylist(), table["price"].to_pylist(), strict=True))
    assert found == sorted((row["user"], float(row["day"]), row["price"] or 0.0) for row in expected)
    assert manifest.load_learnt(dataset).vocabularies["country"] == ["de", "fr fr/x", "us"]
    assert manifest.splits["train"].sparse["country"].null_rate == pytest.approx(1 / 35)
    current = {str(Path(folder) / file) for file in deltalake.DeltaTable(folder).file_uris()}
    assert {Path(file.path).name for file in manifest.input_files} == {Path(uri).name for uri in current}
    assert {Path(path).name for path in manifest.inputs["train"]} == {Path(uri).name for uri in current}
    assert any("column 'price' is missing in all rows of" in said for said in warnings)


def test_delta_tables_that_cannot_be_read(build, tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="the extra delta is not installed")
    rows = pa.table({"user": ["a", "b"], "click": [0, 1]})
    for name in ("one", "two", "empty"):
        deltalake.write_deltalake(str(tmp_path / name), rows)
    deltalake.DeltaTable(str(tmp_path / "empty")).delete()
    one, two, empty = (str(tmp_path / name) for name in ("one", "two", "empty"))

    def of(train: object, **more: object) -> dict:
        return {"input": {"train": train, "format": {"kind": "delta"}, **more}}

    manifest, _ = build(CLICKS, of([one, f"file://{two}", one]))
    assert manifest.num_input_rows == 4 and any("read once" in said for said in manifest.warnings)
    for pipeline, message in (
        (of(one, valid=one), "is given for both 'train' and 'valid'"),
        (of(empty), "the Delta table has no rows"),
        (of(str(tmp_path)), "cannot be read as a Delta table"),
        (of("s3://bucket/table"), "a Delta table is read on disk alone"),
    ):
        with pytest.raises(LogError, match=message):
            build(CLICKS, pipeline)
    with pytest.raises(LogError, match="has no column 'clicks'; it has: user, click"):
        build({**CLICKS, "label": "clicks"}, of(one))


def test_a_delta_table_without_its_library(build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(LogError, match=r"library deltalake: pip install 'twinfocus\[delta\]'"):
        build(CLICKS, {"input": {"train": str(tmp_path), "format": {"kind": "delta"}}})


def test_a_large_text_that_one_task_reads_alone_is_told(warned, tmp_path: Path) -> None:
    text = "\n".join(["user,click", *CLICK_LINES]) + "\n"
    (tmp_path / "logs").mkdir()
    for number in range(5):
        (tmp_path / "logs" / f"{number}.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "logs" / "plain.csv").write_text(text)
    pipeline = {"input": {"train": str(tmp_path / "logs")}}
    assert not [said for said in warned(CLICKS, pipeline)[2] if "one task reads" in said]
    pipeline["quality"] = {"odd": {"max_unsplit_bytes": 50}}
    [said] = [said for said in warned(CLICKS, pipeline, "odd")[2] if "one task reads" in said]
    assert said.startswith(f"one task reads all of {tmp_path}/logs/0.csv.gz (0 MB), ") and " and 2 more, as" in said
    assert "plain.csv" not in said
    (tmp_path / "a.csv").write_bytes(text.encode("utf-16"))
    pipeline["input"] = {"train": str(tmp_path / "a.csv"), "format": {"encoding": "UTF-16"}}
    assert any("one task reads all of" in said for said in warned(CLICKS, pipeline, "wide")[2])
