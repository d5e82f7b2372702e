"""Which split a row goes to: by file, by time, by hash; without leaks and without depending on the rest of the log."""

import pytest

from jobs.cli.errors import ConfigError
from pipeline.build.split import parse_time

USER = {"label": "click", "sparse": [{"name": "user", "encoding": {"kind": "hash", "num_buckets": 1000}}]}


@pytest.fixture
def splits(build, read_split):
    """``splits(features, pipeline) -> {row: split}`` of the good rows."""

    def run(features, pipeline):
        manifest, dataset = build({**features, "carry": ["row"]}, pipeline)
        return {
            row: split for split in manifest.splits for row in read_split(manifest, dataset, split)["row"].to_pylist()
        }

    return run


def write(path, lines):
    path.write_text("\n".join(["row,user,click,t", *lines]) + "\n")
    return str(path)


def test_hash_of_a_column_keeps_its_values_together(splits, tmp_path):
    lines = [f"{i},u{i % 500},{i % 2},0" for i in range(2000)]
    config = {"split": {"kind": "hash", "column": "user", "valid": 0.2, "test": 0.1}}
    found = splits(USER, {**config, "input": {"train": write(tmp_path / "a.csv", lines)}})
    of_user = {}
    for row, split in found.items():
        assert of_user.setdefault(int(row) % 500, split) == split
    counts = [list(of_user.values()).count(name) for name in ("train", "valid", "test")]
    assert abs(counts[1] - 100) < 36 and abs(counts[2] - 50) < 27  # four standard deviations
    # The same user goes the same way in another log, and another salt cuts otherwise.
    again = splits(USER, {**config, "input": {"train": write(tmp_path / "b.csv", lines[::-3])}})
    assert again == {row: found[row] for row in again}
    salted = {"split": {**config["split"], "salt": "other"}, "input": {"train": str(tmp_path / "b.csv")}}
    assert splits(USER, salted) != again


def test_hash_of_the_row_keeps_equal_rows_together_and_spares_given_splits(splits, tmp_path):
    lines = [f"{i},u,1,0" for i in range(300)]
    inputs = {"train": write(tmp_path / "a.csv", lines), "test": write(tmp_path / "b.csv", ["x,u,1,0", "y,u,1,0"])}
    found = splits(USER, {"split": {"kind": "hash", "valid": 0.3, "test": 0.3}, "input": inputs})
    assert found.pop("x") == found.pop("y") == "test"
    assert set(found.values()) == {"train", "valid"}
    assert 50 < list(found.values()).count("valid") < 130


@pytest.mark.parametrize(
    ("time_format", "times"),
    [
        ("unix", ["1704067199", "1704067200", "1704153599.9", "1704153600"]),
        ("unix_ms", ["1704067199999", "1704067200000", "1704153599999", "1704153600000"]),
        ("yyMMddHH", ["23123123", "24010100", "24010123", "24010200"]),
        ("yyyy-MM-dd'T'HH:mm:ssXXX", ["2024-01-01T00:59:59+01:00", "2024-01-01T00:00:00Z", "2024-01-01T23:00:00Z"]),
    ],
)
def test_time(splits, tmp_path, time_format, times):
    path = write(tmp_path / "a.csv", [f"{i},u,1,{time}" for i, time in enumerate(times)])
    features = {**USER, "timestamp": {"column": "t", "format": time_format}}
    rule = {"kind": "time", "valid_from": "2024-01-01", "test_from": "2024-01-02T00:00:00"}
    found = splits(features, {"split": rule, "input": {"train": path}})
    assert [found[str(i)] for i in range(len(times))] == ["train", "valid", "valid", "test"][: len(times)]


def test_times_are_utc():
    assert parse_time("2024-01-01") == parse_time("2024-01-01T02:00:00+02:00") == 1704067200


def test_wrong_rules_are_config_errors(splits, tmp_path):
    path = write(tmp_path / "a.csv", ["1,u,1,0"])
    time = {"kind": "time", "valid_from": "2024-01-01"}
    with pytest.raises(ConfigError, match=r"needs features\.timestamp"):
        splits(USER, {"split": time, "input": {"train": path}})
    timed = {**USER, "timestamp": {"column": "t"}}
    with pytest.raises(ConfigError, match="'noon' is no ISO date"):
        splits(timed, {"split": {**time, "test_from": "noon"}, "input": {"train": path}})
    with pytest.raises(ConfigError, match="must be later than valid_from"):
        splits(timed, {"split": {**time, "test_from": "2023-01-01"}, "input": {"train": path}})
    with pytest.raises(ConfigError, match="must leave rows for train"):
        splits(USER, {"split": {"kind": "hash", "valid": 0.5, "test": 0.5}, "input": {"train": path}})
