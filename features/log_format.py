"""LogFormat: what a raw log looks like, as the config says it; and LogError, what is raised where a log differs."""

from typing import Literal

from pydantic.dataclasses import dataclass

from features.schema import STRICT, expand_names

MAX_LINE = 1 << 24
"""Longest line in characters: an endless one, which a gzip file of a few kilobytes may hold, would fill the memory."""
TOO_LONG = f"longer than {MAX_LINE} characters"


class LogError(ValueError):
    """A raw log cannot be read; the message names the file and, where it can, the line."""


@dataclass(frozen=True, config=STRICT)
class Candidates:
    """A list in each row of the log whose items are rows of the model: what was shown on a page, and what was clicked.

    A candidate has all columns of the log's row, and those that are named here.
    """

    column: str
    """Raw column of the list: text that is split, or an array."""
    name: str
    """Raw column that is made: the candidate's value."""
    separator: str = " "
    """Text between two candidates, and between two clicks; arrays are taken as they are."""
    label: str | None = None
    """Raw column that is made: the candidate's label. None: there is none."""
    label_separator: str | None = None
    """Text between a candidate's value and its label, a number; behind the last one is the label. A log to score may
    leave it out together with the label, in whole lists."""
    clicked: str | None = None
    """Raw column of the clicked candidates, text or an array: they have label 1, others 0. None: see
    ``label_separator``."""
    list_id: str = "list_id"
    """Raw column of the list's id: the log's own, or made of file and place where the log has none."""
    position: str = "position"
    """Raw column that is made: the candidate's place in its list, from 1."""

    def __post_init__(self) -> None:
        if not self.separator or self.label_separator == "":
            raise ValueError("separator and label_separator cannot be empty")
        if self.label_separator is not None and self.clicked is not None:
            raise ValueError("labels are behind label_separator or in the column clicked: give one of them")
        if (self.label is not None) != (self.label_separator is not None or self.clicked is not None):
            raise ValueError(
                "a label is a name and a source: give label, and label_separator or clicked; or none of the three"
            )
        names = [self.column, self.clicked, self.name, self.label, self.list_id, self.position]
        names = [name for name in names if name is not None]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two of its columns have one name: {', '.join(twice)}")

    @property
    def made_columns(self) -> frozenset[str]:
        """Raw columns that candidates have and the log has not, or need not have."""
        return frozenset(name for name in (self.name, self.label, self.list_id, self.position) if name is not None)


@dataclass(frozen=True, config=STRICT)
class LogFormat:
    """Layout of raw log files. Compression is told from the name and the first bytes (gzip, bzip2, zstd, lz4)."""

    kind: Literal["csv", "tsv", "jsonl", "parquet", "orc", "delta", "libffm"] = "csv"
    separator: str | None = None
    """Separator of columns (csv and tsv), one or more characters. None: a comma or a tab."""
    header: bool = True
    """Whether the first line of every file names the columns (csv and tsv)."""
    columns: tuple[str, ...] = ()
    """Columns in file order (csv and tsv without a header); ``"C{1..26}"`` stands for C1 to C26."""
    quote: str | None = None
    """Quote character (csv and tsv); None: a double quote for csv and none for tsv; "": none."""
    escape: str | None = None
    """Character that takes away the meaning of the one behind it, inside quotes alone (csv and tsv): a backslash for
    logs that Spark wrote. A doubled quote stands for one quote with it and without it."""
    encoding: str = "UTF-8"
    """Encoding of text, by any name that Python knows: GBK, cp1252, UTF-16."""
    null_values: tuple[str, ...] = ()
    """Texts that mean missing, besides the empty text."""
    optional: tuple[str, ...] = ()
    """Columns, or keys of JSON lines, that older or quieter files may lack: they are missing in all rows of these."""
    candidates: Candidates | None = None
    """List in each row whose items are the rows of the dataset. None: a row of the log is a row of the dataset."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", expand_names(self.columns))
        object.__setattr__(self, "optional", expand_names(self.optional))
        is_delimited = self.kind in ("csv", "tsv")
        if is_delimited and self.header == bool(self.columns):
            raise ValueError("a csv or tsv log has either header = true or a list of columns")
        _check_encoding(self.encoding)
        if self.candidates is not None and self.kind == "libffm":
            raise ValueError("a libffm log has no lists of candidates: leave candidates out")
        if is_delimited:
            self._check_characters()

    def _check_characters(self) -> None:
        quote = self.quote_character
        if set("\r\n") & set(self.delimiter + quote + (self.escape or "")):
            raise ValueError("separator, quote and escape cannot be ends of lines")
        if len(quote) > 1:
            raise ValueError(f"quote is one character, or empty for none, got {quote!r}")
        if quote and quote in self.delimiter:
            raise ValueError(f'quote and separator must differ, both have {quote!r}: set quote = "" for none')
        if self.escape is None:
            return
        if not quote or len(self.delimiter) > 1:
            raise ValueError("escape works inside quotes: it needs a quote, and a separator of one character")
        if len(self.escape) != 1 or self.escape in (quote, self.delimiter):
            raise ValueError(f"escape is one character besides quote and separator, got {self.escape!r}")

    @property
    def is_text(self) -> bool:
        """Tell whether the files are lines of text; others hold columns with names and types."""
        return self.kind not in ("parquet", "orc", "delta")

    @property
    def has_header(self) -> bool:
        """Tell whether the first line of every file names the columns."""
        return self.kind in ("csv", "tsv") and self.header

    @property
    def delimiter(self) -> str:
        """Text between columns of a csv or tsv file."""
        return self.separator or ("\t" if self.kind == "tsv" else ",")

    @property
    def quote_character(self) -> str:
        """One quote character, or the empty text for none."""
        if self.quote is not None:
            return self.quote
        return '"' if self.kind == "csv" else ""


def _check_encoding(encoding: str) -> None:
    try:
        "a".encode(encoding)
    except (LookupError, ValueError):  # LookupError too for what is no encoding of text (rot13, hex)
        raise ValueError(
            f'encoding {encoding!r} is none that Python has: "UTF-8", "GBK", "cp1252", "UTF-16", say'
        ) from None


@dataclass(frozen=True, config=STRICT)
class Lookup:
    """A small side table joined to every raw row (users.dat onto ratings.dat, say)."""

    path: str
    """Path of the side table, looked for as given, then beside the log file that is being read."""
    key: str
    """Column that both the log and the side table have; unique in the side table."""
    format: LogFormat

    def __post_init__(self) -> None:
        if self.format.candidates is not None:
            raise ValueError("a lookup's table has a row a key: leave format.candidates out")
