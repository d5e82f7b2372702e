"""FeatureSchema: what each feature is made of, declared once in the TOML config and read by both halves.

Everything that decides which id or float a raw value becomes is in this file's dataclasses, so their fingerprint is
the identity of a dataset, of a run and of an artifact.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import field, fields
from functools import cached_property
from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field, FiniteFloat
from pydantic.dataclasses import dataclass

from features.dwell import DWELL_BOUNDARIES
from features.fingerprint import MODEL_CHOICE, departures, digest, fingerprint_version_1, is_model_choice
from features.history import LABELLED, History
from features.kinds import (
    BAG_KIND,
    DENSE_KIND,
    ROW_COLUMNS,
    SEQUENCE_KIND,
    SINGLE_KIND,
    Column,
    Dense,
    SingleValued,
)

ENCODING_VERSION = 1
"""Version of the encodings' meaning; a new one makes old datasets be refused instead of misread."""

RESERVED_NAMES = tuple(ROW_COLUMNS)
MAX_TABLE_ROWS = 2**31 - 1

STRICT = ConfigDict(extra="forbid")
"""Pydantic config of every config dataclass: unknown keys are refused."""

MAX_EXPANDED_NAMES = 10_000
"""Largest number of names that one pair of braces may stand for."""

_BRACES = re.compile(r"^(.*)\{(\d{1,9})\.\.(\d{1,9})\}(.*)$")


def expand_names(names: Iterable[str]) -> tuple[str, ...]:
    """Expand ``"C{1..26}"`` to C1, C2, ... C26; names without braces stay as they are.

    Raises:
        ValueError: more names than any log has columns.
    """
    expanded: list[str] = []
    for name in names:
        match = _BRACES.match(name)
        if match is None:
            expanded.append(name)
        else:
            head, first, last, tail = match.groups()
            numbers = range(int(first), int(last) + 1)
            if len(numbers) > MAX_EXPANDED_NAMES:
                raise ValueError(f"{name!r} stands for {len(numbers)} names: at most {MAX_EXPANDED_NAMES} are allowed")
            expanded += [f"{head}{i}{tail}" for i in numbers]
    return tuple(expanded)


def _shown(names: list[str]) -> str:
    """Join names for a message; half a surrogate pair, as JSON may hold, is escaped to be printable."""
    return ", ".join(names).encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, config=STRICT)
class HashEncoding:
    """Id = 1 + xxhash64(salt, value) mod (num_buckets - 1); a missing value is id 0."""

    num_buckets: Annotated[int, Field(ge=2, le=MAX_TABLE_ROWS)]
    salt: str | None = None
    """Text hashed before the value; None: the name of the feature's table."""
    kind: Literal["hash"] = "hash"


@dataclass(frozen=True, config=STRICT)
class VocabularyEncoding:
    """Ids 1..n for the n values kept from the training split, in byte order; n + 1 for any other or a missing value.

    A dataset that goes on with another (pipeline.base) gives its new values ids behind that.
    """

    min_count: Annotated[int, Field(ge=1)] = 1
    max_size: Annotated[int, Field(ge=1)] | None = None
    """Largest number of values kept, the most frequent first, ties in byte order; None: no limit."""
    kind: Literal["vocabulary"] = "vocabulary"


