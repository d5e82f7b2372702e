"""Twins: the same odd lines, read in blocks and line by line, must be rejected alike and hold the same values.

All lines of a format are one file, read in portions of a few lines, and every line counts as an input.
"""

import json
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from features.log_format import LogError, LogFormat
from features.raw_block import RawBlock, Wanted
from features.read.portions import Portion, PortionEnd, misplaced, plan_portions, read_portion
from features.read.quotes import BADLY_QUOTED
from tests.fuzz.campaign import Outcome
from tests.fuzz.mutation import draw, mutate_bytes
from tests.oracles.row_encoder import to_text
from tests.oracles.row_reader import read_lines

FORMATS: dict[str, dict[str, Any]] = {
    "csv": {"kind": "csv"},
    "tsv": {"kind": "tsv", "null_values": ["NA"]},
    "pipes": {"kind": "csv", "separator": "|", "quote": "'"},
    "long": {"kind": "csv", "separator": "::", "quote": "", "header": False, "columns": ["user", "tags", "click"]},
    "latin": {"kind": "csv", "encoding": "ISO-8859-1"},
    "jsonl": {"kind": "jsonl"},
}
COLUMNS = ("user", "tags", "click")
_PORTION_BYTES = 1_000
REASONS = {
    "badly quoted": "badly quoted",
    "not a JSON": "not a JSON object",
    "not UTF-8": "not UTF-8 text",
}


