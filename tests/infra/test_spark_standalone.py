"""infra/spark/standalone.sh: a real master, worker and spark-submit, two clusters at once, and nothing left behind."""

from pathlib import Path

import numpy as np
import pyarrow.parquet

from features.dataset import DatasetManifest
from features.encoding import RowEncoder


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


def test_an_executor_of_the_cluster_did_it(built, find_one):
    [logs] = {p for p in built.folder.glob("twinfocus-spark.*") if list(p.glob("work/app-*/0/stderr"))}
    master = find_one(r"Spark master at spark://(\S+)", built.output)
    assert f"registered with master spark://{master}" in (logs / "worker.log").read_text()
    assert "Registered app twinfocus" in (logs / "master.log").read_text()


def test_nothing_is_left_running(built, find_one, listens):
    assert not listens(find_one(r"Spark master at spark://(\S+)", built.output))


def test_a_refusal_comes_through(built, find_one):
    done = built.refused
    assert done.returncode == 2
    # On stdout, because spark-submit merges what the program writes.
    assert "unknown config key 'pipeline.outptu'; did you mean 'output'?" in done.stdout
    kept = Path(find_one(r"Spark's logs are in (\S+)", done.stderr))
    assert (kept / "master.log").is_file()
