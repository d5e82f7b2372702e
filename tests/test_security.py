"""What strangers give cannot run code or lead out of its folder. (tests/test_spine.py: where clusters listen.)"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from features.disk.artifact import ArtifactError
from features.disk.dataset import DatasetError, DatasetManifest
from features.disk.trained_on import TrainedOn
from features.log_format import LogError, LogFormat
from tests.fuzz.targets import CONFIG, digests, make_artifact, make_checkpoint, make_dataset
from tests.oracles.row_reader import read_rows
from tests.stand_ins.tiny_dataset import describe_file
from training.config import TrainingConfig
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.plugins import PluginError
from training.sharding import checkpoint
from training.sharding.checkpoint_reader import CheckpointError
from training.ship.predict import Predictor

ROOT = Path(__file__).parents[1]


class Attack:
    """Un-pickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """The file that is there if an attack came through; that it would have is tried first."""
    path = tmp_path / "proof"
    pickle.loads(pickle.dumps(Attack(path)))  # noqa: S301
    assert path.exists()
    path.unlink()
    return path


# --------------------------------------------------------------------------------------------------------- checkpoints


def restore(folder: Path) -> None:
    model = nn.Linear(4, 3)
    found = checkpoint.best(folder)
    checkpoint.restore_model(found, model)
    checkpoint._load(found, {"optimizer": {"step": torch.tensor(0.0), "note": {"lr": 0.0}}})


