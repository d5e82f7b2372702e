"""Raw rows -> ids and floats, many at a time: the one rule of builds, folder scoring and single requests.

It goes in two steps, because vocabularies lie between them in a build: ``prepare`` checks rows and reduces each value
to what its encoding looks at (a hash, a text, a number); ``finish`` turns that into ids and floats once everything is
learnt. The columns that come out are exactly those of the Parquet files.

Shapes: n rows, V tokens of a multi-valued feature in all rows together.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import pc
from features.hashing import MISSING_ID, SPARK_SEED, Hashes, hash_array, hashed_ids, salt_seed
from features.learnt import Learnt
from features.ragged import Ragged
from features.raw_block import Repeats
from features.rows import Columns, MissingColumnError
from features.schema import BUCKET_KINDS, DenseFeature, FeatureSchema, HashEncoding, Label, SparseFeature, Values
from features.sequences import EventValues, read_events
from features.token_table import TokenTable, hash_tokens
from features.values import (
    ColumnError,
    Mask,
    as_mask,
    loose_texts,
    numbers,
    seconds,
    text_fault,
    texts,
    tokens,
)

_FEW_VALUES = 64
"""Values up to which a call of xxhash each is faster than an Arrow array of them."""
_STACKED_VALUES = 1 << 15
"""Values up to which the columns of a batch are hashed in one call; more fill NumPy's loops by themselves."""
_SEARCHED = 1 << 14
"""Numbers that are searched for at a time, so that what lies between two steps stays in the cache."""


@dataclass(frozen=True)
class Hashed:
    """Values of a hashed feature.

    Attributes:
        hashes: (n,) or (V,) uint64, salt included; any number where the value is missing.
        is_missing: (n,) rows without a value, or (V,) events of a sequence without one; None for a multi-valued
            feature.
        lengths: (n,) how many of the V hashes each row has; None for a single-valued feature.
        dropped: (n,) how many values a row lost to max_length; None for a single-valued feature.
    """

    hashes: Hashes
    is_missing: Mask | None = None
    lengths: NDArray[np.int64] | None = None
    dropped: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Coded:
    """Values of a feature with a vocabulary of texts.

    Attributes:
        texts: (n,) or (V,) strings, or a dictionary of them, null where the value is missing.
        lengths: (n,) how many of the V texts each row has; None for a single-valued feature.
        dropped: (n,) how many values a row lost to max_length; None for a single-valued feature.
    """

    texts: pa.StringArray | pa.DictionaryArray
    lengths: NDArray[np.int64] | None = None
    dropped: NDArray[np.int64] | None = None

    @cached_property
    def _encoded(self) -> pa.DictionaryArray:
        if not pa.types.is_dictionary(self.texts.type):
            return self.texts.dictionary_encode()
        codes = self.texts.indices.dictionary_encode()  # a filter leaves texts in a dictionary that no value has
        return pa.DictionaryArray.from_arrays(codes.indices, self.texts.dictionary.take(codes.dictionary))

    @cached_property
    def codes(self) -> NDArray[np.int32]:
        """Places in ``tokens``, (n,) or (V,); -1: missing."""
        codes = self._encoded.indices
        return (codes.fill_null(-1) if codes.null_count else codes).to_numpy(zero_copy_only=False)

    @property
    def tokens(self) -> pa.StringArray:
        """The distinct texts, in order of their first place."""
        return self._encoded.dictionary

    @cached_property
    def hashes(self) -> Hashes:
        """Hashes of the texts for a ``TokenTable``, (n,) or (V,)."""
        if not pa.types.is_dictionary(self.texts.type):
            return hash_tokens(self.texts)
        return hash_tokens(pa.concat_arrays([self.tokens, pa.nulls(1, pa.string())]))[self.codes]  # -1: the null


