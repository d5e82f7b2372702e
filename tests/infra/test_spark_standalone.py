"""infra/spark/standalone.sh: a master, two workers and spark-submit, two clusters at once, and nothing left behind."""

from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
import pytest

from features.disk.dataset import DatasetManifest
from jobs.cli.config import load_config
from jobs.launch.dataset_build import run_build
from tests.oracles.row_encoder import RowEncoder


@pytest.fixture(scope="module")
def logs(built) -> Path:
    """Where the good cluster left its logs."""
    [folder] = {p for p in built.folder.glob("twinfocus-spark.*") if (p / "work2").is_dir()}
    return folder


def test_the_dataset_is_the_rows(built):
    """Ids, floats and labels of every row, against the row-by-row encoder in Python."""
    dataset = built.folder / "dataset"
    manifest = DatasetManifest.load(dataset)
    encoder = RowEncoder(manifest.schema, manifest.load_learnt(dataset))
    for split, rows in built.rows.items():
        files = [str(dataset / f.path) for f in manifest.split(split).files]
        table = pyarrow.parquet.read_table(files)
        expected = {**encoder.encode(rows), "label": np.array([float(r["click"]) for r in rows], np.float32)}
        names = ["user", "site", "price", "label"]
        # Spark does not promise the order of rows, so both sides are compared sorted.
        assert sorted(zip(*(table[n].to_pylist() for n in names), strict=True)) == sorted(
            zip(*(expected[n].tolist() for n in names), strict=True)
        )
    assert manifest.num_input_rows == sum(len(rows) for rows in built.rows.values())


def test_a_local_session_writes_the_same_files(built, spark):
    """Two executors or the threads of one process: the same rows in the same order, with the same ids."""
    local = built.folder / "local"
    run_build(spark, load_config([str(built.config)], [f"pipeline.output={local}"]))
    one, two = DatasetManifest.load(local), DatasetManifest.load(built.folder / "dataset")
    assert (one.schema_fingerprint, one.learnt_fingerprint) == (two.schema_fingerprint, two.learnt_fingerprint)
    for split in built.rows:
        digests = [[(f.row_groups, f.sha256) for f in manifest.split(split).files] for manifest in (one, two)]
        assert len(digests[0]) >= 2
        assert digests[0] == digests[1]


def test_each_worker_had_an_executor_that_did_tasks(built, logs, find_one):
    master = find_one(r"Spark master at spark://(\S+)", built.output)
    for name in ("1", "2"):
        assert f"registered with master spark://{master}" in (logs / f"worker{name}.log").read_text()
        [executor] = logs.glob(f"work{name}/app-*/*/stderr")
        assert "Finished task" in executor.read_text()
    assert "Registered app twinfocus" in (logs / "master.log").read_text()


def test_only_who_knows_the_secret_is_let_in(logs):
    """The master log says that authentication is on; nobody but the owner can read the secret."""
    assert "authentication enabled" in (logs / "master.log").read_text()
    assert logs.stat().st_mode & 0o077 == 0


def test_nothing_is_left_running(built, logs, find_one, listens):
    assert not listens(find_one(r"Spark master at spark://(\S+)", built.output))
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert not [c for c in commands if str(logs) in c]


def test_a_refusal_comes_through(built, find_one):
    done = built.refused
    assert done.returncode == 2
    # On stdout, because spark-submit merges what the program writes.
    assert "unknown config key 'pipeline.outptu'; did you mean 'output'?" in done.stdout
    kept = Path(find_one(r"Spark's logs are in (\S+)", done.stderr))
    assert (kept / "master.log").is_file()