@dataclass(frozen=True, config=STRICT)
class BoundariesEncoding:
    """A number's id = 1 + how many boundaries are at or below it; a missing value is id 0."""

    boundaries: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
    kind: Literal["boundaries"] = "boundaries"

    def __post_init__(self) -> None:
        if any(a >= b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError(f"boundaries must rise strictly, got {list(self.boundaries)}")


@dataclass(frozen=True, config=STRICT)
class QuantilesEncoding:
    """Buckets like ``boundaries``, with the boundaries at the training split's quantiles (equal ones merged)."""

    num_buckets: Annotated[int, Field(ge=2, le=10_000)]
    kind: Literal["quantiles"] = "quantiles"


@dataclass(frozen=True, config=STRICT)
class LogEncoding:
    """Buckets like ``boundaries``, with the boundaries at 1, base, base^2, ... base^(num_buckets - 2)."""

    num_buckets: Annotated[int, Field(ge=2, le=1_000)] = 32
    base: Annotated[FiniteFloat, Field(gt=1)] = 2.0
    kind: Literal["log"] = "log"

    def __post_init__(self) -> None:
        if (self.num_buckets - 2) * math.log(self.base) >= math.log(sys.float_info.max):
            raise ValueError(f"{self.base}^{self.num_buckets - 2}, the last boundary, is too large: take fewer buckets")

    @property
    def boundaries(self) -> tuple[float, ...]:
        """Return 1, base, base^2, ... base^(num_buckets - 2)."""
        return tuple(self.base**i for i in range(self.num_buckets - 1))


@dataclass(frozen=True, config=STRICT)
class LogSquaredEncoding:
    """The Criteo rule: floor(ln(v)^2) for v > 2, else v truncated, then a vocabulary of these tokens.

    A missing value counts as 0, and 0 is kept out of the vocabulary: both take the out-of-vocabulary id
    (FuxiCTR's tokenizer, which TF4CTR's Criteo runs used).
    """

    min_count: Annotated[int, Field(ge=1)] = 1
    max_size: Annotated[int, Field(ge=1)] | None = None
    kind: Literal["log_squared"] = "log_squared"


Encoding = Annotated[
    HashEncoding | VocabularyEncoding | BoundariesEncoding | QuantilesEncoding | LogEncoding | LogSquaredEncoding,
    Field(discriminator="kind"),
]

TEXT_KINDS = ("hash", "vocabulary")
"""Encodings of a value's text; the others read a number."""
VOCABULARY_KINDS = ("vocabulary", "log_squared")
"""Encodings whose ids come from a vocabulary learnt on the training split."""
BUCKET_KINDS = ("boundaries", "quantiles", "log")
"""Encodings that count boundaries."""


@dataclass(frozen=True, config=STRICT)
class SparseFeature:
    """One id (or a bag of ids) a row, looked up in an embedding table."""

    name: str
    encoding: Encoding
    columns: tuple[str, ...] = ()
    """Raw columns; empty: the one named like the feature. Two or more make a cross, which is always hashed."""
    separator: str | None = None
    """Separator that splits the text into several values; None: single-valued."""
    max_length: Annotated[int, Field(ge=1, le=4096)] = 16
    """Number of values kept a row (multi-valued only), the first ones; the statistics count the rest."""
    pooling: Literal["mean", "sum"] = field(default="mean", metadata=MODEL_CHOICE)
    """Pooling of a row's embeddings to one vector (multi-valued only)."""
    table: str | None = None
    """Table that the ids are looked up in: features that name one table share its rows, a vocabulary that is learnt
    from the values of all of them, and a hash's default salt. They need one encoding. None: the feature's own name."""
    embedding_dim: Annotated[int, Field(ge=1)] | None = field(default=None, metadata=MODEL_CHOICE)
    """Width of the table, in proportion for the easy stream; other widths than the model's are projected to it by a
    matrix without bias. None: model.embedding_dim."""

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(self, "columns", (self.name,))
        if len(self.columns) > 1 and (self.encoding.kind != "hash" or self.separator is not None):
            raise ValueError(f"feature {self.name!r} crosses {list(self.columns)}: a cross is hashed and single-valued")
        if self.separator is not None and (not self.separator or self.encoding.kind not in TEXT_KINDS):
            raise ValueError(
                f"feature {self.name!r} is multi-valued: it needs a separator and a hash or vocabulary encoding"
            )

    @property
    def splitting(self) -> dict[str, str]:
        """Return how text is split into values, as a config says it; empty where a text is one value."""
        return {"separator": self.separator} if self.separator else {}

    @property
    def source(self) -> str:
        """Describe the raw columns that the values come from."""
        return " x ".join(self.columns) + (f" split at {self.separator!r}" if self.separator else "")

    @property
    def kind(self) -> SingleValued:
        """Return the feature's kind: its form in files, batches and tables."""
        return SINGLE_KIND if self.separator is None else BAG_KIND

    @property
    def salt(self) -> str:
        """Return the text hashed before the value; only a hashed feature has one."""
        assert isinstance(self.encoding, HashEncoding)
        return self.table_name if self.encoding.salt is None else self.encoding.salt

    @property
    def table_name(self) -> str:
        """Return the name of the table that the ids are looked up in."""
        return self.name if self.table is None else self.table

    @property
    def learnt_name(self) -> str:
        """Return the feature whose learnt state the ids come from: itself."""
        return self.name


@dataclass(frozen=True, config=STRICT)
class DenseFeature:
    """One float a row: fill, then clip, then log1p, then standardise."""

    name: str
    column: str | None = None
    """Raw column; None: the one named like the feature."""
    fill: float = 0.0
    """Number that replaces a missing value; the steps below apply to it too."""
    clip: tuple[float, float] | None = None
    log1p: bool = False
    """Whether to take sign(v) * ln(1 + |v|), which is log1p for v >= 0 and also defined for v < 0."""
    standardise: bool = False
    """Whether to subtract the training split's mean and divide by its standard deviation."""

    def __post_init__(self) -> None:
        if self.column is None:
            object.__setattr__(self, "column", self.name)
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"feature {self.name!r}: clip needs low < high, got {list(self.clip)}")
        if not math.isfinite(self.fill):
            raise ValueError(f"feature {self.name!r}: fill must be finite")

    @property
    def source(self) -> str:
        """Return the raw column."""
        assert self.column is not None
        return self.column

    @property
    def steps(self) -> str:
        """Describe the transformations of a number."""
        steps = [self.clip and f"clip {self.clip[0]:g} to {self.clip[1]:g}", self.log1p and "log1p"]
        return ", ".join(s for s in [*steps, self.standardise and "standardise"] if s) or "as it is"

    @property
    def kind(self) -> Dense:
        """Return the feature's kind: its form in files and batches."""
        return DENSE_KIND