@dataclass(frozen=True)
class Listed:
    """Numbers of a sequence's part.

    Attributes:
        values: (V,) float64, NaN where missing.
        lengths: (n,) how many of the V numbers each row has.
        dropped: (n,) how many values a row lost to max_length.
    """

    values: NDArray[np.float64]
    lengths: NDArray[np.int64]
    dropped: NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """Checked rows, each value reduced to what its encoding looks at.

    Attributes:
        num_rows: n, bad rows included.
        hashed: feature -> its hashes (encoding ``hash``).
        coded: feature -> its tokens (encoding ``vocabulary``).
        numbers: feature -> (n,) float64, NaN where missing (the other encodings, and dense features).
        listed: part of a sequence -> its numbers (the other encodings, and gaps).
        reasons: distinct reasons why rows are bad.
        reason: (n,) int32 index of a row's first reason, -1 for a good row; None: all rows are good.
        own: column of the row itself (``label``, ``weight``, ``group_id``, ``timestamp``) -> (n,) values as in the
            files.
        carried: carried column -> (n,) texts.
    """

    num_rows: int
    hashed: dict[str, Hashed] = field(default_factory=dict)
    coded: dict[str, Coded] = field(default_factory=dict)
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    listed: dict[str, Listed] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    reason: NDArray[np.int32] | None = None
    own: dict[str, NDArray[Any]] = field(default_factory=dict)
    carried: dict[str, pa.StringArray] = field(default_factory=dict)

    @property
    def is_good(self) -> Mask:
        """Mask of the rows without a reason, (n,)."""
        return np.ones(self.num_rows, np.bool_) if self.reason is None else self.reason < 0

    def take(self, keep: Mask) -> "Prepared":
        """Keep the rows of a mask; their reasons go."""
        rows = pa.array(keep)

        def kept(part: Any) -> Any:
            """Filter a feature's values, which are one a row or as many as lengths says."""
            changes = {name: getattr(part, name)[keep] for name in ("lengths", "dropped") if part.lengths is not None}
            values = keep if part.lengths is None else np.repeat(keep, part.lengths)
            if isinstance(part, Coded):
                return replace(part, texts=part.texts.filter(pa.array(values)), **changes)
            if isinstance(part, Listed):
                return replace(part, values=part.values[values], **changes)
            if part.is_missing is not None:
                changes["is_missing"] = part.is_missing[values]
            return replace(part, hashes=part.hashes[values], **changes)

        return Prepared(
            num_rows=int(np.count_nonzero(keep)),
            hashed={name: kept(part) for name, part in self.hashed.items()},
            coded={name: kept(part) for name, part in self.coded.items()},
            numbers={name: values[keep] for name, values in self.numbers.items()},
            listed={name: kept(part) for name, part in self.listed.items()},
            own={name: values[keep] for name, values in self.own.items()},
            carried={name: values.filter(rows) for name, values in self.carried.items()},
        )


# -------------------------------------------------------------------------------------------------------------- prepare


def prepare(
    schema: FeatureSchema,
    columns: Mapping[str, pa.Array],
    lists: Mapping[str, pa.Array] | None = None,
    needed: Collection[str] | None = None,
    with_own: bool = False,
    made: Collection[str] = (),
    repeats: Repeats | None = None,
) -> Prepared:
    """Check rows and reduce each value to what its encoding looks at.

    Args:
        schema: schema of the features.
        columns: raw column -> (n,) values, of any type that a reader returns.
        lists: raw column -> (n,) lists of text, null where a row's value was none (``RawBlock.lists``).
        needed: features whose values are returned; all are checked. None: all.
        with_own: whether the row's own and carried columns are needed too, as in a build.
        made: sequences whose histories are made of other rows: they have no raw columns, but a row needs a time.
        repeats: columns that rows share with those beside them (``RawBlock.repeats``).

    Raises:
        MissingColumnError: a column is missing; names it.
        ColumnError: a column has a type that its use has no reading for; names both.
        TimePatternError: the timestamp's format is no pattern that can be read.
    """
    return _Preparation(schema, columns, lists or {}, needed, with_own, made, repeats).run()


