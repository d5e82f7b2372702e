"""A whole file by the readers, whatever the portions and steps: what tests compare."""

from pathlib import Path
from typing import Any

from features.log_format import LogFormat
from features.raw_block import RawBlock, Wanted
from features.read.lines import STEP_BYTES
from features.read.portions import PORTION_BYTES, misplaced, plan_portions, read_portion

CUTS = [(PORTION_BYTES, STEP_BYTES), (PORTION_BYTES, 100), (100, STEP_BYTES), (7, 7), (31, 11)]
"""(bytes of a portion, of a step)."""


def read_blocks(
    path: Path, log_format: LogFormat, wanted: Wanted, num_bytes: int = PORTION_BYTES, step: int = STEP_BYTES
) -> list[tuple[int, RawBlock]]:
    """(lines before its portion, block) of all blocks of a file."""
    portions = plan_portions(str(path), path.stat().st_size, log_format, num_bytes)
    blocks: list[list[RawBlock]] = []
    ends = []
    for portion in portions:
        reading = read_portion(portion, log_format, wanted, step)
        blocks.append(list(reading))
        ends.append(reading.end)
    while again := misplaced(portions, ends):
        for index, portion in again.items():
            portions[index] = portion
            reading = read_portion(portion, log_format, wanted, step)
            blocks[index] = list(reading)
            ends[index] = reading.end
    found, before = [], 0
    for part, end in zip(blocks, ends, strict=True):
        found += [(before, block) for block in part]
        before += end.num_lines
    return found


def read_whole(
    path: Path, log_format: LogFormat, wanted: Wanted, num_bytes: int = PORTION_BYTES, step: int = STEP_BYTES
) -> tuple[list[tuple[int, int, str, dict[str, Any]]], list[tuple[int, int, str, str]]]:
    """Rows as (number, offset, line, values) and rejected lines as (number, offset, text, reason)."""
    rows, rejected = [], []
    for before, block in read_blocks(path, log_format, wanted, num_bytes, step):
        assert set(block.columns) == set(wanted.columns)
        columns = {name: values.to_pylist() for name, values in block.columns.items()}
        for name, values in block.lists.items():
            columns[name] = [a if a is not None else b for a, b in zip(values.to_pylist(), columns[name], strict=True)]
        for i in range(len(block)):
            line = block.lines.text(i)
            number, offset = int(block.numbers[i]) + before, int(block.offsets[i])
            rows.append((number, offset, line, {name: values[i] for name, values in columns.items()}))
        rejected += [line._replace(number=line.number + before) for line in block.rejected]
    return rows, [tuple(line) for line in rejected]
