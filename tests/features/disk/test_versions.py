"""Versions of formats: older files are upgraded as they are read, newer ones refused with a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from features import fingerprint
from features.disk import artifact, checkpoint, dataset, retrain_folder, run_folder
from features.disk.dataset import MANIFEST_NAME, DatasetError, DatasetManifest
from features.disk.retrain_folder import RetrainFiles
from features.disk.run_folder import DATASET_NAME, RunError, RunFiles, RunFolder
from features.disk.versions import Format
from tests.stand_ins.tiny_dataset import write_tiny_dataset

THREE = Format("thing", "make it again", (lambda old: {**old, "b": old["a"]}, lambda old: {**old, "c": old["b"] + 1}))


@pytest.mark.parametrize(
    ("value", "upgraded"),
    [
        ({"a": 1}, {"a": 1, "b": 1, "c": 2, "version": 3}),
        ({"a": 1, "version": 1}, {"a": 1, "b": 1, "c": 2, "version": 3}),
        ({"b": 4, "version": 2}, {"b": 4, "c": 5, "version": 3}),
        ({"c": 9, "version": 3}, {"c": 9, "version": 3}),
    ],
)
def test_an_older_version_is_upgraded_in_memory(value: dict[str, Any], upgraded: dict[str, Any]) -> None:
    before = dict(value)
    assert THREE.upgrade(value, "x") == upgraded and value == before
    found = value.get("version", 1)
    note = f"x: thing upgraded from version {found} to 3"
    assert THREE.upgrade_note(value, "x") == (note if found < 3 else None)


def test_a_newer_version_is_refused() -> None:
    message = (
        r"^/x was made by a newer version of twinfocus \(thing version 7; this program reads up to 3\): make it again$"
    )
    with pytest.raises(KeyError, match="newer version"):
        THREE.upgrade({"version": 7}, "/x", KeyError)  # type: ignore[arg-type]
    for act in (THREE.upgrade, THREE.upgrade_note, THREE.version_of):
        with pytest.raises(ValueError, match=message):
            act({"version": 7}, "/x")


@pytest.mark.parametrize("version", [0, -1, "2", 1.0, True, None, [1]])
def test_what_is_no_version_is_damage(version: Any) -> None:
    with pytest.raises(ValueError, match=r"x has thing version .*, and there is no such version: it is damaged"):
        THREE.upgrade({"version": version}, "x")


@pytest.mark.parametrize("value", [None, [1], "2"])
def test_what_is_no_object_is_damage(value: Any) -> None:
    with pytest.raises(KeyError, match="x has no thing version, as it holds no JSON object: it is damaged"):
        THREE.upgrade(value, "x", KeyError)  # type: ignore[arg-type]


def test_a_version_may_stand_under_another_key() -> None:
    two = Format("part", "make it again", (lambda old: {**old, "b": 1},), key="part_version")
    assert two.upgrade({"version": 7}, "x") == {"version": 7, "b": 1, "part_version": 2}
    with pytest.raises(ValueError, match=r"x was made by a newer version of twinfocus \(part version 3; .* up to 2\)"):
        two.upgrade({"part_version": 3}, "x")


def test_every_format_says_what_to_do() -> None:
    formats = [
        artifact.ARTIFACT_FORMAT,
        checkpoint.CHECKPOINT_FORMAT,
        dataset.DATASET_FORMAT,
        retrain_folder.RETRAIN_FORMAT,
        run_folder.RUN_FORMAT,
        fingerprint.FINGERPRINT_FORMAT,
    ]
    names = ["artifact", "checkpoint", "dataset", "retraining folder", "run", "fingerprint"]
    assert [found.name for found in formats] == names
    assert all(found.cure for found in formats)


def test_a_dataset(tmp_path: Path) -> None:
    path = write_tiny_dataset(tmp_path / "dataset").path
    manifest = json.loads((path / MANIFEST_NAME).read_text())
    first = {key: manifest[key] for key in manifest if key != "version"}
    first["schema_fingerprint"] = DatasetManifest.load(path).schema.fingerprint_of_version(1)
    (path / MANIFEST_NAME).write_text(json.dumps(first))
    assert DatasetManifest.load(path).version == dataset.DATASET_FORMAT.version
    second = {key: manifest[key] for key in manifest if key not in ("input_files", "warnings")}
    del second["schema"]["values"]
    (path / MANIFEST_NAME).write_text(json.dumps({**second, "version": 2}))
    loaded = DatasetManifest.load(path)
    assert (loaded.version, loaded.input_files, loaded.warnings) == (3, (), ())
    newer = {**manifest, "version": dataset.DATASET_FORMAT.version + 5, "a key of tomorrow": 1}
    (path / MANIFEST_NAME).write_text(json.dumps(newer))
    with pytest.raises(DatasetError, match=r"was made by a newer version of twinfocus \(dataset version"):
        DatasetManifest.load(path)


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.write("config.json", {})
    assert run.write_dataset({"dataset": "d"}) is None, "it is new"
    assert run.read(DATASET_NAME) == {"dataset": "d", "version": 1}
    run.write(DATASET_NAME, {"dataset": "d"})
    assert run.read_dataset() == {"dataset": "d", "version": 1}
    two = Format("run", "train again", (lambda old: {**old, "place": old["dataset"]},))
    monkeypatch.setattr(run_folder, "RUN_FORMAT", two)
    assert run.read_dataset() == {"dataset": "d", "place": "d", "version": 2}
    assert run.write_dataset({"place": "d"}) == f"{tmp_path}: run upgraded from version 1 to 2"
    assert run.write_dataset({"place": "d"}) is None
    run.write(DATASET_NAME, {"version": 3})
    for act in (run.read_dataset, lambda: run.write_dataset({}), lambda: RunFiles.load(tmp_path)):
        with pytest.raises(
            ValueError, match=r"newer version of twinfocus \(run version 3; this program reads up to 2\)"
        ):
            act()
    with pytest.raises(RunError):
        run.read_dataset()


def test_a_retraining_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = RetrainFiles(tmp_path / "retrain")
    with files.alone() as note:
        assert note is None
    assert files.read(files.version_file) == {"version": 2}
    upgrades = (lambda old: old,) * 2
    monkeypatch.setattr(retrain_folder, "RETRAIN_FORMAT", Format("retraining folder", "begin again", upgrades))
    with files.alone() as note:
        assert note == f"{files.root}: retraining folder upgraded from version 2 to 3"
    with files.alone() as note:
        assert note is None
    files.write(files.version_file, {"version": 4})
    with pytest.raises(ValueError, match=r"newer version of twinfocus \(retraining folder version 4"), files.alone():
        pass
    files.version_file.write_text('{"version": 1')
    with pytest.raises(ValueError, match=r"retrain\.json cannot be read .*: restore it"), files.alone():
        pass
    files.version_file.unlink()  # as everything was that was made before there were versions
    files.checks_file("20240101").parent.mkdir()
    with files.alone() as note:
        assert note == f"{files.root}: retraining folder upgraded from version 1 to 3"
