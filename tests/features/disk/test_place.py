"""Places: paths and URLs that are understood or refused, and temporary folders."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from features.disk.object_store import ObjectPath, StorageError
from features.disk.place import locate, scratch, temporary_folder
from tests.stand_ins.object_store import KEY, SECRET

ROOT = Path(__file__).parents[3]


def test_places() -> None:
    assert locate("data/mine") == Path("data/mine")
    assert locate("C:/odd") == Path("C:/odd")
    assert locate("file:///data/my%20own") == locate("file://localhost/data/my own") == Path("/data/my own")
    place = locate("s3://bucket/a//b/")
    assert place == ObjectPath("bucket", "a/b") and str(place / "c/d") == "s3://bucket/a/b/c/d"
    assert isinstance(place, ObjectPath) and place.name == "b" and locate(place) is place


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://bucket", "names no folder in a bucket: write s3://bucket/folder"),
        ("s3:///folder", "names no folder in a bucket"),
        ("s3://bucket/../other/x", "names no folder in a bucket"),
        ("s3://UPPER_CASE/x", "names no folder in a bucket"),
        ("s3a://bucket/x", r"s3a:// is not known: give a path, file:///absolute/path or s3://bucket/folder"),
        ("https://host/x", "https:// is not known"),
        ("file://data/x", "write file:///absolute/path"),
        ("file:///", "names no folder"),
        (f"s3://{KEY}:{SECRET}@bucket/x", "no more: keys, region and endpoint come from the environment"),
        (f"s3://bucket/x?secret_key={SECRET}", "come from the environment"),
    ],
)
def test_other_urls_are_refused_without_telling_what_is_secret(place: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        locate(place)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/x", "", "a\0b", "a/../../x", "x" * 300])
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match=r"leads out of its folder|longer than any file's name"):
        ObjectPath("bucket", "folder") / name


def test_folders_of_killed_processes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = (
        "import os, signal; from features.disk.place import temporary_folder\n"
        "with temporary_folder() as folder: (folder / 'x').touch(); print(folder); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    left = Path(killed.stdout.strip())
    assert killed.returncode == -signal.SIGKILL and (left / "x").exists()
    with temporary_folder() as one, temporary_folder() as other:
        assert one != other and one.is_dir() and not left.exists()
    assert not one.exists() and not other.exists()


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"twinfocus-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="set TMPDIR to a folder of your own"):
        scratch()
