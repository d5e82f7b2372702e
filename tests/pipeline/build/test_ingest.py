"""Every line of a raw file is a row, or is rejected with its text, file and reason."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from pipeline.build.ingest import LINE, REASON, ROW_ID, raw, read_logs

from features.disk.dataset import DatasetError
from features.rawlog import LogError, LogFormat, read_rows
from jobs.cli.config import parse_config
from pipeline.build.sources import plan_sources

USER = {"label": "click", "sparse": [{"name": "user", "encoding": {"kind": "hash", "num_buckets": 100}}]}
ODD_TEXT = 'x: 1.50, \\"2\\\\' + "\\"
LENIENT = {"max_rejected_fraction": 1.0}


def read(spark, pattern, log_format, features=USER, **pipeline):
    """The raw rows in file order, as tuples (line, reason, raw values ...)."""
    tree = {"output": "x", "input": {"train": pattern, "format": log_format, **pipeline.pop("input", {})}, **pipeline}
    config = parse_config({"features": features, "pipeline": tree, "training": {"dataset": "x"}})
    plan = plan_sources(config.pipeline, config.features)
    rows = []
    for frame in read_logs(spark, config.pipeline, config.features, plan):
        names = [name for name in config.features.raw_columns if raw(name) in frame.columns]
        rows += frame.orderBy(ROW_ID).select(LINE, REASON, *(f"`{raw(name)}`" for name in names)).collect()
    return [tuple(row) for row in rows]


def test_delimited_lines(spark, tmp_path):
    path = tmp_path / "odd [1] name+%20.csv"
    lines = ["user,other,click", 'a,"x, ""y""",1', "b,,0", "only,two", '"open,1,1', '"a"b,1,1', 'c"d,1,"1"', ",,", ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\xff\xfe,1,1\n")
    rows = read(spark, str(path), {"kind": "csv"})
    assert [row[1] for row in rows] == [
        None,
        None,
        "wrong number of columns",
        "badly quoted",
        "badly quoted",
        None,
        None,
        "not UTF-8 text",
    ]
    good = [row[2:] for row in rows if row[1] is None]
    assert good == [("a", "1"), ("b", "0"), ('c"d', "1"), (None, None)]
    assert rows[0][0] == lines[1]


@pytest.mark.parametrize("separator", [",", "|", "\t", ";", "::", "^"])
def test_quotes_as_python_cuts_them(spark, tmp_path, separator):
    quote = '"' if len(separator) == 1 else ""
    lines = ["1", "{q}2{q}", "{q}3{s}{q}", "{q}{q}", "{q}4{q}{q}{q}", " {q}5{q}", "", "{q}{q}{q}{s}{q}{q}{q}"]
    text = "".join(f"{line}{{s}}end\n" for line in lines).format(q=quote, s=separator)
    path = tmp_path / "a.txt"
    path.write_text(f"user{separator}click\n" + text)
    log_format = {"kind": "csv", "separator": separator, "quote": quote}
    if not quote:  # without quotes, a separator always separates
        with pytest.raises(LogError, match="columns where 2"):
            list(read_rows(str(path), LogFormat(**log_format)))
        return
    expected = [(row["user"], row["click"]) for row in read_rows(str(path), LogFormat(**log_format))]
    assert [row[2:] for row in read(spark, str(path), log_format)] == expected
    assert len(expected) == len(lines)


def test_files_with_other_headers_are_mapped_by_name(spark, tmp_path):
    (tmp_path / "a.csv").write_text("user,click\nu1,1\n")
    (tmp_path / "b.csv").write_text("click,extra,user\n0,x,u2\n")
    assert [row[2:] for row in read(spark, str(tmp_path), {"kind": "csv"})] == [("u1", "1"), ("u2", "0")]


def test_latin_1_without_header(spark, tmp_path):
    path = tmp_path / "a.dat"
    path.write_bytes("é::1\n::0\n".encode("latin-1"))
    log_format = {
        "separator": "::",
        "header": False,
        "columns": ["user", "click"],
        "quote": "",
        "encoding": "ISO-8859-1",
    }
    assert [row[2:] for row in read(spark, str(path), log_format)] == [("é", "1"), (None, "0")]


