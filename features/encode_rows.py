"""FeatureEncoder: raw rows as Python mappings -> the columns of the Parquet files, for one row or for thousands.

Many rows become Arrow columns and go the road of a block (``features.encode``). For a few, the price of a call for each
column would be all there is: their values go through the same functions together, one call for all columns.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from features.encode import (
    Coded,
    Finisher,
    Hashed,
    Listed,
    Prepared,
    by_type,
    log1p,
    prepare,
    prepare_events,
    squared_tokens,
)
from features.hashing import MISSING_ID, hashed_ids, salt_seed
from features.learnt import Learnt
from features.ragged import concatenate
from features.raw_block import Repeats
from features.rows import Columns, MissingColumnError, RawRow, RowError
from features.schema import TEXT_KINDS, FeatureSchema, HashEncoding, SparseFeature
from features.sequences import read_events
from features.values import AS_IT_IS, MAX_EXACT, in_range, is_number_text, known_texts, numbers, seconds, tokens

FEW_ROWS = 256
"""Rows up to which the columns go together: of more, Python's strings do not stay in a core's cache."""

_FEW_HASHES = 48
"""Hashes up to which Python makes ids of them faster than NumPy."""

_NO_TYPE = type(None)
_TEXT = {str, _NO_TYPE}
_NUMBER = {int, float, _NO_TYPE}


class FeatureEncoder:
    """Encodes raw rows for one schema and what was learnt with it."""

    def __init__(self, schema: FeatureSchema, learnt: Learnt) -> None:
        self.schema = schema
        self._finisher = Finisher(schema, learnt)
        self._few = _FewRows(schema, learnt, self._finisher)
        self._names = schema.feature_columns
        self._text_names = {c for f in schema.sparse if f.encoding.kind in ("hash", "vocabulary") for c in f.columns}
        self._list_names = {f.columns[0] for f in schema.id_features if f.kind.takes_lists}
        self._spelling = _spelling_of(schema)
        pick = itemgetter(*self._names)
        self._pick = pick if len(self._names) > 1 else lambda row: (pick(row),)

    def encode(self, rows: Sequence[RawRow]) -> Columns:
        """Encode rows into the columns of the Parquet files (features only).

        Raises:
            RowError: the message names the row (from 1) and the column.
        """
        try:
            picked = list(map(self._pick, rows))
            if len(rows) <= FEW_ROWS:
                return self._few.encode(picked)
            if self._few.looks_up:
                parts = [self._few.encode(picked[at : at + FEW_ROWS]) for at in range(0, len(rows), FEW_ROWS)]
                return {name: concatenate([part[name] for part in parts]) for name in parts[0]}
            columns, lists = self._arrays(picked)
            prepared = prepare(self.schema, columns, lists)
            if prepared.reason is None:
                return self._finisher.columns(prepared)
        except (KeyError, RowError, UnicodeEncodeError):
            pass
        for number, row in enumerate(rows, start=1):
            try:
                fault = self.find_error(row)
            except MissingColumnError as error:
                raise MissingColumnError(f"row {number}: {error}") from None
            if fault is not None:
                raise RowError(f"row {number}: {fault}")
        raise AssertionError("rows that cannot be encoded together can be encoded alone")

    def encode_columns(
        self,
        columns: Mapping[str, pa.Array],
        lists: Mapping[str, pa.Array] | None = None,
        histories: Columns | None = None,
        repeats: Repeats | None = None,
    ) -> tuple[Columns, Prepared]:
        """Encode a block of rows.

        Args:
            columns: raw column -> (n,) values; columns that no feature uses are ignored.
            lists: raw column -> (n,) lists of text, null where a row's value was none.
            histories: columns of the files, (n,) each, of sequences that were made of other rows; they have no raw
                columns.
            repeats: columns that rows share with those beside them (``RawBlock.repeats``).

        Returns:
            The columns of all rows, and the checked rows: those that are bad (``Prepared.reason``) have ids and floats
            of no meaning.

        Raises:
            MissingColumnError, ColumnError: as ``prepare``.
        """
        histories = histories or {}
        made = {sequence.name for sequence in self.schema.sequence if histories.keys() >= set(sequence.keys)}
        prepared = prepare(self.schema, columns, lists, made=made, repeats=repeats)
        return self._finisher.columns(prepared, histories), prepared

    def find_error(self, row: RawRow) -> str | None:
        """Find the reason why a raw row cannot be encoded; None if it can.

        Raises:
            MissingColumnError: a column is missing.
        """
        try:
            self._few.encode([self._pick(row)])
        except KeyError as error:
            shown = ", ".join(map(str, row))
            raise MissingColumnError(f"column {error.args[0]!r} is missing from the row; it has: {shown}") from None
        except (RowError, UnicodeEncodeError) as error:
            return self._explain(row) or str(error)
        return None

    def _explain(self, row: RawRow) -> str | None:
        """Name the first column, in the features' order, that cannot be encoded, and why."""
        for feature in self.schema.sparse:
            is_text = feature.encoding.kind in ("hash", "vocabulary")
            values = [row[name] for name in feature.columns]
            if feature.kind.takes_lists and _is_list(values[0]):
                values = list(values[0])
            for value in values:
                fault = _text_fault(value) if is_text else self._number_fault(value)
                if fault is not None:
                    return f"column {'+'.join(feature.columns)!r}: {fault}"
        for dense in self.schema.dense:
            fault = self._number_fault(row[dense.source])
            if fault is not None:
                return f"column {dense.source!r}: {fault}"
        return None

    def _number_fault(self, value: Any) -> str | None:
        try:
            _, bad = _stacked_numbers([value], self.schema)
        except RowError as error:
            return str(error)
        except UnicodeEncodeError:
            bad = True
        if bad is None:
            return None
        if isinstance(value, str) and not is_number_text(value):
            return f"{value!r} is not a number"
        return f"{value!r:.80} is not a finite number that float32 has room for"

    def _arrays(self, picked: list[tuple[Any, ...]]) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
        """Convert many rows to Arrow columns; lists go aside."""
        columns, lists = {}, {}
        for name, values in zip(self._names, zip(*picked, strict=True), strict=True):
            if name in self._list_names:
                columns[name], found = _bag_arrays(values, self._spelling.get(name, _text_of))
                lists |= {} if found is None else {name: found}
            elif name in self._spelling:
                columns[name] = _text_array(values, self._spelling[name])
            else:
                columns[name] = _text_array(values) if name in self._text_names else _number_array(values)
        return columns, lists


