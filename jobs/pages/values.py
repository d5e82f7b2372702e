"""Values of pages: formatted numbers, percentages, marks, and tables of them."""

from collections.abc import Iterable, Sequence
from typing import Any


class Written(str):
    """Number that is written already, such as a percentage: text that is aligned like a number."""


class Mark(str):
    """Word with a tone, which gives it a colour.

    Attributes:
        tone: ``good``, ``fair`` or ``bad``; empty: no colour.
    """

    tone: str

    def __new__(cls, word: str, tone: str) -> "Mark":
        """Make a word with its tone."""
        made = super().__new__(cls, word)
        made.tone = tone
        return made


class Table:
    """Table of a page.

    Attributes:
        header: name of each column.
        rows: values of each row, a ``Mark`` among them where a word has a tone.
        is_numeric: whether each column holds a number, and so is aligned to the right.
    """

    def __init__(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Lay out rows under a header.

        Raises:
            ValueError: a row has another number of values than the header.
        """
        self.header = list(header)
        self.rows = [list(row) for row in rows]
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"a row does not have the {len(self.header)} columns {', '.join(self.header)}")
        self.is_numeric = [any(_is_number(row[i]) for row in self.rows) for i in range(len(self.header))]


def percent(share: float | None) -> Written | None:
    """Write a share as a percentage; None stays None."""
    return None if share is None else Written(f"{100 * share:.2f} %")


def shown(value: Any) -> str:
    """Write a value for a reader: thousands separators, six significant digits, a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def _is_number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or isinstance(value, Written)
