"""TOML texts: strings, lists of names, comments."""

import re
import textwrap
from collections.abc import Iterable

WIDTH = 120
"""Characters of a line."""
_MIN_RUN = 3
"""Numbered names from which on they are written as one, with braces."""


def quoted(text: str) -> str:
    """Write a text as a TOML string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escape(ord(c)) for c in escaped) + '"'


def _escape(code: int) -> str:
    return f"\\u{code:04X}" if code < 1 << 16 else f"\\U{code:08X}"


def text_list(texts: Iterable[str]) -> str:
    """Write texts as a TOML list, on several lines where one is too short."""
    items = [quoted(text) for text in texts]
    line = f"[{', '.join(items)}]"
    if len(line) <= WIDTH - 20:
        return line
    lines = [""]
    for item in items:
        if lines[-1] and len(lines[-1]) + len(item) > WIDTH - 8:
            lines.append("")
        lines[-1] += f"{item}, "
    return "[\n" + "\n".join(f"    {line.rstrip()}" for line in lines) + "\n]"


def shorten(names: Iterable[str]) -> list[str]:
    """Write runs of numbered names with braces: C1, C2, C3 is ``C{1..3}``."""
    found: list[tuple[str, int, int, str]] = []
    for name in names:
        match = re.fullmatch(r"(.*?)(0|[1-9]\d{0,8})", name)
        head, number = (match[1], int(match[2])) if match else (name, -1)
        if match and found and found[-1][0] == head and found[-1][2] + 1 == number:
            found[-1] = (head, found[-1][1], number, name)
        else:
            found.append((head, number, number, name))
    texts: list[str] = []
    for head, first, last, name in found:
        if last - first + 1 >= _MIN_RUN:
            texts.append(f"{head}{{{first}..{last}}}")
        else:
            texts += [name] if first < 0 else [f"{head}{number}" for number in range(first, last + 1)]
    return texts


def comment(text: str, indent: str = "") -> list[str]:
    """Write a text as comment lines."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return textwrap.wrap(plain, WIDTH, initial_indent="# ", subsequent_indent=f"# {indent}", break_on_hyphens=False)