class _Preparation:
    """One call of ``prepare``."""

    def __init__(
        self,
        schema: FeatureSchema,
        columns: Mapping[str, pa.Array],
        lists: Mapping[str, pa.Array],
        needed: Collection[str] | None,
        with_own: bool,
        made: Collection[str],
        repeats: Repeats | None,
    ) -> None:
        self.schema, self.columns, self.lists = schema, columns, lists
        self.needed, self.with_own, self.made, self.repeats = needed, with_own, made, repeats
        self.num_rows = next((len(array) for array in columns.values()), 0)
        self.reasons: list[str] = []
        self.reason: NDArray[np.int32] | None = None
        self._texts: dict[str, pa.StringArray] = {}
        self._times: NDArray[np.int64] | None = None

    def is_needed(self, feature: SparseFeature | DenseFeature) -> bool:
        return self.needed is None or feature.name in self.needed

    def column(self, name: str) -> pa.Array:
        try:
            return self.columns[name]
        except KeyError:
            raise MissingColumnError(f"column {name!r} is missing; there are: {', '.join(self.columns)}") from None

    def reject(self, mask: Mask | None, reason: str) -> None:
        """Give the rows of a mask a reason, unless they have one."""
        if mask is None or not mask.any():
            return
        if self.reason is None:
            self.reason = np.full(self.num_rows, -1, np.int32)
        self.reason[mask & (self.reason < 0)] = len(self.reasons)
        self.reasons.append(reason)

    def run(self) -> Prepared:
        schema, label = self.schema, self.schema.label_rule
        found = self._numbers(label)
        bags = {f.columns[0]: f for f in schema.sparse if f.kind.takes_lists}
        names = {c for f in schema.sparse if f.encoding.kind in ("hash", "vocabulary") for c in f.columns}
        if self.with_own:
            names |= {schema.group_id} if schema.group_id else set()
            names |= {label.column} if label.is_text else set()
        singles = {c for f in schema.sparse if not f.kind.takes_lists for c in f.columns} | {schema.group_id}
        bagged: dict[str, Hashed | Coded | Listed] = {}
        for name in sorted(names):
            if name in bags:
                bagged |= self._bags(name)
            if name not in bags or name in singles or (self.with_own and name == label.column):
                self._read_texts(name)
        own, carried = self._own(found, label) if self.with_own else ({}, {})
        sparse = [f for f in schema.sparse if self.is_needed(f)]
        hashed = self._hash_singles([f for f in sparse if f.encoding.kind == "hash" and not f.kind.takes_lists])
        coded = {
            f.name: Coded(self._texts[f.columns[0]])
            for f in sparse
            if f.encoding.kind == "vocabulary" and not f.kind.takes_lists
        }
        bagged = {f.name: bagged[f.name] for f in sparse if f.name in bagged}
        bagged |= self._events()
        values = {f.name: found[f.columns[0]] for f in sparse if f.encoding.kind not in ("hash", "vocabulary")}
        values |= {f.name: found[f.source] for f in schema.dense if self.is_needed(f)}
        more_hashed, more_coded, listed = by_type(bagged)
        return Prepared(
            self.num_rows,
            hashed | more_hashed,
            coded | more_coded,
            values,
            listed,
            self.reasons,
            self.reason,
            own,
            carried,
        )

    def _numbers(self, label: Label) -> dict[str, NDArray[np.float64]]:
        """Read every column that is used as numbers."""
        schema = self.schema
        names = [f.columns[0] for f in schema.sparse if f.encoding.kind not in ("hash", "vocabulary")]
        names += [f.source for f in schema.dense]
        if self.with_own:
            names += [] if label.is_text else [label.column]
            names += [schema.weight] if schema.weight else []
        found = {}
        for name in dict.fromkeys(names):
            try:
                found[name], bad = numbers(self.column(name), schema.values)
            except ColumnError as error:
                raise ColumnError(f"column {name!r}: {error}") from None
            self.reject(bad, f"column {name!r} is not a number")
        return found

    def _read_texts(self, name: str) -> None:
        array = self.column(name)
        try:
            self._texts[name], bad = texts(array, self.schema.values)
        except ColumnError as error:
            raise ColumnError(f"column {name!r}: {error}") from None
        if bad is not None:
            self.reject(bad, text_fault(name, array.type))

    def _bags(self, name: str) -> dict[str, Hashed | Coded]:
        """Read the multi-valued features of one column."""
        found: dict[str, Hashed | Coded] = {}
        array = self.column(name)
        for feature in self.schema.sparse:
            if not feature.kind.takes_lists or feature.columns[0] != name:
                continue
            try:
                part = tokens(array, self.lists.get(name), feature, self.schema.values)
            except ColumnError as error:
                raise ColumnError(f"column {name!r}: {error}") from None
            if part.bad is not None:
                self.reject(part.bad, text_fault(name, array.type))
            if isinstance(feature.encoding, HashEncoding):
                hashes = hash_array(part.texts, salt_seed(feature.salt))
                found[feature.name] = Hashed(hashes, None, part.lengths, part.dropped)
            else:
                found[feature.name] = Coded(part.texts, part.lengths, part.dropped)
        return found

    def _events(self) -> dict[str, Hashed | Coded | Listed]:
        """Read the sequences; a build makes histories by a rule itself, and finds none in the log."""
        found: dict[str, Hashed | Coded | Listed] = {}
        for sequence in self.schema.sequence:
            if sequence.name in self.made:
                self._row_times()
                continue
            if self.with_own and sequence.history is not None:
                continue
            times = self._row_times() if sequence.gaps else None
            events = read_events(self.schema, sequence, self.column, self.lists, times, self.repeats)
            for mask, reason in events.faults:
                self.reject(mask, reason)
            found |= prepare_events(self.schema, events)
        return {name: part for name, part in found.items() if self.needed is None or name in self.needed}

    def _row_times(self) -> NDArray[np.int64]:
        """Read the rows' own times, once."""
        time = self.schema.timestamp
        assert time is not None
        if self._times is None:
            try:
                self._times, is_time = seconds(self.column(time.column), time.format, self.schema.values)
            except ColumnError as error:
                raise ColumnError(f"timestamp {time.column!r}: {error}") from None
            self.reject(~is_time, f"timestamp {time.column!r} is missing or unreadable")
        return self._times

    def _hash_singles(self, features: list[SparseFeature]) -> dict[str, Hashed]:
        if not features:
            return {}
        parts = [[self._texts[name] for name in f.columns] for f in features]
        seeds = [salt_seed(f.salt) for f in features]
        hashes, is_missing = hash_columns(parts, seeds)
        return {f.name: Hashed(hashes[k], is_missing[k]) for k, f in enumerate(features)}

    def _own(
        self, found: dict[str, NDArray[np.float64]], label: Label
    ) -> tuple[dict[str, NDArray[Any]], dict[str, pa.StringArray]]:
        schema = self.schema
        own: dict[str, NDArray[Any]] = {}
        if label.is_text:
            text = self._texts[label.column]
            self.reject(as_mask(text.is_null()), f"label {label.column!r} is missing")
            own["label"] = _text_labels(label, text)
        else:
            number = found[label.column]
            self.reject(np.isnan(number), f"label {label.column!r} is missing")
            if label.op is None:
                self.reject((number != 0) & (number != 1), f"label {label.column!r} is not 0 or 1")
            own["label"] = _number_labels(label, number)
        if schema.weight:
            weight = found[schema.weight]
            self.reject(np.isnan(weight), f"weight {schema.weight!r} is missing")
            self.reject(weight < 0, f"weight {schema.weight!r} is negative")
            own["weight"] = weight.astype(np.float32)
        if schema.group_id:
            group = self._texts[schema.group_id]
            hashes = hash_array(group, SPARK_SEED).view(np.int64)
            own["group_id"] = np.where(as_mask(group.is_valid()), hashes, 0)
        if schema.timestamp:
            own["timestamp"] = self._row_times()
        return own, {name: loose_texts(self.column(name)) for name in schema.carry}


