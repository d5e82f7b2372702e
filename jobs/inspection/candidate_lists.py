"""Lists of candidates in a sample of a log: found by their form, like ``N1-0 N2-1``, and made into rows."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product

import numpy as np
import pyarrow as pa

from features.log_format import Candidates, LogFormat
from features.raw_block import RawBlock
from features.read.candidates import CandidateReader
from features.schema import Values

_SEPARATORS, _LABEL_SEPARATORS = (" ", ",", ";", "|"), ("-", ":", "_")
_MOST_TEXTS = 2_000
_MIN_SHARE, _MIN_LENGTH = 0.99, 1.5
"""Share of the values that are lists of labelled items, and items of a list on average."""
_FEW_LINES = 1_000


def find_candidates(blocks: Sequence[RawBlock]) -> Candidates | None:
    """Find a column of texts like ``N1-0 N2-1``, items with a label each; None: there is none.

    Args:
        blocks: rows of the log.
    """
    names = set(blocks[0].columns) if blocks else set()
    for column in sorted(names):
        if not pa.types.is_string(blocks[0].columns[column].type):
            continue
        texts = list(islice(_present(blocks, column), _MOST_TEXTS))
        for separator, label_separator in product(_SEPARATORS, _LABEL_SEPARATORS):
            if _are_lists(texts, separator, label_separator):
                return Candidates(
                    column=column,
                    name="item" if "item" not in names else f"{column}_item",
                    separator=separator,
                    label="clicked" if "clicked" not in names else f"{column}_clicked",
                    label_separator=label_separator,
                    position="position" if "position" not in names else f"{column}_position",
                )
    return None


def _present(blocks: Sequence[RawBlock], column: str) -> Iterator[str]:
    for block in blocks:
        yield from block.columns[column].drop_null().slice(0, _MOST_TEXTS).to_pylist()


def _are_lists(texts: Sequence[str], separator: str, label_separator: str) -> bool:
    """Tell whether nearly all texts are lists of labelled items, some of them with label 1 and some with 0."""
    if not texts or label_separator not in texts[0]:
        return False
    item = rf"[^{re.escape(separator)}]+{re.escape(label_separator)}[01]"
    pattern = re.compile(rf"{item}(?:{re.escape(separator)}{item})*")
    lists = [text.split(separator) for text in texts if pattern.fullmatch(text)]
    labels = {one[-1] for items in lists for one in items}
    num_items = sum(map(len, lists))
    return len(lists) >= _MIN_SHARE * len(texts) and num_items >= _MIN_LENGTH * len(lists) and labels == {"0", "1"}


def make_rows(blocks: Sequence[RawBlock], log_format: LogFormat, most: int) -> tuple[list[RawBlock], float, bool]:
    """Make the candidates of lists into rows, as a build does.

    Args:
        blocks: rows of the log.
        log_format: its format, with candidates.
        most: number of candidates to make, about.

    Returns:
        Blocks of rows, candidates a row of the log, and whether they are the candidates of all rows.
    """
    lists = log_format.candidates
    assert lists is not None
    columns = tuple((set(blocks[0].columns) | lists.made_columns) - {lists.column, lists.clicked})
    first = blocks[0].take(np.arange(len(blocks[0])) < _FEW_LINES)
    made = sum(len(block) for block in _explode([first], log_format, columns))
    rate = made / max(len(first), 1)
    share = min(most / max(rate * sum(map(len, blocks)), 1), 1.0)
    few = [block.take(np.arange(len(block)) < np.ceil(share * len(block))) for block in blocks]
    found = [block for block in _explode(few, log_format, columns) if len(block) or block.rejected]
    return found, sum(map(len, found)) / max(sum(map(len, few)), 1), share == 1.0


def _explode(blocks: Sequence[RawBlock], log_format: LogFormat, columns: tuple[str, ...]) -> Iterator[RawBlock]:
    lists = log_format.candidates
    assert lists is not None
    reader = CandidateReader(log_format, Values(), columns, "the log")
    for block in blocks:
        ids = block.columns.get(lists.list_id, pa.nulls(len(block), pa.string()))
        yield from reader.rows(replace(block, columns={**block.columns, lists.list_id: ids}, rejected=[]))