@dataclass(frozen=True, config=STRICT)
class SequenceFeature:
    """A row's history: events, newest first, each with an id of every part and, with gaps, a bucket of its age.

    With ``dwell_weights`` an event has a bucket of its dwell time as well.
    """

    name: str
    parts: Annotated[tuple[str, ...], Field(min_length=1)]
    """Single-valued sparse features that each event has an id of; it is encoded as theirs and looked up in their
    table."""
    max_length: Annotated[int, Field(ge=1, le=4096)]
    """Number of events kept a row, the newest ones."""
    gaps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Rising boundaries, in seconds, of the time between an event and its row; their buckets have a small table of
    their own. Empty: times are not used."""
    columns: dict[str, str] = field(default_factory=dict)
    """Part -> raw column of its values, one list a row; a part that is not named reads NAME__PART. ``time`` and
    ``dwell`` stand for the events' times (gaps) and dwell times (dwell_weights)."""
    separator: str = " "
    """Separator that splits text into values; lists are taken as they are."""
    newest: Literal["first", "last"] | None = None
    """End of a raw list where the newest event is; files always have the newest first. None: a built history's,
    ``first``."""
    history: History | None = None
    """Rule by which the build makes the history of earlier rows; None: the log has it."""
    dwell_weights: bool = False
    """Whether events count by how long their user stayed: the seconds are in the column NAME__dwell, or in that of a
    built history's dwell filter."""

    def __post_init__(self) -> None:
        said = f"sequence {self.name!r}"
        twice = sorted(part for part, count in Counter(self.parts).items() if count > 1)
        if twice:
            raise ValueError(f"{said} has parts twice: {_shown(twice)}")
        if any(a >= b for a, b in zip(self.gaps, self.gaps[1:], strict=False)):
            raise ValueError(f"{said}: gaps must rise strictly, got {list(self.gaps)}")
        if not self.separator:
            raise ValueError(f"{said}: separator is empty; it splits text into values, as ' ' does")
        if unknown := sorted(set(self.columns) - set(self.parts) - set(self._extras)):
            raise ValueError(f"{said}: columns names {_shown(unknown)}, which are none of its parts")
        raw = Counter(self.raw_lists)
        if twice := sorted(name for name, count in raw.items() if count > 1):
            raise ValueError(f"{said} reads two things from one raw column: {_shown(twice)}")
        if self.history is None and self.newest is None:
            raise ValueError(f'{said}: say with newest = "first" or "last" where the log has the most recent event')
        if self.history is not None:
            try:
                _ = self.history_rule
            except ValueError as error:
                raise ValueError(f"{said}: history.where is a rule as labels have: {error}") from None
        if self.history is not None and self.newest == "last":
            raise ValueError(f'{said}: the newest event of a built history is first: leave newest = "last" out')
        if self.dwell_weights and self.history is not None and self.history.dwell is None:
            raise ValueError(
                f"{said} has dwell_weights, but nothing says how long users stayed: name the raw column with "
                "history.dwell = { column = ... }, with min_seconds = 0 to leave no event out"
            )
        if self.history is not None and self.columns:
            raise ValueError(f"{said} is built from earlier rows (history): leave its columns out")

    def __hash__(self) -> int:
        return hash((self.name, self.parts, self.max_length))

    @property
    def is_newest_first(self) -> bool:
        """Whether raw lists have the newest event first."""
        return self.newest != "last"

    @property
    def history_rule(self) -> "Label | None":
        """Return the rule that tells a built history's events, parsed; None: rows with label 1 are events."""
        if self.history is None or self.history.where == LABELLED:
            return None
        return Label.parse(self.history.where)

    @property
    def part_columns(self) -> dict[str, str]:
        """Part -> its column in the Parquet files, which is also its key in a batch."""
        return {part: f"{self.name}__{part}" for part in self.parts}

    @property
    def gap_column(self) -> str | None:
        """Return the column of the gaps' buckets in the Parquet files and its key in a batch; None: no gaps."""
        return f"{self.name}__gap" if self.gaps else None

    @property
    def dwell_column(self) -> str | None:
        """Return the column of dwell times' buckets in the Parquet files and its key in a batch; None: no weights."""
        return f"{self.name}__dwell" if self.dwell_weights else None

    @property
    def keys(self) -> tuple[str, ...]:
        """List the columns in the Parquet files, which are the keys in a batch: parts, then gaps, then dwell times."""
        return (*self.part_columns.values(), *(name for name in (self.gap_column, self.dwell_column) if name))

    @property
    def raw_part_columns(self) -> dict[str, str]:
        """Part -> raw column of its values."""
        return {part: self.columns.get(part, column) for part, column in self.part_columns.items()}

    @property
    def _extras(self) -> dict[str, str]:
        """Map what is read beside the parts to its raw column's default name, unless a part is called so."""
        read = {"time": bool(self.gaps), "dwell": self.dwell_weights}
        return {what: f"{self.name}__{what}" for what, is_read in read.items() if is_read and what not in self.parts}

    @property
    def time_column(self) -> str:
        """Return the raw column of the events' times; only a sequence with gaps reads it."""
        return self.columns.get("time", f"{self.name}__time") if "time" in self._extras else f"{self.name}__time"

    @property
    def raw_dwell_column(self) -> str:
        """Return the raw column of the events' dwell times; only a sequence with ``dwell_weights`` reads it."""
        return self.columns.get("dwell", f"{self.name}__dwell") if "dwell" in self._extras else f"{self.name}__dwell"

    @property
    def raw_lists(self) -> tuple[str, ...]:
        """List the raw columns of lists that the sequence is read from."""
        others = [(self.time_column, bool(self.gaps)), (self.raw_dwell_column, self.dwell_weights)]
        return (*self.raw_part_columns.values(), *(name for name, is_read in others if is_read))