_COMPARE: dict[str, Callable[..., NDArray[np.bool_]]] = {
    ">=": np.greater_equal,
    "<=": np.less_equal,
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
}


def _text_labels(label: Label, column: pa.StringArray) -> NDArray[np.float32]:
    is_in = as_mask(pc.is_in(column, value_set=pa.array(label.texts, pa.string())))
    return (is_in == (label.op == "in")).astype(np.float32)


def _number_labels(label: Label, column: NDArray[np.float64]) -> NDArray[np.float32]:
    if label.op is None:
        return column.astype(np.float32)
    if label.op in ("in", "not in"):
        return (np.isin(column, label.numbers) == (label.op == "in")).astype(np.float32)
    return _COMPARE[label.op](column, label.value).astype(np.float32)


def rule_holds(rule: Label, column: pa.Array, settings: Values) -> Mask:
    """Tell of each row whether a rule holds, (n,); it does not where the value is missing or cannot be read.

    Args:
        rule: rule as labels have; a column alone holds where it is 1.
        column: (n,) raw values.
        settings: which of them are missing.
    """
    if rule.is_text:
        text = loose_texts(column, settings)
        return (_text_labels(rule, text) > 0) & as_mask(text.is_valid())
    number = numbers(column, settings)[0]
    return (_number_labels(rule, number) == 1) & ~np.isnan(number)