class MappingTexts:
    """Texts behind some raw rows that were encoded, as ``features.unknown_values.ValueTexts``."""

    def __init__(self, rows: Sequence[RawRow], schema: FeatureSchema) -> None:
        self._rows, self._schema = rows, schema

    def num_missing(self, feature: SparseFeature, rows: NDArray[np.intp]) -> int:
        """Count those of some rows that have no value of a single-valued feature."""
        return sum(not text for text in self.texts(feature, rows))

    def texts(self, feature: SparseFeature, rows: NDArray[np.intp]) -> list[str | None]:
        """Return the values of a feature in some rows; None where a value is missing."""
        values = [self._rows[row][feature.columns[0]] for row in rows.tolist()]
        if feature.encoding.kind == "log_squared":
            found = _stacked_numbers(values, self._schema)[0].tolist()
            return [None if math.isnan(number) else f"{number:g}" for number in found]
        if feature.kind.takes_lists:
            values = list(chain.from_iterable(_tokens_of(value, feature) for value in values))
        return [text or None for text in _plain_texts(values, self._schema)]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


# -------------------------------------------------------------------------------------------------------- Python values


def _text_of(value: Any) -> str | None:
    """Canonical text of a raw value, as ``features.values.texts`` has it; None for a missing one.

    Raises:
        RowError: the value is a number with a fraction, beyond 2^53, or has no text form.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return None
        if abs(number) <= MAX_EXACT and number.is_integer():
            return str(int(number))
        raise RowError(f"{value!r} has a fraction (or is beyond 2^53): it cannot be a category")
    raise RowError(f"{value!r} ({type(value).__name__}) is neither text nor a number")


def _text_fault(value: Any) -> str | None:
    try:
        text = _text_of(value)
        _ = text and text.encode()
    except (RowError, UnicodeEncodeError) as error:  # half a surrogate pair, as JSON may hold, has no bytes to hash
        return str(error)
    return None


def _number_of(value: Any) -> float:
    """Convert a raw value that is no text to a float: NaN for a missing one, infinity for what is too large."""
    if value is None:
        return math.nan
    if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise RowError(f"{value!r} ({type(value).__name__}) is neither text nor a number")


def _stacked_numbers(values: Sequence[Any], schema: FeatureSchema) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
    """Convert values of any types, of one column or of several, as ``features.values.numbers`` does."""
    types = set(map(type, values))
    if types <= _TEXT:
        return numbers(pa.array([value or None for value in values], pa.string()), schema.values)
    try:
        if types <= _NUMBER and schema.values == AS_IT_IS:
            return in_range(np.array(values, np.float64))
    except OverflowError:
        pass
    is_text = [isinstance(value, str) for value in values]
    found, bad = numbers(
        pa.array([value or None if text else None for value, text in zip(values, is_text, strict=True)], pa.string()),
        schema.values,
    )
    plain = [math.nan if text else _number_of(value) for value, text in zip(values, is_text, strict=True)]
    rest, more = numbers(pa.array(plain, pa.float64()), schema.values)
    return np.where(is_text, found, rest), bad if more is None else more if bad is None else bad | more


def _text_array(values: Sequence[Any], spell: Callable[[Any], str | None] = _text_of) -> pa.Array:
    """Convert a column that is used as texts, and perhaps as numbers too; ``spell`` makes a text of anything else."""
    types = set(map(type, values))
    if types <= _TEXT:
        return pa.array(values, pa.string())
    return pa.array([value if type(value) is str else spell(value) for value in values], pa.string())


def _number_array(values: Sequence[Any]) -> pa.Array:
    """Convert a column that is used as numbers alone."""
    types = set(map(type, values))
    if types <= _TEXT:
        return pa.array([value or None for value in values], pa.string())
    if str not in types:
        return pa.array(list(map(_number_of, values)), pa.float64())
    # A float's text is read back as the same float.
    return pa.array([value or None if isinstance(value, str) else _spelled(value) for value in values], pa.string())


def _spelled(value: Any) -> str | None:
    number = _number_of(value)
    return None if math.isnan(number) else repr(number)


def _time_text(value: Any) -> str | None:
    """Spell a time: a whole number without a point, because it may be the digits of a date pattern."""
    number = _number_of(value)
    return _text_of(value) if math.isnan(number) or number.is_integer() else repr(number)


def _spelling_of(schema: FeatureSchema) -> dict[str, Callable[[Any], str | None]]:
    """Map the raw columns that sequences alone use to what makes texts of their values; lists hold texts."""
    found: dict[str, Callable[[Any], str | None]] = {}
    for part in schema.parts:
        [name] = part.columns
        if part.is_dwell:
            found[name] = _spelled
        elif not part.part:
            found[name] = _time_text
            if schema.timestamp is not None:
                found[schema.timestamp.column] = _time_text
        elif part.encoding.kind not in TEXT_KINDS:
            found[name] = _spelled
    others = {c for f in schema.sparse for c in f.columns} | {f.source for f in schema.dense}
    others |= {c for part in schema.parts if part.encoding.kind in TEXT_KINDS for c in part.columns}
    return {name: spell for name, spell in found.items() if name not in others}


# ------------------------------------------------------------------------------------------------------------- few rows


class _FewRows:
    """Encodes a few rows, all columns together."""

    def __init__(self, schema: FeatureSchema, learnt: Learnt, finisher: Finisher) -> None:
        self.schema, self.learnt, self.finisher = schema, learnt, finisher
        place = {name: i for i, name in enumerate(schema.feature_columns)}
        singles = [f for f in schema.sparse if not f.kind.takes_lists]
        hashed = [f for f in singles if f.encoding.kind == "hash"]
        coded = [f for f in singles if f.encoding.kind == "vocabulary"]
        squared = [f for f in singles if f.encoding.kind == "log_squared"]
        self.bucketed = [f for f in singles if f.encoding.kind not in ("hash", "vocabulary", "log_squared")]
        bags = [f for f in schema.sparse if f.kind.takes_lists]
        self.bags = [(f, place[f.columns[0]]) for f in bags]
        self.bag_seeds = {f.name: salt_seed(f.salt) for f in bags if f.encoding.kind == "hash"}
        # Texts: the columns of hashed features, then those of vocabularies.
        self.hashed = [(salt_seed(f.salt), len(f.columns)) for f in hashed]
        self.is_plain = all(parts == 1 for _, parts in self.hashed)
        self.looks_up = len(coded) > len(hashed)
        """Whether most texts are looked up. For them Python's dicts are the fastest; for hashes NumPy is."""
        self.seeds = [seed for seed, _ in self.hashed]
        self.num_ids = [f.encoding.num_buckets - 1 for f in hashed if isinstance(f.encoding, HashEncoding)]
        # Features that share a table have equal vocabularies.
        known = {f.table_name: learnt.ids_of(f.name) for f in schema.sparse if f.encoding.kind == "vocabulary"}
        self.ids_of = {f.name: known[f.table_name] for f in schema.sparse if f.table_name in known}
        self.coded = [(self.ids_of[f.name], learnt.oov_id(f.name)) for f in coded]
        self.text_places = [place[name] for f in (*hashed, *coded) for name in f.columns]
        self.num_hashed_texts = sum(parts for _, parts in self.hashed)
        # Numbers: the columns of squared, bucketed and dense features.
        names = [f.columns[0] for f in (*squared, *self.bucketed)] + [f.source for f in schema.dense]
        distinct = list(dict.fromkeys(names))
        self.number_places = [place[name] for name in distinct]
        rows = [distinct.index(name) for name in names]
        self.squared = [(finisher.square_ids[f.name], learnt.oov_id(f.name)) for f in squared]
        self.squared_rows = rows[: len(squared)]
        self.bucketed_rows = rows[len(squared) : len(squared) + len(self.bucketed)]
        self.dense_rows = rows[len(squared) + len(self.bucketed) :]
        self.dense = _DenseRows(schema, learnt)
        self.single_names = [[f.name for f in group] for group in (hashed, coded, squared)]
        self.names = [column.name for column in schema.columns]
        self.sequences = _SequenceRows(schema, place, finisher) if schema.sequence else None

    def encode(self, picked: list[tuple[Any, ...]]) -> Columns:
        """Encode rows.

        Args:
            picked: values of the schema's raw feature columns, a tuple a row.

        Raises:
            RowError: a value is malformed.
            UnicodeEncodeError: a value has no bytes to hash.
        """
        n = len(picked)
        columns = list(zip(*picked, strict=True)) if picked else [()] * len(self.schema.feature_columns)
        found: Columns = {}
        if self.text_places:
            values = list(chain.from_iterable([columns[i] for i in self.text_places]))
            self._encode_texts(_plain_texts(values, self.schema), n, found)
        if self.number_places:
            values = list(chain.from_iterable([columns[i] for i in self.number_places]))
            stacked, bad = _stacked_numbers(values, self.schema)
            if bad is not None:
                raise RowError("a value is not a number")
            self._encode_numbers(stacked.reshape(len(self.number_places), n), found)
        for feature, i in self.bags:
            found |= self._encode_bag(feature, columns[i])
        if self.sequences is not None:
            found |= self.sequences.encode(columns, n)
        return {name: found[name] for name in self.names}

    def _encode_texts(self, values: list[str | None], n: int, found: Columns) -> None:
        hashed_names, coded_names, _ = self.single_names
        end = self.num_hashed_texts * n
        if hashed_names:
            if self.is_plain:
                seeds = self.seeds if n == 1 else [seed for seed in self.seeds for _ in range(n)]
                hashes = [_digest(v.encode(), seed) if v else None for v, seed in zip(values[:end], seeds, strict=True)]
            else:
                hashes = self._hash_crosses(values, n)
            found |= zip(hashed_names, _ids(hashes, self.num_ids, n), strict=True)
        if coded_names:
            coded = [
                ids.get(token or "", unknown)
                for k, (ids, unknown) in enumerate(self.coded)
                for token in values[end + k * n : end + (k + 1) * n]
            ]
            found |= zip(coded_names, np.array(coded, np.int32).reshape(len(coded_names), n), strict=True)

    def _hash_crosses(self, values: list[str | None], n: int) -> list[int | None]:
        """Hash features of one or more columns, the hash of one being the seed of the next."""
        hashes, at = [], 0
        for seed, num_parts in self.hashed:
            parts = [values[at + k * n : at + (k + 1) * n] for k in range(num_parts)]
            at += num_parts * n
            for row in zip(*parts, strict=True):
                state = seed
                for part in row:
                    state = _digest((part or "").encode(), state)
                hashes.append(state if any(row) else None)
        return hashes

    def _encode_numbers(self, stacked: NDArray[np.float64], found: Columns) -> None:
        n = stacked.shape[1]
        if self.squared:
            squares = squared_tokens(stacked[self.squared_rows].ravel()).tolist()
            ids = [
                known.get(square, unknown)
                for k, (known, unknown) in enumerate(self.squared)
                for square in squares[k * n : (k + 1) * n]
            ]
            found |= zip(self.single_names[2], np.array(ids, np.int32).reshape(len(self.squared), n), strict=True)
        for feature, row in zip(self.bucketed, self.bucketed_rows, strict=True):
            if n == 1:
                value = stacked[row].item()
                place = bisect_right(self.finisher.boundaries[feature.name], value)  # type: ignore[arg-type]
                found[feature.name] = np.array([1 + place if value == value else MISSING_ID], np.int32)
            else:
                found[feature.name] = self.finisher.bucket_ids(feature, stacked[row])
        if self.dense_rows:
            dense = self.dense.transform(stacked[self.dense_rows])
            found |= zip(self.schema.dense_names, dense, strict=True)

    def _encode_bag(self, feature: SparseFeature, values: Sequence[Any]) -> Columns:
        if self.schema.values == AS_IT_IS:
            parts = [[t for t in _tokens_of(value, feature) if t][: feature.max_length] for value in values]
            flat, lengths = list(chain.from_iterable(parts)), np.array([len(part) for part in parts], np.int32)
        else:
            columns, lists = _bag_arrays(values)
            kept = tokens(columns, lists, feature, self.schema.values)
            flat, lengths = kept.texts.to_pylist(), kept.lengths.astype(np.int32)
        if isinstance(feature.encoding, HashEncoding):
            seed = self.bag_seeds[feature.name]
            hashes = [_digest(token.encode(), seed) for token in flat]
            ids = _ids(hashes, [feature.encoding.num_buckets - 1], len(flat))[0]
        else:
            known, unknown = self.ids_of[feature.name], self.learnt.oov_id(feature.name)
            ids = np.array([known.get(token, unknown) for token in flat], np.int32)
        return feature.kind.to_columns(ids, lengths, feature)


