"""What fuzzing found, one small input each."""

import gzip
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from torch import nn

from features.disk.artifact import ArtifactError
from features.disk.dataset import DatasetError, DatasetManifest
from features.disk.run_folder import DATASET_NAME
from features.disk.trained_on import TrainedOn
from features.learnt import Learnt, LearntError
from features.log_format import LogError, LogFormat, Lookup
from features.rows import RowError
from features.schema import (
    BoundariesEncoding,
    DenseFeature,
    FeatureSchema,
    HashEncoding,
    LogEncoding,
    SparseFeature,
    expand_names,
)
from jobs.cli.config import load_config, parse_config
from jobs.cli.errors import ConfigError
from pipeline.build.sources import plan_sources
from tests.fuzz.campaign import _limits
from tests.fuzz.targets import CONFIG, digests, log_bytes, make_artifact, make_checkpoint, make_dataset
from tests.oracles.row_encoder import RowEncoder
from tests.oracles.row_reader import read_lines, read_rows
from training.config import ReaderConfig, TrainingConfig
from training.data.file_checker import ReaderError
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.run import Run
from training.sharding import checkpoint
from training.sharding.checkpoint_reader import CheckpointError
from training.ship.export import load_best
from training.ship.predict import Predictor

JSONL = LogFormat("jsonl")


def read(path: Path, data: bytes, log_format: LogFormat) -> list[dict[str, object] | str]:
    path.write_bytes(data)
    return [str(row) if isinstance(row, LogError) else row for _, row in read_lines(str(path), log_format)]


# ---------------------------------------------------------------------------------------------------------------- logs


def test_a_byte_that_is_no_text_costs_its_line_alone(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", b"a\n1\n\xff\n2\n", LogFormat()) == [{"a": "1"}, "not UTF-8 text", {"a": "2"}]
    assert read(tmp_path / "a.jsonl", b'{"a": "\xff"}\n{"a": 1}\n', JSONL) == ["not UTF-8 text", {"a": "1"}]
    with pytest.raises(LogError, match="the header is not UTF-8 text"):
        read(tmp_path / "b.csv", b"\xff\n1\n", LogFormat())


def test_json_lines_that_are_odd(tmp_path: Path) -> None:
    lines = ["[" * 100_000, '{"a": "\\ud800x"}', '{"a": 1}}', "\x1f", "\x0b"]
    found = read(tmp_path / "a.jsonl", "\n".join(lines).encode(), JSONL)
    assert found == ["not a JSON object", {"a": "?x"}, "not a JSON object", "not a JSON object"]


def test_a_quoted_value_may_be_long_but_holds_no_nul(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", b'a\n"' + b"x" * 200_000 + b'"\n', LogFormat()) == [{"a": "x" * 200_000}]
    assert "badly quoted" in str(read(tmp_path / "a.csv", b'a\n"\0"\n', LogFormat())[0])


def test_damaged_parquet_and_lookup_keys_that_are_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" * 5)
    with pytest.raises(LogError, match=r"a\.parquet cannot be read"):
        list(read_rows(str(path), LogFormat("parquet")))
    pyarrow.parquet.write_table(pyarrow.table({"a": [[1]]}), path)
    (tmp_path / "side.csv").write_text("a,b\n1,2\n")
    [(_, row)] = read_lines(str(path), LogFormat("parquet"), (Lookup("side.csv", "a", LogFormat()),))
    assert isinstance(row, LogError) and "the key of a lookup" in str(row)


def test_parquet_columns_of_different_lengths(tmp_path: Path) -> None:
    """Any one byte may be another, in a process of its own: PyArrow 14 ended it with a segmentation fault at one."""
    path = tmp_path / "a.parquet"
    path.write_bytes(log_bytes("log.parquet"))
    done = subprocess.run(
        [sys.executable, "-c", _CHANGE_EACH_BYTE, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1_000:]
    good, refused = map(int, done.stdout.split())
    assert good + refused == len(log_bytes("log.parquet")) and refused > 100


_CHANGE_EACH_BYTE = """
import sys
from pathlib import Path
from features.log_format import LogError, LogFormat
from tests.oracles.row_reader import read_rows
path = Path(sys.argv[1])
data, refused = path.read_bytes(), 0
for at in range(len(data)):
    path.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
    try:
        list(read_rows(str(path), LogFormat("parquet")))
    except LogError:
        refused += 1
print(len(data) - refused, refused)
"""


def test_half_a_surrogate_pair_has_no_id() -> None:
    schema = FeatureSchema("click", sparse=(SparseFeature("a", HashEncoding(num_buckets=9)),))
    with pytest.raises(RowError, match=r"row 1: column 'a'.*surrogates"):
        RowEncoder(schema, Learnt()).encode([{"a": "\ud800"}])


@pytest.mark.parametrize("value", ["1e39", -1e300, 10**400, np.float64("inf")])
def test_numbers_that_float32_has_no_room_for(value: object) -> None:
    """As infinity, one of them would have ended a training that a build had passed."""
    schema = FeatureSchema("click", (SparseFeature("a", HashEncoding(num_buckets=9)),), (DenseFeature("d"),))
    with pytest.raises(RowError, match=r"column 'd'.*not a finite number"):
        RowEncoder(schema, Learnt()).encode([{"a": "x", "d": value}])


# -------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"sparse": [{"names": True}]}, "features.sparse.names"),
        ({"sparse": [{"names": [None]}]}, "features.sparse.names"),
        ({"carry": [1]}, "features.carry"),
        ({"carry": ["C{1..999999999}"]}, "stands for 999999999 names"),
        ({"label": "y", "sparse": [{"name": "\ud800", "encoding": {"kind": "vocabulary"}}]}, "letters, digits"),
    ],
)
def test_config_trees(features: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"features": features, "pipeline": {"output": "x"}, "training": {"dataset": "x"}})