def make_lines(name: str, count: int, seed: int) -> list[bytes]:
    """Odd lines of one format, none with an end of line but a lone carriage return, in file order."""
    rng = random.Random(f"{name} {seed}")
    valid = valid_lines(name)
    lines = [mutate_bytes(rng, rng.choice(valid), valid) for _ in range(count - 2 * (count // 10))]
    lines += [text.encode("utf-8", "replace") for text in draw(st.text(max_size=30), count // 10, seed)]
    lines += draw(
        st.lists(st.sampled_from([*valid, b'"', b"'", b",", b"\\", b" "]), max_size=6).map(b"".join), count // 10, seed
    )
    rng.shuffle(lines)
    return [line.replace(b"\n", b"") for line in lines]


def valid_lines(name: str) -> list[bytes]:
    values = ["u1", "", "ü", "1.50", "NA", "a b", "日本"]
    rng = random.Random(name)
    if name == "jsonl":
        odd = [0, -1.5e-7, 10**25, True, None, ["a", 1.50, None], [], {"a": 1}, [["x"]], "[x", '"', "\\", "a\tb", "1 "]
        rows = [{c: rng.choice([*values, *odd]) for c in COLUMNS if rng.random() < 0.9} for _ in range(40)]
        return [json.dumps(row, ensure_ascii=rng.random() < 0.5).encode() for row in rows]
    log_format = LogFormat(**FORMATS[name])
    separator, quote = log_format.delimiter, log_format.quote_character
    lines = []
    for _ in range(40):
        row = [rng.choice(values) for _ in COLUMNS]
        if quote:
            row = [
                f"{quote}{v}{rng.choice(('', separator, 2 * quote))}{quote}" if rng.random() < 0.3 else v for v in row
            ]
        lines.append(separator.join(row).encode("latin-1" if name == "latin" else "utf-8", "replace"))
    return lines


def fuzz_twins(inputs: int, seed: int, progress: Any = None) -> Outcome:
    """Read ``inputs`` odd lines with both readers; a line on which they differ is a defect."""
    outcome = Outcome("twins")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="twinfocus-fuzz-") as folder:
        left = inputs
        for i, name in enumerate(FORMATS):
            count = left // (len(FORMATS) - i)
            _compare(Path(folder), name, make_lines(name, count, seed), outcome)
            left -= count
            if progress is not None:
                progress(count)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _compare(folder: Path, name: str, lines: list[bytes], outcome: Outcome) -> None:
    path = folder / f"{name}.txt"
    head = [] if name == "long" else [valid_jsonl()] if name == "jsonl" else [header(name)]
    path.write_bytes(b"\n".join([*head, *lines]) + b"\n")
    started = time.perf_counter()
    in_blocks, by_line = _by_blocks(path, FORMATS[name]), _by_line(path, FORMATS[name])
    outcome.slowest = max(outcome.slowest, (time.perf_counter() - started) / len(lines))
    outcome.inputs += len(lines)
    joined: set[int] = set()  # lines of rows that a quoted line break goes through: line by line they are none
    for number, (line, reason, values) in in_blocks.items():
        num_ends = len(re.split("\r\n|\r|\n", line)) - 1
        outcome.accepted += reason is None
        if reason is not None:
            outcome.refused["column" if reason.startswith("column ") else reason] += 1
        if num_ends:
            joined |= set(range(number, number + num_ends + 1))
            continue
        other, others = by_line.get(number, ("no row", []))
        if reason and other and reason.startswith(f"{BADLY_QUOTED}: "):
            continue  # with a word on the escape, whatever the line looks like without it
        if reason != other and not (name == "jsonl" and reason and other):
            _record(outcome, f"{name}: {reason} in blocks, {other} by line", f"{others}", line)
        elif reason is None and values != others:
            _record(outcome, f"{name}: values", f"{values} in blocks, {others} by line", line)
    if lost := by_line.keys() - in_blocks.keys() - joined:
        _record(outcome, f"{name}: rows", f"lines {sorted(lost)[:5]} are no rows in blocks", "")


def header(name: str) -> bytes:
    return LogFormat(**FORMATS[name]).delimiter.join(COLUMNS).encode()


def valid_jsonl() -> bytes:
    return json.dumps(dict.fromkeys(COLUMNS, "a")).encode()


def _record(outcome: Outcome, place: str, message: str, line: str) -> None:
    entry = outcome.defects.setdefault(place, {"count": 0, "message": message[:300], "input": f"{line!r:.2000}"})
    entry["count"] += 1


def _by_blocks(path: Path, log_format: dict[str, Any]) -> dict[int, tuple[str, str | None, list[Any]]]:
    """Number of a row's first line -> (its text, the reason why it is none, its values)."""
    layout, wanted = LogFormat(**log_format), Wanted(COLUMNS, lists=frozenset({"tags"}))
    portions = plan_portions(str(path), path.stat().st_size, layout, _PORTION_BYTES)
    read: list[tuple[list[RawBlock], PortionEnd]] = [_read(portion, layout, wanted) for portion in portions]
    while wrong := misplaced(portions, [end for _, end in read]):
        for place, portion in wrong.items():
            portions[place], read[place] = portion, _read(portion, layout, wanted)
    rows, before = {}, 0
    for blocks, end in read:
        for block in blocks:
            for line in block.rejected:
                rows[line.number + before] = (line.text, line.reason, [])
            values = [block.columns[name].to_pylist() for name in COLUMNS]
            tags = block.lists["tags"].to_pylist() if "tags" in block.lists else [None] * len(block)
            for row, (number, user, tag, click) in enumerate(zip(block.numbers.tolist(), *values, strict=True)):
                found = [user, tag if tags[row] is None else tags[row], click]
                rows[number + before] = (block.lines.text(row), None, found)
        before += end.num_lines
    return rows


def _read(portion: Portion, log_format: LogFormat, wanted: Wanted) -> tuple[list[RawBlock], PortionEnd]:
    reading = read_portion(portion, log_format, wanted)
    return list(reading), reading.end


def _by_line(path: Path, log_format: dict[str, Any]) -> dict[int, tuple[str | None, list[Any]]]:
    rows: dict[int, tuple[str | None, list[Any]]] = {}
    for number, row in read_lines(str(path), LogFormat(**log_format)):
        if isinstance(row, LogError):
            text = str(row)
            known = [reason for start, reason in REASONS.items() if text.startswith(start)]
            rows[number] = (known[0] if known else "wrong number of columns", [])
            continue
        try:
            rows[number] = (None, [_value(row.get(name), name) for name in COLUMNS])
        except ValueError as error:
            rows[number] = (str(error), [])
    return rows


def _value(value: Any, name: str) -> Any:
    """A raw value as the encoder sees it: a text, or the texts of a list where the column may hold one."""
    if isinstance(value, list) and name == "tags":
        return [None if item is None else to_text(item) if item != "" else "" for item in value]
    return to_text(value)
