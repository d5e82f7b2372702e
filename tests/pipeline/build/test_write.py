"""The files of a split, and the dataset folder that changes in one step."""

import fcntl
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from features.disk.dataset import DatasetError
from pipeline.build.write import new_version, num_files
from pipeline.config import WriteConfig


def test_num_files():
    config = WriteConfig(rows_per_file=1000, min_files=8)
    assert [num_files(n, config) for n in (1, 7, 8, 5000, 8001)] == [1, 7, 8, 8, 9]


def test_files_are_near_equal_shuffled_and_the_same_whatever_the_portions_are(build, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(2):
        rows = range(number * 10_000, (number + 1) * 10_000)
        lines = "".join(f"{row},u{row % 977},{row % 2}\n" for row in rows)
        (logs / f"{number}.csv").write_text("row,user,click\n" + lines)
    features = {
        "label": "click",
        "sparse": [
            {"name": "user", "encoding": {"kind": "vocabulary", "min_count": 21}},
            {"name": "click_bucket", "columns": ["row"], "encoding": {"kind": "quantiles", "num_buckets": 50}},
        ],
        "dense": [{"name": "row", "standardise": True}],
    }
    pipeline = {
        "input": {"train": str(logs)},
        "split": {"kind": "hash", "valid": 0.1, "test": 0},
        "write": {"rows_per_file": 4_000, "min_files": 2, "row_group_rows": 1_500},
    }
    manifest, dataset = build(features, pipeline, "whole")
    files = {split: found.files for split, found in manifest.splits.items()}
    assert {split: len(of_split) for split, of_split in files.items()} == {"train": 5, "valid": 2}
    assert sum(split.num_rows for split in manifest.splits.values()) == 20_000
    mean, deviation = manifest.load_learnt(dataset).moments["row"]
    seen = []
    for of_split in files.values():
        assert max(f.num_rows for f in of_split) - min(f.num_rows for f in of_split) <= 1
        for file in of_split:
            rows = pyarrow.parquet.read_table(dataset / file.path, partitioning=None)["row"].to_numpy()
            places = np.rint(rows.astype(np.float64) * deviation + mean)
            seen += places.tolist()
            assert set(file.row_groups[:-1]) <= {1_500} and 0 < file.row_groups[-1] <= 1_500
            # Shuffled over the whole split: neither the order nor the range of the input is left.
            assert abs(np.corrcoef(np.arange(len(places)), places)[0, 1]) < 0.1 and np.ptp(places) > 19_000
    assert sorted(seen) == list(range(20_000))
    # Other portions, the same bytes.
    again, _ = build(features, {**pipeline, "spark": {"max_partition_bytes": 33_333}}, "cut")
    assert {split: found.fingerprint for split, found in again.splits.items()} == {
        split: found.fingerprint for split, found in manifest.splits.items()
    }
    assert again.learnt_fingerprint == manifest.learnt_fingerprint


def test_few_rows_fill_every_file(build, tmp_path):
    (tmp_path / "log.csv").write_text("user,click\n" + "".join(f"u{i},{i % 2}\n" for i in range(9)))
    features = {"label": "click", "sparse": [{"name": "user", "encoding": {"kind": "hash", "num_buckets": 10}}]}
    manifest, _ = build(features, {"input": {"train": str(tmp_path / "log.csv")}})
    assert sorted(file.num_rows for file in manifest.split("train").files) == [1] * 7 + [2]


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
