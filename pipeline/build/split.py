"""Split rules: the split is a pure function of the row, so a re-run or a longer log moves no row."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.disk.dataset import SPLITS
from features.hashing import hash_array, mixed, salt_seed
from pipeline.config import FilesSplit, HashSplit, PipelineConfig, SampleConfig, TimeSplit

_DRAWS = float(1 << 53)


def parse_time(text: str) -> int:
    """Parse an ISO date or date-time into Unix seconds; without a zone it is UTC.

    Raises:
        ValueError: it is neither.
    """
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def draws_of(salt: str, values: pa.Array | None, row_hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Draw a number in [0, 1) for each row from its value; a row without one draws by itself.

    Args:
        salt: text hashed before the value.
        values: (n,) texts, null where missing. None: every row draws by itself.
        row_hashes: (n,) hash of each whole raw row, seeded with the salt.
    """
    hashes = row_hashes if values is None else hash_array(values, salt_seed(salt))
    if values is not None and values.null_count:
        hashes = np.where(values.is_null().to_numpy(zero_copy_only=False), row_hashes, hashes)
    return draws(hashes)


def draws(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map hashes to numbers in [0, 1), of 53 bits."""
    return (hashes >> np.uint64(11)).astype(np.float64) / _DRAWS


def kept_in_sample(
    config: SampleConfig, row_hashes: NDArray[np.uint64], offsets: NDArray[np.int64], droppable: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Draw which rows stay in the training split; a row's draw depends on nothing but its text and place in its file.

    Args:
        config: rate of negatives.
        row_hashes: (n,) hash of each whole raw row, seeded with the salt.
        offsets: (n,) offset of each row in its file: of equal rows each draws by itself.
        droppable: (n,) negatives of the training split.
    """
    return ~droppable | (draws(mixed(offsets.astype(np.uint64), row_hashes)) < config.negatives)


def split_of(
    config: PipelineConfig, given: str, seconds: NDArray[np.int64] | None, share: NDArray[np.float64] | None, size: int
) -> NDArray[np.uint8]:
    """Compute the split of each row, as its place in ``SPLITS``.

    Args:
        config: the rule, and which splits have files of their own: it cuts ``train`` only into the others.
        given: split the rows' file was given for.
        seconds: (n,) Unix times of the rows (time rule).
        share: (n,) draw of each row (hash rule).
        size: number of rows.
    """
    rule = config.split
    split = np.full(size, SPLITS.index(given), np.uint8)
    if isinstance(rule, FilesSplit) or given != "train":
        return split
    if isinstance(rule, TimeSplit):
        assert seconds is not None
        cuts = {"valid": seconds >= parse_time(rule.valid_from)}
        if rule.test_from is not None:
            cuts["test"] = seconds >= parse_time(rule.test_from)
    else:
        assert isinstance(rule, HashSplit)
        assert share is not None
        cuts = {"valid": (share >= rule.test) & (share < rule.test + rule.valid), "test": share < rule.test}
    own_files = config.inputs()
    for name, is_in in cuts.items():  # a later cut wins
        if name not in own_files:
            split[is_in] = SPLITS.index(name)
    return split
