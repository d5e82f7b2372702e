"""Raw files are looked through once, and again when they have changed; what is known of them survives a kill."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.retraining.date_index import DateIndex, times_of
from jobs.retraining.raw_partitions import RawPartition


@pytest.mark.parametrize(
    ("date", "start", "end"),
    [
        ("2014102823", (2014, 10, 28, 23), (2014, 10, 29)),
        ("20240228", (2024, 2, 28), (2024, 2, 29)),
        ("20241231", (2024, 12, 31), (2025, 1, 1)),
        ("202402", (2024, 2, 1), (2024, 3, 1)),
        ("202412", (2024, 12, 1), (2025, 1, 1)),
        ("000101", (1, 1, 1), (1, 2, 1)),
    ],
)
def test_times_of_a_date(date: str, start: tuple[int, ...], end: tuple[int, ...]) -> None:
    seconds = tuple(int(datetime(*moment, tzinfo=UTC).timestamp()) for moment in (start, end))
    assert times_of(date) == seconds


def test_a_file_is_looked_through_when_it_is_new_or_has_changed(tmp_path: Path) -> None:
    index, paths = DateIndex(tmp_path / "dates"), [tmp_path / name for name in ("a.csv", "b.csv")]
    files = [str(path) for path in paths]
    for path in paths:
        path.write_text("x")
    assert index.unknown(files) == tuple(files) and index.partitions() == {}
    index.add(files, lambda undated: {files[0]: {"20240101": 2, "20240102": 1, "": 4}, files[1]: {"20240102": 5}})
    assert index.unknown(files) == () and index.num_undated() == 4
    assert index.partitions() == {
        "20240101": RawPartition({files[0]: 2}, times_of("20240101")),
        "20240102": RawPartition({files[0]: 1, files[1]: 5}, times_of("20240102")),
    }
    os.utime(paths[0], (1, 1))
    assert DateIndex(tmp_path / "dates").unknown(files) == (files[0],)
    index.add([files[0]], lambda undated: {files[0]: {"20240103": 3}})
    assert list(index.partitions()) == ["20240102", "20240103"] and index.num_undated() == 0
    paths[1].unlink()
    assert list(index.partitions()) == ["20240103"]


def test_a_pass_that_was_killed_counts_for_nothing(tmp_path: Path) -> None:
    index, path = DateIndex(tmp_path / "dates"), tmp_path / "a.csv"
    path.write_text("x")

    def die(undated: Path) -> dict:
        undated.mkdir()
        (undated / "rejected.jsonl").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add([str(path)], die)
    assert index.unknown([str(path)]) == (str(path),)
    index.add([str(path)], lambda undated: {str(path): {"202401": 1}})
    assert [entry.name for entry in index.folder.iterdir()] == ["000000.json"]
    index.add([str(path)], lambda undated: {})  # an empty file has no date
    assert sorted(entry.name for entry in index.folder.iterdir()) == ["000000.json", "000001.json"]
    assert index.partitions() == {}


def test_a_file_that_cannot_be_read_is_put_aside_until_it_changes(tmp_path: Path) -> None:
    index, path = DateIndex(tmp_path / "dates"), tmp_path / "a.csv"
    path.write_text("x")
    file = str(path)
    index.add([file], lambda undated: {file: {"20240101": 2}})
    path.write_text("damaged")
    assert index.unknown([file]) == (file,)
    index.put_aside(file, "it is damaged")
    assert index.unknown([file]) == () and index.unreadable() == {file: "it is damaged"}
    assert list(index.partitions()) == ["20240101"], "its day is not built without it"
    path.write_text("whole again")
    assert index.unknown([file]) == (file,)
    index.add([file], lambda undated: {file: {"20240101": 3}})
    assert index.unreadable() == {}
    gone = str(tmp_path / "link.csv")
    Path(gone).symlink_to("nowhere")
    index.put_aside(gone, "it leads nowhere")
    assert index.unknown([gone]) == () and gone in index.unreadable()
    (tmp_path / "nowhere").touch()
    assert index.unknown([gone]) == (gone,)
