"""Down-sampling of negatives: of the training split alone, the same rows whatever the cut, and none uncounted."""

import math

import pytest

FEATURES = {
    "label": "click",
    "sparse": [{"name": "user", "encoding": {"kind": "hash", "num_buckets": 1000}}],
    "carry": ["row"],
}
ONE_ROW = "u1,0"


def write(path, num_rows: int = 3000) -> str:
    """Rows of which each tenth is positive, many of them equal but for their number."""
    path.write_text("row,user,click\n" + "".join(f"{i},u{i % 7},{int(i % 10 == 0)}\n" for i in range(num_rows)))
    return str(path)


@pytest.fixture
def rows_of(build, read_split):
    def read(pipeline: dict, folder: str = "dataset"):
        manifest, dataset = build(FEATURES, pipeline, folder)
        found = {split: read_split(manifest, dataset, split).to_pydict() for split in manifest.splits}
        return manifest, {
            split: dict(zip(map(int, columns["row"]), columns["label"], strict=True))
            for split, columns in found.items()
        }

    return read


def test_negatives_of_training_alone_are_sampled_and_every_row_is_counted(rows_of, tmp_path):
    split = {"kind": "hash", "valid": 0.2, "test": 0.1}
    source = {"input": {"train": write(tmp_path / "a.csv")}, "split": split}
    _, whole = rows_of(source, "whole")
    manifest, found = rows_of({**source, "sample": {"negatives": 0.25}}, "sampled")
    assert found["valid"] == whole["valid"] and found["test"] == whole["test"]
    assert {row for row, label in found["train"].items() if label} == {
        row for row, label in whole["train"].items() if label
    }
    negatives = {row for row, label in whole["train"].items() if not label}
    kept = {row for row, label in found["train"].items() if not label}
    assert kept < negatives
    deviation = math.sqrt(len(negatives) * 0.25 * 0.75)
    assert abs(len(kept) - 0.25 * len(negatives)) < 4 * deviation
    assert manifest.sampled is not None
    assert manifest.sampled.num_left_out == len(negatives) - len(kept)
    assert manifest.num_input_rows == 3000 == sum(map(len, found.values())) + manifest.sampled.num_left_out
    assert manifest.warnings == ()  # the split's shares are of all rows


def test_the_same_rows_stay_whatever_the_tasks_and_files_before_it(rows_of, tmp_path):
    sample = {"sample": {"negatives": 0.5}}
    (tmp_path / "logs").mkdir()
    inputs = {"input": {"train": write(tmp_path / "logs/b.csv")}}
    _, found = rows_of({**inputs, **sample}, "one")
    _, again = rows_of({**inputs, **sample, "spark": {"max_partition_bytes": 4096}}, "many")
    assert again == found
    (tmp_path / "logs/a.csv").write_text("row,user,click\n9999,u,1\n")
    _, more = rows_of({"input": {"train": str(tmp_path / "logs")}, **sample}, "more")
    assert more["train"] == {**found["train"], 9999: 1}
    _, salted = rows_of({**inputs, "sample": {"negatives": 0.5, "salt": "other"}}, "salted")
    assert salted != found


def test_of_equal_rows_each_draws_by_itself(build, tmp_path):
    (tmp_path / "a.csv").write_text("user,click\n" + f"{ONE_ROW}\n" * 2000 + "u1,1\n")
    features = {key: value for key, value in FEATURES.items() if key != "carry"}
    manifest, _ = build(features, {"input": {"train": str(tmp_path / "a.csv")}, "sample": {"negatives": 0.5}})
    assert abs(manifest.split("train").num_rows - 1001) < 4 * math.sqrt(500)


def test_without_sampling_the_manifest_has_no_such_key(build, tmp_path):
    _, dataset = build(FEATURES, {"input": {"train": write(tmp_path / "a.csv", 50)}})
    assert '"sampled"' not in (dataset / "manifest.json").read_text()
