"""The files of a split, and the dataset folder that changes in one step."""

import fcntl
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from pipeline.build.footer import sort_encodings
from pipeline.build.ingest import ROW_ID, SPLIT

from features.disk.dataset import DatasetError
from pipeline.build.write import new_version, num_files, write_files
from pipeline.config import WriteConfig


def test_num_files():
    config = WriteConfig(rows_per_file=1000, min_files=8)
    assert [num_files(n, config) for n in (1, 7, 8, 5000, 8001)] == [1, 7, 8, 8, 9]


def test_files_are_near_equal_shuffled_and_hold_every_row_once(spark, tmp_path):
    from pyspark.sql import functions as F

    rows = spark.range(0, 20_000, 1, 3).select(
        F.col("id").alias(ROW_ID),
        F.when(F.col("id") % 10 == 0, "valid").otherwise("train").alias(SPLIT),
        F.col("id").cast("int").alias("user"),
    )
    counts = {"train": 18_000, "valid": 2_000}
    config = WriteConfig(rows_per_file=4_000, min_files=2, row_group_rows=1_500)

    def write(name, frame):
        version = tmp_path / name / "version-x"
        version.mkdir(parents=True)
        return write_files(spark, frame, counts, config, version)

    files = write("a", rows)
    assert {split: len(of_split) for split, of_split in files.items()} == {"train": 5, "valid": 2}
    seen = []
    for of_split in files.values():
        for file in of_split:
            ids = pyarrow.parquet.read_table(tmp_path / "a" / file.path, partitioning=None)["user"].to_numpy()
            seen += ids.tolist()
            assert set(file.row_groups[:-1]) <= {1_500} and 0 < file.row_groups[-1] <= 1_500
            # Shuffled over the whole split: neither the order nor the range of the input is left.
            assert abs(np.corrcoef(np.arange(len(ids)), ids)[0, 1]) < 0.1 and np.ptp(ids) > 19_000
    assert sorted(seen) == list(range(20_000))
    sizes = [file.num_rows for file in files["train"]]
    assert max(sizes) - min(sizes) < 0.1 * 3_600
    # Other partitions in, the same bytes out.
    again = write("b", rows.repartition(7))
    assert again == files
    with pytest.raises(DatasetError, match="18000 rows in its files where 18001 were counted"):
        counts = {"train": 18_001, "valid": 2_000}
        write("c", rows)


def test_footers_lose_the_order_of_a_hash_set(tmp_path):
    paths = []
    for name, order in (("a", (6, 0)), ("b", (0, 6))):
        path = tmp_path / f"{name}.parquet"
        table = pyarrow.table({f"column{i}": [i, i + 1] for i in range(20)})
        pyarrow.parquet.write_table(table, path, use_dictionary=False, compression="none")
        data = path.read_bytes()
        start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        # Pyarrow writes [RLE, PLAIN] for each column, as a Thrift list of two one-byte integers: field 2, 0x19 0x25.
        original = bytes([0x19, 0x25, 6, 0])
        assert data.count(original, start) >= 20
        path.write_bytes(data[:start] + data[start:].replace(original, bytes([0x19, 0x25, *order])))
        paths.append(path)
    assert paths[0].read_bytes() != paths[1].read_bytes()
    for path in paths:
        sort_encodings(path)
        assert pyarrow.parquet.read_table(path)["column19"].to_pylist() == [19, 20]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    paths[0].write_bytes(b"PAR1 cut before the footer")
    with pytest.raises(ValueError, match="no complete Parquet file"):
        sort_encodings(paths[0])


def test_a_failed_version_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), new_version(tmp_path / "d") as version:
        (version / "part").write_text("x")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "d").iterdir()] == [".lock"]
    with new_version(tmp_path / "d") as version:
        assert version.is_dir()


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match=r"no dataset \(thesis\.tex\)"), new_version(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").exists()


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    message = r"cannot write to .*choose another pipeline\.output"
    with pytest.raises(DatasetError, match=message), new_version(tmp_path / "file" / "d"):
        pass


def test_two_jobs_do_not_share_a_dataset(tmp_path):
    lock = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(DatasetError, match="another job is writing"), new_version(tmp_path):
        pass
    os.close(lock)