class _SequenceRows:
    """Encodes the sequences of a few rows, a sequence at a time."""

    def __init__(self, schema: FeatureSchema, place: dict[str, int], finisher: Finisher) -> None:
        self.schema, self.place, self.finisher = schema, place, finisher
        self.spelling = _spelling_of(schema)

    def encode(self, columns: Sequence[Sequence[Any]], n: int) -> Columns:
        """Encode the rows.

        Args:
            columns: values of the schema's raw feature columns, column by column.
            n: number of rows.

        Raises:
            RowError: a history is malformed.
        """
        arrays: dict[str, pa.Array] = {}
        lists: dict[str, pa.Array] = {}
        for name in {name for part in self.schema.parts for name in part.columns}:
            arrays[name], found = _bag_arrays(columns[self.place[name]], self.spelling.get(name, _text_of))
            lists |= {} if found is None else {name: found}
        times = self._row_times(columns) if any(sequence.gaps for sequence in self.schema.sequence) else None
        parts: dict[str, Hashed | Coded | Listed] = {}
        for sequence in self.schema.sequence:
            events = read_events(self.schema, sequence, arrays.__getitem__, lists, times)
            if events.faults:
                raise RowError(events.faults[0][1])
            parts |= prepare_events(self.schema, events)
        hashed, coded, listed = by_type(parts)
        prepared = Prepared(n, hashed, coded, listed=listed)
        found = {}
        for part in self.schema.parts:
            found |= part.kind.to_columns(*self.finisher.ids(part, prepared), part)
        return found

    def _row_times(self, columns: Sequence[Sequence[Any]]) -> NDArray[np.int64]:
        time = self.schema.timestamp
        assert time is not None
        spell = self.spelling.get(time.column, _text_of)
        times, is_time = seconds(_text_array(columns[self.place[time.column]], spell), time.format, self.schema.values)
        if not is_time.all():
            raise RowError(f"timestamp {time.column!r} is missing or unreadable")
        return times


