"""Every line of a raw file is a row, or is rejected with its text, file and reason."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from features.disk.dataset import DatasetError
from features.log_format import LogError

USER = {"label": "click", "sparse": [{"name": "user", "encoding": {"kind": "hash", "num_buckets": 100}}]}
LENIENT = {"max_rejected_fraction": 1.0}


def read(build, pattern, log_format):
    """Build a dataset of one log."""
    return build(USER, {"input": {"train": pattern, "format": log_format}})


def test_a_key_that_comes_late_is_found_and_one_that_never_comes_is_missed(build, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"user": "a"}\n' * 1200 + '{"user": "a", "click": 1}\n')
    manifest, _ = build(USER, {"input": {"train": str(path), "format": {"kind": "jsonl"}}, "quality": LENIENT})
    assert manifest.rejected.reasons == {"label 'click' is missing": 1200} and manifest.splits["train"].num_rows == 1
    path.write_text('{"user": "a"}\n')
    with pytest.raises(LogError, match=r"a\.jsonl: no line has 'click'"):
        read(build, str(path), {"kind": "jsonl"})


def test_missing_column_names_file_and_columns(build, tmp_path):
    (tmp_path / "a.csv").write_text("user,clicked\nu,1\n")
    with pytest.raises(LogError, match=r"a\.csv has no column 'click'; it has: user, clicked"):
        read(build, str(tmp_path / "a.csv"), {"kind": "csv"})
    pyarrow.parquet.write_table(pyarrow.table({"user": [1], "c": [1]}), tmp_path / "a.parquet")
    with pytest.raises(LogError, match=r"a\.parquet has no column 'click'; it has: user, c"):
        read(build, str(tmp_path / "a.parquet"), {"kind": "parquet"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "have no rows"),
        ("x.csv.gz", b"no gzip", "cannot be"),
    ],
)
def test_unreadable_files(build, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((LogError, DatasetError), match=message):
        read(build, str(tmp_path / name), {"kind": "csv"})


def test_parquet_types_no_feature_can_be_made_of(build, tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"user": [[1]], "click": [1]}), path)
    with pytest.raises(LogError, match="column 'user' has type list<element: int64>"):
        read(build, str(path), {"kind": "parquet"})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(LogError, match="cannot be read"):
        read(build, str(path), {"kind": "parquet"})


def test_lookups_join_like_python(build, read_split, tmp_path):
    (tmp_path / "log.csv").write_text("user,site,age,click\n1,s,log,1\n2,s,log,0\n,t,log,0\n9,t,log,1\n")
    (tmp_path / "users.csv").write_text("user,age,region\n1,30,r1\n2,,r2\n")
    (tmp_path / "regions.jsonl").write_text('{"region": "r1", "tax": 0.5}\n')
    lookups = [
        {"path": "users.csv", "key": "user", "format": {"kind": "csv"}},
        {"path": "gone/regions.jsonl", "key": "region", "format": {"kind": "jsonl"}},
    ]
    features = {**USER, "carry": ["site", "age", "region", "tax"]}
    pipeline = {"input": {"train": str(tmp_path / "log.csv"), "lookups": lookups}}
    manifest, dataset = build(features, pipeline)
    rows = read_split(manifest, dataset).to_pylist()
    assert sorted((row["site"], row["age"], row["region"], row["tax"], row["label"]) for row in rows if row["age"]) == [
        ("s", "30", "r1", "0.5", 1.0)
    ]
    assert [row["region"] for row in rows].count(None) == 2 and len(rows) == 4
    assert sorted(manifest.inputs) == ["lookup 0", "lookup 1", "train"]
    (tmp_path / "users.csv").write_text("user,age,region\n1,30,r1\n1,31,r1\n")
    with pytest.raises(LogError, match=r"users\.csv: key 'user' is missing or twice"):
        build(features, pipeline)


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
    with pytest.raises(LogError, match=r"2 of 102 rows \(1\.96%\).*log\.csv line 52: label.*'u,7'.*log\.csv line 53"):
        build(USER, {"input": {"train": str(path)}})
    assert not list((tmp_path / "dataset").glob("version-*"))


def test_truncated_gzip_names_the_file(build, tmp_path):
    path = tmp_path / "cut.csv.gz"
    text = "user,click\n" + "".join(f"user{i},{i % 2}\n" for i in range(30_000))
    path.write_bytes(gzip.compress(text.encode())[:-2000])
    with pytest.raises(LogError, match=r"^\S*cut\.csv\.gz cannot be read: "):
        build(USER, {"input": {"train": str(path)}})


def test_fraction_is_no_category(build, tmp_path):
    path = tmp_path / "a.parquet"
    users = pyarrow.array([1.0, 2.5, None, float("nan"), -0.0])
    pyarrow.parquet.write_table(pyarrow.table({"user": users, "click": [True, False, True, False, True]}), path)
    manifest, _ = build(USER, {"input": {"train": str(path), "format": {"kind": "parquet"}}, "quality": LENIENT})
    assert manifest.rejected.reasons == {"column 'user' has a fraction or is beyond 2^53: it cannot be a category": 1}
    assert manifest.split("train").sparse["user"].null_rate == 0.5