def prepare_events(schema: FeatureSchema, events: EventValues) -> dict[str, Hashed | Coded | Listed]:
    """Reduce the events of a sequence to what the encodings of its parts look at, by part."""
    found: dict[str, Hashed | Coded | Listed] = {}
    repeated, lengths, dropped = lambda values: values, events.lengths, events.dropped
    if events.places is not None:
        places, lengths = _places_of_events(events.lengths, events.places), lengths[events.places]
        repeated, dropped = lambda values: values[places], dropped[events.places]
    for part in schema.parts:
        values = events.values.get(part.name)
        if values is None:
            continue
        if isinstance(values, np.ndarray):
            found[part.name] = Listed(repeated(values), lengths, dropped)
        elif isinstance(part.encoding, HashEncoding):
            hashes, is_missing = hash_array(values, salt_seed(part.salt)), as_mask(values.is_null())
            found[part.name] = Hashed(repeated(hashes), repeated(is_missing), lengths, dropped)
        elif events.places is None:
            found[part.name] = Coded(values, lengths, dropped)
        else:
            found[part.name] = Coded(values.dictionary_encode().take(pa.array(places)), lengths, dropped)
    return found


def _places_of_events(lengths: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of the events of some histories, (V,), of which (m,) ``lengths`` are known."""
    return Ragged.of(np.arange(lengths.sum()), lengths).take(places).values


def by_type(
    parts: Mapping[str, Hashed | Coded | Listed],
) -> tuple[dict[str, Hashed], dict[str, Coded], dict[str, Listed]]:
    """Sort prepared values out as ``Prepared`` has them: hashes, tokens, and numbers of sequences."""
    return (
        {name: part for name, part in parts.items() if isinstance(part, Hashed)},
        {name: part for name, part in parts.items() if isinstance(part, Coded)},
        {name: part for name, part in parts.items() if isinstance(part, Listed)},
    )


def hash_columns(parts: Sequence[Sequence[pa.StringArray]], seeds: Sequence[int]) -> tuple[Hashes, NDArray[np.bool_]]:
    """Hash features of one or more columns; a small batch in one call for all of them.

    Args:
        parts: a feature's columns, (n,) texts each, null where missing.
        seeds: hash of each feature's salt.

    Returns:
        (features, n) hashes, and a mask of the values of which all columns are missing.
    """
    n = len(parts[0][0])
    is_missing = np.ones((len(parts), n), np.bool_)
    hashes = np.empty((len(parts), n), np.uint64)
    hashes[:] = np.array(seeds, np.uint64)[:, None]
    for place in range(max(map(len, parts))):
        rows = [k for k, columns in enumerate(parts) if len(columns) > place]
        columns = [parts[k][place] for k in rows]
        for k, column in zip(rows, columns, strict=True):
            is_missing[k] &= as_mask(column.is_null()) if column.null_count else False
        if n * len(rows) <= _STACKED_VALUES:
            stacked = columns[0] if len(columns) == 1 else pa.concat_arrays(columns)
            hashes[rows] = hash_array(stacked, hashes[rows].ravel()).reshape(len(rows), n)
        elif place == 0:
            for k, column in zip(rows, columns, strict=True):
                hashes[k] = hash_array(column, seeds[k])
        else:
            for k, column in zip(rows, columns, strict=True):
                hashes[k] = hash_array(column, hashes[k])
    return hashes, is_missing


# --------------------------------------------------------------------------------------------------------------- finish


def squared_tokens(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Compute the tokens of the Criteo rule: floor(ln(v)^2) for v > 2, else v truncated; 0 for a missing value.

    Args:
        values: (n,), NaN where missing.

    Returns:
        (n,) whole numbers; below -2^62 all are that one, which no vocabulary holds.
    """
    is_large = values > 2
    # Arrow calls the C library's logarithm, whose last bit NumPy's vector loops do not always have.
    logarithm = pc.ln(pa.array(np.where(is_large, values, 1.0))).to_numpy(zero_copy_only=False)
    small = np.where(np.isnan(values), 0.0, np.maximum(values, -(2.0**62)))
    return np.where(is_large, np.floor(logarithm * logarithm), np.trunc(small)).astype(np.int64)


def transformed_numbers(feature: DenseFeature, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply fill, clip and log1p to a dense feature's numbers; standardising comes later.

    Args:
        feature: dense feature.
        values: (n,), NaN where missing.
    """
    found = np.where(np.isnan(values), feature.fill, values)
    if feature.clip is not None:
        low, high = feature.clip
        found = np.where(found < low, low, found)
        found = np.where(found > high, high, found)
    if feature.log1p:
        found = np.copysign(log1p(np.abs(found)), found)
    return found


def log1p(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute ln(1 + v), (n,), with the C library's function: NumPy's vector loops do not always have its last bit."""
    return pc.log1p(pa.array(values)).to_numpy(zero_copy_only=False)


class Finisher:
    """Turns prepared rows into the columns of the Parquet files, for one schema and what was learnt with it."""

    def __init__(self, schema: FeatureSchema, learnt: Learnt, only: Collection[str] | None = None) -> None:
        """Build the tables of ids.

        Args:
            schema: schema of the features.
            learnt: their learnt state.
            only: sparse features that will be asked for; the others need no learnt state. None: all features.
        """
        if only is None:
            learnt.check(schema)
        self.schema, self.learnt = schema, learnt
        asked = [f for f in schema.id_features if only is None or f.name in only]
        # Features that share a table have equal vocabularies.
        self._tables: dict[str, TokenTable] = {}
        self.square_ids: dict[str, dict[int, int]] = {}
        """Feature with the Criteo rule -> token -> id."""
        self.boundaries = {f.name: learnt.boundaries_of(f) for f in asked if f.encoding.kind in BUCKET_KINDS}
        """Bucketed feature -> its boundaries, rising."""
        self._padded = {name: _padded(found) for name, found in self.boundaries.items()}
        for f in asked:
            if f.encoding.kind == "vocabulary" and f.table_name not in self._tables:
                self._tables[f.table_name] = TokenTable(learnt.ids_of(f.learnt_name), learnt.oov_id(f.learnt_name))
            elif f.encoding.kind == "log_squared":
                self.square_ids[f.name] = {int(t): i for t, i in learnt.ids_of(f.learnt_name).items() if _is_whole(t)}
        self._squares = {
            name: (np.array(sorted(ids), np.int64), np.array([ids[token] for token in sorted(ids)], np.int32))
            for name, ids in self.square_ids.items()
        }

    def columns(self, prepared: Prepared, histories: Columns | None = None) -> Columns:
        """Encode prepared rows, all of them; ids of a bad row are of no meaning.

        Args:
            prepared: the rows.
            histories: columns of the sequences that were made of other rows.
        """
        columns: Columns = dict(histories or {})
        for feature in self.schema.id_features:
            if feature.name in columns:
                continue
            ids, lengths = self.ids(feature, prepared)
            columns |= feature.kind.to_columns(ids, lengths, feature)
        for dense in self.schema.dense:
            columns[dense.name] = self.dense_values(dense, prepared.numbers[dense.name]).astype(np.float32)
        return columns

    def ids(self, feature: SparseFeature, prepared: Prepared) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Encode one feature with ids: its ids row by row, and how many each row has."""
        kind, name = feature.encoding.kind, feature.name
        lengths, values = None, prepared.numbers.get(name)
        if name in prepared.listed:
            values, lengths = prepared.listed[name].values, prepared.listed[name].lengths
        if isinstance(feature.encoding, HashEncoding):
            hashed = prepared.hashed[name]
            ids, lengths = hashed_ids(hashed.hashes, feature.encoding.num_buckets), hashed.lengths
            if hashed.is_missing is not None and hashed.is_missing.any():
                ids[hashed.is_missing] = MISSING_ID
        elif kind == "vocabulary":
            coded = prepared.coded[name]
            ids, lengths = self._tables[feature.table_name].lookup(coded.hashes), coded.lengths
            if coded.texts.null_count:
                ids[as_mask(coded.texts.is_null())] = self.learnt.oov_id(feature.learnt_name)
        else:
            assert values is not None
            ids = self._square_ids(feature, values) if kind == "log_squared" else self.bucket_ids(feature, values)
        lengths = np.ones(prepared.num_rows, np.int32) if lengths is None else lengths.astype(np.int32)
        return ids, lengths

    def bucket_ids(self, feature: SparseFeature, values: NDArray[np.float64]) -> NDArray[np.int32]:
        """Count the boundaries at or below numbers, from 1; a missing one is 0."""
        ids = _count_not_above(self._padded[feature.name], values)
        ids += 1
        ids[np.isnan(values)] = MISSING_ID
        return ids

    def _square_ids(self, feature: SparseFeature, values: NDArray[np.float64]) -> NDArray[np.int32]:
        known, ids = self._squares[feature.name]
        unknown = np.int32(self.learnt.oov_id(feature.learnt_name))
        if not len(known):
            return np.full(len(values), unknown)
        squares = squared_tokens(values)
        place = np.minimum(np.searchsorted(known, squares), len(known) - 1)
        return np.where(known[place] == squares, ids[place], unknown)

    def dense_values(self, feature: DenseFeature, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the floats of one dense feature, (n,) float64."""
        found = transformed_numbers(feature, values)
        return self.standardised(feature, found) if feature.standardise else found

    def standardised(self, feature: DenseFeature, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standardise transformed numbers, (n,), by the feature's learnt moments."""
        mean, deviation = self.learnt.moments[feature.name]
        return (values - mean) / deviation if deviation > 0 else np.zeros(len(values))


def _padded(boundaries: Sequence[float]) -> NDArray[np.float64]:
    """Fill boundaries up with infinity to a power of two, which ``_count_not_above`` needs."""
    padded = np.full(1 << len(boundaries).bit_length(), np.inf)
    padded[: len(boundaries)] = boundaries
    return padded


def _count_not_above(padded: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int32]:
    """Count the boundaries at or below each value, (n,); of NaN, none.

    A binary search without branches: three times as fast as ``np.searchsorted``, which guesses each of them wrong half
    of the time, and 10,000 boundaries cost 22 ns a value more than 10.
    """
    found = np.empty(len(values), np.int32)
    for at in range(0, len(values), _SEARCHED):
        part = values[at : at + _SEARCHED]
        count = np.zeros(len(part), np.intp)
        step = len(padded) >> 1
        while step:
            count += (padded[count + (step - 1)] <= part) * step
            step >>= 1
        found[at : at + _SEARCHED] = count
    return found


def _is_whole(token: str) -> bool:
    try:
        return str(int(token)) == token
    except ValueError:
        return False


class BlockTexts:
    """Texts behind some rows of a block, as ``features.unknown_values.ValueTexts``."""

    def __init__(self, prepared: Prepared, rows: NDArray[np.intp]) -> None:
        self._prepared, self._rows = prepared, rows

    def num_missing(self, feature: SparseFeature, rows: NDArray[np.intp]) -> int:
        """Count those of some rows that have no value of a single-valued feature."""
        rows = self._rows[rows]
        if feature.name not in self._prepared.coded:
            return int(np.count_nonzero(np.isnan(self._prepared.numbers[feature.name][rows])))
        texts = self._prepared.coded[feature.name].texts
        return texts.take(pa.array(rows)).null_count if texts.null_count else 0

    def texts(self, feature: SparseFeature, rows: NDArray[np.intp]) -> list[str | None]:
        """Return the values of a feature in some rows; None where a value is missing."""
        rows = self._rows[rows]
        if feature.name in self._prepared.listed or feature.name not in {
            *self._prepared.coded,
            *self._prepared.numbers,
        }:
            return []  # numbers of a history, or one that was made of other rows, whose values are not here
        if feature.name not in self._prepared.coded:
            values = self._prepared.numbers[feature.name][rows].tolist()
            return [None if math.isnan(value) else f"{value:g}" for value in values]
        coded = self._prepared.coded[feature.name]
        if coded.lengths is None:
            return coded.texts.take(pa.array(rows)).to_pylist()
        ends = np.cumsum(coded.lengths)
        parts = [np.arange(end - length, end) for end, length in zip(ends[rows], coded.lengths[rows], strict=True)]
        return coded.texts.take(pa.array(np.concatenate(parts))).to_pylist()


def finish(schema: FeatureSchema, learnt: Learnt, prepared: Prepared) -> Columns:
    """Turn prepared rows into the columns of the Parquet files (features only).

    A caller with many blocks keeps a ``Finisher``: it builds the tables of ids once.
    """
    return Finisher(schema, learnt).columns(prepared)
