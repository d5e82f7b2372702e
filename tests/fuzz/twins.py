"""Twins: the same odd lines through Spark and through Python must be rejected alike and hold the same values.

All lines of a format are one file and one Spark job, and every line counts as an input.
"""

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from features.encoding import to_text
from features.rawlog import LogError, LogFormat, read_lines
from jobs.cli.config import parse_config
from tests.fuzz.campaign import Outcome
from tests.fuzz.mutation import draw, mutate_bytes

FORMATS: dict[str, dict[str, Any]] = {
    "csv": {"kind": "csv"},
    "tsv": {"kind": "tsv", "null_values": ["NA"]},
    "pipes": {"kind": "csv", "separator": "|", "quote": "'"},
    "long": {"kind": "csv", "separator": "::", "quote": "", "header": False, "columns": ["user", "tags", "click"]},
    "latin": {"kind": "csv", "encoding": "ISO-8859-1"},
    "jsonl": {"kind": "jsonl"},
}
FEATURES = {
    "label": "click",
    "sparse": [
        {"name": "user", "encoding": {"kind": "hash", "num_buckets": 9}},
        {"name": "tags", "separator": "|", "encoding": {"kind": "hash", "num_buckets": 9}},
    ],
}
COLUMNS = ("user", "tags", "click")
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


def fuzz_twins(inputs: int, seed: int, progress: Any = None, spark: Any = None) -> Outcome:
    """Read ``inputs`` odd lines with both readers; a line on which they differ is a defect.

    Args:
        spark: a session; None: one of its own, with a gigabyte.
    """
    outcome = Outcome("spark")
    started = time.perf_counter()
    own = spark is None
    if own:
        from pipeline.config import SparkConfig
        from pipeline.session import size_shuffles, start_spark

        spark = start_spark(SparkConfig(master="local[2]", driver_memory="1g"))
        size_shuffles(spark, 0)
    with tempfile.TemporaryDirectory(prefix="twinfocus-fuzz-") as folder:
        left = inputs
        for i, name in enumerate(FORMATS):
            count = left // (len(FORMATS) - i)
            _compare(spark, Path(folder), name, make_lines(name, count, seed), outcome)
            left -= count
            if progress is not None:
                progress(count)
    if own:
        spark.stop()
    outcome.seconds = time.perf_counter() - started
    return outcome


def _compare(spark: Any, folder: Path, name: str, lines: list[bytes], outcome: Outcome) -> None:
    path = folder / f"{name}.txt"
    head = [] if name == "long" else [valid_jsonl()] if name == "jsonl" else [header(name)]
    path.write_bytes(b"\n".join([*head, *lines]) + b"\n")
    started = time.perf_counter()
    in_spark, in_python = _by_spark(spark, path, FORMATS[name]), _by_python(path, FORMATS[name])
    outcome.slowest = max(outcome.slowest, (time.perf_counter() - started) / len(lines))
    outcome.inputs += len(lines)
    if len(in_spark) != len(in_python):
        _record(outcome, f"{name}: rows", f"{len(in_spark)} in Spark, {len(in_python)} in Python", "")
    for (line, spark_reason, spark_values), (python_reason, python_values) in zip(in_spark, in_python, strict=False):
        outcome.accepted += spark_reason is None
        if spark_reason is not None:
            outcome.refused["column" if spark_reason.startswith("column ") else spark_reason] += 1
        if spark_reason != python_reason and not (name == "jsonl" and spark_reason and python_reason):
            _record(outcome, f"{name}: {spark_reason} in Spark, {python_reason} in Python", f"{python_values}", line)
        elif spark_reason is None and spark_values != python_values:
            _record(outcome, f"{name}: values", f"{spark_values} in Spark, {python_values} in Python", line)


def header(name: str) -> bytes:
    return LogFormat(**FORMATS[name]).delimiter.join(COLUMNS).encode()


def valid_jsonl() -> bytes:
    return json.dumps(dict.fromkeys(COLUMNS, "a")).encode()


def _record(outcome: Outcome, place: str, message: str, line: str) -> None:
    entry = outcome.defects.setdefault(place, {"count": 0, "message": message[:300], "input": f"{line!r:.2000}"})
    entry["count"] += 1


def _by_spark(spark: Any, path: Path, log_format: dict[str, Any]) -> list[tuple[str, str | None, list[Any]]]:
    from pipeline.build.ingest import LINE, REASON, ROW_ID, listed, raw, read_logs

    from pipeline.build.sources import plan_sources

    pipeline = {"output": "x", "input": {"train": str(path), "format": log_format}}
    config = parse_config({"features": FEATURES, "pipeline": pipeline, "training": {"dataset": "x"}})
    [frame] = read_logs(spark, config.pipeline, config.features, plan_sources(config.pipeline, config.features))
    lists = [f"`{listed('tags')}`"] if listed("tags") in frame.columns else []
    columns = [f"`{raw(name)}`" for name in COLUMNS]
    rows = []
    for line, reason, user, tags, click, *more in (
        frame.orderBy(ROW_ID).select(LINE, REASON, *columns, *lists).collect()
    ):
        tags = more[0] if more and more[0] is not None else tags
        rows.append((line, reason, [user, tags, click]))
    return rows


def _by_python(path: Path, log_format: dict[str, Any]) -> list[tuple[str | None, list[Any]]]:
    rows: list[tuple[str | None, list[Any]]] = []
    for _, row in read_lines(str(path), LogFormat(**log_format)):
        if isinstance(row, LogError):
            text = str(row)
            known = [reason for start, reason in REASONS.items() if text.startswith(start)]
            rows.append((known[0] if known else "wrong number of columns", []))
            continue
        try:
            rows.append((None, [_value(row.get(name), name) for name in COLUMNS]))
        except ValueError as error:
            rows.append((str(error), []))
    return rows


def _value(value: Any, name: str) -> Any:
    """A raw value as the encoder sees it: a text, or the texts of a list where the column may hold one."""
    if isinstance(value, list) and name == "tags":
        return [None if item is None else to_text(item) if item != "" else "" for item in value]
    return to_text(value)
