"""jobs.inspect as a user runs it: what it writes is built without a word changed; what it refuses, and how."""

import functools
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from features.disk.dataset import DatasetManifest
from jobs import inspect
from jobs.cli.config import Config, load_config
from jobs.launch.dataset_build import check_build, run_build
from pipeline.build.sources import plan_sources
from tests.stand_ins.object_store import Bucket

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
START = 1_700_000_000
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_here: Callable[..., tuple[int, str, str]]) -> Run:
    return functools.partial(run_here, inspect.main)


def make_rows(num_rows: int = 4_000, seed: int = 3) -> dict[str, list[Any]]:
    """A log of ten days with a column of every kind."""
    random = np.random.default_rng(seed)
    clicks = random.random(num_rows) < 0.3
    tags = [f"t{i}" for i in range(12)]
    return {
        "request_key": [f"r{i:07d}" for i in range(num_rows)],
        "user_id": [f"u{i}" for i in random.integers(0, 300, num_rows)],
        "item": [f"i{i}" for i in random.zipf(1.3, num_rows) % 9_000],
        "tags": ["|".join(random.choice(tags, size=random.integers(1, 4))) for _ in range(num_rows)],
        "device_type": random.integers(1, 5, num_rows).tolist(),
        "price": [round(float(value), 2) for value in random.normal(50, 9, num_rows)],
        "views": (random.lognormal(3, 2, num_rows)).astype(int).tolist(),
        "referrer": [("NULL", "a", "b")[i] for i in random.integers(0, 3, num_rows)],
        "country": ["de"] * num_rows,
        "paid": [f"p{i % 7}" if click else "" for i, click in enumerate(clicks)],
        "ts": (START + np.sort(random.integers(0, 864_000, num_rows))).tolist(),
        "click": clicks.astype(int).tolist(),
    }