def resize(path: Path, name: str) -> None:
    meta = json.loads((path / "checkpoint.json").read_text())
    meta["files"][name] = (path / name).stat().st_size
    (path / "checkpoint.json").write_text(json.dumps(meta))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of one good checkpoint, whose weights and plain values can be read back."""
    weights = make_checkpoint(tmp_path / "run" / "step=000000004")
    model = nn.Linear(4, 3)
    checkpoint.restore_model(checkpoint.best(tmp_path / "run"), model)
    assert torch.equal(model.weight, weights["weight"])
    state = {"optimizer": {"note": {"lr": 0.0}}}
    checkpoint._load(checkpoint.best(tmp_path / "run"), state)
    assert state["optimizer"]["note"] == {"lr": 0.1}
    return tmp_path / "run" / "step=000000004"


@pytest.mark.parametrize("where", ["whole", "planner_data", "state_dict_metadata", "relative_path"])
def test_the_index_of_a_checkpoint(saved: Path, proof: Path, where: str) -> None:
    with (saved / ".metadata").open("rb") as file:
        metadata = pickle.load(file)  # noqa: S301
    if where == "whole":
        metadata = Attack(proof)
    elif where == "relative_path":
        next(iter(metadata.storage_data.values())).relative_path = Attack(proof)
    else:
        setattr(metadata, where, {"model.weight": Attack(proof)})
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    resize(saved, ".metadata")
    with pytest.raises(CheckpointError, match=r"\.metadata is not the index.*which could run code"):
        restore(saved.parent)
    assert not proof.exists()


def word(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


@pytest.mark.parametrize("opcode", ["global", "inst", "class"])
def test_pickles_by_hand(saved: Path, proof: Path, opcode: str) -> None:
    text = str(proof).encode()
    data = {
        "global": b"cpathlib\nPath.touch\n(cpathlib\nPath\n(V" + text + b"\ntRtR.",
        "inst": b"(S'touch " + text + b"'\nios\nsystem\n.",
        # A class of the index with a method of another one: what is made of it later would call that.
        "class": b"\x80\x04"
        + word("torch.distributed.checkpoint.filesystem")
        + word("_StorageInfo")
        + b"\x93N}"
        + word("a")
        + b"K\x01s\x86b.",
    }[opcode]
    (saved / ".metadata").write_bytes(data)
    resize(saved, ".metadata")
    with pytest.raises(CheckpointError, match="is not the index"):
        restore(saved.parent)
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    assert not proof.exists() and not hasattr(_StorageInfo, "a")


@pytest.mark.parametrize("kind", ["value", "tensor"])
def test_the_records_of_a_checkpoint(saved: Path, proof: Path, kind: str) -> None:
    """A record of a value that is no tensor, and one of a tensor, replaced by an attack."""
    with (saved / ".metadata").open("rb") as file:
        metadata = pickle.load(file)  # noqa: S301
    key = "optimizer.note.lr" if kind == "value" else "model.weight"
    [info] = [info for index, info in metadata.storage_data.items() if index.fqn == key]
    torch.save(Attack(proof), saved / "attack")
    info.relative_path, info.offset, info.length = "attack", 0, (saved / "attack").stat().st_size
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    for name in (".metadata", "attack"):
        resize(saved, name)
    with pytest.raises(CheckpointError, match="does not load"):
        restore(saved.parent)
    assert not proof.exists()


def test_checkpoints_stay_in_their_folder(saved: Path, tmp_path: Path) -> None:
    [shard] = saved.glob("*.distcp")
    outside = tmp_path / shard.name
    shutil.copy(shard, outside)
    index, description = (saved / ".metadata").read_bytes(), (saved / "checkpoint.json").read_text()
    for path in (f"../../{shard.name}", str(outside)):
        metadata = pickle.loads(index)  # noqa: S301
        for info in metadata.storage_data.values():
            info.relative_path = path
        (saved / ".metadata").write_bytes(pickle.dumps(metadata))
        resize(saved, ".metadata")
        with pytest.raises(CheckpointError, match="a file outside its folder"):
            restore(saved.parent)
        (saved / ".metadata").write_bytes(index)
        meta = json.loads(description)
        meta["files"][path] = outside.stat().st_size
        (saved / "checkpoint.json").write_text(json.dumps(meta))
        with pytest.raises(CheckpointError, match="leads out of its folder"):
            restore(saved.parent)
        (saved / "checkpoint.json").write_text(description)
    shard.unlink()
    shard.symlink_to(outside)
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        restore(saved.parent)


# ------------------------------------------------------------------------------------------------------------ datasets


def read_all(dataset: Path) -> int:
    reader = Reader(Dataset.open(dataset), "train", TrainingConfig(str(dataset), global_batch_size=4))
    return sum(batch.num_rows for batch in reader.batches(0))


def rewrite_manifest(dataset: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads((dataset / "manifest.json").read_text())
    change(tree)
    (dataset / "manifest.json").write_text(json.dumps(tree))


def test_pickles_beside_and_in_a_datasets_files(tmp_path: Path, proof: Path) -> None:
    """Petastorm un-pickles these keys wherever it finds them."""
    dataset = tmp_path / "dataset"
    manifest = make_dataset(dataset)
    [file] = manifest.split("train").files
    path = dataset / file.path
    table = pq.read_table(path)
    keys = {
        key: pickle.dumps(Attack(proof)) for key in (b"dataset-toolkit.unischema.v1", b"dataset-toolkit.num_row_groups")
    }
    attack = table.schema.with_metadata({**(table.schema.metadata or {}), **keys})
    for folder in (dataset, path.parent):
        for name in ("_common_metadata", "_metadata"):
            pq.write_metadata(attack, folder / name)
    assert read_all(dataset) == 20, "files that the manifest does not name are no part of the dataset"
    with pq.ParquetWriter(path, attack) as writer:
        for start, stop in ((0, 12), (12, 20)):
            writer.write_table(table.slice(start, stop - start).cast(attack))
    described = describe_file(dataset, path)

    def accept(tree: dict[str, Any]) -> None:
        [one] = tree["splits"]["train"]["files"]
        one |= {"num_bytes": described.num_bytes, "row_groups": described.row_groups, "sha256": described.sha256}

    rewrite_manifest(dataset, accept)
    with pytest.raises(DatasetError, match="carries pickled Petastorm keys"):
        read_all(dataset)
    assert not proof.exists()


def test_pickled_types_of_arrow(tmp_path: Path, proof: Path) -> None:
    """An extension type of Python is kept as a pickle (CVE-2023-47248)."""
    field = pa.field(
        "a",
        pa.int64(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickle.dumps(Attack(proof)),
        },
    )
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([pa.array([1])], schema=pa.schema([field])), path)
    assert len(list(read_rows(str(path), LogFormat("parquet")))) == 1
    assert not proof.exists()


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", "v1/../../secret", "", ".", "v1/\0"])
@pytest.mark.parametrize("place", ["file", "learnt", "rejected"])
def test_names_in_a_manifest(tmp_path: Path, path: str, place: str) -> None:
    dataset = tmp_path / "dataset"
    make_dataset(dataset)

    def change(tree: dict[str, Any]) -> None:
        if place == "file":
            tree["splits"]["train"]["files"][0]["path"] = path
        elif place == "learnt":
            tree["learnt_path"] = path
        else:
            tree["rejected"]["path"] = path

    rewrite_manifest(dataset, change)
    with pytest.raises(DatasetError, match="leads out of its folder"):
        DatasetManifest.load(dataset)


def test_links_in_a_dataset(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    manifest = make_dataset(dataset)
    (tmp_path / "linked").symlink_to(dataset)
    assert read_all(tmp_path / "linked") == 20, "the folder itself may be a link"
    file = dataset / manifest.split("train").files[0].path
    file.rename(tmp_path / "secret")
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(DatasetError, match="is a link out of the dataset's folder"):
        manifest.check_files(dataset, "train")
    opened = Dataset(dataset, manifest, manifest.load_learnt(dataset))
    reader = Reader(opened, "train", TrainingConfig(str(dataset), global_batch_size=4))
    with pytest.raises(DatasetError, match="is a link out of the dataset's folder"):
        next(reader.batches(0))
    shutil.move(dataset / "v1" / "learnt", tmp_path / "learnt")
    (dataset / "v1" / "learnt").symlink_to(tmp_path / "learnt")
    with pytest.raises(DatasetError, match="is a link out of the dataset's folder"):
        manifest.load_learnt(dataset)


# ----------------------------------------------------------------------------------------------------------- artifacts


def test_artifacts_hold_no_pickles(tmp_path: Path, proof: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    make_artifact(artifact)
    torch.save({"weight": Attack(proof)}, artifact / "weights.safetensors")
    description = json.loads((artifact / "artifact.json").read_text())
    (artifact / "artifact.json").write_text(json.dumps({**description, "files": digests(artifact)}))
    with pytest.raises(ArtifactError, match=r"weights\.safetensors does not fit"):
        Predictor.load(artifact)
    assert not proof.exists()


def test_names_and_links_in_an_artifact(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    make_artifact(artifact)
    text = (artifact / "artifact.json").read_text()
    for name in ("../../etc/passwd", "/etc/passwd", "learnt/../../x"):
        description = json.loads(text)
        description["files"][name] = "0" * 64
        (artifact / "artifact.json").write_text(json.dumps(description))
        with pytest.raises(ArtifactError, match="leads out of its folder"):
            Predictor.load(artifact)
    (artifact / "artifact.json").write_text(text)
    (artifact / "golden.jsonl").rename(tmp_path / "golden.jsonl")
    (artifact / "golden.jsonl").symlink_to(tmp_path / "golden.jsonl")
    with pytest.raises(ArtifactError, match="leads out of its folder"):
        Predictor.load(artifact)


# ------------------------------------------------------------------------------------------------------------- plugins


@pytest.fixture
def trap(user_modules: Callable[[dict[str, str]], Path], proof: Path) -> str:
    """A module that can be imported here, as any of the standard library can, and that attacks when it is."""
    user_modules(
        {"trap/__init__.py": "", "trap/sprung.py": f"from pathlib import Path\nPath({str(proof)!r}).touch()\n"}
    )
    return "trap.sprung"


def name_plugins(config: Path, *names: str) -> None:
    tree = json.loads(config.read_text())
    tree["training"]["plugins"] = names
    config.write_text(json.dumps(tree))


def test_an_artifact_imports_no_module(tmp_path: Path, trap: str, proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    make_artifact(artifact)

    def load(*names: str) -> None:
        name_plugins(artifact / "config.json", *names)
        description = json.loads((artifact / "artifact.json").read_text())
        (artifact / "artifact.json").write_text(json.dumps({**description, "files": digests(artifact)}))
        Predictor.load(artifact)

    for names in ((trap,), ("os", trap), ("trap", trap), (f"{trap} ",), ("./trap/sprung",), ("trap:sprung",)):
        with pytest.raises(ArtifactError, match=r"artifact needs the plugin .*trap.* set TWINFOCUS_PLUGINS="):
            load(*names)
    monkeypatch.setenv("TWINFOCUS_PLUGINS", "trap.other, other.sprung,sprung")
    with pytest.raises(ArtifactError, match=r"artifact needs the plugin 'trap\.sprung'.* set TWINFOCUS_PLUGINS="):
        load(trap)
    assert not proof.exists() and trap not in sys.modules
    monkeypatch.setenv("TWINFOCUS_PLUGINS", f"trap.other, {trap}")
    load(trap)
    assert proof.exists(), "what the user names is imported"


def test_a_run_imports_no_module(tmp_path: Path, trap: str, proof: Path) -> None:
    """Neither a run that is exported, nor one that another begins from, goes on from or is compared with."""
    from jobs.cli.config import is_saved_config, load_config, parse_config, read_resolved
    from training.fit.run import Run, find_warm_start

    path = tmp_path / "config.toml"
    make_dataset(tmp_path / "dataset")
    path.write_text(CONFIG)
    config = load_config([str(path)])
    run = Run(tmp_path / "run")
    run.write("config.json", config.to_dict())
    dataset = Dataset.open(tmp_path / "dataset")
    run.write_dataset(TrainedOn.of(dataset.path, dataset.manifest).to_json())
    dataset.learnt.save(run.path / "learnt")
    name_plugins(run.path / "config.json", trap)
    saved = run.read("config.json")
    message = r"run needs the plugin 'trap\.sprung'"
    with pytest.raises(PluginError, match=message):
        run.config()
    with pytest.raises(PluginError, match=message):
        find_warm_start(replace(config.training, warm_start=str(run.path)), dataset)
    with pytest.raises(PluginError, match=message):
        parse_config(saved, run.path)
    with pytest.raises(PluginError, match=r"config\.json needs the plugin 'trap\.sprung'"):
        read_resolved(str(run.path / "config.json"))
    assert not is_saved_config(saved, config)
    assert not proof.exists() and trap not in sys.modules


# -------------------------------------------------------------------------------------------------------------- others


def test_an_audit_that_cannot_be_made_says_so() -> None:
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [ROOT / "infra" / "audit" / "audit.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith("SKIPPED: pip-audit: ") and "was not compared with known vulnerabilities" in line


def test_a_raw_log_is_no_program(tmp_path: Path) -> None:
    """Formats are what the config says; a pickle or a zip called .csv is text that is no log."""
    path = tmp_path / "a.csv"
    path.write_bytes(pickle.dumps(Attack(tmp_path / "proof")))
    with pytest.raises(LogError):
        list(read_rows(str(path), LogFormat()))
    assert not (tmp_path / "proof").exists()
