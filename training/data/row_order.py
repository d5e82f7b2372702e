"""Row order: the rows of every stream of an epoch, and their order.

A pure function of (files, num_streams, seed, epoch), whatever the world size, so that a run killed on four ranks can go
on on two with the same batches.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from features.disk.dataset import DataFile, DatasetManifest
from training.config import TrainingConfig


@dataclass(frozen=True)
class RowOrder:
    """Identity of a row order: a step of an epoch stands for the same rows only where all of this is equal.

    The world size and the number of prefetched batches are not in it, as the batches do not depend on them.
    """

    split: str
    num_rows: int
    """Rows of the split."""
    rows: str
    """Fingerprint of the split's files, in order."""
    num_streams: int
    shuffle: bool
    shuffle_row_groups: int | None
    """Row groups of a stream whose rows are shuffled together; None where nothing is shuffled."""
    seed: int | None
    """Seed of the permutations; None where nothing is shuffled."""
    batch_size: int
    """Rows of a step over all ranks."""

    @classmethod
    def of_training(cls, manifest: DatasetManifest, config: TrainingConfig) -> "RowOrder":
        """Describe the order in which a config's training reads a dataset.

        Raises:
            DatasetError: the dataset has no training rows.
        """
        split, reader = manifest.split("train"), config.reader
        return cls(
            split="train",
            num_rows=split.num_rows,
            rows=split.fingerprint,
            num_streams=reader.num_streams,
            shuffle=reader.shuffle,
            shuffle_row_groups=reader.shuffle_row_groups if reader.shuffle else None,
            seed=config.seed if reader.shuffle else None,
            batch_size=config.global_batch_size,
        )

    def differences(self, now: "RowOrder") -> list[str]:
        """List what is not the same in a later order: a text for each setting, and one for the rows."""
        found = []
        if (self.split, self.num_rows, self.rows) != (now.split, now.num_rows, now.rows):
            found.append(f"the rows were {self._shown_rows()} and are {now._shown_rows()}")
        for name, key in _SETTINGS.items():
            before, after = getattr(self, name), getattr(now, name)
            # What is of a shuffle alone differs with it, and says nothing more.
            is_of_shuffle = name in ("shuffle_row_groups", "seed") and self.shuffle != now.shuffle
            if before != after and not is_of_shuffle:
                found.append(f"{key} was {_shown(before)} and is {_shown(after)}")
        return found

    def _shown_rows(self) -> str:
        return f"{self.num_rows:,} of {self.split} (fingerprint {self.rows[:12]})"

    def to_json(self) -> dict[str, Any]:
        """JSON values for a checkpoint's progress."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "RowOrder":
        """Read what ``to_json`` gave.

        Raises:
            pydantic.ValidationError: a key is absent or of another type.
        """
        return TypeAdapter(cls).validate_python(values)


_SETTINGS = {
    "num_streams": "training.reader.num_streams",
    "shuffle": "training.reader.shuffle",
    "shuffle_row_groups": "training.reader.shuffle_row_groups",
    "seed": "training.seed",
    "batch_size": "training.global_batch_size",
}
"""Field of RowOrder -> the config key that sets it."""


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Piece:
    """Rows [first_row, last_row) of one row group."""

    file: DataFile
    row_group: int
    first_row: int
    last_row: int

    @property
    def num_rows(self) -> int:
        """Count the rows of the piece."""
        return self.last_row - self.first_row


@dataclass(frozen=True)
class Window:
    """Consecutive pieces of one stream that are in memory together, and the seed their rows are shuffled with."""

    pieces: tuple[Piece, ...]
    seed: tuple[int, ...] | None
    """Seed of the shuffle; None: the rows stay in file order."""

    @property
    def num_rows(self) -> int:
        """Count the rows of the window."""
        return sum(piece.num_rows for piece in self.pieces)

    def order(self) -> NDArray[np.int64] | None:
        """Return the permutation (num_rows,) of the pieces' rows laid end to end; None: as they are."""
        return None if self.seed is None else _generator(*self.seed).permutation(self.num_rows)


def cut_streams(
    files: Sequence[DataFile],
    num_streams: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool,
    row_groups_per_window: int,
    sample_rows: int | None = None,
) -> list[list[Window]]:
    """Cut an epoch into ``num_streams`` row streams of R // num_streams rows, or one more.

    ::

        files, shuffled      [ b: 6 rows        ][ a: 4 rows  ][ c: 5 rows     ]      R = 15
        row groups           [ b0    |  b1      ][ a0   |  a1 ][ c0    | c1    ]
        2 streams            [ 0: 7 rows                ][ 1: 8 rows           ]      cut at floor(15 v / 2)

    Args:
        files: a split's files, in manifest order.
        shuffle: permute the files, and the rows of each window; else both keep their order.
        row_groups_per_window: row groups whose rows are shuffled together.
        sample_rows: rows to read of the files, the same in every epoch; None: all of them.

    Returns:
        The windows of each stream.
    """
    order = _generator(seed, epoch).permutation(len(files)) if shuffle else range(len(files))
    pieces = [piece for i in order for piece in _row_groups(files[i])]
    if sample_rows is not None:
        pieces = _sample(pieces, sample_rows, seed)
    num_rows = sum(piece.num_rows for piece in pieces)
    streams = []
    for stream in range(num_streams):
        own = _cut(pieces, num_rows * stream // num_streams, num_rows * (stream + 1) // num_streams)
        size = row_groups_per_window if shuffle else 1
        streams.append(
            [
                Window(tuple(own[i : i + size]), (seed, epoch, stream, i // size) if shuffle else None)
                for i in range(0, len(own), size)
            ]
        )
    return streams


def _row_groups(file: DataFile) -> list[Piece]:
    return [Piece(file, i, 0, num_rows) for i, num_rows in enumerate(file.row_groups) if num_rows]


def _sample(pieces: Sequence[Piece], num_rows: int, seed: int) -> list[Piece]:
    """Draw row groups until they have ``num_rows`` rows, in the order of ``pieces``; the last one is cut.

    A build lays rows in random order, so that the first rows of a row group are a sample of it.
    """
    drawn, left = {}, num_rows
    for index in _generator(seed).permutation(len(pieces)):
        if not left:
            break
        piece = pieces[index]
        taken = min(left, piece.num_rows)
        drawn[index] = replace(piece, last_row=piece.first_row + taken)
        left -= taken
    return [drawn[index] for index in sorted(drawn)]


def _cut(pieces: Sequence[Piece], start: int, stop: int) -> list[Piece]:
    """Cut rows [start, stop) out of ``pieces`` laid end to end."""
    cut, offset = [], 0
    for piece in pieces:
        first, last = max(start - offset, 0), min(stop - offset, piece.num_rows)
        if first < last:
            cut.append(Piece(piece.file, piece.row_group, first, last))
        offset += piece.num_rows
    return cut


def _generator(seed: int, *position: int) -> np.random.Generator:
    # Entropy may not be negative; masking keeps every 64-bit seed distinct. As a spawn key, unlike as more entropy, a
    # position differs from the same one with zeros after it.
    return np.random.default_rng(np.random.SeedSequence(seed & (2**64 - 1), spawn_key=position))
