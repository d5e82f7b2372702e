"""Several partitions as one dataset: every row once, ids that mean the same, and what cannot be joined."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from features.disk import window
from features.disk.dataset import DatasetError, DatasetManifest, InputFile
from features.disk.window import join
from features.learnt import Learnt


@pytest.fixture
def days(tmp_path: Path, make_dataset: Callable[..., Any]) -> list[Any]:
    """Three days; the second and the third know devices that the first does not."""
    more = [(), ("watch",), ("watch", "car")]
    rows = [((30, 10), (20,)), ((25,),), ((15, 5),)]
    return [
        make_dataset(train=rows[i], valid=(), test=(), seed=i, name=f"day={i}", devices=more[i])
        for i in range(len(more))
    ]


def test_every_row_once_and_what_is_known_of_them(days, tmp_path: Path) -> None:
    paths = [day.path for day in days]
    joined = join({"train": paths[:2], "valid": paths[2:]}, tmp_path / "window")
    assert DatasetManifest.load(tmp_path / "window") == joined
    assert joined.load_learnt(tmp_path / "window") == days[2].learnt
    joined.check_ids(days[2].learnt)
    for split, parts in (("train", days[:2]), ("valid", days[2:])):
        joined.check_files(tmp_path / "window", split)
        tables = [pq.read_table(tmp_path / "window" / f.path).to_pandas() for f in joined.split(split).files]
        columns = {
            name: np.concatenate([day.columns["train"][name] for day in parts]) for name in ("price", "label", "device")
        }
        for name, expected in columns.items():
            np.testing.assert_array_equal(np.concatenate([table[name] for table in tables]), expected)
        found = joined.split(split)
        assert found.label_rate == pytest.approx(columns["label"].mean())
        assert found.sparse["device"].max_id == columns["device"].max()
        price = found.dense["price"]
        assert (price.mean, price.standard_deviation) == pytest.approx(
            (columns["price"].mean(), columns["price"].std())
        )
        assert (price.minimum, price.maximum) == (columns["price"].min(), columns["price"].max())
    assert joined.inputs == {"train": ["made.csv"], "valid": ["made.csv"]}
    assert joined.num_input_rows == sum(day.manifest.num_input_rows for day in days)


def test_states_and_warnings_of_all_partitions(days, tmp_path: Path) -> None:
    old, new, other = InputFile("/a.csv", 5, 10), InputFile("/a.csv", 5, 20), InputFile("/0.csv", 1, 1)
    for day, files, warnings in zip(days[:2], ((other, old), (old, new)), (("odd",), ("odd", "even")), strict=True):
        dataclasses.replace(day.manifest, input_files=files, warnings=warnings).write(day.path)
    joined = join({"train": [day.path for day in days]}, tmp_path / "window")
    assert joined.input_files == (other, old, new)
    assert joined.warnings == ("day=0: odd", "day=1: odd", "day=1: even")


def test_links_where_the_disk_can_and_copies_where_not(days, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    join({"train": [days[0].path]}, tmp_path / "linked")
    first = tmp_path / "linked" / "train" / "part-00000.parquet"
    assert first.stat().st_nlink == 2

    def refuse(*_: Any) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(window.os, "link", refuse)
    join({"train": [days[0].path]}, tmp_path / "copied")
    copy = tmp_path / "copied" / "train" / "part-00000.parquet"
    assert copy.stat().st_nlink == 1 and copy.read_bytes() == first.read_bytes()


def test_the_same_window_again_is_left_as_it_is(days, tmp_path: Path) -> None:
    output = tmp_path / "window"
    join({"train": [days[0].path]}, output)
    before = (output / "manifest.json").stat()
    join({"train": [days[0].path]}, output)
    assert (output / "manifest.json").stat() == before
    with pytest.raises(DatasetError, match="is another dataset: choose another folder"):
        join({"train": [days[1].path]}, output)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_does_not_go_together(days, tmp_path: Path, make_dataset: Callable[..., Any]) -> None:
    output = tmp_path / "window"
    with pytest.raises(DatasetError, match="a window needs a partition"):
        join({"train": []}, output)
    other = make_dataset(train=((20,),), valid=(), test=(), weight=False, name="other")
    with pytest.raises(DatasetError, match="different feature schemas"):
        join({"train": [days[0].path, other.path]}, output)
    whole = make_dataset(name="whole")
    with pytest.raises(DatasetError, match="has splits test, train, valid"):
        join({"train": [whole.path]}, output)
    learnt = Learnt({"device": ["tv", "mobile"]})
    learnt.save(days[1].path / "v1" / "learnt")
    dataclasses.replace(days[1].manifest, learnt_fingerprint=learnt.fingerprint).write(days[1].path)
    with pytest.raises(DatasetError, match=r"give the same ids to different values.*pipeline\.base"):
        join({"train": [days[0].path, days[1].path]}, output)
    assert not output.exists()