def write_csv(path: Path, columns: dict[str, list[Any]], separator: str = ",", header: bool = True) -> Path:
    lines = [separator.join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    text = "\n".join([separator.join(columns), *lines] if header else lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def inspected(run: Run, folder: Path, *arguments: object) -> Config:
    """The config that is written for a log; a build would start with it."""
    output = folder / "first.toml"
    code, _, errors = run("--input", *arguments, "--output", output, "--force")
    assert code == 0, errors
    config = load_config([str(output)])
    check_build(config)
    plan_sources(config.pipeline, config.features)
    return config


def test_what_is_written_is_built(spark, run: Run, tmp_path: Path):
    log = write_csv(tmp_path / "log.csv", make_rows())
    output, found = tmp_path / "first.toml", tmp_path / "found.json"
    code, out, errors = run("--input", log, "--output", output, "--json", found)
    assert code == 0, errors
    assert "python -m jobs.build_dataset" in out and "request_key" in out
    text = output.read_text()
    assert "[training]" not in text and "# Left out:" in text
    config = load_config([str(output)], [f"pipeline.output={tmp_path / 'dataset'}"])

    summary = run_build(spark, config)
    assert summary["rows"] == 4_000 and summary["rejected"] == 0 and summary["warnings"] == []
    assert {name: 0.2 < split["label_rate"] < 0.4 for name, split in summary["splits"].items()} == dict.fromkeys(
        ("train", "valid", "test"), True
    )
    assert summary["splits"]["train"]["rows"] == pytest.approx(3_200, abs=250)
    manifest = DatasetManifest.load(tmp_path / "dataset")
    schema = manifest.schema
    assert (schema.label, schema.group_id, schema.timestamp and schema.timestamp.column) == ("click", "user_id", "ts")
    assert schema.sparse_names == ("user_id", "item", "device_type", "referrer", "tags")
    assert {f.name: (f.log1p, f.standardise) for f in schema.dense} == {"price": (False, True), "views": (True, True)}
    assert schema.values.null_tokens == ("NULL",)
    [tags] = [f for f in schema.sparse if f.name == "tags"]
    assert (tags.separator, tags.max_length) == ("|", 3)

    told = json.loads(found.read_text())
    columns = {column["name"]: column for column in told["columns"]}
    assert told["is_all"] and told["rows"] == told["total_rows"] == 4_000
    assert columns["country"]["kind"] == columns["request_key"]["kind"] == "left out"
    assert "a leak?" in columns["paid"]["note"] and "one value" in columns["country"]["note"]
    assert columns["referrer"]["missing"] == pytest.approx(1 / 3, abs=0.05)
    assert any("paid is left out" in text for text in told["odd"])


def test_lists_of_candidates_are_found(run: Run, tmp_path: Path):
    random = np.random.default_rng(2)
    num_lines = 600
    seen = [
        " ".join(f"N{random.integers(0, 90)}-{int(random.random() < 0.2)}" for _ in range(random.integers(1, 9)))
        for _ in range(num_lines)
    ]
    columns = {
        "page": [f"p{i}" for i in range(num_lines)],
        "user_id": [f"u{i}" for i in random.integers(0, 40, num_lines)],
        "ts": [START + 600 * i for i in range(num_lines)],
        "seen": seen,
    }
    log = write_csv(tmp_path / "log.csv", columns)
    config = inspected(run, tmp_path, log)
    lists = config.pipeline.input.format.candidates
    assert lists is not None and (lists.column, lists.separator, lists.label_separator) == ("seen", " ", "-")
    assert config.features.label == "clicked" and {"item", "user_id"} <= {*config.features.sparse_names}
    found = tmp_path / "found.json"
    assert run("--input", log, "--output", tmp_path / "b.toml", "--json", found)[0] == 0
    told = json.loads(found.read_text())
    num_rows = sum(len(one.split()) for one in seen)
    assert told["is_all"] and told["rows"] == told["total_rows"] == num_rows
    assert any("seen holds lists of candidates" in text for text in told["odd"])
    assert run("--input", log, "--output", tmp_path / "c.toml", "--json", found, "--rows", "900")[0] == 0
    few = json.loads(found.read_text())
    assert not few["is_all"] and few["rows"] <= 1_100 and few["total_rows"] == pytest.approx(num_rows, rel=0.1)


def test_lists_beside_clicks_are_named_by_the_user(run: Run, tmp_path: Path):
    random = np.random.default_rng(2)
    rows = [[int(i) for i in random.choice(50, 5, replace=False)] for _ in range(400)]
    table = {"user_id": random.integers(0, 40, 400), "shown": rows, "clicked_ids": [row[:1] for row in rows]}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "log.parquet")
    names = {"column": "shown", "name": "item", "label": "clicked", "clicked": "clicked_ids"}
    given = [f"pipeline.input.format.candidates.{key}={name}" for key, name in names.items()]
    config = inspected(run, tmp_path, tmp_path / "log.parquet", *given)
    assert config.features.label == "clicked" and config.features.sparse_names[0] == "user_id"
    assert config.pipeline.input.format.candidates is not None
    code, _, errors = run(
        "--input", tmp_path / "log.parquet", "--output", tmp_path / "x.toml", given[0] + "s", *given[1:]
    )
    assert code == 1 and "no column 'showns'" in errors


def as_json(folder: Path, columns: dict[str, list[Any]]) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for row in rows:
        row["user"] = {"id": row.pop("user_id"), "groups": row.pop("tags").split("|")}
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_parquet(folder: Path, columns: dict[str, list[Any]]) -> Path:
    times = pa.array([value * 10**9 for value in columns["ts"]], pa.timestamp("ns"))
    tags = [text.split("|") for text in columns["tags"]]
    table = {**columns, "ts": times, "tags": tags, "click": [value == 1 for value in columns["click"]]}
    for day in ("01", "02"):  # written by hand, as Hive does
        (folder / "log" / f"day=2023-11-{day}").mkdir(parents=True)
        table["request_key"] = [f"{day}-{key}" for key in columns["request_key"]]
        pyarrow.parquet.write_table(pa.table(table), folder / "log" / f"day=2023-11-{day}" / "part-0.parquet")
    return folder / "log"


def test_json_with_nested_keys(run: Run, tmp_path: Path):
    schema = inspected(run, tmp_path, as_json(tmp_path, make_rows(1_500))).features
    assert schema.group_id == "user.id"
    assert {f.name: f.columns for f in schema.sparse}["user_id"] == ("user.id",)
    assert {f.name: f.kind.takes_lists for f in schema.sparse}["user_groups"]


def test_parquet_with_types_and_columns_of_the_path(run: Run, tmp_path: Path):
    config = inspected(run, tmp_path, as_parquet(tmp_path, make_rows(1_500)))
    assert config.pipeline.input.format.kind == "parquet" and config.features.timestamp.column == "ts"
    assert config.features.timestamp.format == "unix", "the column's type says it"
    names = config.features.sparse_names
    assert "tags" in names and "day" not in names and "request_key" not in names


def test_files_named_train_and_valid_are_the_splits(run: Run, tmp_path: Path):
    for name in ("train.csv.gz", "valid.csv.gz"):
        write_csv(tmp_path / name, make_rows(1_000))
    found = inspected(run, tmp_path, tmp_path / "train.csv.gz", tmp_path / "valid.csv.gz").pipeline
    assert found.input.train == (str(tmp_path / "train.csv.gz"),)
    assert found.input.valid == (str(tmp_path / "valid.csv.gz"),)
    assert found.split.kind == "files"


def test_a_column_that_one_file_lacks_is_optional(run: Run, tmp_path: Path):
    columns = make_rows(1_000)
    (tmp_path / "log").mkdir()
    write_csv(tmp_path / "log" / "b.csv", columns)
    write_csv(tmp_path / "log" / "a.csv", {name: values for name, values in columns.items() if name != "views"})
    config = inspected(run, tmp_path, tmp_path / "log")
    assert config.pipeline.input.format.optional == ("views",)


def test_ratings_without_a_header(run: Run, tmp_path: Path):
    random = np.random.default_rng(1)
    columns = {
        name: values.tolist()
        for name, values in {
            "user": random.integers(1, 400, 3_000),
            "item": random.integers(1, 900, 3_000),
            "rating": random.integers(1, 6, 3_000),
            "time": START + random.integers(0, 10**6, 3_000),
        }.items()
    }
    config = inspected(run, tmp_path, write_csv(tmp_path / "ratings.dat", columns, "::", header=False))
    assert config.features.label == "rating >= 4" and config.features.group_id == "user"
    assert config.pipeline.split.kind == "time"
    assert config.pipeline.input.format.columns == ("user", "item", "rating", "time")


def test_actions_as_text_and_what_the_user_names(run: Run, tmp_path: Path):
    columns = make_rows(2_000)
    del columns["click"], columns["paid"]
    columns["action"] = [("view", "cart", "buy")[i % 3] for i in range(2_000)]
    log = write_csv(tmp_path / "log.csv", columns)
    assert inspected(run, tmp_path, log).features.label == "action == buy"
    own = ["--label", "action in buy, cart", "--group", "device_type", "--time", "ts"]
    features = inspected(run, tmp_path, log, *own).features
    assert (features.label, features.group_id) == ("action in buy, cart", "device_type")
    assert "action" not in features.sparse_names


def test_damaged_lines_are_told_and_borne(run: Run, tmp_path: Path):
    log = write_csv(tmp_path / "log.csv", make_rows(1_000))
    with log.open("a") as stream:
        stream.write("half a line\n" * 50)
    config = inspected(run, tmp_path, log)
    assert config.pipeline.quality.max_rejected_fraction == pytest.approx(0.1)
    assert "50 of 1,050 lines are no rows" in (tmp_path / "first.toml").read_text()


def test_libffm(run: Run, tmp_path: Path):
    lines = [f"{i % 3 // 2} 0:{i % 50}:1 1:{1_000 + i % 7}:1 2:1:{i % 91 / 8}" for i in range(1_000)]
    (tmp_path / "log.ffm").write_text("\n".join(lines) + "\n")
    config = inspected(run, tmp_path, tmp_path / "log.ffm")
    assert config.pipeline.input.format.kind == "libffm" and config.features.label == "label"
    assert config.features.sparse_names == ("field_0", "field_1") and config.features.dense_names == ("value_2",)


def test_a_log_in_a_store(run: Run, tmp_path: Path, bucket: Bucket):
    for name in ("a.csv.gz", "b.csv.gz"):
        bucket.write(f"logs/{name}", write_csv(tmp_path / name, make_rows(700)).read_bytes())
    config = inspected(run, tmp_path, f"{bucket.url}/logs")
    assert config.pipeline.input.train == (f"{bucket.url}/logs",) and config.features.label == "click"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input", "none.csv"], 1, "no input file matches"),
        (["--input", "empty.csv"], 1, "no file of the log has a row"),
        (["--input", "words.txt"], 1, "no separator cuts its lines into columns.*pipeline.input.format.separator"),
        (["--input", "array.json"], 1, "one JSON array: write one object a line"),
        (["--input", "traits.csv"], 2, "no column looks like a label.*--label COLUMN.*with two values: gender == f"),
        (["--input", "traits.csv", "--label", "clicked"], 2, "--label: no column is called 'clicked'; there are: user"),
        (["--input", "traits.csv", "--label", "user"], 2, 'gives no rows of two classes.*--label "user == '),
        (["--input", "traits.csv", "--label", "a = b"], 2, "--label: label must be"),
        (["--input", "log.csv", "--time", "item"], 2, "--time item: its values are in no known format"),
        (["--input", "log.csv", "--group", "nobody"], 2, "--group: no column is called 'nobody'"),
        (
            ["--input", "log.csv", "test.csv"],
            2,
            "test.csv has no column 'click', the label of the others: give --input",
        ),
        (["--input", "log.csv", "traits.csv"], 1, "has other columns|are not of one log"),
        (["--input", "log.csv", "pipeline.input.format.kind=word"], 2, "pipeline.input.format.kind"),
        (["--input", "log.csv", "pipeline.output=x"], 2, None),
        (["--input", "log.csv", "--output", "log.csv"], 2, "log.csv is there already: --force replaces it"),
    ],
)
def test_what_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str | None
):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "log.csv", make_rows(500))
    write_csv(tmp_path / "test.csv", {name: cells for name, cells in make_rows(500).items() if name != "click"})
    (tmp_path / "empty.csv").touch()
    (tmp_path / "words.txt").write_text("one\ntwo words\nthree words here\n" * 50)
    (tmp_path / "array.json").write_text('[{"click": 1},\n {"click": 0}]\n')
    write_csv(tmp_path / "traits.csv", {"user": [f"u{i % 9}" for i in range(90)], "gender": ["f", "m", "m"] * 30})
    if message is None:
        arguments = [*arguments[:1], "log.csv", "--rows", "9", arguments[-1]]  # a word that is no log
    found, _, errors = run(*arguments)
    assert found == code, errors
    assert not (tmp_path / "first.toml").exists()
    if message:
        assert re.search(message, errors), errors
    assert "Traceback" not in errors


