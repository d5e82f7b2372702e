"""ColumnProfile: what a sample says of one column: missing values, numbers, times, lists, how many distinct values."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import pc
from features.odd_values import MIN_SHARE, NULL_TOKENS
from features.schema import Values
from features.values import PRINTED_LIST, as_mask, numbers, seconds, texts

MISSING_TEXTS = (*NULL_TOKENS, "n/a", "(null)", "<null>", "\\\\N", "undefined")
"""Texts that mean missing, as far as can be told."""
_SEPARATORS = ("|", ";", ",", " ")
_SURE_SEPARATORS = ("|", ";")
"""Separators that no other text has often."""
_DECIMAL_COMMA = re.compile(r"-?\d*(,\d+)?")
_ID = re.compile(r"[A-Za-z]{0,4}_?\d*")
"""Pattern of ids: lists of them are told by their form, however seldom one comes again."""
_MIN_LISTS = 0.05
"""Share of the values that hold a separator from which on a column holds lists."""
_MOST_VALUES = 2_000
"""Distinct values that are looked at for times and lists."""
_FIRST_TIME = 788_918_400
"""1995 in Unix seconds: no log is older."""
_LONGEST_LOG = 15 * 366 * 86_400
"""Seconds that numbers span at most that are times without a name that says so."""
_SURE_PATTERNS = (
    "yyyy-MM-dd HH:mm:ss[.SSSSSSSSS]",
    "yyyy-MM-dd'T'HH:mm:ss[.SSSSSSSSS][XXX]",
    "yyyy-MM-dd HH:mm:ss[.SSSSSSSSS][XXX]",
    "yyyy-MM-dd HH:mm:ss[.SSSSSSSSS] XXX",
    "yyyy-MM-dd HH:mm:ss[.SSSSSSSSS] 'UTC'",
    "yyyy-MM-dd HH:mm",
    "yyyy-MM-dd H:mm",
    "yyyy-MM-dd'T'HH:mm",
    "yyyy-MM-dd HH",
    "yyyy-MM-dd",
    "yyyy/MM/dd HH:mm:ss",
    "yyyy/M/d H:mm:ss",
    "yyyy/M/d H:mm",
    "yyyy/M/d",
    "M/d/yyyy h:mm:ss a",
    "M/d/yyyy H:mm:ss",
    "M/d/yyyy H:mm",
    "M/d/yyyy",
    "d/M/yyyy H:mm:ss",
    "d/M/yyyy H:mm",
    "d/M/yyyy",
    "d.M.yyyy H:mm:ss",
    "d.M.yyyy",
    "dd-MMM-yyyy HH:mm:ss",
    "dd-MMM-yyyy",
    "dd/MMM/yyyy:HH:mm:ss Z",
)
_DIGIT_PATTERNS = ("yyyyMMddHHmmss", "yyyyMMddHHmm", "yyyyMMddHH", "yyyyMMdd", "yyMMddHH", "yyMMdd")
_TIME_NAME = re.compile(r"(?i)time|date|\bts\b|_ts\b|hour|day|created|stamp")


Parts = list[NDArray[np.bool_]]
"""Masks of all rows of a sample, and of parts of them."""


@dataclass
class ColumnProfile:
    """ColumnProfile: what a column of the sample holds.

    Attributes:
        name: of the raw column.
        codes: (n,) place in ``values`` of each row's value, -1: missing.
        values: distinct texts that are not missing.
        counts: rows of each.
        missing_texts: text that means missing -> its rows.
        separator: text between the values of a list, "" where they are lists in the file; None: single values.
        is_printed: whether lists are printed ones, like ``[3, 7]``.
        has_blank_tokens: whether values of lists have spaces around them.
        lengths: (n,) values of each row's list.
        tokens: distinct values of the lists.
        num_distinct: distinct values of the whole log, an estimate where the sample is a part.
    """

    name: str
    codes: NDArray[np.int32]
    values: pa.StringArray
    counts: NDArray[np.int64]
    missing_texts: dict[str, int] = field(default_factory=dict)
    separator: str | None = None
    is_printed: bool = False
    has_blank_tokens: bool = False
    lengths: NDArray[np.int64] | None = None
    tokens: pa.StringArray | None = None
    num_distinct: int = 0

    @property
    def num_rows(self) -> int:
        """Number of rows of the sample."""
        return len(self.codes)

    @cached_property
    def num_present(self) -> int:
        """Number of rows with a value."""
        return int(self.counts.sum()) if self.lengths is None else int((self.lengths > 0).sum())

    @property
    def missing(self) -> float:
        """Share of the rows without a value."""
        return 1 - self.num_present / self.num_rows

    @property
    def is_list(self) -> bool:
        """Tell whether rows hold several values."""
        return self.separator is not None

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """Number of each of the values; NaN where it is none."""
        return numbers(self.values)[0]

    @cached_property
    def is_number(self) -> bool:
        """Tell whether every value is a number."""
        return not self.is_list and len(self.values) > 0 and not bool(np.isnan(self.numbers).any())

    @cached_property
    def number_share(self) -> float:
        """Share of the present rows whose value is a number."""
        return float(self.counts[~np.isnan(self.numbers)].sum() / max(self.counts.sum(), 1))

    @cached_property
    def has_fractions(self) -> bool:
        """Tell whether a number is not whole."""
        return bool((self.numbers != np.rint(self.numbers)).any())

    @cached_property
    def has_points(self) -> bool:
        """Tell whether whole numbers are written with a point."""
        return bool(as_mask(pc.match_substring_regex(self.values, r"^-?[0-9]+\.0+$")).any())

    @cached_property
    def has_blanks(self) -> bool:
        """Tell whether values have spaces or tabs around them."""
        return bool(as_mask(pc.not_equal(self.values, pc.utf8_trim(self.values, " \t"))).any())

    @property
    def is_constant(self) -> bool:
        """Tell whether all rows have one value."""
        return not self.is_list and len(self.values) == 1 and self.num_present == self.num_rows

    @property
    def is_unique(self) -> bool:
        """Tell whether nearly every row has a value of its own."""
        return not self.is_list and self.num_present > 50 and len(self.values) > 0.98 * self.num_present

    def quantile(self, share: float) -> float:
        """Return a quantile of the numbers over the rows."""
        order = np.argsort(self.numbers)
        place = np.searchsorted(np.cumsum(self.counts[order]), share * self.counts.sum())
        return float(self.numbers[order][min(place, len(order) - 1)])

    def head(self, count: int) -> list[str]:
        """Return the most frequent values."""
        order = np.argsort(-self.counts, kind="stable")[:count]
        return self.values.take(pa.array(order)).to_pylist()

    def rows_of(self, per_value: NDArray[Any], missing: Any) -> NDArray[Any]:
        """Spread what is known of each value over the rows, (n,)."""
        return np.append(per_value, missing)[self.codes]

    @cached_property
    def time_format(self) -> str | None:
        """Format that reads every value as a time between 1995 and tomorrow; None: these are no times."""
        few = self.values.slice(0, _MOST_VALUES)
        if self.is_list or not len(few):
            return None
        if self.is_number:
            wholes = self.numbers[: len(few)]
            for name, factor in (("unix", 1), ("unix_ms", 1_000)):
                is_near = len(few) > 5 and np.ptp(wholes) < _LONGEST_LOG * factor
                if _is_recent(wholes / factor).all() and (is_near or _TIME_NAME.search(self.name)):
                    return name
        has_name = _TIME_NAME.search(self.name) is not None
        digits = [pattern for pattern in _DIGIT_PATTERNS if has_name or (len(pattern) >= 8 and len(few) > 5)]
        for pattern in digits if self.is_number else _SURE_PATTERNS:
            times, is_time = seconds(few, pattern)
            if is_time.all() and _is_recent(times).all():
                return pattern
        return None

    @property
    def time_unit(self) -> str | None:
        """Unit of times that no format reads; None: these are none."""
        if self.is_number and len(self.values) > 5:
            for unit, factor in (("microseconds", 10**6), ("nanoseconds", 10**9)):
                if _is_recent(self.numbers / factor).all():
                    return unit
        return None

    @property
    def has_decimal_comma(self) -> bool:
        """Tell whether the values are numbers with a comma in place of the point."""
        return not self.is_number and not self.is_list and all(map(_DECIMAL_COMMA.fullmatch, self.head(_MOST_VALUES)))

    def times(self) -> NDArray[np.float64]:
        """Return the time of each row in Unix seconds, NaN where it has none."""
        assert self.time_format is not None
        found, is_time = seconds(self.values, self.time_format)
        return self.rows_of(np.where(is_time, found, np.nan), np.nan)


def _is_recent(times: NDArray[Any]) -> NDArray[np.bool_]:
    return (times >= _FIRST_TIME) & (times <= time.time() + 366 * 86_400)


def profile_texts(name: str, found: pa.StringArray, total_rows: int, seed: int = 0) -> ColumnProfile:
    """Profile a column of single values, which may be lists in texts.

    Args:
        name: of the column.
        found: (n,) texts, null where missing.
        total_rows: rows of the whole log.
        seed: of the parts of the rows from which the growth of distinct values is told.
    """
    encoded = found.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    values = encoded.dictionary
    counts = np.bincount(codes[codes >= 0], minlength=len(values)).astype(np.int64)
    trimmed = pc.utf8_trim(values, " \t")
    is_null = as_mask(pc.is_in(trimmed, value_set=pa.array(MISSING_TEXTS)))
    is_null &= ~_is_namibia(trimmed)
    shown = pc.utf8_trim(values.filter(pa.array(is_null)), " \t").to_pylist()
    nulls: dict[str, int] = {}
    for text, count in zip(shown, counts[is_null].tolist(), strict=True):
        nulls[text] = nulls.get(text, 0) + count
    is_null |= as_mask(pc.equal(trimmed, ""))
    places = np.append(np.where(is_null, -1, np.cumsum(~is_null) - 1), -1).astype(np.int32)
    values, counts, codes = values.filter(pa.array(~is_null)), counts[~is_null], places[codes]
    profile = ColumnProfile(name, codes, values, counts, nulls)
    parts = _parts(len(codes), seed)
    seen = [len(np.unique(codes[part & (codes >= 0)])) for part in parts]
    if profile.is_number and profile.has_points and not profile.has_fractions:  # 3 and 3.0 are one
        seen = [number * len(np.unique(profile.numbers)) // seen[0] for number in seen]
    profile.num_distinct = _extrapolate(seen, len(codes), total_rows)
    _find_lists(profile, parts, total_rows)
    return profile


def profile_lists(name: str, found: pa.ListArray, total_rows: int, seed: int = 0) -> ColumnProfile:
    """Profile a column whose values are lists in the file; arguments as for ``profile_texts``."""
    lengths = np.diff(found.offsets.to_numpy())
    codes = np.where(lengths > 0, 0, -1).astype(np.int32)
    profile = ColumnProfile(name, codes, pa.array([], pa.string()), np.zeros(0, np.int64), separator="")
    _count_tokens(profile, found.values, lengths, _parts(len(lengths), seed), total_rows)
    return profile


def _is_namibia(values: pa.StringArray) -> NDArray[np.bool_]:
    """Mask "NA" among other codes of two capital letters, where it is a country."""
    is_pair = as_mask(pc.match_substring_regex(values, "^[A-Z]{2}$"))
    is_na = as_mask(pc.equal(values, "NA"))
    return (
        is_na if (is_pair & ~is_na).sum() > 0.9 * (len(values) - is_na.sum()) > 0 else np.zeros(len(values), np.bool_)
    )


def _parts(num_rows: int, seed: int) -> Parts:
    """Masks of all rows, of a random half and quarter of them, and of the first half and quarter."""
    place, order = np.random.default_rng(seed).random(num_rows), np.arange(num_rows) / max(num_rows, 1)
    return [place < 1, place < 0.5, place < 0.25, order < 0.5, order < 0.25]


def _extrapolate(seen: list[int], rows: int, total_rows: int) -> int:
    """Estimate the distinct values of all rows.

    With each doubling of the rows they grow by a power of 2, which falls from one doubling to the next as it does from
    a quarter of the sample to a half and to the whole. In a log that is sorted by the column, or that goes on in time,
    the first rows have fewer values than random ones: the larger estimate counts.

    Args:
        seen: in the parts of the sample (``_parts``).
        rows: of the sample.
        total_rows: of the log.
    """
    if total_rows <= rows:
        return seen[0]
    whole, half, quarter, first_half, first_quarter = seen
    random, first = (half, quarter), (first_half, first_quarter)
    return max(_grow(whole, in_half, in_quarter, rows, total_rows) for in_half, in_quarter in (random, first))


def _grow(seen: int, in_half: int, in_quarter: int, rows: int, total_rows: int) -> int:
    if not in_quarter:
        return seen
    before, power = np.log2(max(in_half / in_quarter, 1)), np.log2(max(seen / in_half, 1))
    fall = min(power / before, 1.0) if before > 0 else 0.0
    doublings = np.log2(total_rows / rows)
    grown = sum(power * fall**step * min(doublings - step + 1, 1) for step in range(1, int(np.ceil(doublings)) + 1))
    return round(min(seen * 2.0**grown, total_rows * max(1, seen / rows)))


# ---------------------------------------------------------------------------------------------------------------- lists


def _find_lists(profile: ColumnProfile, parts: Parts, total_rows: int) -> None:
    """Tell whether texts are lists, and at which separator they are to be split."""
    values, counts = profile.values, profile.counts
    if not len(values) or profile.number_share > 0.95 or profile.time_format:
        return
    is_printed = as_mask(pc.match_substring_regex(values, PRINTED_LIST))
    if counts[is_printed].sum() > 0.9 * counts.sum():
        profile.is_printed = True
        profile.separator = ","
        inner = pc.replace_substring_regex(pc.utf8_trim(values, "[] \t"), "['\"]", "")
        return _split(profile, inner, r"\s*,\s*|\s+", parts, total_rows)
    few = [text.strip(" \t") for text in values.slice(0, 10 * _MOST_VALUES).to_pylist()]
    for separator in _SEPARATORS:
        has = as_mask(pc.match_substring(pc.utf8_trim(values, " \t"), separator))
        if counts[has].sum() < _MIN_LISTS * counts.sum():
            continue
        lists = [text.split(separator) for text in few]
        tokens = {token.strip(" \t") for one in lists for token in one}
        num_phrases = sum(" " in token for token in tokens)
        if separator in ";," and (num_phrases > len(tokens) / 2 or all(map(_DECIMAL_COMMA.fullmatch, few))):
            continue
        are_ids = len({len(one) for one in lists}) > 1 and all(map(_ID.fullmatch, tokens))
        most = len(few) if separator in _SURE_SEPARATORS else len(few) / 2
        if len(tokens) <= most or are_ids:
            profile.separator = separator
            profile.has_blank_tokens = any(token != token.strip(" \t") for one in lists for token in one)
            return _split(profile, values, rf"[ \t]*{re.escape(separator)}[ \t]*", parts, total_rows)
    return None


def _split(profile: ColumnProfile, values: pa.StringArray, pattern: str, parts: Parts, total_rows: int) -> None:
    regex = re.compile(pattern)
    lists = [[token for token in regex.split(text) if token] for text in values.to_pylist()]
    each = pa.array([*lists, []], pa.list_(pa.string())).take(
        pa.array(np.where(profile.codes < 0, len(lists), profile.codes))
    )
    _count_tokens(profile, each.flatten(), np.array(each.value_lengths().to_pylist(), np.int64), parts, total_rows)


def _count_tokens(
    profile: ColumnProfile, tokens: pa.StringArray, lengths: NDArray[Any], parts: Parts, total_rows: int
) -> None:
    profile.lengths = lengths.astype(np.int64)
    found, _ = texts(tokens, Values())
    encoded = found.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    rows = [codes[np.repeat(part, lengths)] for part in parts]
    profile.tokens = encoded.dictionary
    profile.num_distinct = _extrapolate([len(np.unique(r[r >= 0])) for r in rows], profile.num_rows, total_rows)


# ------------------------------------------------------------------------------------------------------------- settings


def find_value_settings(profiles: Sequence[ColumnProfile]) -> Values:
    """Choose the reading of raw values that the columns ask for; a single null text makes a number malformed."""
    nulls: dict[str, None] = {}
    for profile in profiles:
        enough = 1 if profile.is_number else MIN_SHARE * profile.num_rows
        nulls |= dict.fromkeys(text for text, count in profile.missing_texts.items() if count >= enough)
    single = [profile for profile in profiles if not profile.is_list]
    has_blanks = any(profile.has_blanks for profile in single) or any(profile.has_blank_tokens for profile in profiles)
    return Values(
        null_tokens=tuple(sorted(nulls)),
        strip=has_blanks,
        whole_floats=any(p.is_number and p.has_points and not p.has_fractions for p in single),
        list_literals=any(profile.is_printed for profile in profiles),
    )