def _ids(hashes: Sequence[int | None], num_ids: list[int], n: int) -> NDArray[np.int32]:
    """Map hashes to ids, (features, n), as ``hash_to_id``; None is a missing value.

    Args:
        hashes: n of each feature.
        num_ids: how many ids each feature has beside 0.
        n: number of rows.
    """
    if len(hashes) <= _FEW_HASHES:
        sizes = num_ids if n == 1 else [size for size in num_ids for _ in range(n)]
        ids = [
            MISSING_ID if hashed is None else 1 + (hashed - ((hashed >> 63) << 64)) % size
            for hashed, size in zip(hashes, sizes, strict=True)
        ]
        return np.array(ids, np.int32).reshape(len(num_ids), n)
    known = np.array([hashed or 0 for hashed in hashes], np.uint64).reshape(len(num_ids), n)
    found = hashed_ids(known, np.array(num_ids)[:, None] + 1)
    if None in hashes:
        found[np.array([hashed is None for hashed in hashes]).reshape(found.shape)] = MISSING_ID
    return found


_digest = xxhash.xxh64_intdigest


def _plain_texts(values: list[Any], schema: FeatureSchema) -> list[str | None]:
    if not set(map(type, values)) <= _TEXT:
        values = [value if type(value) is str else _text_of(value) for value in values]
    if schema.values == AS_IT_IS:
        return values
    return known_texts(pa.array(values, pa.string()), schema.values).to_pylist()


