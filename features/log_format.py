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

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", expand_names(self.columns))
        object.__setattr__(self, "optional", expand_names(self.optional))
        is_delimited = self.kind in ("csv", "tsv")
        if is_delimited and self.header == bool(self.columns):
            raise ValueError("a csv or tsv log has either header = true or a list of columns")
        _check_encoding(self.encoding)
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
