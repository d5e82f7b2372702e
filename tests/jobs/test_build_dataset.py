"""The program as a user runs it: in a process of its own, killed, repeated, given bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from glob import glob
from pathlib import Path

import psutil
import pytest

from features.disk.dataset import DatasetError, DatasetManifest
from features.log_format import LogError
from jobs import build_dataset
from jobs.cli.config import load_config
from jobs.launch.dataset_build import run_build

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"

CONFIG = """
[features]
label = "click"
group_id = "user"
timestamp = {{ column = "t" }}

[[features.sparse]]
name = "user"
encoding = {{ kind = "vocabulary", min_count = 2 }}

[[features.sparse]]
name = "tags"
separator = "|"
encoding = {{ kind = "hash", num_buckets = 50 }}

[[features.dense]]
name = "price"
standardise = true

[pipeline]
output = "{output}"
input.train = "{train}"
split = {{ kind = "hash", valid = 0.2, test = 0.0 }}
write.min_files = 3

[training]
dataset = "{output}"
"""


@pytest.fixture
def project(tmp_path):
    """A config and a small log; returns the config's path."""
    lines = [f"u{i % 97},a|b{i % 7},{i % 13 / 8},{i % 3 // 2},{1_700_000_000 + i}" for i in range(3_000)]
    (tmp_path / "log.csv").write_text("\n".join(["user,tags,price,click,t", *lines]) + "\n")
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(output=tmp_path / "dataset", train=tmp_path / "log.csv"))
    return path


def command(config: Path, *overrides: str) -> list[str]:
    spark = ["pipeline.spark.master=local[2]", "pipeline.spark.driver_memory=1g"]
    return [sys.executable, "-m", "jobs.build_dataset", "--config", str(config), *spark, *overrides]


def run(config: Path, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(config, *overrides), cwd=ROOT, capture_output=True, text=True, timeout=600)


def contents(dataset: Path) -> dict:
    """What a dataset is, whatever its version folder is called; checked against the disk."""
    manifest = DatasetManifest.load(dataset)
    manifest.load_learnt(dataset)
    for split in manifest.splits:
        manifest.check_files(dataset, split)
    files = [file for split in manifest.splits.values() for file in split.files]
    return {
        "files": {file.path.split("/", 1)[1]: file.sha256 for file in files},
        "learnt": manifest.learnt_fingerprint,
        "splits": {name: (split.sparse, split.dense, split.label_rate) for name, split in manifest.splits.items()},
    }


def wait_for(process: subprocess.Popen, happened) -> bool:
    """Wait until ``happened()`` while the process runs; False if it ended before."""
    while process.poll() is None:
        if happened():
            return True
        time.sleep(0.01)
    return False


def test_killed_at_any_moment_then_repeated(spark, project):
    """kill -9 of real builds leaves the old dataset whole; the next build removes the debris and repeats every byte."""
    dataset = project.parent / "dataset"
    run_build(spark, load_config([str(project)]))
    before, old = contents(dataset), {path.name for path in dataset.glob("version-*")}
    assert len(old) == 1

    def versions() -> set[str]:
        return {path.name for path in dataset.glob("version-*")}

    for name, happened in {
        "begun": lambda: versions() - old,
        "written": lambda: glob(f"{dataset}/version-*/exchange/*.arrow"),  # tasks are at work
    }.items():
        process = subprocess.Popen(
            command(project), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            assert wait_for(process, happened), f"ended before it had {name}"
            if name == "written":  # as the system does when memory runs out: Python lives to say so
                [java] = [p for p in psutil.Process(process.pid).children() if p.name() == "java"]
                java.kill()
                errors = process.communicate(timeout=300)[1].decode()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert contents(dataset) == before, f"killed when {name}"
        assert len(versions()) == (2 if name == "begun" else 1), "what was left is removed before room is needed again"
    assert process.returncode == 1
    assert re.search(r"^error: Spark's process died, .* memory .* build again$", errors, re.MULTILINE), errors
    assert "Traceback" not in errors

    done = run(project)
    assert done.returncode == 0, done.stderr
    assert contents(dataset) == before
    assert len(list(dataset.glob("version-*"))) == 1
    summary = json.loads((dataset / "build.json").read_text())
    assert summary["rows"] == 3_000 == sum(split["rows"] for split in summary["splits"].values())
    assert summary["rows_per_second"] > 0
    assert "3,000 rows read" in done.stdout and "rejected 0" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["pipeline.write.min_fils=2"], 2, "unknown config key 'pipeline.write.min_fils'; did you mean 'min_files'?"),
        (["pipeline.input.train="], 2, "'pipeline.input.train' is empty"),
        (["features.timestamp.format=yyyy-MM-dd E"], 2, "'features.timestamp.format': time pattern 'yyyy-MM-dd E'"),
        (["pipeline.input.train=/no/such/*.csv"], 1, "no input file matches '/no/such/*.csv'"),
        (["features.label=clicks"], 1, "has no column 'clicks'; it has: user, tags, price, click, t"),
    ],
)
def test_bad_input_is_one_sentence_before_spark_starts(project, run_here, monkeypatch, overrides, code, message):
    monkeypatch.setattr("pipeline.session.start_spark", None)
    found, out, error = run_here(build_dataset.main, "--config", project, *overrides)
    assert (found, out) == (code, "")
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (project.parent / "dataset").exists()


