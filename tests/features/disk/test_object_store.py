"""Files on their way to and from a real S3 server, over a network that fails."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from features.disk import object_store as storage
from features.disk.object_store import ObjectPath, StorageError, clean, new_version_name, publish
from features.disk.place import locate
from tests.stand_ins.object_store import KEY, SECRET, Bucket

ROOT = Path(__file__).parents[3]
LARGE = 22 * 2**20
"""Three parts of an upload."""


def is_part(method: str, path: str) -> bool:
    return method == "PUT" and "partNumber" in path


def make_version(folder: Path, **files: bytes) -> Path:
    """A version folder of these files and a commit file that says what is in them."""
    version = folder / new_version_name()
    (version / "sub").mkdir(parents=True)
    for name, content in files.items():
        (version / "sub" / name).write_bytes(content)
    (version / "commit").write_text(version.name)
    return version


# ------------------------------------------------------------------------------------------------------- there and back


def test_there_and_back(bucket: Bucket, tmp_path: Path) -> None:
    contents = {"a.bin": os.urandom(LARGE), "deep/er/b c+%#é.json.gz": b"no gzip", "empty": b""}
    for name, content in contents.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(content)
    place = locate(f"{bucket.url}/folder")
    assert isinstance(place, ObjectPath)
    assert place.sizes() == {} and not (place / "a.bin").is_file()
    place.upload(tmp_path / "from")
    assert place.sizes() == {name: len(content) for name, content in contents.items()}
    assert {name: bucket.read(f"folder/{name}") for name in contents} == contents
    storage.download_all(place, contents, tmp_path / "to")
    assert {name: (tmp_path / "to" / name).read_bytes() for name in contents} == contents
    assert (place / "deep/er/b c+%#é.json.gz").read_bytes() == b"no gzip"
    (place / "deep").delete()
    (place / "empty").delete()
    (place / "never").delete()
    assert bucket.keys("folder") == ["a.bin"]
    with pytest.raises(StorageError, match=rf"^{bucket.url}/folder/empty is not there$"):
        (place / "empty").read_bytes()


@pytest.mark.parametrize("fault", [500, 503, "cut"])
def test_an_upload_that_fails_is_repeated(bucket: Bucket, tmp_path: Path, fault: int | str) -> None:
    (tmp_path / "large").write_bytes(content := os.urandom(LARGE))
    bucket.proxy.fail(fault, 3, lambda method, path: is_part(method, path) and "partNumber=2" in path)
    place = locate(f"{bucket.url}/folder")
    assert isinstance(place, ObjectPath)
    place.upload(tmp_path)
    assert len(bucket.proxy.faults) == 3
    assert bucket.read("folder/large") == content


def test_a_download_that_fails_is_repeated(bucket: Bucket, tmp_path: Path) -> None:
    bucket.write("folder/large", content := os.urandom(LARGE))
    bucket.proxy.fail("cut answer", 3, lambda method, path: method == "GET")
    place = locate(f"{bucket.url}/folder/large")
    assert isinstance(place, ObjectPath)
    place.download(tmp_path / "large", LARGE)
    assert len(bucket.proxy.faults) == 3
    assert (tmp_path / "large").read_bytes() == content


def test_what_is_not_what_was_written_is_not_taken(bucket: Bucket, tmp_path: Path, impatient: None) -> None:
    bucket.write("x", b"changed")
    for num_bytes, sha256 in ((6, None), (7, "0" * 64)):
        with pytest.raises(StorageError, match=r"x: .*it has 7 bytes of"):
            ObjectPath(bucket.name, "x").download(tmp_path / "x", num_bytes, sha256)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- whole or not at all

FAILURES = {
    "part": is_part,
    "last part": lambda method, path: is_part(method, path) and "partNumber=3" in path,
    "completion": lambda method, path: method == "POST" and "uploadId" in path,
    "check": lambda method, path: method == "GET" and "list-type" in path,
    "commit": lambda method, path: method == "PUT" and path.endswith("/mine/commit"),
}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("part", 503),
        ("last part", "cut"),
        ("completion", 503),
        ("check", 500),
        ("commit", 403),
        ("commit", "cut"),
    ],
)
def test_what_fails_for_good_leaves_the_old_version(
    bucket: Bucket, tmp_path: Path, impatient: None, name: str, fault: int | str
) -> None:
    place = ObjectPath(bucket.name, "mine")
    old = make_version(tmp_path, large=b"old")
    publish(old, place, "commit")
    before = bucket.keys("mine")
    new = make_version(tmp_path, large=os.urandom(LARGE))
    bucket.proxy.fail(fault, 10**9, FAILURES[name])
    with pytest.raises(StorageError, match=rf"^s3://{bucket.name}/mine") as caught:
        publish(new, place, "commit")
    assert bucket.proxy.faults and "\n" not in str(caught.value)
    bucket.proxy.decide = lambda method, path: None
    time.sleep(0.1)  # whatever the library still does behind our back
    assert bucket.read("mine/commit").decode() == old.name
    assert set(before) <= set(bucket.keys("mine"))
    # No object is shorter than its file, not even among those that do not count.
    for key, size in place.sizes().items():
        version, _, file = key.partition("/")
        assert size == (tmp_path / version / file).stat().st_size if file else key == "commit"

    publish(new, place, "commit")
    clean(place, new.name)
    assert bucket.keys("mine") == ["commit", f"{new.name}/commit", f"{new.name}/sub/large"]
    assert bucket.read(f"mine/{new.name}/sub/large") == (new / "sub" / "large").read_bytes()


def test_a_killed_upload_leaves_the_old_version(bucket: Bucket, tmp_path: Path) -> None:
    place = ObjectPath(bucket.name, "mine")
    old, new = make_version(tmp_path, large=b"old"), make_version(tmp_path, large=os.urandom(LARGE), small=b"new")
    publish(old, place, "commit")
    bucket.proxy.fail("deaf", 10**9, lambda method, path: is_part(method, path) and "partNumber=2" in path)
    program = (
        "import sys, pathlib; from features.disk.object_store import *; from features.disk.place import locate; "
        "publish(pathlib.Path(sys.argv[1]), locate(sys.argv[2]), 'commit')"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(new), str(place)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not bucket.proxy.faults:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    bucket.proxy.decide = lambda method, path: None
    assert bucket.read("mine/commit").decode() == old.name
    assert not (place / new.name / "sub" / "large").is_file()
    next_one = make_version(tmp_path, large=b"next")
    publish(next_one, place, "commit")
    clean(place, next_one.name)
    assert bucket.keys("mine") == ["commit", f"{next_one.name}/commit", f"{next_one.name}/sub/large"]


def test_of_two_jobs_the_one_that_finds_the_others_commit_gives_up(bucket: Bucket, tmp_path: Path) -> None:
    place = ObjectPath(bucket.name, "mine")
    ours, theirs = make_version(tmp_path, x=b"ours"), make_version(tmp_path, x=b"theirs")

    def interfere(method: str, path: str) -> None:
        if is_part(method, path):
            bucket.proxy.decide = lambda method, path: None
            publish(theirs, place, "commit")
            clean(place, theirs.name)  # as far as it sees, ours is what a killed job left

    bucket.proxy.decide = interfere
    with pytest.raises(StorageError, match=r"another job has written to|is not there|was uploaded but has"):
        publish(ours, place, "commit")
    assert bucket.read("mine/commit").decode() == theirs.name


# -------------------------------------------------------------------------------------------------- what to do about it


def test_a_bucket_that_is_not_there(bucket: Bucket, tmp_path: Path) -> None:
    place = ObjectPath("no-such-bucket", "mine")
    (tmp_path / "x").write_bytes(b"x")
    for act in (place.sizes, (place / "x").is_file, lambda: place.upload(tmp_path)):
        with pytest.raises(StorageError, match=r"^s3://no-such-bucket/mine.*no such bucket: make it, or correct the"):
            act()


@pytest.mark.parametrize(
    ("status", "message"), [(403, "access is denied: these credentials need to list"), (301, "set AWS_REGION")]
)
def test_refusals_are_told_at_once(bucket: Bucket, status: int, message: str) -> None:
    bucket.proxy.fail(status, 10**9)
    started = time.monotonic()
    with pytest.raises(StorageError, match=message):
        ObjectPath(bucket.name, "mine").sizes()
    assert time.monotonic() - started < 15


def test_the_server_itself_refuses_unknown_keys(bucket: Bucket, s3_server: tuple[str, int]) -> None:
    """The server checks who asks, for once."""
    from moto.core import set_initial_no_auth_action_count

    place = ObjectPath(bucket.name, "mine")

    @set_initial_no_auth_action_count(0)
    def ask() -> None:
        with pytest.raises(StorageError, match=r"does not know these credentials|access is denied") as caught:
            place.sizes()
        assert KEY not in str(caught.value) and SECRET not in str(caught.value)

    ask()
    assert place.sizes() == {}


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid:9000"])
def test_a_server_that_is_not_there(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, impatient: None, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    message = rf"^s3://.*cannot be reached: .*; AWS_ENDPOINT_URL is {re.escape(endpoint[7:])}, try again"
    with pytest.raises(StorageError, match=message):
        ObjectPath(bucket.name, "mine").sizes()


@pytest.mark.parametrize(
    "endpoint", [f"http://{KEY}:{SECRET}@host:9000", "host:9000", "http://host/path", "ftp://host"]
)
def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL must be like") as caught:
        ObjectPath("bucket", "mine").sizes()
    assert SECRET not in str(caught.value)
