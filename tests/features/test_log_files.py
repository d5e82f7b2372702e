"""One walker of raw logs: what it finds is what ``os.path.realpath`` says is there, each file once."""

import bz2
import contextlib
import fnmatch
import glob
import gzip
import io
import lzma
import os
import pickle
import shutil
import socket
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.disk.object_store import StorageError
from features.log_files import (
    FoundLogs,
    find_files,
    find_splits,
    identity_of,
    is_there,
    local_copy,
    open_log,
    size_of,
    state_of,
)
from features.log_format import LogError
from tests.stand_ins.object_store import Bucket


def make(folder: Path, *names: str) -> Path:
    """Files with their names as content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8", errors="surrogateescape")
    return folder


def names(found: FoundLogs, folder: Path | str) -> list[str]:
    return [file.path.removeprefix(f"{folder}/") for file in found.files]


def left_out(found: FoundLogs, folder: Path | str) -> list[str]:
    return [left.path.removeprefix(f"{folder}/") for left in found.left_out]


# -------------------------------------------------------------------------------------------------------- random trees

NAMES = ("a", "b", "ab", "c.csv", "_a", "_b.csv", ".a", "x y", "c%20d", "g:h", "k=v", "ü\n", "*", "[a]", "\udcff")
PLAIN = tuple(name for name in NAMES if not set(name) & set("*[\udcff"))


@st.composite
def steps(draw: st.DrawFn, pool: tuple[str, ...]) -> list[tuple[str, int, str, int]]:
    """What to make, one after the other: (kind, in which folder, name, what a link leads to)."""
    number = st.integers(0, 30)
    kinds = st.sampled_from(["file", "file", "folder", "folder", "link", "link to folder"])
    return draw(st.lists(st.tuples(kinds, number, st.sampled_from(pool), number), max_size=25))


def plant(root: Path, made: list[tuple[str, int, str, int]]) -> None:
    """Make a tree below ``root``, which is there; links lead to what is there by then, also up and out of it."""
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "far.csv").touch()
    folders, things = [root, outside], [root, outside, outside / "far.csv"]
    for kind, where, name, target in made:
        path = folders[where % len(folders)] / name
        if os.path.lexists(path):
            continue
        if kind == "file":
            path.touch()
        elif kind == "folder":
            path.mkdir()
            folders.append(path)
        else:
            targets = folders if kind == "link to folder" else things
            path.symlink_to(os.path.relpath(targets[target % len(targets)], path.parent.resolve()))
        things.append(path)


@contextlib.contextmanager
def planted(made: list[tuple[str, int, str, int]]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "root"
        root.mkdir()
        plant(root, made)
        yield root


def walk(starts: Iterable[Path | str]) -> set[Path]:
    """Real paths of what is at and below some paths."""
    seen: set[Path] = set()
    waiting = [Path(os.path.realpath(start)) for start in starts]
    while waiting:
        real = waiting.pop()
        if real not in seen:
            seen.add(real)
            if real.is_dir():
                inside = [path for path in real.iterdir() if not path.name.startswith(("_", "."))]
                waiting += [Path(os.path.realpath(path)) for path in inside]
    return seen


def oracle(*starts: Path | str) -> set[str]:
    """Real paths of the files at and below some paths."""
    return {str(real) for real in walk(starts) if real.is_file()}


def reals(*patterns: str) -> set[str]:
    """Real paths of what is found, each once, with all that holds of every find."""
    try:
        found = find_files(patterns)
    except LogError as error:
        assert str(error).startswith("no input file matches"), error
        return set()
    files = [file.real for file in found.files]
    assert len(set(files)) == len(files)
    assert all(state_of(file.absolute) == state_of(file.real) for file in found.files)
    assert [file.path for file in found.files] == sorted(file.path for file in found.files)
    "".join([*found.notes(), *(file.path for file in found.files)]).encode()  # all of it can be printed and written
    assert find_files(patterns) == found == pickle.loads(pickle.dumps(found))  # noqa: S301
    return set(files)


@settings(max_examples=150, deadline=None)
@given(steps(NAMES))
def test_a_folder_is_all_that_it_leads_to(made: list[tuple[str, int, str, int]]) -> None:
    with planted(made) as root:
        expected = oracle(root)
        assert reals(str(root)) == expected
        for spelling in (f"{root}/", f"{root}/../root", f"{root}/**", f"{root.parent}/r*t", f"file://{root}"):
            assert reals(spelling) == expected
        if expected:
            twice = find_files([f"{root}/./", str(root)])
            assert {file.real for file in twice.files} == expected and len(twice.repeated) >= len(expected)


def is_given(name: str, part: str) -> bool:
    """Whether a name that matches a part of a pattern is no hidden one, or is given there as such."""
    return not name.startswith(("_", ".")) or part[0] == name[0]


GLOBS = st.sampled_from(["*", "?", "a*", "[ab]*", "a", "_*", ".*", "*.csv", "k=?"])


@settings(max_examples=150, deadline=None)
@given(steps(PLAIN), st.lists(GLOBS, min_size=1, max_size=3))
def test_globs_are_those_of_python(made: list[tuple[str, int, str, int]], parts: list[str]) -> None:
    with planted(made) as root:
        pattern = "/".join([glob.escape(str(root)), *parts])
        matches = []
        for match in glob.glob(pattern, include_hidden=True):
            if all(map(is_given, os.path.relpath(match, root).split("/"), parts)):
                matches.append(match)
        assert reals(pattern) == oracle(*matches)


@settings(max_examples=100, deadline=None)
@given(steps(PLAIN), GLOBS)
def test_two_stars_are_any_folders(made: list[tuple[str, int, str, int]], part: str) -> None:
    with planted(made) as root:
        below = [path for folder in walk([root]) if folder.is_dir() for path in folder.iterdir()]
        matches = [path for path in below if fnmatch.fnmatchcase(path.name, part) and is_given(path.name, part)]
        assert reals(f"{root}/**/{part}") == oracle(*matches)


@settings(max_examples=100, deadline=None)
@given(steps(NAMES), st.integers(0, 30), st.integers(0, 30))
def test_no_file_is_in_two_splits(made: list[tuple[str, int, str, int]], one: int, two: int) -> None:
    with planted(made) as root:
        places = sorted(str(path) for path in [root, *root.rglob("*")])
        first, second = places[one % len(places)], places[two % len(places)]
        if not reals(first) or not reals(second):
            return
        patterns = {"train": first, "test": second}
        if oracle(first) & oracle(second):
            with pytest.raises(LogError, match=r"is given for both 'train'.* and 'test'"):
                find_splits(patterns)
        else:
            assert {split: {f.real for f in found.files} for split, found in find_splits(patterns).items()} == {
                "train": oracle(first),
                "test": oracle(second),
            }


# ------------------------------------------------------------------------------------------------ the kinds, one by one


def test_what_other_programs_leave_is_left_out_and_said(tmp_path: Path) -> None:
    make(tmp_path, "_temporary/0/p.csv", ".ipynb_checkpoints/a.csv", "_SUCCESS", ".a.csv.crc", "a.csv", "sub/b.csv")
    found = find_files(str(tmp_path))
    assert names(found, tmp_path) == ["a.csv", "sub/b.csv"]
    assert left_out(found, tmp_path) == [".a.csv.crc", ".ipynb_checkpoints", "_SUCCESS", "_temporary"]
    (note,) = found.notes()
    assert note.startswith(f"left out {tmp_path}/.a.csv.crc, ") and "only where they are given" in note
    assert left_out(find_files(f"{tmp_path}/*"), tmp_path) == left_out(found, tmp_path)
    assert left_out(find_files(f"{tmp_path}/*/*.csv"), tmp_path) == [".ipynb_checkpoints", "_temporary"]
    assert find_files(f"{tmp_path}/a.csv").notes() == []


def test_hidden_names_are_read_where_they_are_given(tmp_path: Path) -> None:
    make(tmp_path, "_a.csv", ".b.csv", "_c/d.csv", "_c/_e.csv", "f.csv")
    for pattern, expected in {
        "_a.csv": ["_a.csv"],
        ".b.csv": [".b.csv"],
        "_c": ["_c/d.csv"],
        "_*": ["_a.csv", "_c/d.csv"],
        ".*": [".b.csv"],
        "_c/_e.csv": ["_c/_e.csv"],
    }.items():
        assert names(find_files(f"{tmp_path}/{pattern}"), tmp_path) == expected
    found = find_files([str(tmp_path), f"{tmp_path}/_c", f"{tmp_path}/.b.csv"])
    assert names(found, tmp_path) == [".b.csv", "_c/d.csv", "f.csv"]
    assert left_out(found, tmp_path) == ["_a.csv", "_c/_e.csv"]


def test_nothing_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "day=1/_x.csv", "day=2/b.csv", "only/_x.csv", "a.csv")
    (tmp_path / "empty" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for pattern, words in {
        "no/such/*.csv": f"the current folder {tmp_path} is there, but nothing in it is called 'no'",
        f"{tmp_path}/day=*/y.csv": f"{tmp_path}/day=1 is there (and 1 more), but nothing in it is called 'y.csv'",
        "day=2/*.tsv": "day=2 is there, but nothing in it matches '*.tsv'",
        "a.csv/b": "a.csv is a file, no folder",
        "a.csv/": "a.csv is a file, no folder",
        "empty": "no file is in empty",
        "only": "left out only/_x.csv: names that begin with '_' or '.' are read only where they are given",
        "only/*": "left out only/_x.csv: names that begin with '_' or '.' are read only where they are given",
        "a\0b": f"the current folder {tmp_path} is there, but nothing in it is called 'a\\x00b'",
        "x" * 300: f"the current folder {tmp_path} is there, but nothing in it is called '{'x' * 300}'",
        "": "the empty text is given as a path of raw logs",
    }.items():
        with pytest.raises(LogError) as caught:
            find_files(["a.csv", pattern])
        assert str(caught.value) == f"no input file matches {pattern!r}: {words}"
    for pattern in ("hdfs://host/logs", "s3a://bucket/logs", "s3://key:secret@bucket/logs"):
        with pytest.raises(StorageError) as refused:
            find_files(pattern)
        assert "s3://bucket/folder" in str(refused.value) and "secret" not in str(refused.value)


ODD = ("g:h.csv", "a b.csv", "x%20y.csv", "e#f.csv", "[1].csv", "ü{1}[2].csv", "*", "?", "'", "a\nb.csv", "c\\d", "~")


@pytest.mark.parametrize("name", ODD)
def test_any_name_works(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, "zzz")
    for patterns in (f"{tmp_path}/{name}", [str(tmp_path)], f"{tmp_path}/" + glob.escape(name)):
        found = {file.path: file for file in find_files(patterns).files}
        assert open_log(found[f"{tmp_path}/{name}"].real).read() == name.encode()
        assert found[f"{tmp_path}/{name}"].real == f"{tmp_path}/{name}"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xff.csv")
    make(tmp_path, name)
    (file,) = find_files(f"{tmp_path}/*").files
    assert file.path == f"{tmp_path}/b\\xff.csv" and file.real == f"{tmp_path}/{name}"
    assert open_log(file.real).read() == b"b\xff.csv"
    assert find_files(file.absolute).files == find_files([file.absolute]).files == (file,)
    assert state_of(file.absolute) == state_of(file.real) and is_there(file.absolute)
    with pytest.raises(LogError) as caught:
        find_files(f"{tmp_path}/{name}/x")
    str(caught.value).encode()


def test_a_name_wins_over_a_glob(tmp_path: Path) -> None:
    make(tmp_path, "[1].csv", "1.csv", "k[12]/a.csv", "k1/b.csv")
    for pattern, expected, others in (
        ("[1].csv", ["[1].csv"], ["1.csv"]),
        ("k[12]/*.csv", ["k[12]/a.csv"], ["k1"]),
        ("k[12]", ["k[12]/a.csv"], ["k1"]),
    ):
        found = find_files(f"{tmp_path}/{pattern}")
        assert names(found, tmp_path) == expected and left_out(found, tmp_path) == others
        assert "wins over its meaning as a glob" in found.notes()[0]


def test_one_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "in/a.csv", "in/b.csv")
    (tmp_path / "in" / "0.csv").symlink_to("a.csv")
    (tmp_path / "by").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    found = find_files(["in", "in/../in/a.csv", "./in/b.csv", "by", str(tmp_path / "in/a.csv")])
    assert [file.path for file in found.files] == ["in/a.csv", "in/b.csv"]
    assert found.files[0].absolute == found.files[0].real == f"{tmp_path}/in/a.csv"
    assert set(found.repeated) >= {"in/0.csv", "in/../in/a.csv", "./in/b.csv", "by/a.csv", f"{tmp_path}/in/a.csv"}
    (note,) = found.notes()
    assert note.startswith("read once though given twice or linked: ") and note.endswith("2 more")
    assert find_files(["in/**/*", "by/b.csv"]).files[1].path == "in/b.csv"
    assert not find_files("in/**/*.csv").files[0].path.endswith("0.csv")


def test_dots_after_a_link(tmp_path: Path) -> None:
    """The folder above a linked one is that of what it leads to."""
    make(tmp_path, "store/deep/a.csv", "store/b.csv", "b.csv")
    (tmp_path / "link").symlink_to("store/deep")
    (file,) = find_files(f"{tmp_path}/link/../b.csv").files
    assert file.real == file.absolute == f"{tmp_path}/store/b.csv"


def test_links(tmp_path: Path) -> None:
    make(tmp_path, "logs/day=3/a.csv", "store/b.csv")
    (tmp_path / "logs" / "current").symlink_to("day=3")
    (tmp_path / "logs" / "day=4").symlink_to("../store")
    (tmp_path / "logs" / "day=3" / "up").symlink_to("..")
    (tmp_path / "logs" / "_gone").symlink_to("nothing")
    found = find_files(f"{tmp_path}/logs")
    assert [(Path(f.path).name, dict(f.partition)) for f in found.files] == [
        ("a.csv", {"day": "3"}),
        ("b.csv", {"day": "4"}),
    ]
    assert found.files[1].real == f"{tmp_path}/store/b.csv" and found.files[1].absolute == found.files[1].path
    assert found.repeated == (f"{tmp_path}/logs/current", f"{tmp_path}/logs/day=3/up")
    assert {file.real for file in find_files(f"{tmp_path}/logs/*/*.csv").files} == {f.real for f in found.files}
    assert {file.real for file in find_files(f"{tmp_path}/logs/**/*.csv").files} == {f.real for f in found.files}


@pytest.mark.parametrize("target", ["nothing", "gone", "../no/way"])
def test_a_link_that_leads_nowhere(tmp_path: Path, target: str) -> None:
    make(tmp_path, "logs/a.csv")
    (tmp_path / "logs" / "gone").symlink_to(target)
    for pattern in ("logs", "logs/*", "logs/gone", "logs/g*/x.csv", "logs/gone/x.csv", "**/*.csv"):
        with pytest.raises(
            LogError, match=rf"logs/gone is a link that leads nowhere, to {target}: remove it, or bring"
        ):
            find_files(f"{tmp_path}/{pattern}")


def test_one_file_in_two_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/x.csv", "a/y.csv", "b/z.csv")
    (tmp_path / "link.csv").symlink_to("a/x.csv")
    (tmp_path / "by").symlink_to("a")
    os.link(tmp_path / "a" / "x.csv", tmp_path / "hard.csv")
    monkeypatch.chdir(tmp_path)
    for other in ("a/x.csv", "./a/x.csv", "a/../a/x.csv", "link.csv", "by/*", "hard.csv", str(tmp_path)):
        with pytest.raises(LogError, match=r"x\.csv|hard\.csv|link\.csv|y\.csv") as caught:
            find_splits({"train": "a", "valid": ["b", other] if other != str(tmp_path) else other})
        assert "given for both 'train'" in str(caught.value) and "take it out of one of them" in str(caught.value)
    found = find_splits({"train": ["a"], "valid": "b"})
    assert [file.path for file in found["valid"].files] == ["b/z.csv"]


def test_columns_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "country=us/at=10%3A30%2F+1/n=__HIVE_DEFAULT_PARTITION__/a%3Db=%FF/e=/=x/c=1/c=2"
    make(tmp_path, f"{folder}/day=2014-10-21.csv")
    (file,) = find_files(str(tmp_path)).files
    columns = {"country": "us", "at": "10:30/+1", "n": None, "a=b": "\ufffd", "e": None, "c": "2"}
    assert file.partition == columns
    monkeypatch.chdir(tmp_path / "country=us")
    assert find_files("at*").files[0].partition == columns  # wherever the program runs


@pytest.mark.parametrize("name", ["pipe", "socket", "/dev/null"])
def test_special_files(tmp_path: Path, name: str) -> None:
    make(tmp_path, "a.csv")
    path = tmp_path / name
    with contextlib.ExitStack() as stack:
        if name == "pipe":
            os.mkfifo(path)
        elif name == "socket":
            stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX))).bind(str(path))
        for pattern in (str(path), str(tmp_path)) if name != "/dev/null" else (name,):
            with pytest.raises(
                LogError, match=rf"{name} is a (named pipe|socket|device), not a file: copy what it gives"
            ):
                find_files(pattern)


def test_what_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are closed to other users
        folder = make(Path(root), "open/a.csv", "closed/b.csv")
        folder.chmod(0o755)
        (folder / "open" / "a.csv").chmod(0)
        (folder / "closed").chmod(0)
        try:
            if os.getuid() == 0:
                os.seteuid(65534)
            with pytest.raises(LogError, match=r"open/a\.csv cannot be read: Permission denied"):
                find_files(f"{folder}/open")
            assert len(find_files(f"{folder}/open", look_inside=False).files) == 1
            with pytest.raises(LogError, match="closed cannot be listed: Permission denied"):
                find_files(str(folder))
            with pytest.raises(LogError, match=r"closed/b\.csv cannot be read: Permission denied"):
                find_files(f"{folder}/closed/b.csv")
            with pytest.raises(LogError, match=r"open/a\.csv cannot be read: Permission denied"):
                open_log(f"{folder}/open/a.csv")
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            (folder / "closed").chmod(0o755)


# ------------------------------------------------------------------------------------------------------------- archives


def tar_of(style: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=style) as archive:
        member = tarfile.TarInfo("a.csv")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"a,b\n"))
    return file.getvalue()


def tar_without_a_mark() -> bytes:
    """As tar wrote before POSIX."""
    old = bytearray(tar_of(tarfile.GNU_FORMAT))
    old[257:265] = bytes(8)
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old[:512])
    return bytes(old)


def zip_of() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.csv", "a,b\n")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (tar_of(), "tar"),
        (tar_of(tarfile.GNU_FORMAT), "tar"),
        (tar_of(tarfile.USTAR_FORMAT), "tar"),
        (tar_without_a_mark(), "tar"),
        (gzip.compress(tar_of()), "tar"),
        (bz2.compress(tar_of()), "tar"),
        (lzma.compress(tar_of()), "tar"),
        (bytes(pa.compress(tar_of(), "zstd", asbytes=True)), "tar"),
        (zip_of(), "zip"),
        (gzip.compress(zip_of()), "zip"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "7z"),
        (b"Rar!\x1a\x07\x01\0", "rar"),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",
)
def test_archives_are_known_by_their_bytes(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "log.csv.gz").write_bytes(content)
    with pytest.raises(
        LogError, match=rf"log\.csv\.gz is a {kind} archive: unpack it, and give the files that it holds"
    ):
        find_files(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((f"log.{ending}", "tar") for ending in ("tar", "tar.gz", "TGZ", "tar.bz2", "tbz2", "csv.tar.zst", "txz")),
        *((f"log.csv.{kind}", kind) for kind in ("zip", "7z", "rar")),
    ],
)
def test_archives_are_known_by_their_names(tmp_path: Path, name: str, kind: str) -> None:
    make(tmp_path, name)
    with pytest.raises(LogError, match=f"{name} is a {kind} archive"):
        find_files(str(tmp_path))
    (tmp_path / "link.csv").symlink_to(name)
    with pytest.raises(LogError, match=rf"link\.csv is a {kind} archive"):
        find_files(f"{tmp_path}/link.csv")
    (tmp_path / "nowhere.csv").symlink_to("gone")
    listed = find_files(str(tmp_path), look_inside=False).files
    assert [Path(file.path).name for file in listed] == sorted((name, "nowhere.csv")), "who reads them finds out"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b\n" * 500,
        gzip.compress(b"a,b\n" * 500),
        gzip.compress(b""),
        gzip.compress(b"a,b\n" * 500)[:20],
        bz2.compress(b"a,b\n"),
        b"BZh",
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"PK\n",
        bytes(512),
        b"x" * 257 + b"ustar,1\n",
    ],
    ids=lambda _: "bytes",  # a gzip header holds the time
)
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    for name in ("tar.csv", "zip", "a.csv.gz", "tar"):
        (tmp_path / name).write_bytes(content)
    assert len(find_files(str(tmp_path)).files) == 4


# --------------------------------------------------------------------------------------------------------- opened files


def test_files_on_disk(tmp_path: Path) -> None:
    make(tmp_path, "a.csv")
    (tmp_path / "link.csv").symlink_to("a.csv")
    (file,) = find_files(f"{tmp_path}/link.csv").files
    assert size_of(file.real) == 5 and local_copy(file.real, tmp_path / "unused") == tmp_path / "a.csv"
    modified = (tmp_path / "a.csv").stat().st_mtime_ns
    assert identity_of(file) == {"path": f"{tmp_path}/link.csv", "num_bytes": 5, "modified": modified}
    (tmp_path / "a.csv").unlink()
    for use in (open_log, size_of):
        with pytest.raises(LogError, match=r"a\.csv cannot be read: No such file"):
            use(file.real)


def test_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    keys = ("logs/day=1/a b.csv", "logs/day=2/c%20#@?.csv", "logs/day=2/_temporary/x.csv", "logs/_SUCCESS", "[1].csv")
    for key in (*keys, "1.csv", "other/empty"):
        bucket.write(key, b"" if key.endswith("empty") else key.encode())
    days = ["logs/day=1/a b.csv", "logs/day=2/c%20#@?.csv"]
    for pattern, expected in {
        "logs": days,
        "logs/": days,
        "logs/day=*/": days,
        "logs/day=*/*.csv": days,
        "**/*b.csv": ["logs/day=1/a b.csv"],
        "logs/day=2/c%20#@?.csv": ["logs/day=2/c%20#@?.csv"],
        "logs/_SUCCESS": ["logs/_SUCCESS"],
        "[1].csv": ["[1].csv"],
        "other": ["other/empty"],
        "": ["1.csv", "[1].csv", *days, "other/empty"],
    }.items():
        found = find_files(f"{bucket.url}/{pattern}")
        assert names(found, bucket.url) == expected
        assert all(file.path == file.real == file.absolute for file in found.files)
    found = find_files([f"{bucket.url}/logs/*", f"{bucket.url}/logs/day=1/a b.csv", str(make(tmp_path, "k=v/z.csv"))])
    assert [dict(file.partition) for file in found.files] == [{"k": "v"}, {"day": "1"}, {"day": "2"}]
    assert left_out(found, bucket.url) == ["logs/_SUCCESS", "logs/day=2/_temporary"]
    assert found.repeated == (f"{bucket.url}/logs/day=1/a b.csv",)
    with pytest.raises(LogError, match="is given for both 'train' and 'test'"):
        find_splits({"train": f"{bucket.url}/logs/", "test": f"{bucket.url}/*/*/*.csv"})
    for pattern, words in {
        "logs/day=3/": f"nothing is below {bucket.url}/logs/day=3",
        "logs/*/z.csv": r"logs/day=1 is there \(and 1 more\), but nothing in it is called 'z.csv'",
        "logs/_S*/x": r"logs/_SUCCESS is a file, no folder",
    }.items():
        with pytest.raises(LogError, match=words):
            find_files(f"{bucket.url}/{pattern}")
    with pytest.raises(StorageError, match="there is no such bucket"):
        find_files("s3://bucket-that-is-not-there/logs/*.csv")


def test_files_of_a_bucket(bucket: Bucket, tmp_path: Path, impatient: None) -> None:
    content = os.urandom(3_000_000)
    bucket.write("logs/a.bin", content)
    (file,) = find_files(f"{bucket.url}/logs").files
    identity = identity_of(file)
    assert identity.pop("modified") > 10**18
    assert identity == {"path": f"{bucket.url}/logs/a.bin", "num_bytes": 3_000_000} and size_of(file.real) == 3_000_000
    copy = local_copy(file.real, tmp_path)
    assert copy == tmp_path / "a.bin" and copy.read_bytes() == content
    with open_log(file.real) as opened:
        assert opened.seek(0, os.SEEK_END) == 3_000_000 and opened.read() == b""
        assert opened.seek(1_234_567) == 1_234_567 and opened.read(1_500_000) == content[1_234_567:2_734_567]
        assert opened.tell() == 2_734_567
        opened.seek(0)
        bucket.proxy.fail("cut answer", 2, lambda method, path: method == "GET")
        assert opened.read() == content and len(bucket.proxy.faults) == 2
    for use in (open_log, size_of):
        with pytest.raises(StorageError, match=r"logs/gone is not there"):
            use(f"{bucket.url}/logs/gone")


@pytest.mark.parametrize("content", [b"", bytes(60), bytes(3_000_000)])
def test_a_file_that_changes(bucket: Bucket, impatient: None, content: bytes) -> None:
    bucket.write("a", bytes(2_000_000))
    with open_log(f"{bucket.url}/a") as opened:
        assert opened.read(1_000_000) == bytes(1_000_000)
        bucket.write("a", content)
        with pytest.raises(StorageError, match="/a was changed while it was read"):
            opened.read()


def test_parquet_and_archives_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    table = pa.table({"a": list(range(1000))})
    pyarrow.parquet.write_table(table, tmp_path / "t")
    bucket.write("t.parquet", (tmp_path / "t").read_bytes())
    bucket.write("archive.csv.gz", gzip.compress(tar_of()))
    bucket.write("b/log.zip", b"")
    with open_log(f"{bucket.url}/t.parquet") as opened:
        assert pyarrow.parquet.read_table(opened).equals(table)
    with pytest.raises(LogError, match=r"archive\.csv\.gz is a tar archive"):
        open_log(f"{bucket.url}/archive.csv.gz")
    with pytest.raises(LogError, match=r"log\.zip is a zip archive"):
        find_files(f"{bucket.url}/b")


def test_a_deep_tree_of_links_ends_soon(tmp_path: Path) -> None:
    """Twelve folders that all link to each other have half a billion paths without a circle."""
    folders = [tmp_path / f"f{i}" for i in range(12)]
    for folder in folders:
        make(folder, "a.csv")
        for other in folders:
            (folder / other.name).symlink_to(other)
    for pattern in (str(tmp_path), f"{tmp_path}/**/*.csv", f"{tmp_path}/*", str(folders[0])):
        assert len(find_files(pattern).files) == 12
    shutil.rmtree(tmp_path / "f1")
    with pytest.raises(LogError, match="f1 is a link that leads nowhere"):
        find_files(str(tmp_path))
