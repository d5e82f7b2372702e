"""JSON lines: the readers against ``json.loads`` line by line, whatever the portions and steps."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from features.log_format import LogError, LogFormat
from features.raw_block import Wanted
from features.read.json_lines import MAX_DEPTH, NOT_JSON, quote_bare_values
from features.rows import RowError
from tests.features.read.whole import CUTS, read_blocks, read_whole
from tests.oracles import row_reader as rawlog
from tests.oracles.row_encoder import to_number

WANTED = Wanted(("a", "n", "l", "u.i"), numbers=frozenset("n"), lists=frozenset("l"))
SAME_FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

TEXTS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(
        ["", "x", "NaN", " Infinity", '"', "\\", '\\"', "{", "}", "[1]", "1.50", ":1,", "\ud800", "-0", "NA"]
    ),
)
NUMBERS = st.sampled_from(
    [
        "0",
        "-0",
        "1",
        "1.50",
        "1e5",
        "-2E+3",
        "12345678901234567890",
        "1e400",
        "3.5e38",
        "NaN",
        "-Infinity",
        "01",
        "1.",
        "+1",
    ]
)
SCALARS = st.one_of(
    TEXTS.map(json.dumps),
    TEXTS.map(lambda text: json.dumps(text, ensure_ascii=False).encode("utf-8", "replace").decode()),
    NUMBERS,
    st.integers().map(str),
    st.sampled_from(["true", "false", "null", "nul", "tru", "'x'"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.lists(st.tuples(st.sampled_from(["a", "i", "u"]), inner), max_size=2).map(
            lambda items: "{" + ",".join(f'"{key}": {value}' for key, value in items) + "}"
        ),
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(["a", "n", "l", "u", "u.i", "z", "\\u0061"])
OBJECTS = st.lists(st.tuples(KEYS, VALUES), max_size=4).map(
    lambda items: "{" + ",".join(f'"{key}" :{value}' for key, value in items) + "}"
)
GOOD = st.builds(
    lambda a, n, items, i: json.dumps({"a": a, "n": n, "l": items, "u": {"i": i}}),
    st.one_of(st.text(max_size=3), st.none()),
    st.one_of(st.integers(-9, 10**19), st.floats(-1e9, 1e9)),
    st.lists(st.text(max_size=2), max_size=3),
    st.integers(0, 99),
)
WHOLE_LINES = st.one_of(
    OBJECTS,
    OBJECTS,
    GOOD,
    GOOD,
    GOOD,
    st.sampled_from(
        ["", " ", "\v", "\x0c ", "{}", "[1]", "{", "}", "{}{}", "{} {}", '{"a": 1', '{"a": {}', "x", "\ufeff{}"]
    ),
    st.text(alphabet='{}[]",:1a\\ \r\t\0', max_size=12),
)
LINES = st.lists(WHOLE_LINES, max_size=12).map("\n".join)


def text_of(value: Any) -> str | None:
    text = ("true" if value else "false") if isinstance(value, bool) else value
    return text or None


def expect(path: Path) -> tuple[list, list]:
    """Rows and rejected lines by the old reader, its values as texts."""
    rows, rejected = [], []
    for number, row in rawlog._read_jsonl(str(path), LogFormat("jsonl")):
        if isinstance(row, LogError):
            rejected.append((number, str(row)))
            continue
        inner = row.get("u")
        nested = inner.get("i") if isinstance(inner, dict) else None
        values = {name: row.get(name) for name in ("a", "n", "l")}
        values["u.i"] = nested if row.get("u.i") is None else row["u.i"]
        twice = {name: row.is_twice(name) for name in ("a", "n", "l")}
        twice["u.i"] = row.is_twice("u.i") or row.is_twice("u") or (isinstance(inner, dict) and inner.is_twice("i"))
        if any(twice.values()):
            rejected.append((number, f"key {next(name for name, is_so in twice.items() if is_so)!r} is there twice"))
            continue
        reason = None
        for name, value in values.items():
            if isinstance(value, dict) or (isinstance(value, list) and name != "l"):
                reason = f"column {name!r} is neither text nor a number"
            elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
                reason = f"column {name!r} holds an array or an object within an array"
            if reason:
                break
        if reason:
            rejected.append((number, reason))
            continue
        texts = {name: None if isinstance(value, list) else text_of(value) for name, value in values.items()}
        if isinstance(values["l"], list):
            texts["l"] = [None if v is None else {True: "true", False: "false"}.get(v, v) for v in values["l"]]
        rows.append((number, texts))
    return rows, rejected


def as_numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the float of its number, where it has one."""
    try:
        number = to_number(row["n"])
    except RowError:
        number = row["n"]
    return {**row, "n": number}


def short(found) -> tuple[list, list]:
    rows, rejected = found
    return [(number, values) for number, _, _, values in rows], [(number, reason) for number, _, _, reason in rejected]


def comparable(found) -> tuple[list, list]:
    rows, rejected = found
    return [(number, as_numbers(values)) for number, values in rows], rejected


@settings(SAME_FOLDER, max_examples=300)
@given(text=LINES)
@example('{"a":NaN}\n{"a":1}')
@example('{"a":1}\n{"a":"\\ud800"}\n{"a":-0}')
@example('{"n":1}\n{"n":"x"}\n{"n":1.5}')
@example('{"u.i":"", "u": {"i": 5}}')
@example('{"a":"1","a":"2"}\n{"a":"3"}')
@example('{"a":"1"}\n{"u":{"i":1,"i":2}}\n{"z":1,"z":2,"a":"x"}\n{"a":"\\ud800","u":{},"u":{}}')
def test_rows_are_those_of_python_whatever_the_cuts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode("utf-8", "replace"))
    found = read_whole(path, LogFormat("jsonl"), WANTED)
    assert comparable(short(found)) == comparable(expect(path))
    data = path.read_bytes()
    for number, offset, line, _ in found[0]:
        assert data[offset:].startswith(line.encode()), (number, offset)
    for cut in CUTS[1:]:
        again = read_whole(path, LogFormat("jsonl"), WANTED, *cut)
        assert comparable(short(again)) == comparable(short(found))
        assert [row[:3] for row in again[0]] == [row[:3] for row in found[0]] and again[1] == found[1]


