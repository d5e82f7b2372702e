"""Scores from Spark's executors are those of the local engine, row for row, whatever is killed on the way."""

import bz2
import csv
import errno
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet
import pytest
import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from features.disk.artifact import ArtifactError, digest_of_artifact
from features.disk.trained_on import TrainedOn
from features.log_files import LogFile
from features.log_format import LogError, LogFormat
from features.raw_block import Wanted
from features.read.portions import Portion, PortionEnd, plan_portions
from jobs import score
from jobs.cli.config import parse_config
from jobs.scoring import score_folder
from jobs.scoring import score_rows as scoring
from jobs.scoring.score_folder import SCORES_SUMMARY_NAME, name_outputs, plan_job
from jobs.scoring.score_rows import FAILED, Part, ScoreError, ScoreTask, Work, read_back, score_portion
from pipeline.tasks import TaskError, run_tasks
from tests.fuzz.targets import digests
from tests.jobs.registry.test_registry import make_registry
from tests.stand_ins.tiny_dataset import TINY_FEATURES, write_tiny_dataset
from training.config import MLPEncoder, ModelConfig, TrainingConfig
from training.fit.run import Run, train_rank
from training.ship.export import export

ROOT = Path(__file__).parents[3]
COLUMNS = ("user", "genres", "device", "age", "row", "price")


# ------------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained a little, exported as any is."""
    folder = tmp_path_factory.mktemp("exported")
    dataset = write_tiny_dataset(folder / "dataset")
    model = ModelConfig(embedding_dim=8, embedding_init_std=0.5, easy=MLPEncoder((8,)), hard=MLPEncoder((16,)))
    config = TrainingConfig(dataset=str(dataset.path), model=model, global_batch_size=64, max_epochs=1)
    run = Run(folder / "run")
    tree = parse_config(
        {
            "features": tomllib.loads(TINY_FEATURES)["features"],
            "pipeline": {"output": "unused", "input": _input("csv"), "quality": {"max_rejected_fraction": 0.5}},
            "training": {"dataset": str(dataset.path)},
        }
    ).to_dict()
    tree["training"] = TypeAdapter(TrainingConfig).dump_python(config, mode="json")
    run.write("config.json", tree)
    run.write_dataset(TrainedOn.of(dataset.path, dataset.manifest).to_json())
    (folder / "golden.csv").write_text(",".join(COLUMNS) + "\n1,g|h,mobile,20,0.5,1\n2,,tablet,40,0.1,-2\n")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        train_rank(run, config)
    finally:
        dist.destroy_process_group()
    export(run, folder / "artifact", str(folder / "golden.csv"))
    return folder / "artifact"


def _input(kind: str, **changes: Any) -> dict[str, Any]:
    return {"format": {"kind": kind, **changes}, "lookups": []}


@pytest.fixture
def artifact_for(artifact: Path, tmp_path: Path) -> Callable[..., Path]:
    """``artifact_for(input)``: the artifact as if its logs had looked so."""

    def make(given: dict[str, Any]) -> Path:
        other = tmp_path / "artifact"
        shutil.copytree(artifact, other)
        config = json.loads((other / "config.json").read_text())
        config["pipeline"]["input"] = given
        (other / "config.json").write_text(json.dumps(config))
        description = json.loads((other / "artifact.json").read_text())
        (other / "artifact.json").write_text(json.dumps({**description, "files": digests(other)}))
        return other

    return make


@pytest.fixture
def score_there(spark) -> Callable[..., dict[str, Any]]:
    """``score_there(artifact, inputs, output)`` with executors; portions are small, so that files are cut."""

    def run(artifact: Path, inputs: list[str], output: Path, portion_bytes: int = 9_000) -> dict[str, Any]:
        return score_folder.score_folder(spark, plan_job(str(artifact), inputs, str(output)), portion_bytes)

    return run