def _tokens_of(value: Any, feature: SparseFeature) -> Iterable[str | None]:
    if value is None:
        return ()
    if _is_list(value):
        return map(_text_of, value)
    text = _text_of(value)
    return text.split(feature.separator) if text else ()


def _bag_arrays(
    values: Sequence[Any], spell: Callable[[Any], str | None] = _text_of
) -> tuple[pa.Array, pa.Array | None]:
    """Convert a column of texts and lists: the texts, and the lists where there are any."""
    if not any(map(_is_list, values)):
        return _text_array(values, spell), None
    items = [[v if type(v) is str else spell(v) for v in value] if _is_list(value) else None for value in values]
    rest = [None if _is_list(value) else value for value in values]
    return _text_array(rest, spell), pa.array(items, pa.list_(pa.string()))


class _DenseRows:
    """The transformations of all dense features, a row of numbers each."""

    def __init__(self, schema: FeatureSchema, learnt: Learnt) -> None:
        dense = schema.dense

        def column(values: Iterable[float]) -> NDArray[np.float64]:
            return np.array(list(values), np.float64)[:, None]

        self.fill = column(f.fill for f in dense)
        self.is_clipped = any(f.clip for f in dense)
        self.low = column(f.clip[0] if f.clip else -math.inf for f in dense)
        self.high = column(f.clip[1] if f.clip else math.inf for f in dense)
        self.logs = [i for i, f in enumerate(dense) if f.log1p]
        self.scaled = [i for i, f in enumerate(dense) if f.standardise and learnt.moments[f.name][1] > 0]
        self.constant = [i for i, f in enumerate(dense) if f.standardise and i not in self.scaled]
        moments = [learnt.moments[dense[i].name] for i in self.scaled]
        self.mean, self.deviation = column(mean for mean, _ in moments), column(d for _, d in moments)

    def transform(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Compute the floats, (features, n), in place."""
        is_missing = np.isnan(values)
        if is_missing.any():
            values = np.where(is_missing, self.fill, values)
        if self.is_clipped:
            values = np.where(values < self.low, self.low, values)
            values = np.where(values > self.high, self.high, values)
        if self.logs:
            rows = values[self.logs]
            values[self.logs] = np.copysign(log1p(np.abs(rows).ravel()).reshape(rows.shape), rows)
        if self.scaled:
            values[self.scaled] = (values[self.scaled] - self.mean) / self.deviation
        if self.constant:
            values[self.constant] = 0.0
        return values.astype(np.float32)