@dataclass(frozen=True, config=STRICT)
class SequencePart(SparseFeature):
    """One column of a sequence as a feature of its own: any number of ids a row, newest first.

    A part has the encoding and the table of its sparse feature, and the state that was learnt for that; the buckets of
    gaps are a part with boundaries and a table of its own, those of dwell times one with boundaries and no table.
    """

    sequence: str = ""
    """Name of the sequence."""
    part: str = ""
    """Sparse feature whose encoding it has; empty: the part holds buckets of gaps or of dwell times."""
    is_dwell: bool = False
    """Flag: the part holds the buckets of dwell times, which weigh events and are looked up in no table."""
    split_at: str = " "
    """Separator of the sequence."""

    @property
    def splitting(self) -> dict[str, str]:
        """Return how text is split into values, as a config says it."""
        return {"separator": self.split_at}

    @property
    def source(self) -> str:
        """Describe the raw column that the values come from."""
        return f"{self.columns[0]} split at {self.split_at!r}"

    @property
    def kind(self) -> SingleValued:
        """Return the part's kind: its form in files and batches."""
        return SEQUENCE_KIND

    @property
    def learnt_name(self) -> str:
        """Return the feature whose learnt state the ids come from."""
        return self.part or self.name


def _parts_of(sequence: SequenceFeature, sparse: dict[str, SparseFeature]) -> tuple[SequencePart, ...]:
    """Make a sequence's parts, then those of gaps and of dwell times.

    Raises:
        ValueError: a part is no feature that a sequence can share.
    """
    said, found = f"sequence {sequence.name!r}", []
    for name, column in sequence.part_columns.items():
        feature = sparse.get(name)
        if feature is None:
            raise ValueError(
                f"{said} has the part {name!r}, which is no sparse feature; there are: {', '.join(sparse)}"
            )
        if feature.kind.takes_lists:
            raise ValueError(
                f"{said} has the part {name!r}, which is multi-valued: an event has one value of each part"
            )
        if len(feature.columns) > 1:
            raise ValueError(f"{said} has the part {name!r}, which is a cross: name a feature of one column")
        if feature.encoding.kind == "quantiles":
            raise ValueError(
                f"{said} shares the table of {name!r}, but quantiles are learnt for each feature alone: use a "
                "boundaries encoding"
            )
        found.append(
            SequencePart(
                column,
                feature.encoding,
                (sequence.raw_part_columns[name],),
                max_length=sequence.max_length,
                table=feature.table_name,
                embedding_dim=feature.embedding_dim,
                sequence=sequence.name,
                part=name,
                split_at=sequence.separator,
            )
        )
    if sequence.gap_column is not None:
        gaps = BoundariesEncoding(tuple(map(float, sequence.gaps)))
        found.append(
            SequencePart(
                sequence.gap_column,
                gaps,
                (sequence.time_column,),
                max_length=sequence.max_length,
                sequence=sequence.name,
                split_at=sequence.separator,
            )
        )
    if sequence.dwell_column is not None:
        found.append(
            SequencePart(
                sequence.dwell_column,
                BoundariesEncoding(DWELL_BOUNDARIES),
                (sequence.raw_dwell_column,),
                max_length=sequence.max_length,
                sequence=sequence.name,
                split_at=sequence.separator,
                is_dwell=True,
            )
        )
    return tuple(found)