def score_here(monkeypatch: pytest.MonkeyPatch, artifact: Path, inputs: list[str], output: Path) -> int:
    """The local engine, in this process."""
    arguments = ["score", "--artifact", str(artifact), "--input", *inputs, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    return score.main()


def _shares(values: dict[str, Any]) -> dict[str, Any]:
    """Counts and shares of values; each process has an example of its own."""
    return {name: {key: value for key, value in found.items() if key != "example"} for name, found in values.items()}


def test_values_in_another_spelling_are_told(
    artifact: Path, score_there, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    rows = [f"{n},a|b,{'MOBILE' if n % 4 else 'tablet'},20,0.5,1" for n in range(200)]
    log.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    sentence = (
        "feature 'device': 75.0% of values are not in its vocabulary, where training had 0.0% (validation 0.0%, test "
        "0.0%); one of them is 'MOBILE': the vocabulary has 'mobile'"
    )
    assert score_here(monkeypatch, artifact, [str(log)], tmp_path / "local.csv") == 0
    said = capsys.readouterr()
    assert "unknown values: device 75.0% (training 0.0%)" in said.out
    assert said.err == f"warning: {sentence}\n"
    summary = json.loads((tmp_path / "local.csv.json").read_text())
    assert summary["warnings"] == [sentence]
    assert summary["values"]["device"]["example"] == "MOBILE"
    assert score_there(artifact, [str(log)], tmp_path / "out")["warnings"] == [sentence]

    # An artifact of an earlier version does not say what its training split had.
    older = tmp_path / "older"
    shutil.copytree(artifact, older)
    description = json.loads((older / "artifact.json").read_text())
    del description["value_rates"]
    (older / "artifact.json").write_text(json.dumps(description))
    assert score_here(monkeypatch, older, [str(log)], tmp_path / "older.csv") == 0
    said = capsys.readouterr()
    assert "unknown values: device 75.0%\n" in said.out and not said.err


def rows_of(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Raw rows; about one in nine cannot be encoded."""
    return [
        {
            "user": rng.choice(["", "Zoë", f"u{rng.randrange(60)}"]),
            "genres": "|".join(rng.choices(["a", "b", "é", "g,h"], k=rng.randrange(4))),
            "device": rng.choice(["mobile", "tablet", "watch", ""]),
            "age": rng.choice(["", str(rng.randrange(90)), "old"] if rng.random() < 0.2 else ["33", "7"]),
            "row": f"{rng.random():.3f}",
            "price": "much" if rng.random() < 0.05 else f"{rng.gauss(0, 2):.4f}",
        }
        for _ in range(count)
    ]


def delimited(rng: random.Random, count: int, separator: str) -> bytes:
    """Rows, and lines that are none: too few columns, bad quotes, no UTF-8, blanks, every kind of line end."""
    lines = [b"\xef\xbb\xbf" + separator.join(COLUMNS).encode() + b"\r\n"]
    for row in rows_of(rng, count):
        values = [f'"{v}"' if "," in v and separator == "," else v for v in row.values()]
        line = separator.join(values).encode()
        line = rng.choices([line, b"1" + separator.encode() + b"2", b'1,"2', b"\xff" + line, b""], (92, 2, 2, 2, 2))[0]
        lines.append(line + rng.choice([b"\n", b"\n", b"\r\n", b"\r", b"\n\n"]))
    return b"".join(lines)


def write(folder: Path, name: str, kind: str, rng: random.Random, count: int) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = rows_of(rng, count)
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=50)
    elif kind == "jsonl":
        lines = [json.dumps(row) if rng.random() < 0.95 else '{"user": ' for row in rows]
        path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    else:
        data = delimited(rng, count, "," if kind == "csv" else "\t")
        pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, lambda data: data)
        path.write_bytes(pack(data))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_equal(local: Path, folder: Path) -> None:
    """The scores of each file are the local engine's for it, in its order, and the counts are those of the rows."""
    expected = read(local)
    summary = json.loads((folder / SCORES_SUMMARY_NAME).read_text())
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")} == {
        SCORES_SUMMARY_NAME, *(file["output"] for file in summary["files"])
    }  # fmt: skip
    found = []
    for file in summary["files"]:
        rows = read(folder / file["output"])
        assert {row["file"] for row in rows} <= {file["input"]}
        assert (file["rows"], file["errors"]) == (len(rows), sum(bool(row["error"]) for row in rows))
        found += rows
    assert len(found) == len(expected) == summary["rows"] == summary["scored"] + summary["errors"]
    assert summary["errors"] == json.loads(local.with_name(local.name + ".json").read_text())["errors"]
    for one, other in zip(found, expected, strict=True):
        assert {**one, "probability": ""} == {**other, "probability": ""}
        assert bool(one["probability"]) == bool(other["probability"]) != bool(one["error"])
        if one["probability"]:
            assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- equality


FILES = {
    "csv": ["day=2014-10-28/part-0.csv.gz", "day=2014-10-28/part-1.csv", "day=2014-10-29/part-0.csv.bz2"],
    "tsv": ["a.tsv", "b c.tsv.gz", "deep/er/log.txt"],
    "jsonl": ["a.jsonl", "deep/b.jsonl"],
    "parquet": ["day=1/a.parquet", "day=2/a.parquet"],
}


@pytest.mark.parametrize("kind", FILES)
def test_equals_the_local_engine(
    kind: str, artifact_for, score_there, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, logs, rng = artifact_for(_input(kind)), tmp_path / "logs", random.Random(kind)
    for name in FILES[kind]:
        write(logs, name, kind, rng, 300)
    assert score_here(monkeypatch, artifact, [str(logs)], tmp_path / "local.csv") == 0
    portion_bytes = {"csv": 3_000, "jsonl": 9_000}.get(kind, 1 << 20)
    summary = score_there(artifact, [str(logs)], tmp_path / "out", portion_bytes)
    check_equal(tmp_path / "local.csv", tmp_path / "out")
    assert summary == json.loads((tmp_path / "out" / SCORES_SUMMARY_NAME).read_text())
    values = json.loads((tmp_path / "local.csv.json").read_text())["values"]
    assert _shares(summary["values"]) == _shares(values) and values["device"]["unknown"] > 0
    assert summary["rows"] > 300 * len(FILES[kind]) * 0.9 and summary["errors"] > 20
    assert len({row["probability"] for row in read(tmp_path / "local.csv")}) > 100, "scores differ from row to row"
    expected = {"csv": "day=2014-10-29/part-0.csv", "tsv": "deep/er/log.txt.csv"}.get(kind)
    assert expected is None or expected in {file["output"] for file in summary["files"]}
    if kind in ("csv", "jsonl"):
        plain = [str(p) for p in logs.rglob(f"*.{kind}")]
        cut = [one for p in plain for one in plan_portions(p, Path(p).stat().st_size, LogFormat(kind), portion_bytes)]
        assert len(cut) > 2 * len(plain), "a plain file is cut"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_lookups(artifact_for, score_there, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table beside each log, as the local engine finds it; a key that is missing, and one that is no category."""
    lookup = {"path": "users.csv", "key": "user", "format": {"kind": "csv"}}
    artifact = artifact_for({"format": {"kind": "jsonl"}, "lookups": [lookup]})
    for day in ("1", "2"):
        folder = tmp_path / "logs" / f"day={day}"
        folder.mkdir(parents=True)
        (folder / "users.csv").write_text("user,device,age\n" + "".join(f"u{i},mobile,{i}{day}\n" for i in range(50)))
        rows = [{"user": f"u{i % 60}" if i % 9 else 0.5 * i, "genres": "a", "row": 0, "price": i} for i in range(300)]
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "log.jsonl").open("a").write('{"user": ["u1"], "genres": "", "row": 1, "price": 1}\n')
    inputs = [str(tmp_path / "logs" / "day=*" / "*.jsonl")]
    score_here(monkeypatch, artifact, inputs, tmp_path / "local.csv")
    score_there(artifact, inputs, tmp_path / "out")
    check_equal(tmp_path / "local.csv", tmp_path / "out")
    assert read(tmp_path / "out" / "day=1" / "log.csv")[-1]["error"].startswith("column 'user' is neither")
    (tmp_path / "logs" / "day=2" / "users.csv").unlink()
    with pytest.raises(LogError, match="is neither there nor beside the log"):
        score_there(artifact, inputs, tmp_path / "out")
    check_equal(tmp_path / "local.csv", tmp_path / "out")


def test_empty_files_and_files_without_rows(artifact, score_there, tmp_path: Path, monkeypatch) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "empty.csv").touch()
    (logs / "header.csv").write_text(",".join(COLUMNS))
    score_here(monkeypatch, artifact, [str(logs)], tmp_path / "local.csv")
    summary = score_there(artifact, [str(logs)], tmp_path / "out")
    assert (summary["rows"], summary["errors"]) == (0, 0)
    check_equal(tmp_path / "local.csv", tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------- portions


def test_quoted_ends_of_lines_wherever_a_file_is_cut(
    artifact, score_there, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut inside a row is found, and the rows behind it keep the numbers of their lines."""
    rng, logs = random.Random(5), tmp_path / "logs"
    logs.mkdir()
    lines = [",".join(COLUMNS)]
    for row in rows_of(rng, 400):
        row["user"] = rng.choice(["a\nb", "a\n\nb,\n", "a\r\nb", "plain"])
        lines.append(",".join(f'"{value}"' for value in row.values()))
    (logs / "a.csv").write_text("\n".join(lines), newline="")
    assert score_here(monkeypatch, artifact, [str(logs)], tmp_path / "local.csv") == 0
    score_there(artifact, [str(logs)], tmp_path / "out", 900)
    check_equal(tmp_path / "local.csv", tmp_path / "out")
    assert len(read(tmp_path / "local.csv")) == 400


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_that_no_line_has(kind: str, artifact_for, score_there, tmp_path: Path, monkeypatch) -> None:
    """It is an error, unless the format calls it optional; a file of two that lacks an optional one is scored."""
    rows = [{name: 1 for name in COLUMNS if name != "age"} for _ in range(3)]
    log = tmp_path / f"log.{kind}"
    if kind == "csv":
        log.write_text(",".join(rows[0]) + "\n1,1,1,1,1\n")
        words = "'age'"
    else:
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = "no line of the logs has 'age', which the model needs"
    artifact = artifact_for(_input(kind))
    with pytest.raises(LogError, match=words):
        score_here(monkeypatch, artifact, [str(log)], tmp_path / "local.csv")
    with pytest.raises((LogError, ScoreError), match=words):
        score_there(artifact, [str(log)], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", log.name]
    shutil.rmtree(artifact)
    artifact = artifact_for(_input(kind, optional=["age"]))
    assert score_here(monkeypatch, artifact, [str(log)], tmp_path / "local.csv") == 0
    score_there(artifact, [str(log)], tmp_path / "out")
    check_equal(tmp_path / "local.csv", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("log.csv.zst", {}),
        ("gbk.csv", {"encoding": "GBK"}),
        ("utf16.csv", {"encoding": "UTF-16"}),
        ("log.orc", {"kind": "orc"}),
        ("country=us/log.csv", {}),
    ],
)
def test_what_builds_read_is_scored(
    name: str, changes: dict[str, Any], artifact_for, score_there, tmp_path: Path, monkeypatch
) -> None:
    artifact, path = artifact_for(_input(**{"kind": "csv"} | changes)), tmp_path / "logs" / name
    path.parent.mkdir(parents=True)
    rows = [{**row, "genres": "a|中"} for row in rows_of(random.Random(name), 60)]
    table = pyarrow.Table.from_pylist(rows)
    if name.endswith(".orc"):
        pyarrow.orc.write_table(table, path)
    else:
        file = io.BytesIO()
        pyarrow.csv.write_csv(table, file)
        data = file.getvalue().decode().encode(changes.get("encoding", "UTF-8"), "replace")
        path.write_bytes(pyarrow.compress(data, "zstd", asbytes=True) if name.endswith(".zst") else data)
    assert score_here(monkeypatch, artifact, [str(tmp_path / "logs")], tmp_path / "local.csv") == 0
    summary = score_there(artifact, [str(tmp_path / "logs")], tmp_path / "out")
    check_equal(tmp_path / "local.csv", tmp_path / "out")
    assert summary["rows"] == 60 and 0 < summary["errors"] < 30


def test_a_delta_table_by_its_log(artifact_for, score_there, tmp_path: Path, monkeypatch) -> None:
    """Deleted rows are not scored, though their files are still there."""
    deltalake = pytest.importorskip("deltalake", reason="the extra delta is not installed")
    artifact, table = artifact_for(_input("delta")), str(tmp_path / "table")
    deltalake.write_deltalake(table, pyarrow.Table.from_pylist(rows_of(random.Random(3), 40)), partition_by=["device"])
    deltalake.DeltaTable(table).delete("device = 'mobile'")
    kept = deltalake.DeltaTable(table).to_pyarrow_table().num_rows
    assert score_here(monkeypatch, artifact, [table], tmp_path / "local.csv") == 0
    score_there(artifact, [table], tmp_path / "out")
    check_equal(tmp_path / "local.csv", tmp_path / "out")
    assert 0 < len(read(tmp_path / "local.csv")) == kept < 40


def test_logs_in_an_object_store(artifact, bucket, tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "here", "a.csv", "csv", random.Random(0), 50)
    bucket.write("logs/day=1/a.csv", (tmp_path / "here" / "a.csv").read_bytes())
    assert score_here(monkeypatch, artifact, [f"{bucket.url}/logs"], tmp_path / "local.csv") == 0
    with start(artifact, f"{bucket.url}/logs", tmp_path / "out", sys.executable, "-m", "jobs.score", cwd=ROOT) as job:
        text, _ = job.communicate(timeout=300)
    assert job.returncode == 0, text
    check_equal(tmp_path / "local.csv", tmp_path / "out")
    assert score_here(monkeypatch, artifact, [str(tmp_path / "here")], tmp_path / "disk.csv") == 0
    assert [r["probability"] for r in read(tmp_path / "disk.csv")] == [
        r["probability"] for r in read(tmp_path / "local.csv")
    ]


# ------------------------------------------------------------------------------------------------ lists of candidates

_SEEN = [
    "mobile-0 tablet-1 other-0", "", "mobile tablet", "tablet-1", "mobile-0 tablet", *["other-0 mobile-1"] * 200,
]  # fmt: skip


def test_lists_are_scored_as_their_candidates_are(
    artifact: Path,
    artifact_for,
    score_there,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both engines name each candidate's list and place, and no candidate is lost; labels are not needed."""
    logs, plain = tmp_path / "logs", tmp_path / "plain.csv"
    logs.mkdir()
    rows = [(f"{n}", "a|b", seen, f"{20 + n % 9}", "0.5", f"{n}", f"p{n}") for n, seen in enumerate(_SEEN)]
    names = ["user", "genres", "seen", "age", "row", "price", "page"]
    (logs / "log.csv").write_text("\n".join([",".join(names), *(",".join(row) for row in rows)]) + "\n")
    expected = []
    with plain.open("w") as file:
        file.write(",".join(COLUMNS) + "\n")
        for number, (user, genres, seen, age, row, price, page) in enumerate(rows, start=2):
            items = seen.split() if number != 6 else []
            for place, item in enumerate(items, start=1):
                device = item.partition("-")[0]
                file.write(f"{user},{genres},{device},{age},{row},{price}\n")
                expected.append((str(number), str(place), page, device))
    assert score_here(monkeypatch, artifact, [str(plain)], tmp_path / "plain.scores.csv") == 0
    scores = [found["probability"] for found in read(tmp_path / "plain.scores.csv")]
    lists = {"column": "seen", "name": "device", "label": "click", "label_separator": "-", "list_id": "page"}
    other = artifact_for(_input("csv", candidates=lists))
    assert score_here(monkeypatch, other, [str(logs)], tmp_path / "local.csv") == 0
    local = read(tmp_path / "local.csv")
    good = [found for found in local if not found["error"]]
    assert [(f["line"], f["position"], f["list"], f["candidate"]) for f in good] == expected
    assert [found["probability"] for found in good] == scores
    [bad] = [found for found in local if found["error"]]
    assert (bad["line"], bad["position"]) == ("6", "") and "others none" in bad["error"]
    assert (
        "labels were cut off the candidates of 202 of 203 lists: if the log has no labels and"
        in capsys.readouterr().out
    )
    summary = score_there(other, [str(logs)], tmp_path / "there", portion_bytes=700)
    there = read(tmp_path / "there" / "log.csv")
    others = ("line", "position", "list", "candidate", "error")
    assert [[found[name] for name in others] for found in there] == [
        [found[name] for name in others] for found in local
    ]
    for one, two in zip(there, local, strict=True):
        assert float(one["probability"] or 0) == pytest.approx(float(two["probability"] or 0), rel=1e-5)
    counts = {"num_lists": 203, "num_empty": 1, "num_rejected": 1, "num_candidates": len(expected), "num_unseen": 0}
    counts["num_cut"] = 202  # all but "mobile tablet"
    assert summary["lists"] == counts
    assert json.loads((tmp_path / "local.csv.json").read_text())["lists"] == counts
    assert (summary["rows"], summary["errors"]) == (len(expected) + 1, 1)


def test_candidates_that_do_not_add_up(tmp_path: Path) -> None:
    lines = [f"log.csv,3,{place},p,x,0.5,\r\n" for place in (1, 2, 3)]
    (tmp_path / "part.csv").write_text("".join(["log.csv,2,,,,,bad\r\n", *lines]), newline="")
    assert read_back(tmp_path / "part.csv", PortionEnd(0, 60, 2))[2:6] == (4, 1, 2, 3)
    (tmp_path / "part.csv").write_text("".join([*lines, lines[2]]), newline="")
    with pytest.raises(ScoreError, match="comes twice"):
        read_back(tmp_path / "part.csv", PortionEnd(0, 60, 2))


# ------------------------------------------------------------------------------------------------- tasks and accounting


def test_an_answer_a_task(spark, tmp_path: Path) -> None:
    assert run_tasks(spark, str.upper, ["a", "ü", "a"], tmp_path) == ["A", "Ü", "A"]
    assert run_tasks(spark, str.upper, [], tmp_path) == []
    with pytest.raises(TaskError, match="Spark failed: "):
        run_tasks(spark, os.rmdir, [str(tmp_path / "absent")], tmp_path)


@pytest.mark.parametrize("damage", ["lost", "doubled", "both"])
def test_rows_that_do_not_add_up(damage: str, tmp_path: Path) -> None:
    lines = [f"log.csv,{i},0.5,\r\n" for i in (2, 3, 4)]
    (tmp_path / "part.csv").write_text("".join(lines), newline="")
    end = PortionEnd(0, 60, 4)
    assert read_back(tmp_path / "part.csv", end)[2:6] == (3, 0, 2, 4)
    bad = {"lost": "log.csv,5,,\r\n", "doubled": lines[2], "both": "log.csv,5,0.5,bad\r\n"}[damage]
    (tmp_path / "part.csv").write_text("".join([*lines, bad]), newline="")
    with pytest.raises(ScoreError, match="no score and no error, or both, or comes twice"):
        read_back(tmp_path / "part.csv", end)


def test_what_no_try_can_mend(artifact, artifact_for, score_there, tmp_path: Path) -> None:
    """One sentence, as the local engine says it; Spark does not try it again, and the old output stays."""
    logs, output = tmp_path / "logs", tmp_path / "out"
    write(logs, "a.csv", "csv", random.Random(0), 50)
    score_there(artifact, [str(logs)], output)
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    (logs / "b.csv").write_text("user,genres\n1,a\n")
    with pytest.raises(LogError, match=r"has no column 'device'.*it has: user, genres"):
        score_there(artifact, [str(logs)], output)
    (logs / "b.csv").unlink()
    (logs / "b.csv.gz").write_bytes(gzip.compress(delimited(random.Random(1), 5_000, ","))[:-5_000])
    with pytest.raises(ScoreError, match=rf"^{logs}/b\.csv\.gz cannot be read: "):
        score_there(artifact, [str(logs)], output)
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before
    assert not list(tmp_path.glob(".*"))


def test_what_a_task_says(artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another try may mend is raised, for Spark; the rest is said, and by the tasks after it too."""
    log = tmp_path / "log.csv"
    log.write_text(",".join(COLUMNS) + "\n1,g,mobile,20,0,1\n")
    task = ScoreTask(LogFile(str(log), str(log), str(log)), Portion(str(log)), Wanted(COLUMNS), ())
    folder = tmp_path / "scratch"
    work = Work(str(artifact), digest_of_artifact(str(artifact)), str(folder))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # the other tests' own
    assert "is not there for an executor: give an --output on storage" in str(score_portion(work, task))
    folder.mkdir()

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    assert isinstance(found := score_portion(work, task), Part) and found.num_rows == 1
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "write_scores", fail)
        code = errno.EIO
        with pytest.raises(OSError, match="Input/output error"):
            score_portion(work, task)
        assert not (folder / FAILED).exists()
        code = errno.ENOSPC
        full = score_portion(work, task)
        assert re.match(r"no space is left for .*scratch or for temporary files in ", str(full))
    assert score_portion(work, task) == full


def test_an_artifact_that_is_replaced_meanwhile(artifact_for, spark, tmp_path: Path) -> None:
    artifact = artifact_for(_input("csv"))
    write(tmp_path / "logs", "a.csv", "csv", random.Random(0), 50)
    job = plan_job(str(artifact), [str(tmp_path / "logs")], str(tmp_path / "out"))
    config = json.loads((artifact / "config.json").read_text())
    config["pipeline"]["quality"]["max_rejected_fraction"] = 0.4
    (artifact / "config.json").write_text(json.dumps(config))
    description = json.loads((artifact / "artifact.json").read_text())
    (artifact / "artifact.json").write_text(json.dumps({**description, "files": digests(artifact)}))
    with pytest.raises(ScoreError, match="was replaced while it was in use"):
        score_folder.score_folder(spark, job)
    with pytest.raises(ArtifactError, match="is not a usable artifact"):
        digest_of_artifact(str(tmp_path / "nothing"))


def test_the_champion_of_a_registry(artifact: Path, artifact_for, run_here, tmp_path: Path) -> None:
    """Rolled back, the next scoring is by the version before, here and on Spark alike."""
    registry = make_registry(tmp_path / "registry")
    for version in (1, 2):
        path = artifact if version == 1 else artifact_for(_input("csv", separator=";"))
        assert registry.register("ctr", path) == version
        registry.promote("ctr", version)
    registry.rollback("ctr")
    write(tmp_path / "logs", "a.csv", "csv", random.Random(0), 20)
    where = ("--registry", registry.place, "--input", tmp_path / "logs" / "a.csv", "--output", tmp_path / "a.csv")
    assert run_here(score.main, "--artifact", "models:/ctr@champion", *where)[0] == 0
    named = json.loads((tmp_path / "a.csv.json").read_text())["artifact"]
    assert named == {"model": "ctr", "version": 1, "sha256": digest_of_artifact(str(artifact))}
    job = plan_job("models:/ctr@champion", [str(tmp_path / "logs")], str(tmp_path / "out"), registry.place)
    assert job.artifact.named == named
    job = plan_job("models:/ctr/2", [str(tmp_path / "logs")], str(tmp_path / "out"), registry.place)
    assert job.artifact.version == 2


def test_an_artifact_in_an_object_store(artifact, bucket, tmp_path: Path) -> None:
    for path in artifact.rglob("*"):
        if path.is_file():
            bucket.write(f"artifact/{path.relative_to(artifact).as_posix()}", path.read_bytes())
    write(tmp_path / "logs", "a.csv", "csv", random.Random(0), 5)
    job = plan_job(f"{bucket.url}/artifact", [str(tmp_path / "logs")], str(tmp_path / "out"))
    assert job.artifact.place == f"{bucket.url}/artifact" and job.artifact.sha256 == digest_of_artifact(str(artifact))


# -------------------------------------------------------------------------------------------------------------- outputs


def test_names_of_outputs(tmp_path: Path) -> None:
    for name in ("x/day=1/0.csv.gz", "x/day=1/u.data", "y/day=1/0.csv.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    one, two, three = (str(tmp_path / n) for n in ("x/day=1/0.csv.gz", "x/day=1/u.data", "y/day=1/0.csv.gz"))
    assert name_outputs([f"{tmp_path}/x"], [one, two], "csv") == {one: "day=1/0.csv", two: "day=1/u.data.csv"}
    assert name_outputs([f"{tmp_path}/*/d*/*.gz"], [one, three], "csv") == {
        one: "x/day=1/0.csv",
        three: "y/day=1/0.csv",
    }
    assert name_outputs([one], [one], "csv") == {one: "0.csv"}
    far = [f"s3://bucket/logs/{name}" for name in ("day=1/0.csv.gz", "day=2/0.csv")]
    for inputs in (["s3://bucket/logs"], ["s3://bucket/logs/day=*/"], ["s3://bucket/logs/*/*.gz", far[1]]):
        assert name_outputs(inputs, far, "csv") == {far[0]: "day=1/0.csv", far[1]: "day=2/0.csv"}
    assert name_outputs(far[:1], far[:1], "csv") == {far[0]: "0.csv"}
    (tmp_path / "x/day=1/0.csv").touch()
    both = [str(tmp_path / "x/day=1/0.csv"), one]
    with pytest.raises(ScoreError, match=r"0\.csv and .*0\.csv\.gz would both be scored to 0\.csv"):
        name_outputs(both, both, "csv")
    (tmp_path / "a.csv").mkdir()
    (tmp_path / "a.csv" / "b.csv").touch()
    (tmp_path / "a").touch()
    clash = [str(tmp_path / "a"), str(tmp_path / "a.csv" / "b.csv")]
    with pytest.raises(ScoreError, match=r"would be scored to a\.csv, which is a folder too"):
        name_outputs([str(tmp_path)], clash, "csv")


def test_other_folders_are_refused(artifact, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    write(logs, "a.csv", "csv", random.Random(0), 5)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    for output in (other, other / "thesis.txt"):
        with pytest.raises(ScoreError, match=r"is no folder of scores \(it has no _scores\.json\)"):
            plan_job(str(artifact), [str(logs)], str(output))
    (logs / SCORES_SUMMARY_NAME).touch()
    glob = logs / "*"
    for inputs, output in (
        ([logs], logs),
        ([logs], logs / "scores"),
        ([logs / "a.csv"], logs),
        ([glob], logs / "x" / "y"),
    ):
        with pytest.raises(ScoreError, match="are one within the other"):
            plan_job(str(artifact), [str(path) for path in inputs], str(output))
    with pytest.raises(LogError, match="no input file matches"):
        plan_job(str(artifact), [str(tmp_path / "nothing")], str(tmp_path / "out"))


# ---------------------------------------------------------------------------------------------------------- the program


def start(
    artifact: Path, logs: Path | str, output: Path, *program: str | Path, **options: Any
) -> subprocess.Popen[str]:
    arguments = ["--engine", "spark", "--artifact", artifact, "--input", logs, "--output", output]
    return subprocess.Popen(
        list(map(str, [*program, *arguments])), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def submit_with_a_zip(folder: Path) -> tuple[list[str | Path], dict[str, Any]]:
    """What starts the program by spark-submit, where nothing but the zip holds it."""
    package = folder / "twinfocus.zip"
    with zipfile.ZipFile(package, "w") as archive:
        for name in ("features", "pipeline", "training", "jobs"):
            for path in sorted((ROOT / name).rglob("*.py")):
                archive.write(path, path.relative_to(ROOT))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= dict.fromkeys(("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"), sys.executable)
    submit = Path(sysconfig.get_path("scripts")) / "spark-submit"
    words = [submit, "--master=local[2,4]", "--driver-memory=1g", "--py-files", package, ROOT / "jobs" / "score.py"]
    return words, {"cwd": folder, "env": environment}


def workers(job: int) -> dict[int, Path]:
    """Python workers of a job that have written scores, with the file."""
    found = {}
    for process in psutil.Process(job).children(recursive=True):
        try:
            files = [Path(file.path) for file in process.open_files() if ".partial/" in file.path]
        except psutil.Error:
            continue
        is_driver = any(file.name == ".lock" for file in files)
        if not is_driver and files and files[0].exists() and files[0].stat().st_size:
            found[process.pid] = files[0]
    return found


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Two logs that take seconds."""
    lines = delimited(random.Random(3), 4_000, ",").replace(b"\xef\xbb\xbf", b"")
    header, _, rows = lines.partition(b"\r\n")
    (tmp_path / "logs").mkdir()
    for name in ("a", "b"):
        (tmp_path / "logs" / f"{name}.csv.gz").write_bytes(gzip.compress(header + b"\n" + rows * 15))
    return tmp_path / "logs"


@pytest.mark.slow
def test_killed_workers_and_a_killed_job(artifact, large: Path, tmp_path: Path, monkeypatch) -> None:
    """A killed job leaves nothing that counts; the next one works as ever, and loses a worker on its way."""
    output = tmp_path / "out"
    with start(artifact, large, output, sys.executable, "-m", "jobs.score", cwd=ROOT) as job:
        wait_for(lambda: workers(job.pid), job)
        job.kill()
    assert not output.exists() and [p for p in tmp_path.glob(".out.partial/*/scratch/*.csv")]

    words, options = submit_with_a_zip(tmp_path)
    job = start(artifact, large, output, *words, **options)
    [(worker, written), *_] = wait_for(lambda: workers(job.pid), job).items()
    os.kill(worker, signal.SIGKILL)
    assert written.exists(), "what the killed worker wrote lies beside what its next try writes"
    text, _ = job.communicate(timeout=300)
    assert job.returncode == 0, text
    assert score_here(monkeypatch, artifact, [str(large)], tmp_path / "local.csv") == 0
    check_equal(tmp_path / "local.csv", output)
    rows, errors = (json.loads((output / SCORES_SUMMARY_NAME).read_text())[key] for key in ("rows", "errors"))
    words = f"scored {rows - errors:,} of {rows:,} rows to {output}; {errors:,} malformed in 2 files"
    assert words in text.splitlines(), text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["local.csv", "local.csv.json", "logs", "out", "twinfocus.zip"]


def wait_for(look: Callable[[], Any], job: subprocess.Popen) -> Any:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert job.poll() is None, job.stdout.read() if job.stdout else ""
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError("nothing came of it")
