"""What the reader promises, exhaustively and small: every row once, equal steps, one order for any world size."""

import hashlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.disk.dataset import DataFile, DatasetManifest
from features.learnt import Learnt
from training.config import ReaderConfig, TrainingConfig
from training.data.batch import Batch
from training.data.file_checker import ReaderError
from training.data.opened_dataset import Dataset
from training.data.prefetch import THREAD_NAME, prefetch
from training.data.reader import Reader
from training.data.row_order import cut_streams

ROW_GROUPS = [((3, 0, 4), (0, 2)), ((7, 5, 1), (3,), (6, 6)), ((1,),), ((4, 4), (9,)), ((30,),)]
NUM_STREAMS = (1, 2, 4)


def make_reader(
    dataset, *, num_streams=4, batch_size=8, seed=1, rank=0, world_size=1, shuffle=True, **options
) -> Reader:
    config = TrainingConfig(
        str(dataset.path),
        reader=ReaderConfig(num_streams=num_streams, shuffle=shuffle, shuffle_row_groups=2, prefetch_batches=2),
        seed=seed,
        global_batch_size=batch_size,
        evaluation_batch_size=batch_size,
    )
    opened = Dataset(dataset.path, options.pop("manifest", dataset.manifest), options.pop("learnt", dataset.learnt))
    return Reader(opened, options.pop("split", "train"), config, rank, world_size)


def rows_of(batch: Batch) -> list[int]:
    """Row numbers of the real rows, after checking that the rest is padding."""
    assert not batch.weights[batch.num_rows :].any()
    return [int(row) for row in batch.dense_features[: batch.num_rows, 0]]


def steps_of(reader: Reader, epoch: int = 0, start_step: int = 0) -> list[list[int]]:
    """Row numbers, step by step."""
    return [rows_of(batch) for batch in reader.batches(epoch, start_step)]