LabelOperator = Literal[">=", "<=", "==", "!=", ">", "<", "in", "not in"]


@dataclass(frozen=True, config=STRICT)
class Label:
    """``column`` alone must hold 0 or 1; with an operator, the label is whether ``column op value`` holds.

    The operators ``in`` and ``not in`` compare with ``texts``, or with ``numbers`` where all of the list are numbers.
    """

    column: str
    op: LabelOperator | None = None
    value: float = 0.0
    texts: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()

    @classmethod
    def parse(cls, rule: str) -> "Label":
        """Read ``"click"``, ``"rating >= 4"``, ``"behavior == buy"`` or ``"behavior in buy, cart"``.

        Raises:
            ValueError: the rule is none of these.
        """
        match = _LABEL_RULE.match(rule)
        if match is None:
            raise ValueError(_LABEL_HELP.format(rule))
        column, op, value = match["column"], match["op"], match["value"]
        if op is None:
            return cls(column)
        op = " ".join(op.split())
        if op not in ("in", "not in"):
            if (number := _number_in(value)) is not None:
                return cls(column, cast(LabelOperator, op), number)
            if op not in ("==", "!="):
                raise ValueError(_LABEL_HELP.format(rule))
        items = _LABEL_ITEM.findall(value)
        if not _LABEL_LIST.match(value) or (op in ("==", "!=") and len(items) > 1):
            raise ValueError(_LABEL_HELP.format(rule))
        numbers = [_number_in(item) for item in items]
        op = cast(LabelOperator, {"==": "in", "!=": "not in"}.get(op, op))
        if None not in numbers:
            return cls(column, op, numbers=tuple(sorted({n for n in numbers if n is not None})))
        return cls(column, op, texts=tuple(sorted({_unquoted(item) for item in items})))

    @property
    def is_text(self) -> bool:
        """Whether the column is compared as text."""
        return bool(self.texts)