def test_json_lines(spark, tmp_path):
    lines = {
        '{"user": "a", "click": 1.50, "tags": ["x", null, 2.50]}': None,
        '{"user": 1e5, "click": true, "tags": "[x"}': None,
        '{"user": "{\\"not\\": \\"nested\\"}", "click": null}': None,
        '{"user": {"a": 1}, "click": 1}': "column 'user' is neither text nor a number",
        '{"user": [1], "click": 1}': "column 'user' is neither text nor a number",
        '{"user": "a", "tags": [["x"]]}': "column 'tags' holds an array or an object within an array",
        '{"user": "a", "tags": {"x": 1}}': "column 'tags' is neither text nor a number",
        '{"user": "a"} trailing': "not a JSON object",
        "{'user': 'a'}": "not a JSON object",
        '{"user": NaN}': "not a JSON object",
        '["user"]': "not a JSON object",
        "7": "not a JSON object",
        '{"user": "a", "user": "b"}': None,
        '{"user": "c", "tags": ["x"], "tags": "y"}': None,
        '{"user": "a"}}': "not a JSON object",
        '{"click": -0.10, "user": ' + json.dumps(ODD_TEXT) + "}": None,
        '{"user": 01}': "not a JSON object",
        '{"user": 1.2.3}': "not a JSON object",
        "{1: 2}": "not a JSON object",
        "{": "not a JSON object",
    }
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*lines, "  ", ""]))
    tags = {"name": "tags", "separator": "|", "encoding": {"kind": "hash", "num_buckets": 9}}
    rows = read(spark, str(path), {"kind": "jsonl"}, {**USER, "sparse": [*USER["sparse"], tags]})
    assert {row[0]: row[1] for row in rows} == lines
    good = [row[2:] for row in rows if row[1] is None]
    assert good == [
        ("a", None, "1.50"),
        ("1e5", "[x", "true"),
        ('{"not": "nested"}', None, None),
        ("b", None, None),
        ("c", "y", None),
        (ODD_TEXT, None, "-0.10"),
    ]


def test_a_key_that_comes_late_is_found_and_one_that_never_comes_is_missed(spark, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"user": "a"}\n' * 1200 + '{"user": "a", "click": 1}\n')
    assert sum(row[3] == "1" for row in read(spark, str(path), {"kind": "jsonl"})) == 1
    path.write_text('{"user": "a"}\n')
    with pytest.raises(LogError, match=r"a\.jsonl: no line has 'click'"):
        read(spark, str(path), {"kind": "jsonl"})


def test_missing_column_names_file_and_columns(spark, tmp_path):
    (tmp_path / "a.csv").write_text("user,clicked\nu,1\n")
    with pytest.raises(LogError, match=r"a\.csv has no column 'click'; it has: user, clicked"):
        read(spark, str(tmp_path / "a.csv"), {"kind": "csv"})
    pyarrow.parquet.write_table(pyarrow.table({"user": [1], "c": [1]}), tmp_path / "a.parquet")
    with pytest.raises(LogError, match=r"a\.parquet has no column 'click'; it has: user, c"):
        read(spark, str(tmp_path / "a.parquet"), {"kind": "parquet"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "is empty"),
        ("_hidden.csv", b"user,click\n", "rename it"),
        ("x.csv.gz", b"no gzip", "cannot be"),
    ],
)
def test_unreadable_files(spark, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LogError, match=message):
        read(spark, str(tmp_path / name), {"kind": "csv"})


def test_parquet_types_no_feature_can_be_made_of(spark, tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"user": [[1]], "click": [1]}), path)
    with pytest.raises(LogError, match="column 'user' has type array<bigint>"):
        read(spark, str(path), {"kind": "parquet"})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(LogError, match="cannot be read"):
        read(spark, str(path), {"kind": "parquet"})