@pytest.mark.parametrize("text", ["a = " + "[" * 5_000, "a = " + "9" * 5_000, ".".join("a" * 3_000) + " = 1"])
def test_config_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError):
        load_config([str(tmp_path / "a.toml")])
    with pytest.raises(ConfigError):
        load_config([], [f"training.{text.replace(' ', '')}"])


def test_numbers_that_are_no_boundaries() -> None:
    with pytest.raises(ValueError, match="too large: take fewer buckets"):
        LogEncoding(num_buckets=1_000, base=1e300)
    for base in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="finite"):
            LogEncoding(base=base)
    with pytest.raises(ValueError, match="finite"):
        BoundariesEncoding((1.0, float("nan")))
    assert len(LogEncoding(num_buckets=1_000, base=2.0).boundaries) == 999
    assert expand_names(["C{1..3}"]) == ("C1", "C2", "C3")


# ------------------------------------------------------------------------------------------------ dataset and artifact


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("moments", "[]"),
        ("moments", '{"a": 1}'),
        ("moments", '{"a": [1]}'),
        ("boundaries", '"\\ud800"'),
        ("boundaries", '{"a": ["x"]}'),
        ("vocabulary.device", "[1]"),
        ("vocabulary.device", '["\\ud800"]'),
        ("out_of_vocabulary", '{"device": 1e400}'),
        ("out_of_vocabulary", '{"\\ud800": 1}'),
    ],
)
def test_learnt_files(tmp_path: Path, name: str, text: str) -> None:
    manifest = make_dataset(tmp_path)
    (tmp_path / "v1" / "learnt" / f"{name}.json").write_text(text)
    with pytest.raises(LearntError):
        manifest.load_learnt(tmp_path)


def test_a_manifest_without_statistics(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    path = tmp_path / "manifest.json"
    tree = json.loads(path.read_text())
    del tree["splits"]["train"]["sparse"]["user"]
    path.write_text(json.dumps(tree))
    manifest = DatasetManifest.load(tmp_path)
    with pytest.raises(DatasetError, match="has no statistics of feature 'user'"):
        manifest.check_ids(manifest.load_learnt(tmp_path))


def change(artifact: Path, name: str, data: bytes) -> None:
    """As a stranger would: with a description that agrees."""
    (artifact / name).write_bytes(data)
    description = json.loads((artifact / "artifact.json").read_text())
    (artifact / "artifact.json").write_text(json.dumps({**description, "files": digests(artifact)}))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("artifact.json", b"[]", "no object"),
        ("artifact.json", b'{"version": 1}', "does not list the artifact's files"),
        ("config.json", b"1", "no object"),
        ("config.json", b"[" * 10_000, "cannot be read"),
        ("golden.jsonl", b"", "is empty"),
        ("golden.jsonl", b'{"row": 1}\n', "does not hold rows"),
        ("golden.jsonl", b'{"row": {}, "probability": 1' + b"0" * 400 + b"}\n", "does not hold rows"),
        ("calibration.json", b'{"scale": 1' + b"0" * 400 + b', "offset": 0}', "not understood"),
    ],
)
def test_artifact_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    make_artifact(tmp_path)
    if name == "artifact.json":
        (tmp_path / name).write_bytes(data)
    else:
        change(tmp_path, name, data)
    with pytest.raises(ArtifactError, match=message):
        Predictor.load(tmp_path)


