"""The whole road over object storage: built, trained, interrupted, resumed, evaluated, exported and scored, on a real
S3 server; and the same by ``file://``."""

import csv
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from features.disk.dataset import DatasetManifest
from features.disk.object_store import ObjectPath, StorageError
from features.disk.place import locate
from jobs.cli.config import load_config
from tests.ranks import on_two_ranks
from tests.stand_ins.object_store import KEY, SECRET, Bucket
from tests.stand_ins.tiny_dataset import TinyDataset
from tests.test_spine import CONFIG, write_log
from tests.training.fit.test_run import fit_until, make_config
from training.config import CheckpointConfig, ReaderConfig, TrainingConfig
from training.data.batch import Batch
from training.data.file_cache import ShardCache
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.run import Run, train_rank
from training.sharding import checkpoint
from training.sharding.checkpoint_reader import CheckpointError
from training.ship.export import load_best

STEPS_PER_EPOCH = 6


def call(monkeypatch: pytest.MonkeyPatch, program: str, *arguments: str) -> None:
    """A program, in this process."""
    module = __import__(f"jobs.{program}", fromlist=["main"])
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    assert module.main() == 0


def contents(dataset: str | Path) -> dict[str, str]:
    """Files and their hashes, whatever the version folder is called; checked against what is there."""
    manifest = DatasetManifest.load(dataset)
    for split in manifest.splits:
        manifest.check_files(dataset, split)
    files = [file for split in manifest.splits.values() for file in split.files]
    return {"learnt": manifest.load_learnt(dataset).fingerprint, **{f.path.split("/", 1)[1]: f.sha256 for f in files}}


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_best(run).model.state_dict()


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_the_whole_road(
    spark: Any, bucket: Bucket, tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    from jobs.launch.dataset_build import run_build

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    write_log(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    root = f"{bucket.url}/road" if scheme == "s3" else f"file://{tmp_path}/road"
    there = ["training.checkpoint.every_steps=3", f"training.dataset={root}/dataset", f"pipeline.output={root}/dataset"]
    here = load_config([str(tmp_path / "config.toml")], there[:1])
    away = load_config([str(tmp_path / "config.toml")], [*there, f"training.checkpoint.folder={root}/checkpoints"])

    for config in (here, away, away)[: 3 if scheme == "s3" else 2]:  # twice: the older version goes
        summary = run_build(spark, config)
    assert summary["dataset"] == str(locate(f"{root}/dataset"))
    assert contents(f"{root}/dataset") == contents(tmp_path / "dataset")
    if scheme == "s3":
        names = {key.split("/")[0] for key in bucket.keys("road/dataset")}
        assert names - {"manifest.json", "build.json"} == {DatasetManifest.load(f"{root}/dataset").learnt_path[:40]}

    runs = {name: Run(tmp_path / "runs" / name) for name in ("here", "away")}
    for name, config in (("here", here), ("away", away)):
        prepare(runs[name], config)
    train_rank(runs["here"], here.training)
    fit_until(runs["away"], away.training, step=3)
    newest = checkpoint.newest(runs["away"].checkpoints_of(away.training))
    assert newest is not None and newest.step == 3 and not runs["away"].checkpoints.exists()
    train_rank(runs["away"], away.training)
    assert_same(weights(runs["away"]), weights(runs["here"]))
    steps = {key.split("/")[0] for key in bucket.keys("road/checkpoints")}
    assert scheme == "file" or len(steps) in (2, 3)  # the newest two and the best

    run = str(runs["away"].path)
    call(monkeypatch, "evaluate", "--run", run, "--split", "test")
    call(monkeypatch, "evaluate", "--run", runs["here"].path, "--split", "test")
    assert runs["away"].read("evaluation/test.json") == runs["here"].read("evaluation/test.json")
    for _ in range(2):
        call(monkeypatch, "export", "--run", run, "--output", f"{root}/artifact")
    call(monkeypatch, "export", "--run", runs["here"].path, "--output", tmp_path / "artifact")
    for name, artifact in (("away", f"{root}/artifact"), ("here", tmp_path / "artifact")):
        log, output = tmp_path / "log.csv.gz", tmp_path / f"{name}.csv"
        call(monkeypatch, "score", "--artifact", artifact, "--input", log, "--output", output)
    assert (tmp_path / "away.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    with (tmp_path / "away.csv").open(newline="") as file:
        assert sum(bool(row["probability"]) for row in csv.DictReader(file)) == 990

    left = [path for path in (tmp_path / "tmp").rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == []
    written = b"".join(path.read_bytes() for path in runs["away"].path.rglob("*") if path.is_file())
    assert SECRET.encode() not in written and KEY.encode() not in written


def prepare(run: Run, config: Any) -> None:
    """What ``jobs.train`` does before it starts workers."""
    from jobs.launch.run_guard import prepare_run

    run.path.mkdir(parents=True)
    prepare_run(run.path, config, resume=False)


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.fixture
def stored(make_dataset: Any, bucket: Bucket) -> TinyDataset:
    """A tiny dataset on disk, and the same one at ``dataset`` in the bucket."""
    tiny = make_dataset()
    ObjectPath(bucket.name, "dataset").upload(tiny.path)
    return tiny


def read(dataset: str | Path, num_epochs: int = 2, **changes: Any) -> list[Batch]:
    config = replace(make_config(Path("unused")), reader=ReaderConfig(num_streams=4, **changes))
    reader = Reader(Dataset.open(dataset), "train", config)
    return [batch for epoch in range(num_epochs) for batch in reader.batches(epoch)]


@pytest.mark.parametrize("cache_bytes", [1, 2**30])
def test_the_same_batches_as_from_disk(stored: TinyDataset, bucket: Bucket, cache_bytes: int) -> None:
    bucket.proxy.fail("cut answer", 3, lambda method, path: method == "GET" and path.endswith(".parquet"))
    gets = []
    fail = bucket.proxy.decide
    bucket.proxy.decide = lambda m, p: (gets.append(p) if (m, p[-8:]) == ("GET", ".parquet") else None) or fail(m, p)
    ours = read(f"{bucket.url}/dataset", cache_bytes=cache_bytes)
    for one, other in zip(ours, read(stored.path), strict=True):
        assert torch.equal(one.labels, other.labels) and torch.equal(one.dense_features, other.dense_features)
        assert torch.equal(one.sparse_features.values(), other.sparse_features.values())
    assert len(bucket.proxy.faults) == 3
    files = len(stored.manifest.split("train").files)
    if cache_bytes > 1:
        assert len(gets) == files + 3  # of both epochs
    else:
        assert len(gets) > 2 * files


def test_a_cache_keeps_to_its_size_and_goes(stored: TinyDataset, bucket: Bucket) -> None:
    files = stored.manifest.split("train").files
    cache = ShardCache(ObjectPath(bucket.name, "dataset"), files[0].num_bytes + files[1].num_bytes)
    folder = cache._folder
    for paths in (cache.fetch(files), cache.fetch(files[::-1]), cache.fetch(files[1:])):
        for path in paths:
            assert path.is_file()
            kept = [p for p in folder.rglob("*") if p.suffix == ".parquet"]
            assert len(kept) <= 2 and path in kept
    closing = cache.fetch(files)
    next(closing)
    closing.close()
    assert {entry.num_users for entry in cache._entries.values()} == {0}
    cache.close()
    assert not folder.exists()


def test_a_changed_file_is_not_read(stored: TinyDataset, bucket: Bucket, impatient: None) -> None:
    file = stored.manifest.split("train").files[1]
    content = bytearray((stored.path / file.path).read_bytes())
    content[100] ^= 1
    bucket.write(f"dataset/{file.path}", bytes(content))
    with pytest.raises(StorageError, match=rf"{file.path}: .*or other ones than were written"):
        read(f"{bucket.url}/dataset")
    bucket.write(f"dataset/{file.path}", bytes(content[:-1]))
    with pytest.raises(ValueError, match=rf"{file.path} has \d+ bytes where manifest.json says"):
        read(f"{bucket.url}/dataset")


# -------------------------------------------------------------------------------------------------------- checkpoints


def away(dataset: Path, bucket: Bucket, **changes: Any) -> TrainingConfig:
    place = CheckpointConfig(every_steps=4, keep=3, folder=f"{bucket.url}/checkpoints")
    return make_config(dataset, checkpoint=place, **changes)


def fit_apart(run: Path, config: TrainingConfig, step: int) -> None:
    """Each rank has a disk of its own for what is temporary."""
    folder = run / f"disk-{torch.distributed.get_rank()}"
    folder.mkdir(parents=True)
    tempfile.tempdir, before = str(folder), tempfile.tempdir
    try:
        fit_until(Run(run), config, step)
    finally:
        tempfile.tempdir = before


def test_two_ranks_share_no_disk_and_one_goes_on(
    make_dataset: Any, bucket: Bucket, tmp_path: Path, one_rank: None
) -> None:
    dataset = make_dataset().path
    config = away(dataset, bucket)
    on_two_ranks(tmp_path, fit_apart, tmp_path / "run", config, 4)
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "checkpoint.json"} <= {
        key.removeprefix("step=000000004/") for key in bucket.keys("checkpoints")
    }
    train_rank(Run(tmp_path / "run"), config)
    train_rank(Run(tmp_path / "alone"), alone := make_config(dataset))
    ours, theirs = (
        checkpoint.newest(Run(tmp_path / name).checkpoints_of(c)) for name, c in (("run", config), ("alone", alone))
    )
    assert ours is not None and theirs is not None and ours.step == theirs.step == 2 * STEPS_PER_EPOCH
    for name, weight in state(ours, config).items():
        if name.endswith("weight"):
            torch.testing.assert_close(weight, state(theirs, alone)[name], rtol=0, atol=1e-5)


def state(found: checkpoint.Checkpoint, config: TrainingConfig) -> dict[str, torch.Tensor]:
    from training.fit.run import build_model

    model = build_model(Dataset.open(config.dataset), config, torch.device("cpu"))
    checkpoint.restore_model(found, model)
    return model.state_dict()


def test_a_checkpoint_that_fails_leaves_the_one_before(
    make_dataset: Any, bucket: Bucket, tmp_path: Path, one_rank: None, impatient: None
) -> None:
    config, run = away(make_dataset().path, bucket), Run(tmp_path / "run")
    folder = run.checkpoints_of(config)
    bucket.proxy.fail(503, 10**9, lambda m, path: m == "PUT" and "000000006/__0_0.distcp" in path)
    with pytest.raises(StorageError, match=r"checkpoint s3://.*step=000000006 was not saved: .*HTTP status 503"):
        train_rank(run, config)
    assert checkpoint.saved_steps(folder) == [4]
    bucket.proxy.fail("cut", 10**9, lambda m, path: m == "PUT" and path.endswith("000000006/checkpoint.json"))
    with pytest.raises(StorageError, match=r"step=000000006 was not saved"):
        train_rank(run, config)
    assert checkpoint.saved_steps(folder) == [4] and bucket.proxy.faults[-1][2] == "cut"
    bucket.proxy.decide = lambda method, path: None
    train_rank(run, config)
    assert checkpoint.saved_steps(folder)[-1] == 2 * STEPS_PER_EPOCH
    undisturbed = Run(tmp_path / "undisturbed")
    train_rank(undisturbed, alone := make_config(Path(config.dataset)))
    newest, expected = checkpoint.newest(folder), checkpoint.newest(undisturbed.checkpoints)
    assert newest is not None and expected is not None
    assert_same(state(newest, config), state(expected, alone))

    meta = json.loads(bucket.read(key := f"checkpoints/step={newest.step:09d}/checkpoint.json"))
    bucket.write(key, json.dumps({**meta, "files": {**meta["files"], "../x": 1}}).encode())
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        checkpoint.newest(folder)
    bucket.write(key, json.dumps({**meta, "files": {**meta["files"], ".metadata": 1}}).encode())
    with pytest.raises(CheckpointError, match="metadata is missing or cut"):
        checkpoint.newest(folder)


def test_a_run_keeps_its_place_of_checkpoints(
    make_dataset: Any, bucket: Bucket, tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.launch.run_guard import prepare_run as guard
    from tests.jobs.test_train import write_config

    path = str(write_config(tmp_path, make_dataset().path))
    place = f"training.checkpoint.folder={bucket.url}/checkpoints"
    here, there = load_config([path]), load_config([path], [place])
    prepare(run := Run(tmp_path / "run"), there)
    fit_until(run, there.training, step=20)
    with pytest.raises(ValueError, match=r"already holds a run, in s3://.*/checkpoints,: add --resume"):
        guard(run.path, there, resume=False)
    with pytest.raises(ValueError, match=r"cannot change training.checkpoint.folder"):
        guard(run.path, here, resume=True)
    guard(run.path, there, resume=True)
    monkeypatch.setattr(sys, "argv", ["train", "--config", path, "--run", f"{bucket.url}/run"])
    with pytest.raises(ValueError, match=r"s3://.*/run must be on disk here"):
        __import__("jobs.train", fromlist=["main"]).main()