def test_lookups_join_like_python(spark, tmp_path):
    (tmp_path / "log.csv").write_text("user,site,age,click\n1,s,log,1\n2,s,log,0\n,t,log,0\n9,t,log,1\n")
    (tmp_path / "users.csv").write_text("user,age,region\n1,30,r1\n2,,r2\n")
    (tmp_path / "regions.jsonl").write_text('{"region": "r1", "tax": 0.5}\n')
    lookups = [
        {"path": "users.csv", "key": "user", "format": {"kind": "csv"}},
        {"path": "gone/regions.jsonl", "key": "region", "format": {"kind": "jsonl"}},
    ]
    hashed = {"encoding": {"kind": "hash", "num_buckets": 100}}
    features = {**USER, "sparse": [{"name": name, **hashed} for name in ("user", "site", "age", "region", "tax")]}
    rows = read(spark, str(tmp_path / "log.csv"), {"kind": "csv"}, features, input={"lookups": lookups})
    assert [row[2:] for row in rows] == [
        ("1", "s", "30", "r1", "0.5", "1"),
        ("2", "s", None, "r2", None, "0"),
        (None, "t", None, None, None, "0"),
        ("9", "t", None, None, None, "1"),
    ]
    (tmp_path / "users.csv").write_text("user,age,region\n1,30,r1\n1,31,r1\n")
    with pytest.raises(LogError, match=r"users\.csv: key 'user' is missing or twice"):
        read(spark, str(tmp_path / "log.csv"), {"kind": "csv"}, features, input={"lookups": lookups})


def test_rejected_rows_keep_line_file_and_reason(build, tmp_path):
    features = {
        "label": "click",
        "weight": "w",
        "timestamp": {"column": "t", "format": "yyyy-MM-dd HH:mm:ss"},
        "sparse": [*USER["sparse"], {"name": "n", "encoding": {"kind": "log"}}],
        "dense": [{"name": "d"}],
    }
    time = "2024-02-29 10:00:00"
    lines = {
        f"u,1,2,3,{time},1": None,
        f"u,1,2,3,{time}": "wrong number of columns",
        f"u,x,2,3,{time},1": "column 'n' is not a number",
        f"u,1,1e999,3,{time},1": "column 'd' is not a number",
        f"u,1,-1e39,3,{time},1": "column 'd' is not a number",
        f"u,1,2,3,{time},2": "label 'click' is not 0 or 1",
        f"u,1,2,3,{time},": "label 'click' is missing",
        f"u,1,2,3,{time},yes": "column 'click' is not a number",
        f"u,1,2,-3,{time},1": "weight 'w' is negative",
        f"u,1,2,,{time},1": "weight 'w' is missing",
        "u,1,2,3,2023-02-29 10:00:00,1": "timestamp 't' is missing or unreadable",
        "u,1,2,3,,1": "timestamp 't' is missing or unreadable",
    }
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user,n,d,w,t,click", *lines]) + "\n")
    manifest, dataset = build(features, {"input": {"train": str(path)}, "quality": LENIENT})
    kept = [json.loads(line) for line in (dataset / manifest.rejected.path / "rejected.jsonl").read_text().splitlines()]
    assert {row["line"]: row["reason"] for row in kept} == {k: v for k, v in lines.items() if v}
    assert {row["file"] for row in kept} == {str(path)}
    assert sum(manifest.rejected.reasons.values()) == manifest.rejected.num_rows == 11
    assert manifest.num_input_rows == 12 and manifest.split("train").num_rows == 1


def test_too_many_rejected_rows_name_the_first(build, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,click\n" + "u,1\n" * 50 + "u,7\nu\n" + "u,0\n" * 50)
    with pytest.raises(
        DatasetError, match=r"2 of 102 rows \(1\.96%\).*log\.csv line 52: label.*'u,7'.*log\.csv line 53"
    ):
        build(USER, {"input": {"train": str(path)}})
    assert not list((tmp_path / "dataset").glob("version-*"))


def test_truncated_gzip_names_the_file(build, tmp_path):
    path = tmp_path / "cut.csv.gz"
    text = "user,click\n" + "".join(f"user{i},{i % 2}\n" for i in range(30_000))
    path.write_bytes(gzip.compress(text.encode())[:-2000])
    with pytest.raises(LogError, match=r"^\S*cut\.csv\.gz cannot be read: it is truncated or damaged$"):
        build(USER, {"input": {"train": str(path)}})


def test_fraction_is_no_category(build, tmp_path):
    path = tmp_path / "a.parquet"
    users = pyarrow.array([1.0, 2.5, None, float("nan"), -0.0])
    pyarrow.parquet.write_table(pyarrow.table({"user": users, "click": [True, False, True, False, True]}), path)
    manifest, _ = build(USER, {"input": {"train": str(path), "format": {"kind": "parquet"}}, "quality": LENIENT})
    assert manifest.rejected.reasons == {"column 'user' has a fraction: it cannot be a category": 1}
    assert manifest.split("train").sparse["user"].null_rate == 0.5