@pytest.mark.parametrize("name", ["\0", "x" * 300, "é" * 200, "\ud800"])
def test_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    make_artifact(tmp_path)
    description = json.loads((tmp_path / "artifact.json").read_text())
    description["files"][name] = ""
    (tmp_path / "artifact.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError):
        Predictor.load(tmp_path)
    dataset, saved = tmp_path / "dataset", tmp_path / "step=000000004"
    make_dataset(dataset)
    tree = json.loads((dataset / "manifest.json").read_text())
    tree["splits"]["train"]["files"][0]["path"] = name
    (dataset / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DatasetError):
        DatasetManifest.load(dataset)
    make_checkpoint(saved)
    meta = json.loads((saved / "checkpoint.json").read_text())
    meta["files"][name] = 1
    (saved / "checkpoint.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError):
        restore(saved)


def test_golden_rows_may_hold_any_end_of_line(tmp_path: Path) -> None:
    make_artifact(tmp_path)
    assert "\u2028" in (tmp_path / "golden.jsonl").read_text()
    Predictor.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"num_buckets": 50', '"num_buckets": 2000000000'), ('"hidden_units": [16', '"hidden_units": [2000000000')],
)
def test_a_config_that_asks_for_more_memory_than_there_are_weights(tmp_path: Path, old: str, new: str) -> None:
    make_artifact(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert old in text
    change(tmp_path, "config.json", text.replace(old, new).encode())
    description = json.loads((tmp_path / "artifact.json").read_text())
    schema = parse_config(json.loads((tmp_path / "config.json").read_text())).features
    (tmp_path / "artifact.json").write_text(json.dumps({**description, "schema_fingerprint": schema.fingerprint}))
    with _limits(), pytest.raises(ArtifactError, match="does not fit the artifact's config"):
        Predictor.load(tmp_path)


# ---------------------------------------------------------------------------------------------------------- checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of one checkpoint."""
    make_checkpoint(tmp_path / "step=000000004")
    return tmp_path / "step=000000004"


def restore(path: Path) -> None:
    checkpoint.restore_model(checkpoint.best(path.parent), nn.Linear(4, 3))


def test_checkpoints_of_every_python(saved: Path) -> None:
    """Python 3.13 writes the class of a path under another module, which 3.11 has not."""
    index = (saved / ".metadata").read_bytes()
    for here, there in (
        (b"\x07pathlib\x94", b"\x0epathlib._local\x94"),
        (b"\x0epathlib._local\x94", b"\x07pathlib\x94"),
    ):
        if here in index:
            length = int.from_bytes(index[3:11], "little") + len(there) - len(here)
            data = index[:3] + length.to_bytes(8, "little") + index[11:].replace(here, there)
            rewrite(saved, ".metadata", data)
            restore(saved)
            assert data != index
            return
    raise AssertionError("the index names no path")


def rewrite(path: Path, name: str, data: bytes) -> None:
    (path / name).write_bytes(data)
    meta = json.loads((path / "checkpoint.json").read_text())
    meta["files"][name] = len(data)
    (path / "checkpoint.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("progress", [1, [], {"best_step": "4"}, {"best_step": {}}])
def test_descriptions(saved: Path, progress: object) -> None:
    meta = json.loads((saved / "checkpoint.json").read_text())
    for text in (json.dumps({**meta, "progress": progress}), "[]", json.dumps({**meta, "files": [1]})):
        (saved / "checkpoint.json").write_text(text)
        with pytest.raises(CheckpointError, match="damaged"):
            restore(saved)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x7f.",
        b"\x80\x04N.",
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b".",  # a bytearray of 8 GiB
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",  # a frame
        b"\x80\x04}" + b")\x94" + b"h\x00h\x00\x86\x94" * 1 + b"Ns.",  # a tuple as a key
    ],
)
def test_indices_that_are_none(saved: Path, data: bytes) -> None:
    rewrite(saved, ".metadata", data)
    with _limits(), pytest.raises(CheckpointError, match=r"\.metadata is not the index of a checkpoint"):
        restore(saved)


def test_a_record_that_unpacks_to_more_than_it_is(saved: Path, tmp_path: Path) -> None:
    """Sixteen megabytes of zeros in sixteen kilobytes, where a tensor is expected."""
    [shard] = saved.glob("*.distcp")
    bomb = tmp_path / "bomb"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(16 << 20))
    size = shard.stat().st_size
    assert bomb.stat().st_size > size
    reader = checkpoint.CheckpointReader(saved)
    reader.set_up_storage_reader(reader.read_metadata(), True)
    [info, *_] = reader.storage_data.values()
    shutil.copy(bomb, shard)
    info.offset, info.length = 0, bomb.stat().st_size
    with shard.open("rb") as stream, pytest.raises(CheckpointError, match="holds compressed data"):
        reader._slice_file(stream, info)


# ------------------------------------------------------------------------------------------------- lines without an end


def write_endless(path: Path, before: bytes, after: bytes = b"\n", megabytes: int = 300) -> None:
    """A gzip file of some kilobytes with a very long line in its middle."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(before)
        for _ in range(megabytes):
            file.write(b"x" * 1_000_000)
        file.write(after)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
def test_a_line_without_an_end_is_one_malformed_row(tmp_path: Path, name: str) -> None:
    before, after = (b"a\n1\n", b"\n2\n") if name == "a.csv.gz" else (b'{"a": 1}\n', b'\n{"a": 2}\n')
    write_endless(tmp_path / name, before, after)
    log_format = LogFormat() if name == "a.csv.gz" else JSONL
    with _limits(256 << 20):
        found = [
            str(row) if isinstance(row, LogError) else row for _, row in read_lines(str(tmp_path / name), log_format)
        ]
    assert found == [{"a": "1"}, "longer than 16777216 characters", {"a": "2"}]


def test_a_header_without_an_end(tmp_path: Path) -> None:
    write_endless(tmp_path / "a.csv.gz", b"")
    tree = {
        "features": {"label": "a", "sparse": [{"name": "b", "encoding": {"kind": "vocabulary"}}]},
        "pipeline": {"output": "x", "input": {"train": str(tmp_path / "a.csv.gz")}},
        "training": {"dataset": "x"},
    }
    config = parse_config(tree)
    with _limits(256 << 20), pytest.raises(LogError, match="the header is longer than 16777216 characters"):
        plan_sources(config.pipeline, config.features)


def test_a_line_without_an_end_is_one_rejected_row_of_spark(spark, tmp_path: Path) -> None:
    """One of hundreds of megabytes is more than a small Java process survives: the build says that memory ran out."""
    from jobs.launch.dataset_build import run_build

    rows = b"".join(b"1,u%d\n0,u%d\n" % (i, i) for i in range(100))
    write_endless(tmp_path / "a.csv.gz", b"click,user\n" + rows, b"\n1,last\n", megabytes=20)
    tree = {
        "features": {"label": "click", "sparse": [{"name": "user", "encoding": {"kind": "vocabulary"}}]},
        "pipeline": {"output": str(tmp_path / "dataset"), "input": {"train": str(tmp_path / "a.csv.gz")}},
        "training": {"dataset": "x"},
    }
    summary = run_build(spark, parse_config(tree))
    assert summary["reasons"] == {"longer than 16777216 characters": 1}
    assert (summary["rows"], summary["splits"]["train"]["rows"]) == (202, 201)


# ---------------------------------------------------------------------------------------------------------- huge claims


def test_a_run_that_asks_for_more_memory_than_its_checkpoint_has(tmp_path: Path) -> None:
    """A stranger's run with a dataset of its own that both say: two thousand million rows."""
    dataset, run = tmp_path / "dataset", tmp_path / "run"
    made = make_dataset(dataset)
    [user, *others] = made.schema.sparse
    schema = replace(made.schema, sparse=(replace(user, encoding=HashEncoding(num_buckets=2**31 - 1)), *others))
    replace(made, schema=schema, schema_fingerprint=schema.fingerprint).write(dataset)
    make_checkpoint(run / "checkpoints" / "step=000000004")
    (run / "config.toml").write_text(CONFIG)
    tree = load_config([str(run / "config.toml")]).to_dict()
    (run / "config.json").write_text(json.dumps({**tree, "features": asdict(schema)}))
    trained_on = TrainedOn.of(dataset, DatasetManifest.load(dataset))
    (run / DATASET_NAME).write_text(json.dumps(trained_on.to_json()))
    with _limits(), pytest.raises(CheckpointError, match=r"bytes where the run's config and dataset ask for .*,\d{3}"):
        load_best(Run(run))


def test_a_manifest_that_claims_more_rows_than_memory_holds(tmp_path: Path) -> None:
    made = make_dataset(tmp_path)
    [file] = made.splits["train"].files
    split = replace(made.splits["train"], files=(replace(file, row_groups=(10**12,)),))
    opened = Dataset(tmp_path, replace(made, splits={"train": split}), made.load_learnt(tmp_path))
    reader = Reader(opened, "train", TrainingConfig(str(tmp_path), reader=ReaderConfig(num_streams=1)))
    with (
        _limits(),
        pytest.raises(ReaderError, match=r"do not fit in memory .*lower training\.reader\.shuffle_row_groups"),
    ):
        list(reader.batches(0))