def test_a_program_started_by_its_file_has_pythons_own_inspect():
    """As spark-submit does it: the folder of the program is first where modules are looked for."""
    code = "import inspect, sys; sys.exit(not inspect.signature(print) or 'jobs' in inspect.__file__)"
    here = {"PYTHONPATH": f"{ROOT / 'jobs'}:{ROOT}", "PATH": "/usr/bin:/bin"}
    assert subprocess.run([sys.executable, "-c", code], env=here, check=False).returncode == 0
    done = subprocess.run(
        [sys.executable, "jobs/build_dataset.py", "--help"],
        cwd=ROOT,
        env={**here, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "label", "split", "dense"),
    [
        ("frappe", "label", "files", 0),
        ("avazu", "click", "time", 0),
        ("criteo", "label", "hash", 12),
        ("talkingdata", "is_attributed", "time", 0),
        ("yandex_sessions", "click", "hash", 0),
    ],
)
def test_real_logs(run: Run, tmp_path: Path, name: str, label: str, split: str, dense: int):
    folder = SHARED / "data" / name
    if not folder.exists():
        pytest.skip("needs ../shared/data")
    config = inspected(run, tmp_path, folder, "--rows", 120_000)
    assert (config.features.label, config.pipeline.split.kind) == (label, split)
    assert len(config.features.dense) == dense
    if name == "yandex_sessions":
        assert not {"session", "click_count"} & set(config.features.sparse_names)


CASES = SHARED / "cases" / "ingestion"


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*/")) or ["none"])
def test_logs_as_people_have_them(run: Run, tmp_path: Path, name: str):
    if not CASES.exists():
        pytest.skip("needs ../shared/cases")
    features = inspected(run, tmp_path, CASES / name / "in").features
    assert features.label in ("click", "c4") and {"user", "user_id", "c1"} & set(features.sparse_names)