def test_bad_rows_fail_in_one_sentence_and_leave_the_old_dataset(spark, project, tmp_path):
    config = load_config([str(project)])
    run_build(spark, config)
    before = contents(tmp_path / "dataset")
    log = tmp_path / "log.csv"
    log.write_text(log.read_text().replace(",0,17", ",2,17"))
    with pytest.raises(LogError, match=r"malformed, more than.*log\.csv line 2: label 'click' is not 0 or 1"):
        run_build(spark, config)
    assert contents(tmp_path / "dataset") == before
    assert len(list((tmp_path / "dataset").glob("version-*"))) == 1


@pytest.fixture
def disk(tmp_path):
    """A file system of its own of 4 MB, and a function that gives it another size."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("a disk that is really full needs the right to mount one")
    yield path, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", path], check=True)
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_the_old_dataset(spark, project, disk):
    path, resize = disk
    dataset = path / "dataset"
    config = load_config([str(project)], [f"pipeline.output={dataset}"])
    run_build(spark, config)
    before = contents(dataset)
    for room in (4096, 40960):  # not even for what was learnt, and not for all files
        resize(shutil.disk_usage(path).used + room)
        with pytest.raises(DatasetError, match=rf"^no space is left for {dataset}: make room on its disk, or choose"):
            run_build(spark, config)
        assert contents(dataset) == before
        assert len(list(dataset.glob("version-*"))) == 1
    resize("4m")
    run_build(spark, config)
    assert contents(dataset) == before


def test_help_has_an_example(run_here):
    code, out, _ = run_here(build_dataset.main, "--help")
    assert code == 0
    assert "--py-files dist/twinfocus.zip jobs/build_dataset.py --config" in out


@pytest.mark.skipif(not (DATA / "frappe").is_dir(), reason="needs ../shared/data/frappe, which is not distributed")
def test_frappe_has_the_papers_vocabularies(spark, tmp_path):
    """As the benchmark's published feature maps."""
    overrides = [f"pipeline.output={tmp_path / 'frappe'}"]
    overrides += [f"pipeline.input.{name}={DATA / 'frappe' / f'{name}.csv.gz'}" for name in ("train", "valid")]
    run_build(spark, load_config([str(ROOT / "jobs/configs/frappe.toml")], overrides))
    manifest = DatasetManifest.load(tmp_path / "frappe")
    learnt = manifest.load_learnt(tmp_path / "frappe")
    sizes = [learnt.num_embeddings(feature) for feature in manifest.schema.sparse]
    assert sizes == [942, 4084, 9, 9, 4, 5, 4, 11, 82, 233]
    assert (manifest.split("train").num_rows, manifest.split("valid").num_rows) == (202_027, 57_722)
    assert manifest.rejected.num_rows == 0
