"""Ragged rows against lists of lists."""

from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.ragged import Ragged, RaggedMemory, concatenate

LISTS = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=12)


def flat(lists: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def ragged(lists: list[list[int]]) -> Ragged:
    return Ragged.of(np.array(flat(lists), np.int32), np.array([len(row) for row in lists], np.int64))


@settings(deadline=None)
@given(LISTS, st.data())
def test_rows_are_those_of_the_lists(lists: list[list[int]], data: st.DataObject) -> None:
    rows = ragged(lists)
    assert (len(rows), rows.tolist(), rows.dtype) == (len(lists), lists, np.int32)
    bounds = st.none() | st.integers(-14, 14)
    part = slice(data.draw(bounds), data.draw(bounds))
    view = rows[part]
    assert view.tolist() == lists[part] and view.lengths.tolist() == [len(row) for row in lists[part]]
    assert view.flat.tolist() == flat(lists[part]) and (view.values is rows.values)
    assert view.copy().tolist() == lists[part] and view.copy().offsets[0] == 0
    assert rows[::2].tolist() == lists[::2]
    if lists:
        picked = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=20))
        assert rows.take(np.array(picked, np.int64)).tolist() == [lists[i] for i in picked]
    mask = data.draw(st.lists(st.booleans(), min_size=len(lists), max_size=len(lists)))
    assert rows[np.array(mask, bool)].tolist() == [row for row, kept in zip(lists, mask, strict=True) if kept]


@settings(deadline=None)
@given(LISTS, LISTS, st.integers(0, 5))
def test_arrow_lists_and_back(lists: list[list[int]], more: list[list[int]], first: int) -> None:
    array = pa.array(lists, pa.list_(pa.int32()))
    assert Ragged.of_arrow(array).tolist() == lists
    part = Ragged.of_arrow(array[first:])
    assert part.tolist() == lists[first:] and part.to_arrow().equals(array[first:])
    assert Ragged.of_arrow(pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))).tolist() == [[1, 2], [3, 4]]
    assert concatenate([part, ragged(more)]).tolist() == lists[first:] + more


def test_arrow_memory_is_not_copied() -> None:
    array = pa.array([[1, 2], [3]], pa.list_(pa.int32()))
    assert np.shares_memory(Ragged.of_arrow(array).values, array.values.to_numpy())


@settings(deadline=None)
@given(st.lists(LISTS, min_size=1, max_size=3), st.randoms())
def test_memory_holds_one_window_after_the_other(windows: list[list[list[int]]], random) -> None:
    memory = RaggedMemory(np.int32, 40)
    for window in windows:
        parts = [ragged([[0], *window])[1:], ragged(window[:2])]
        lists = window + window[:2]
        assert memory.fill(parts).tolist() == lists
        order = list(range(len(lists)))
        random.shuffle(order)
        for found in (parts, [ragged(lists)]):
            assert memory.fill(found, np.array(order, np.int64)).tolist() == [lists[i] for i in order]


def test_many_rows_are_gathered_in_blocks() -> None:
    lengths = np.random.default_rng(0).integers(0, 4, 20_000)
    rows = Ragged.of(np.arange(lengths.sum(), dtype=np.int32), lengths)
    order = np.random.default_rng(1).permutation(len(rows))
    lists = rows.tolist()
    assert rows.take(order).tolist() == [lists[i] for i in order]


def test_arrays_are_put_end_to_end_too() -> None:
    assert concatenate([np.array([1]), np.array([2])]).tolist() == [1, 2]
    with pytest.raises(AttributeError):
        concatenate([ragged([[1]]), np.array([2])])
