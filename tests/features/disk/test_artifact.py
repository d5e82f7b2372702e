"""Artifacts: one takes another's place in one step, a changed one is refused, an older version is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from features.disk.artifact import (
    ARTIFACT_FORMAT,
    ARTIFACT_NAME,
    GOLDEN_NAME,
    WEIGHTS_NAME,
    ArtifactError,
    check_output,
    digest_of_artifact,
    is_artifact,
    new_artifact,
    open_artifact,
    read_description,
    write_description,
)
from features.disk.atomic import write_json
from features.disk.place import locate
from features.disk.run_folder import CONFIG_NAME
from tests.stand_ins.killed import NO_MORE_CALLS, die_at_call
from tests.stand_ins.object_store import Bucket


def make(output: Path, text: str, tables: str = "float32") -> None:
    """Write an artifact whose files all hold a text."""
    with new_artifact(output) as folder:
        (folder / "learnt").mkdir()
        for name in (WEIGHTS_NAME, GOLDEN_NAME, "learnt/vocabularies.json"):
            (folder / name).write_text(text)
        write_json(folder / CONFIG_NAME, {"text": text})
        write_description(folder, tables, {"learnt_fingerprint": text})


def read(output: Any) -> str:
    """Open an artifact and return the text that all its files hold."""
    with open_artifact(output) as artifact:
        texts = {
            (artifact.folder / name).read_text() for name in (WEIGHTS_NAME, GOLDEN_NAME, "learnt/vocabularies.json")
        }
        texts |= {artifact.read_json(CONFIG_NAME)["text"], artifact.description["learnt_fingerprint"]}
    [text] = texts
    return text


@pytest.mark.parametrize("swaps", [True, False])
def test_killed_at_every_call(swaps: bool, tmp_path: Path) -> None:
    """Whatever a killed export leaves opens as the old artifact or as the new one, and the next export works."""
    output, found = tmp_path / "artifact", []
    for number in range(1, 200):
        make(output, "old")
        ended = die_at_call(number, make, output, "new", swaps=swaps)
        found.append(read(output))
        assert digest_of_artifact(output) and is_artifact(output)
        make(output, "next")
        assert read(output) == "next" and [path.name for path in tmp_path.iterdir()] == ["artifact"]
        if ended == NO_MORE_CALLS:
            break
    else:
        pytest.fail("it never ended")
    change = found.index("new")
    assert found == ["old"] * change + ["new"] * (len(found) - change) and change > 15


def test_an_export_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    make(tmp_path / "artifact", "old")
    with pytest.raises(KeyError), new_artifact(tmp_path / "artifact") as folder:
        (folder / WEIGHTS_NAME).write_text("half")
        raise KeyError
    assert read(tmp_path / "artifact") == "old" and [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_linked_artifact_is_replaced_where_it_is(tmp_path: Path) -> None:
    make(tmp_path / "there", "old")
    (tmp_path / "artifact").symlink_to("there")
    make(tmp_path / "artifact", "new")
    assert (tmp_path / "artifact").is_symlink() and read(tmp_path / "there") == "new"


def test_something_else_is_not_replaced(tmp_path: Path, bucket: Bucket) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for place in (tmp_path, locate(f"{bucket.url}/artifact")):
        if not isinstance(place, Path):
            place.upload(tmp_path)
        with pytest.raises(ArtifactError, match="exists and is not an artifact: choose another --output"):
            check_output(place)
    with pytest.raises(ArtifactError, match="is not an artifact"), new_artifact(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_in_a_store(tmp_path: Path, bucket: Bucket) -> None:
    place: Any = locate(f"{bucket.url}/artifact")
    assert not is_artifact(place)
    with pytest.raises(ArtifactError, match=r"has no artifact\.json; run jobs\.export first"):
        read(place)
    for text in ("old", "new"):
        make(place, text)
        assert read(place) == text and is_artifact(place)
    assert len({name.partition("/")[0] for name in place.sizes()}) == 2, "older versions are removed"


def test_versions(tmp_path: Path) -> None:
    make(tmp_path / "one", "text")
    make(tmp_path / "two", "text", "int8")
    stored = [json.loads((tmp_path / name / ARTIFACT_NAME).read_text()) for name in ("one", "two")]
    assert [(d["version"], d.get("tables")) for d in stored] == [(1, None), (2, "int8")]
    opened = [read_description(tmp_path / name) for name in ("one", "two")]
    assert [(d["version"], d["tables"]) for d in opened] == [(2, "float32"), (2, "int8")]
    del stored[0]["version"]
    write_json(tmp_path / "one" / ARTIFACT_NAME, stored[0])
    assert read_description(tmp_path / "one") == opened[0]
    write_json(tmp_path / "one" / ARTIFACT_NAME, {"version": ARTIFACT_FORMAT.version + 1})
    with pytest.raises(
        ArtifactError, match=r"one was made by a newer version of twinfocus \(artifact version 3; this "
    ):
        read_description(tmp_path / "one")


def test_changed_files_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "artifact", "text")
    for name in json.loads((tmp_path / "artifact" / ARTIFACT_NAME).read_text())["files"]:
        shutil.copytree(tmp_path / "artifact", tmp_path / "copy")
        (tmp_path / "copy" / name).write_text("other")
        with pytest.raises(ArtifactError, match="is missing or was changed after export"):
            read(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
