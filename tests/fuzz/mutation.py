"""Mutation: bytes and trees that are nearly valid, from valid ones; and whatever hypothesis thinks of."""

import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

TOKENS = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\x80",
        b"\x85",
        b"\xa0",
        b"\x1f",
    ),
    *(
        b'"',
        b'""',
        b"'",
        b",",
        b"\t",
        b"::",
        b"|",
        b"\\",
        b"\r",
        b"\n",
        b"\r\n",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"=",
        b"#",
    ),
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-0",
        b"0x10",
        b"1_000",
        b"9" * 400,
        b"null",
        b"true",
        b"[[" * 40,
        b'{"a":' * 40,
    ),
    *(b"../../etc/passwd", b"/etc/passwd", b"C{1..999999999}", b"\\ud800", b"\\u0000", "\u2028é日😀".encode()),
    *(b"[" * 3_000, b'{"a":' * 3_000, b"a" * 140_000),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31 - 1, 2**31, 2**63, 10**30, -(10**30), 10**400, 0.5, -0.0, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        " ",
        "a",
        "\x00",
        "\ud800",
        "x" * 5_000,
        "1",
        "nan",
        "../../x",
        "/etc/passwd",
        ".",
    ),
    *("C{1..3}", "C{1..999999999}", "click >= nan", "hash", "vocabulary", "user", "mlp", "none", [], {}, [[]], [{}]),
    *([0], [None], ["a", "a"], {"a": 1}, {"kind": "log"}, {"kind": "x"}, {"": {}}, list(range(300)), ["names"] * 300),
)


def mutate_bytes(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A few cuts, flips, repetitions and insertions."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 64, 512)))
        kind = rng.randrange(8)
        if kind == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:end] + data[at:end] * rng.choice((1, 2, 20)) + data[end:]
        elif kind == 3:
            # The long ones are rare: they would be most of the time.
            data = data[:at] + rng.choice(TOKENS if rng.random() < 0.02 else TOKENS[:-3]) + data[at:]
        elif kind == 4:
            data = data[:at] if rng.random() < 0.3 else data[:at] + bytes(reversed(data[at:end])) + data[end:]
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data = data[:at] + other[start : start + rng.choice((4, 40, 400))] + data[end:]
        elif kind == 6 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 7:
            data = data[:at] + rng.randrange(2**64).to_bytes(8, "little")[: rng.choice((1, 2, 4, 8))] + data[end:]
    return data


def mutate_in_place(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, none moved: what stands elsewhere by its offset stays where it was."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed))
        changed[at] = rng.choice((changed[at] ^ 1 << rng.randrange(8), rng.randrange(256), 0, 255, 127))
    return bytes(changed)


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """The same tree of dictionaries and lists with a few parts replaced, removed, doubled or moved."""
    tree = deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            return deepcopy(rng.choice(VALUES))
        parent, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind <= 1:
            parent[key] = deepcopy(rng.choice(VALUES))
        elif kind == 2:
            del parent[key]
        elif kind == 3:
            other, place = rng.choice(places)
            parent[key] = deepcopy(other[place])
        elif kind == 4 and isinstance(parent, dict):
            name = rng.choice(("kind", "names", "", "a.b", key + "x", rng.choice(list(parent))))
            parent[name] = parent.pop(key)
        elif kind == 5:
            parent[key] = _wrapped(rng, parent[key])
    return tree


def _wrapped(rng: random.Random, value: Any) -> Any:
    for _ in range(rng.choice((1, 1, 2, 100 if rng.random() < 0.05 else 3))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


JSON_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(VALUES[:40]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def draw(strategy: st.SearchStrategy[Any], count: int, number: int) -> list[Any]:
    """``count`` examples of a hypothesis strategy, the same for the same ``number``."""
    found: list[Any] = []

    @seed(number)
    @settings(
        max_examples=count, phases=[Phase.generate], database=None, deadline=None, suppress_health_check=HealthCheck
    )
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found