def test_a_long_log_with_damage_here_and_there(tmp_path: Path) -> None:
    choose = random.Random(1)
    lines = []
    for i in range(30_000):
        row = {"a": f"v{i % 97}", "n": i, "l": [f"t{i % 5}"], "u": {"i": i}}
        line = json.dumps(row)
        if choose.random() < 0.001:
            line = choose.choice([line[:-2] + "}", "{}" + line, line.replace('"n"', '"n": NaN, "m"'), line[5:]])
        lines.append(line)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    [(_, block)] = read_blocks(path, LogFormat("jsonl"), WANTED)
    assert pa.types.is_floating(block.columns["n"].type) and len(block) > 29_000
    assert comparable(short(read_whole(path, LogFormat("jsonl"), WANTED))) == comparable(expect(path))


@pytest.mark.parametrize(
    ("values", "kind"),
    [(["1", "2.5"], "double"), (["1", "null"], "double"), (["1", '"2"'], "string"), (["1", "1e39"], "string")],
)
def test_numbers_are_floats_where_all_of_a_step_are(tmp_path: Path, values: list[str], kind: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"n": {value}}}\n' for value in values))
    [(_, block)] = read_blocks(path, LogFormat("jsonl"), Wanted(("n",), numbers=frozenset("n")))
    assert str(block.columns["n"].type) == kind


def test_null_values_are_texts_of_numbers_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": -1, "a": "NA"}\n{"n": -1.0, "a": "b"}\n{"n": 2, "a": ""}\n')
    rows, _ = read_whole(path, LogFormat("jsonl", null_values=("-1", "NA")), Wanted(("n", "a"), frozenset("n")))
    assert [row for *_, row in rows] == [{"n": None, "a": None}, {"n": "-1.0", "a": "b"}, {"n": "2", "a": None}]


def test_keys_that_no_line_of_a_block_has_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": null, "u": {"i": 1, "x": null}, "v": {"b": 1}}\n')
    [(_, block)] = read_blocks(
        path, LogFormat("jsonl"), Wanted(("a", "b", "u.i", "u.x", "u.y", "l"), lists=frozenset("l"))
    )
    assert block.absent == ("b", "u.y", "l")


def test_a_column_and_one_within_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"u": 1}\n{"u": {"i": 2}}\n{"u": null, "u.i": 3}\n')
    rows, rejected = read_whole(path, LogFormat("jsonl"), Wanted(("u", "u.i")))
    assert [row for *_, row in rows] == [{"u": "1", "u.i": None}, {"u": None, "u.i": "3"}]
    assert [reason for *_, reason in rejected] == ["column 'u' is neither text nor a number"]


@pytest.mark.parametrize(("depth", "is_row"), [(MAX_DEPTH - 1, True), (MAX_DEPTH, False), (10**6, False)])
def test_deep_lines_are_refused_at_one_depth(tmp_path: Path, depth: int, is_row: bool) -> None:
    path = tmp_path / "a.jsonl"
    for opening, closing in (("[", "]"), ('{"b":', "}")):
        deep = '{"b":' + opening * depth + "1" + closing * depth + ',"a":1'
        many = '{"b":[' + ",".join(["[1]"] * 300) + '],"a":"]"}'
        path.write_text(f'{deep}}}\n{deep}, "c":"\\ud800"}}\n{many}\n')
        rows, rejected = read_whole(path, LogFormat("jsonl"), Wanted(("a",)))
        assert [number for number, *_ in rows] == ([1, 2, 3] if is_row else [3])
        assert all(reason == NOT_JSON for *_, reason in rejected)


@settings(deadline=None)
@given(st.lists(st.one_of(GOOD, OBJECTS), min_size=1, max_size=4).map("\n".join))
def test_quoting_bare_values(text: str) -> None:
    data = text.encode("utf-8", "replace")
    quoted = quote_bare_values(data)
    for line, changed in zip(data.split(b"\n"), (quoted or b"").split(b"\n"), strict=quoted is not None):
        try:
            expected = json.loads(line, parse_int=str, parse_float=str, parse_constant=refuse)
        except ValueError:
            continue
        if quoted is not None:
            assert json.loads(changed) == texts_in(expected)


def refuse(name: str) -> None:
    raise ValueError(name)


def texts_in(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: texts_in(item) for key, item in value.items()}
    if isinstance(value, list):
        return [texts_in(item) for item in value]
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else value


@pytest.mark.parametrize("bare", ["0", "-1.5", "true"])
@pytest.mark.parametrize("space", ["", " ", "\t "])
def test_a_bare_name_is_no_member(tmp_path: Path, bare: str, space: str) -> None:
    """Quotes around all bare values would make a name of it, where another line has made them necessary."""
    lines = ['{"a": "x"}', '{"a": 1 }', '{"a": 2 , "b": 1}', f'{{"a": 3, {bare}{space}: 1}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), newline="")
    rows, rejected = read_whole(tmp_path / "a.jsonl", LogFormat("jsonl"), Wanted(("a",)))
    assert [row[0] for row in rows] == [1, 2, 3]
    assert [reason for *_, reason in rejected] == [NOT_JSON]