_LABEL_RULE = re.compile(
    r"^\s*(?P<column>[^\s<>=!]+)\s*(?:(?P<op>>=|<=|==|!=|>|<|(?<=\s)in(?=\s)|(?<=\s)not\s+in(?=\s))\s*(?P<value>\S.*?)\s*)?$"
)
_LABEL_ITEM = re.compile(r"""\s*("[^"]*"|'[^']*'|[^,"'\s][^,"']*?)\s*(?:,|$)""")
_LABEL_LIST = re.compile(r"""^(?:\s*(?:"[^"]*"|'[^']*'|[^,"'\s<>=!][^,"'<>=!]*?)\s*(?:,(?!\s*$)|$))+$""")
_LABEL_HELP = (
    'label must be "click" (0 or 1), "rating >= 4", "behavior == buy" or "behavior in buy, cart", got {0!r:.80}'
)


def _number_in(text: str) -> float | None:
    """Read a decimal number; None for any other text."""
    if not re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text):
        return None
    return float(text)


def _unquoted(item: str) -> str:
    return item[1:-1] if item[0] in "\"'" else item


@dataclass(frozen=True, config=STRICT)
class Timestamp:
    """Time of the row's event, stored as Unix seconds."""

    column: str
    format: str = "unix"
    """Format of the column: ``unix`` (seconds), ``unix_ms``, or a Spark date pattern like ``yyMMddHH``, read as UTC."""


@dataclass(frozen=True, config=STRICT)
class Values:
    """Reading of raw values, the same in every column. All is off: a text is what it is."""

    null_tokens: tuple[str, ...] = ()
    """Texts that mean missing, besides the empty one."""
    strip: bool = False
    """Whether spaces and tabs around a text are cut off before anything else."""
    whole_floats: bool = False
    """Whether "3.0" is the category "3": a decimal number with only zeros behind the point is written without them."""
    list_literals: bool = False
    """Whether a cell like "[3, 7]" or "['a', 'b']" of a multi-valued feature is a printed list, whose items count."""