def global_steps(dataset, world_size: int, **options) -> list[list[int]]:
    """Row numbers of the global batches: rank 0's rows, then rank 1's, ..."""
    ranks = [steps_of(make_reader(dataset, rank=r, world_size=world_size, **options)) for r in range(world_size)]
    assert len({len(steps) for steps in ranks}) == 1, "ranks take different numbers of steps"
    return [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


# ------------------------------------------------------------------------------------------------------- every row once


@pytest.mark.parametrize("row_groups", ROW_GROUPS, ids=str)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_once_in_the_same_order_for_any_world_size(make_dataset, row_groups, shuffle):
    dataset = make_dataset(train=row_groups, valid=(), test=())
    num_rows = dataset.manifest.splits["train"].num_rows
    for num_streams, rows_per_stream in itertools.product(NUM_STREAMS, (1, 3)):
        options = {"num_streams": num_streams, "batch_size": num_streams * rows_per_stream, "shuffle": shuffle}
        one = global_steps(dataset, 1, **options)
        assert sorted(itertools.chain(*one)) == list(range(num_rows))
        assert len(one) == make_reader(dataset, **options).num_steps
        for world_size in (2, 4):
            if num_streams % world_size == 0:
                assert global_steps(dataset, world_size, **options) == one


def test_streams_differ_by_at_most_one_row_for_any_files():
    """The arithmetic alone, on many more combinations than files could be written for."""
    rng = np.random.default_rng(0)
    for trial in range(300):
        files = [
            DataFile(f"f{i}", 0, tuple(rng.integers(0, 7, rng.integers(1, 5)).tolist()), "")
            for i in range(rng.integers(1, 6))
        ]
        num_rows, num_streams = sum(f.num_rows for f in files), int(rng.integers(1, 9))
        streams = cut_streams(
            files, num_streams, seed=trial, epoch=trial % 3, shuffle=trial % 2 == 0, row_groups_per_window=1 + trial % 3
        )
        sizes = [sum(window.num_rows for window in windows) for windows in streams]
        assert sizes == [num_rows * (v + 1) // num_streams - num_rows * v // num_streams for v in range(num_streams)]
        seen = [
            (piece.file.path, piece.row_group, row)
            for windows in streams
            for window in windows
            for piece in window.pieces
            for row in range(piece.first_row, piece.last_row)
        ]
        every = [(f.path, g, row) for f in files for g, size in enumerate(f.row_groups) for row in range(size)]
        assert sorted(seen) == sorted(every)


def test_whole_rows_arrive_in_one_piece(make_dataset):
    """All columns of a row stay together through the shuffle, padding included."""
    dataset = make_dataset(train=((7, 5), (9,)), valid=(), test=())
    columns, schema = dataset.columns["train"], dataset.schema
    seen = 0
    for batch in make_reader(dataset, batch_size=12).batches(epoch=3):
        bags = {name: jagged.to_dense() for name, jagged in batch.sparse_features.to_dict().items()}
        assert batch.batch_size == 12
        for i, row in enumerate(rows_of(batch)):
            assert batch.dense_features[i, 1] == columns["price"][row]
            assert (batch.labels[i], batch.weights[i]) == (columns["label"][row], columns["weight"][row])
            assert batch.group_ids is not None and batch.group_ids[i] == columns["group_id"][row]
            for f in schema.sparse:
                ids = columns[f.name][row]
                expected = ids[: f.kind.lengths(columns, f)[row]] if f.separator else [ids]
                assert bags[f.name][i].tolist() == list(expected)
            seen += 1
    assert seen == 21


def test_without_weight_and_group(make_dataset):
    dataset = make_dataset(train=((5,),), weight=False, group_id=False)
    (batch,) = make_reader(dataset).batches(epoch=0)
    assert batch.group_ids is None
    assert batch.weights.tolist() == [1] * 5 + [0] * 3


def test_batches_count_this_ranks_rows_without_padding(make_dataset):
    dataset = make_dataset(train=((7, 6),))
    readers = [make_reader(dataset, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(2):
        assert sum(batch.num_rows for reader in readers for batch in reader.batches(epoch=0)) == 13


# ---------------------------------------------------------------------------------------------------------------- order


def test_order_depends_on_seed_and_epoch_only(make_dataset):
    dataset = make_dataset(train=((8, 8), (10, 6), (16,)))
    first = steps_of(make_reader(dataset), epoch=0)
    assert steps_of(make_reader(dataset), epoch=0) == first
    others = [
        steps_of(make_reader(dataset), epoch=1),
        steps_of(make_reader(dataset), epoch=2),
        steps_of(make_reader(dataset, seed=2), epoch=0),
        steps_of(make_reader(dataset, seed=-1), epoch=0),
    ]
    assert all(a != b for a, b in itertools.combinations([first, *others], 2))


def test_no_two_windows_share_a_permutation():
    files = [DataFile(f"f{i}", 0, (30, 30), "") for i in range(4)]
    orders = [
        tuple(order)
        for seed, epoch in itertools.product((0, 1, 2**32, 2**32 + 1), (0, 1))
        for windows in cut_streams(files, 4, seed=seed, epoch=epoch, shuffle=True, row_groups_per_window=1)
        for window in windows
        if (order := window.order()) is not None
    ]
    assert len(orders) == len(set(orders)) == 4 * 2 * 4 * 2


def test_shuffle_mixes_rows_and_files(make_dataset):
    dataset = make_dataset(train=((64, 64), (64, 64)))
    order = list(itertools.chain(*steps_of(make_reader(dataset, num_streams=1))))
    moves = np.diff(order)
    assert (moves == 1).mean() < 0.1, "rows follow each other as in the file"
    starts = {steps_of(make_reader(dataset, num_streams=1), epoch)[0][0] // 128 for epoch in range(6)}
    assert starts == {0, 1}, "the epoch always starts with the same file"


def test_without_shuffle_a_stream_is_in_file_order(make_dataset):
    dataset = make_dataset(train=((5, 5), (6,)))
    for epoch in (0, 1):
        assert steps_of(make_reader(dataset, num_streams=1, batch_size=5, shuffle=False), epoch) == [
            [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [15]
        ]  # fmt: skip
    assert steps_of(make_reader(dataset, num_streams=2, batch_size=8, shuffle=False)) == [
        [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("row_groups", ROW_GROUPS[:3], ids=str)
def test_resume_equals_no_resume(make_dataset, row_groups, shuffle):
    dataset = make_dataset(train=row_groups, valid=(), test=())
    for num_streams in (1, 2):
        options = {"num_streams": num_streams, "batch_size": num_streams * 2, "shuffle": shuffle}
        whole = steps_of(make_reader(dataset, **options), epoch=5)
        for start_step in range(len(whole) + 1):
            assert steps_of(make_reader(dataset, **options), epoch=5, start_step=start_step) == whole[start_step:]


def test_resume_on_another_world_size(make_dataset):
    dataset = make_dataset(train=((7, 5, 1), (3,), (6, 6)))
    whole = global_steps(dataset, 1)
    rest = [steps_of(make_reader(dataset, rank=rank, world_size=2), start_step=2) for rank in range(2)]
    assert [a + b for a, b in zip(*rest, strict=True)] == whole[2:]


def test_resume_does_not_open_files_already_read(make_dataset):
    dataset = make_dataset(train=((8,), (8,)), valid=(), test=())
    reader = make_reader(dataset, num_streams=1, batch_size=4, shuffle=False)
    (dataset.path / dataset.manifest.splits["train"].files[0].path).unlink()
    assert steps_of(reader, start_step=2) == [[8, 9, 10, 11], [12, 13, 14, 15]]


# ------------------------------------------------------------------------------------------------- the manifest's word


def with_files(manifest: DatasetManifest, change: Callable[[DataFile], DataFile], index: int = 0) -> DatasetManifest:
    """The manifest with one training file described otherwise."""
    split = manifest.splits["train"]
    files = tuple(change(f) if i == index else f for i, f in enumerate(split.files))
    return replace(manifest, splits={**manifest.splits, "train": replace(split, files=files)})


def rewrite(dataset, change: Callable, index: int = 0) -> DatasetManifest:
    """Write a training file anew with its table changed; the manifest is told its new bytes, and nothing else."""
    file = dataset.manifest.splits["train"].files[index]
    path = dataset.path / file.path
    pq.write_table(change(pq.read_table(path)), path, row_group_size=file.row_groups[0])
    return with_files(dataset.manifest, lambda f: with_bytes_of(f, path), index)


def with_bytes_of(file: DataFile, path: Path) -> DataFile:
    return replace(file, num_bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(("told", "rows"), [((7, 6), 13), ((7, 4), 11), ((7,), 7), ((7, 5, 1), 13), ((5, 7), 12)])
def test_a_manifest_that_lies_about_rows_is_found_out(make_dataset, told, rows):
    dataset = make_dataset(train=((7, 5), (3,)))
    manifest = with_files(dataset.manifest, lambda f: replace(f, row_groups=told))
    with pytest.raises(ReaderError, match=rf"part-00000.parquet has 12 rows in 2 .* says {rows} rows in {len(told)}"):
        steps_of(make_reader(dataset, manifest=manifest))


def test_a_row_group_that_comes_short_is_found_out(make_dataset, monkeypatch):
    """Whatever Petastorm hands over is counted, not only what the footer says."""
    dataset = make_dataset(train=((7, 5),))
    reader = make_reader(dataset, num_streams=1)
    from training.data import reader as module

    make_batch_reader = module.make_batch_reader

    def one_row_group_short(*args, **kwargs):
        opened = make_batch_reader(*args, **kwargs)
        next(opened)
        return opened

    monkeypatch.setattr(module, "make_batch_reader", one_row_group_short)
    with pytest.raises(ReaderError, match=r"row group 0 of .* gave 5 rows, not 7"):
        steps_of(reader)


def test_an_epoch_that_ends_early_is_found_out(make_dataset):
    """Each stream counts what it handed out against its plan before the last batch is given away."""
    dataset = make_dataset(train=((7, 5),))
    reader = make_reader(dataset, num_streams=1, batch_size=4)
    reader.num_steps -= 1
    with pytest.raises(ReaderError, match="a stream of 12 rows delivered 8 and has 4 left"):
        steps_of(reader)


def test_a_missing_file_is_named(make_dataset):
    dataset = make_dataset(train=((7,), (5,)))
    (dataset.path / "v1/train/part-00001.parquet").unlink()
    with pytest.raises(ReaderError, match=r"part-00001\.parquet is named in the manifest but is missing"):
        steps_of(make_reader(dataset))


def test_a_cut_file_is_named(make_dataset):
    dataset = make_dataset(train=((7,), (5,)))
    path = dataset.path / "v1/train/part-00001.parquet"
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(ReaderError, match=rf"part-00001\.parquet has {size // 2} bytes where the manifest says {size}"):
        steps_of(make_reader(dataset))
    manifest = with_files(dataset.manifest, lambda f: with_bytes_of(f, path), index=1)
    with pytest.raises(ReaderError, match=r"part-00001\.parquet is not a readable Parquet file"):
        steps_of(make_reader(dataset, manifest=manifest))


def test_a_file_with_damaged_pages_is_named(make_dataset):
    dataset = make_dataset(train=((500,),))
    path = dataset.path / "v1/train/part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[4:4000] = b"\xff" * 3996
    path.write_bytes(content)
    with pytest.raises(ReaderError, match=r"part-00000\.parquet does not hold the bytes it was written with"):
        steps_of(make_reader(dataset))
    manifest = with_files(dataset.manifest, lambda f: with_bytes_of(f, path))
    with pytest.raises(ReaderError, match=r"part-00000\.parquet cannot be read"):
        steps_of(make_reader(dataset, manifest=manifest))


def test_one_flipped_bit_is_found_wherever_it_is(make_dataset):
    """Without the sha256, most of them are read without a word: as other rows, where they are in a page."""
    dataset = make_dataset(train=((40,), (30,)), valid=(), test=())
    path = dataset.path / "v1/train/part-00001.parquet"
    content = path.read_bytes()
    reader = make_reader(dataset, shuffle=False, num_streams=1)
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(
            ReaderError, match=r"part-00001\.parquet does not hold the bytes .* build the dataset again"
        ):
            steps_of(reader, start_step=5)
    path.write_bytes(content)
    assert sum(map(len, steps_of(reader))) == 70


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_bit_that_flips_while_a_file_is_read_is_found(make_dataset, keep_time):
    """Rows of a row group that was read after it never come out; nor do they in the next epoch."""
    dataset = make_dataset(train=((32, 32, 32, 32, 32, 32),), valid=(), test=())
    path = dataset.path / "v1/train/part-00000.parquet"
    reader = make_reader(dataset, shuffle=False, num_streams=1)
    reader.config = replace(reader.config, prefetch_batches=1)
    content, before = bytearray(path.read_bytes()), path.stat()
    content[pq.read_metadata(path).row_group(5).column(0).data_page_offset + 40] ^= 1
    batches = reader.batches(epoch=0)
    seen = rows_of(next(batches))
    with path.open("r+b") as file:
        file.write(content)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ReaderError, match=r"part-00000\.parquet does not hold the bytes"):
        for batch in batches:
            seen += rows_of(batch)
    assert seen == list(range(len(seen))) and len(seen) < 160
    with pytest.raises(ReaderError, match=r"part-00000\.parquet does not hold the bytes"):
        steps_of(reader, epoch=1)


def test_a_file_is_read_for_its_sha256_once(make_dataset, monkeypatch):
    dataset, read = make_dataset(train=((40, 30), (30,)), valid=(), test=()), []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    reader = make_reader(dataset, num_streams=1)
    for epoch in range(3):
        steps_of(reader, epoch)
    assert len(read) == len(set(read)) == 2


@pytest.mark.parametrize("key", [b"dataset-toolkit.unischema.v1", b"dataset-toolkit.rowgroups_index.v1"])
def test_pickled_petastorm_keys_are_refused(make_dataset, key):
    dataset = make_dataset(train=((7,),))
    manifest = rewrite(dataset, lambda table: table.replace_schema_metadata({key: b"cos\nsystem\n."}))
    with pytest.raises(ReaderError, match=r"part-00000\.parquet carries pickled Petastorm keys"):
        steps_of(make_reader(dataset, manifest=manifest))


def test_a_common_metadata_file_beside_the_shards_is_not_opened(make_dataset):
    dataset = make_dataset(train=((7,),))
    for folder in (dataset.path, dataset.path / "v1/train"):
        (folder / "_common_metadata").write_bytes(b"not Parquet: opening it would raise")
    assert sum(map(len, steps_of(make_reader(dataset)))) == 7


def test_a_missing_column_is_named(make_dataset):
    dataset = make_dataset(train=((7,),))
    manifest = rewrite(dataset, lambda table: table.drop_columns(["price", "genres__length"]))
    with pytest.raises(ReaderError, match=r"part-00000\.parquet lacks columns genres__length, price"):
        steps_of(make_reader(dataset, manifest=manifest))


def set_column(name: str, values: list) -> Callable:
    def change(table):
        field = table.schema.field(name)
        return table.set_column(table.schema.names.index(name), field, pa.array(values, field.type))

    return change


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("user", [1, 50, 2], r"'user' of .*part-00000.parquet holds 50, outside 0 to 49"),
        ("user", [1, -1, 2], r"'user' of .*part-00000.parquet holds -1, outside 0 to 49"),
        ("genres", [[1, 2, 20], [0, 0, 0], [0, 0, 0]], r"'genres' of .* holds 20, outside 0 to 19"),
        ("genres__length", [0, 4, 0], r"'genres__length' of .* holds 4, outside 0 to 3"),
        ("user", [1, None, 2], r"'user' of .* has 1 missing values"),
        ("genres", [[1, 2, 3], None, [0, 0, 0]], r"'genres' of .* has 1 missing values"),
        ("genres", [[1, 2, 3], [1, None, 3], [0, 0, 0]], r"'genres' of .* has 1 missing values"),
        ("price", [1, None, 2], r"'price' of .* has 1 missing values"),
        ("label", [1, float("nan"), 0], r"'label' of .* has infinite values or NaN"),
        ("genres", [[1, 2, 3], [1, 2], [1]], r"'genres' of .* has lists of different lengths"),
        ("genres", [[1, 2], [1, 2], [1, 2]], r"'genres' of .* int32 of shape \(3,\) a row, got int32 of shape \(2,\)"),
    ],
)
def test_values_that_must_not_be_trained_on(make_dataset, name, values, message):
    dataset = make_dataset(train=((3,),))
    manifest = rewrite(dataset, set_column(name, values))
    with pytest.raises(ReaderError, match=message):
        steps_of(make_reader(dataset, manifest=manifest))


def test_a_column_of_another_type_is_named(make_dataset):
    dataset = make_dataset(train=((3,),))

    def widen(table):
        return table.set_column(0, "user", table["user"].cast(pa.int64()))

    manifest = rewrite(dataset, widen)
    with pytest.raises(ReaderError, match=r"'user' of .* must hold int32 of shape \(\) a row, got int64"):
        steps_of(make_reader(dataset, manifest=manifest))


def test_ids_are_checked_against_the_tables_that_are_given(make_dataset):
    dataset = make_dataset(train=((30,),))
    fewer = Learnt({"device": ["mobile"]})
    with pytest.raises(ReaderError, match=r"'device' of .* holds 3, outside 0 to 2"):
        steps_of(make_reader(dataset, learnt=fewer))


def test_streams_that_cannot_be_shared_out_are_refused(make_dataset):
    dataset = make_dataset()
    for options in ({"world_size": 3}, {"world_size": 8}, {"rank": 2, "world_size": 2}, {"rank": -1}):
        with pytest.raises(ValueError, match=r"num_streams \(4\) must be a multiple of the world size"):
            make_reader(dataset, **options)
    with pytest.raises(ValueError, match=r"global_batch_size \(10\) must be a multiple"):
        make_reader(dataset, batch_size=10)
    with pytest.raises(ValueError, match="no 'other' split"):
        make_reader(dataset, split="other")


# -------------------------------------------------------------------------------------------------------------- threads


def test_batches_are_made_ahead_in_threads_that_end(make_dataset):
    """One thread makes batches, and one a stream decodes row groups for it."""
    dataset = make_dataset(train=((30, 30),))
    batches = make_reader(dataset, rank=1, world_size=2).batches(epoch=0)
    assert not prefetch_threads()
    next(batches)
    assert 1 <= len(prefetch_threads()) <= 1 + 2
    list(batches)
    assert not prefetch_threads()


def test_closing_early_stops_thread_and_petastorm(make_dataset):
    dataset = make_dataset(train=((30, 30, 30, 30, 30), (30,)))
    before = threading.active_count()
    for num_taken in (0, 1, 4):
        batches = make_reader(dataset).batches(epoch=0)
        for _ in range(num_taken):
            next(batches)
        start = time.monotonic()
        batches.close()
        assert time.monotonic() - start < 20
        assert threading.active_count() == before


def test_prefetch_makes_no_more_than_it_may_and_closes_what_it_made():
    made, closed = [], []

    def make():
        try:
            for i in range(10_000):
                made.append(i)
                yield i
        finally:
            closed.append(True)

    items = prefetch(make, 3)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    time.sleep(0.2)
    assert 5 <= len(made) <= 5 + 3 + 1
    items.close()
    assert len(made) <= 5 + 3 + 2
    assert closed == [True]
    assert list(prefetch(make, 3)) == list(range(10_000))


def test_a_loop_that_breaks_or_fails_leaves_no_thread(make_dataset):
    dataset = make_dataset(train=((30, 30),))
    for _ in make_reader(dataset).batches(epoch=0):
        break
    with pytest.raises(ZeroDivisionError):
        for _ in make_reader(dataset).batches(epoch=0):
            1 / 0  # noqa: B018
    assert not prefetch_threads()


def test_an_error_comes_after_the_batches_before_it(make_dataset):
    dataset = make_dataset(train=((8,), (8,)))
    (dataset.path / "v1/train/part-00001.parquet").unlink()
    batches = make_reader(dataset, num_streams=1, batch_size=4, shuffle=False).batches(epoch=0)
    assert [rows_of(next(batches)) for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(ReaderError, match="part-00001"):
        next(batches)
    assert not prefetch_threads()


# ---------------------------------------------------------------------------------------------------------------- noise


def test_reading_is_quiet_and_works_from_a_path_with_spaces(make_dataset):
    """With warnings and INFO lines on, in a fresh interpreter, neither Petastorm nor pyarrow says a word."""
    dataset = make_dataset(train=((5,), (4,)), name="my data %20é")
    program = (
        "import logging, sys, warnings; logging.basicConfig(level=logging.INFO)\n"
        "from pathlib import Path\n"
        "from training.config import TrainingConfig\n"
        "from training.data.opened_dataset import Dataset\n"
        "from training.data.reader import Reader\n"
        "print('READ', file=sys.stderr, flush=True)\n"
        "path = Path(sys.argv[1])\n"
        "config = TrainingConfig(str(path), global_batch_size=8)\n"
        "reader = Reader(Dataset.open(path), 'train', config)\n"
        "print(sum(batch.num_rows for batch in reader.batches(0)))\n"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-W", "default", "-W", "ignore::ResourceWarning", "-c", program, str(dataset.path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "9\n"
    noise = done.stderr.split("READ\n")[1]
    assert not any(word in noise for word in ("petastorm", "pyarrow", "INFO", "Unischema")), noise


def test_a_path_petastorm_cannot_open_is_named(make_dataset):
    dataset = make_dataset(train=((5,),), name="what#1")
    with pytest.raises(ReaderError, match="'#' or '\\?'"):
        steps_of(make_reader(dataset))