@dataclass(frozen=True, config=STRICT)
class FeatureSchema:
    """Every column a row keeps. Order matters: it is the order of the tables and of the encoder's input."""

    label: str
    sparse: tuple[SparseFeature, ...] = ()
    dense: tuple[DenseFeature, ...] = ()
    sequence: tuple[SequenceFeature, ...] = ()
    weight: str | None = None
    """Raw column with a non-negative row weight; None: every row weighs 1."""
    group_id: str | None = None
    """Raw column whose values group the rows for GAUC (a user id, say)."""
    timestamp: Timestamp | None = None
    carry: tuple[str, ...] = ()
    """Raw columns carried through as text, untouched."""
    values: Values = Values()
    """Reading of raw values: what means missing, and which spellings are one value."""

    def __post_init__(self) -> None:
        if not self.sparse:
            raise ValueError("features.sparse is empty: TF4CTR needs at least one sparse feature")
        Label.parse(self.label)
        sequences = [sequence.name for sequence in self.sequence]
        names = [*RESERVED_NAMES, *(column.name for column in self.columns), *sequences, *self.carry]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ValueError(f"names used twice or reserved ({', '.join(RESERVED_NAMES)}): {_shown(twice)}")
        names += [f.table for f in self.sparse if f.table is not None]
        bad = sorted(n for n in names if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", n))
        if bad:
            raise ValueError(f"feature names must be letters, digits and underscores: {_shown(bad)}")
        for table, features in self.tables.items():
            _check_table(table, features)
        for sequence in self.sequence:
            if (sequence.gaps or sequence.history is not None) and self.timestamp is None:
                key = "gaps" if sequence.gaps else "history"
                raise ValueError(f"sequence {sequence.name!r} has {key}, which need the rows' time: set timestamp")
            if sequence.gap_column in self.tables:
                raise ValueError(
                    f"the table {sequence.gap_column!r} is that of the gaps of sequence {sequence.name!r}: name the "
                    "other table differently"
                )

    @property
    def label_rule(self) -> Label:
        """Return the label's rule, parsed."""
        return Label.parse(self.label)

    @cached_property
    def sparse_names(self) -> tuple[str, ...]:
        """List the names of the sparse features, in the schema's order."""
        return tuple(f.name for f in self.sparse)

    @cached_property
    def parts(self) -> tuple[SequencePart, ...]:
        """List the parts of all sequences, gaps and dwell times included, sequence by sequence."""
        sparse = {f.name: f for f in self.sparse}
        return tuple(part for sequence in self.sequence for part in _parts_of(sequence, sparse))

    @cached_property
    def id_features(self) -> tuple[SparseFeature, ...]:
        """List everything that has ids in files and batches: the sparse features, then the parts of sequences."""
        return self.sparse + self.parts

    @cached_property
    def logged(self) -> tuple[SparseFeature, ...]:
        """List everything with ids that a build reads from the log: ``id_features`` without built histories."""
        built = {sequence.name for sequence in self.sequence if sequence.history is not None}
        return self.sparse + tuple(part for part in self.parts if part.sequence not in built)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """List the features' columns in the Parquet files: sparse, sequences, dense, each in the schema's order."""
        with_ids = (column for feature in self.id_features for column in feature.kind.columns(feature))
        return *with_ids, *(column for feature in self.dense for column in feature.kind.columns(feature))

    @cached_property
    def jagged(self) -> dict[int, SparseFeature]:
        """Index the features with any number of ids a row by their place among all of ``id_features``."""
        return {i: feature for i, feature in enumerate(self.id_features) if not feature.kind.has_one_id}

    @cached_property
    def tables(self) -> dict[str, tuple[SparseFeature, ...]]:
        """Group the sparse features by table: table -> its features, both in the schema's order."""
        found: dict[str, tuple[SparseFeature, ...]] = {}
        for feature in self.sparse:
            found[feature.table_name] = (*found.get(feature.table_name, ()), feature)
        return found

    @cached_property
    def dense_names(self) -> tuple[str, ...]:
        """List the names of the dense features, in the schema's order."""
        return tuple(f.name for f in self.dense)

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """List the raw columns needed to score a row, each once, in order of first use; histories are in the row."""
        columns = [c for f in self.id_features for c in f.columns] + [f.source for f in self.dense]
        timed = [self.timestamp.column] if self.timestamp and any(s.gaps for s in self.sequence) else []
        return tuple(dict.fromkeys(columns + timed))

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """List the raw columns that a build needs: the features', then label, weight, group, time and carried ones.

        A built history has no columns of its own in the log, but its users and its rule have.
        """
        columns = [c for f in self.logged for c in f.columns] + [f.source for f in self.dense]
        extra = [self.label_rule.column, self.weight, self.group_id, self.timestamp and self.timestamp.column]
        for sequence in self.sequence:
            if sequence.history is not None:
                rule = sequence.history_rule
                extra += [*sequence.history.columns, rule and rule.column]
        return tuple(dict.fromkeys([*columns, *(c for c in extra if c), *self.carry]))

    @property
    def fingerprint(self) -> str:
        """Hash to 64 hexadecimal digits that change when any raw value could become another id or float.

        Two ways to write the same thing have the same one; what a model chooses (pooling, embedding_dim) is not in it.
        """
        return digest({"encoding_version": ENCODING_VERSION, **_meaning(self)})

    def fingerprint_of_version(self, version: int) -> str:
        """Compute the fingerprint by the formula of an earlier version, or of the current one.

        Args:
            version: as the file says that stores the fingerprint; checked before.
        """
        return fingerprint_version_1(self, ENCODING_VERSION) if version == 1 else self.fingerprint

    @property
    def model_choices(self) -> dict[str, Any]:
        """Config key -> value of all that a model chooses and no dataset depends on."""
        choices: dict[str, Any] = {}
        for group in ("sparse", "dense"):
            for feature in getattr(self, group):
                named = {f.name: getattr(feature, f.name) for f in fields(feature) if is_model_choice(f)}
                choices |= {f"features.{group}.{feature.name}.{name}": value for name, value in named.items()}
        return choices


def _meaning(schema: FeatureSchema) -> dict[str, Any]:
    """Convert a schema to a tree of what decides ids and floats, in one form for all ways to write it."""
    sparse = []
    for feature in schema.sparse:
        tree = departures(feature)
        if not feature.kind.takes_lists:
            tree.pop("max_length", None)
        if feature.table == feature.name:
            tree.pop("table", None)
        if isinstance(feature.encoding, HashEncoding):
            tree["encoding"]["salt"] = feature.salt
        sparse.append(tree)
    tree = {**departures(schema), "label": departures(schema.label_rule), "sparse": sparse}
    if schema.sequence:
        tree["sequence"] = [_meaning_of_sequence(sequence) for sequence in schema.sequence]
    values = departures(schema.values)
    if tokens := sorted({*values.pop("null_tokens", ())} - {""}):
        values["null_tokens"] = tokens
    tree.pop("values", None)
    return {**tree, "values": values} if values else tree


def _meaning_of_sequence(sequence: SequenceFeature) -> dict[str, Any]:
    tree = departures(sequence)
    tree.pop("columns", None)
    if renamed := {p: c for p, c in sequence.columns.items() if c != f"{sequence.name}__{p}"}:
        tree["columns"] = renamed
    if sequence.history is not None:
        tree.pop("newest", None)
    if (rule := sequence.history_rule) is not None:
        tree["history"]["where"] = departures(rule)
    return tree


def _check_table(table: str, features: tuple[SparseFeature, ...]) -> None:
    """Refuse features that cannot share a table.

    Raises:
        ValueError: names two of them and what to change.
    """
    first, *others = features
    for other in others:
        both = f"features {first.name!r} and {other.name!r} share the table {table!r}"
        if first.encoding.kind == "quantiles":
            raise ValueError(
                f"{both}, but quantiles are learnt for each feature alone: use a boundaries encoding, or leave out "
                f"{other.name!r}'s table"
            )
        for key in ("encoding", "embedding_dim"):
            if getattr(first, key) != getattr(other, key):
                raise ValueError(f"{both}, but not their {key}: give both one {key}, or {other.name!r} its own table")
    poolings = {f.kind.pooling(f): f.name for f in features if f.kind.is_array}
    if len(poolings) > 1:
        shown = " and ".join(f"{name!r} ({pooling})" for pooling, name in poolings.items())
        raise ValueError(f"features {shown} share the table {table!r}, but not their pooling: give both one pooling")
