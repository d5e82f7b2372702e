"""Choice of features: which columns are features, with which encodings of which sizes, and why others are not."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from features.arrow import pc
from features.schema import RESERVED_NAMES, Label
from features.values import as_mask
from jobs.inspection.column_profile import ColumnProfile
from jobs.inspection.roles import Roles, is_label_name
from jobs.inspection.toml_text import quoted

_MOST_WORDS = 5_000
"""Distinct values up to which a vocabulary is learnt; more are hashed."""
_MOST_BUCKETS = 20_000_000
_FEW_NUMBERS = 32
"""Distinct whole numbers up to which a column is a category."""
_SMALL_NUMBERS = 6
"""Numbers from 1 to 10 that amounts have at least."""
_LONGEST_LIST = 64
_MAX_LEAK, _OTHER_LABEL, _MUCH = 0.8, 0.3, 0.5
"""Shares of the label's entropy: a column that tells more than the first is no feature, nor is a two-valued one that
tells more than the second; one that tells more than the third is odd."""
_TOLD_VALUES, _MIN_TOLD, _BINS = 200, 10, 50
_MOST_MISSING = 0.999

_NUMBER_NAME = re.compile(
    r"(?i)^I\d{1,2}$|(^|_|\.)(age|count|cnt|num|n|price|wage|amount|cost_?usd|duration|seconds|secs|minutes|length|len|size|width|"
    r"height|score|rate|ratio|avg|mean|sum|total|income|salary|balance|distance|gains?|losses|dividends|bid|age_?days|"
    r"popularity|views|clicks|impressions|visits|weight|percentage|pct)(_|\.|$)|(?-i:Count|Price|Amount|Num)"
)
_CODE_NAME = re.compile(
    r"(?i)(^|_|\.)(id|ids|code|type|kind|class|category|cate|cat|user|uid|item|movie|product|goods|sku|shop|store|seller|"
    r"brand|ad|adv|advertiser|campaign|creative|site|domain|app|page|url|query|region|country|city|state|zip|postcode|"
    r"location|device|os|model|browser|carrier|channel|publisher|slot|position|pos|hour|weekday|day|month|year|gender|sex|"
    r"occupation|language|lang|version|group|segment|cluster|list|session|ip|isp|network|platform|source|medium|key|hash|"
    r"status|flag|node|customer|pid|cms|level)(_|\.|$)|(?-i:[a-z](Id|ID|Type|Code)$)"
)

_MOST_MISSING_TIMES = 0.001
_MIN_STEM, _MIN_KNOWN = 3, 0.5
"""Letters of a category's name that the name of its lists has, and the share of their values that it has."""
_OUTPUT_NAME = re.compile(r"(?i)(^|_)(probability|propensity|pscore|pctr|pcvr|prediction|predicted)(_|$)")
_VISIT_NAME = re.compile(r"(?i)(^|_)(session|impression|request|list|auction|bid|page_?view)(_?id)?$")
_MIN_VISITS = 0.02
"""Values a row from which on ids of visits and result pages are no categories."""

FeatureKind = Literal["category", "number", "list"]


@dataclass(frozen=True)
class FeatureChoice:
    """A feature of the first config.

    Attributes:
        name: of the feature.
        column: raw column.
        settings: keys of its table in the config besides the name, as TOML text, in order.
        kind: what it is.
    """

    name: str
    column: str
    kind: FeatureKind
    settings: tuple[tuple[str, str], ...]

    @property
    def group(self) -> str:
        """Return the config's group of such features."""
        return "dense" if self.kind == "number" else "sparse"

    @property
    def encoding(self) -> str:
        """Describe the encoding for a table."""
        settings = dict(self.settings)
        if self.kind == "number":
            return "dense " + ", ".join(name for name in ("log1p", "standardise") if name in settings)
        found = re.fullmatch(r'\{ kind = "(\w+)"(?:, (\w+) = ([\d_]+))? \}', settings["encoding"])
        assert found is not None
        size = {None: "", "min_count": f" min {found[3]}", "num_buckets": f" {found[3]}"}[found[2]]
        return found[1] + size + (f", at most {settings['max_length']} a row" if "max_length" in settings else "")


@dataclass
class Choices:
    """Features of the first config, and what is no feature.

    Attributes:
        features: in the order of the log's columns.
        left_out: column -> why it is no feature.
        notes: column -> what is odd about a feature.
    """

    features: list[FeatureChoice] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def choose_features(profiles: Mapping[str, ColumnProfile], roles: Roles, total_rows: int, is_all: bool) -> Choices:
    """Choose features and their encodings.

    Args:
        profiles: of all columns that can be read.
        roles: columns with another use.
        total_rows: rows of the log.
        is_all: whether the profiles are of all of them.
    """
    chosen = Choices()
    taken = {*RESERVED_NAMES}
    others = {Label.parse(rule).column for rule in roles.others}
    labels = {name for name in others if is_label_name(name)}
    same: dict[bytes, str] = {}
    for name, profile in profiles.items():
        reason = _own_reason(profile, roles, labels) or _emptiness(profile, roles)
        told = 0.0 if reason else share_of_label(profile, roles.labels)
        if not reason and told > (_OTHER_LABEL if name in others else _MAX_LEAK):
            what = "another label" if name in others else "a leak"
            reason = f"it tells {told:.0%} of the label, which no column known before it does: {what}?"
        if not reason and not profile.is_list and len(profile.values) < profile.num_present / 2:
            twin = same.setdefault(profile.codes.tobytes(), name)
            reason = f"it says what {twin} says, value for value" if twin != name else None
        if reason:
            chosen.left_out[name] = reason
            continue
        if told > _MUCH:
            chosen.notes[name] = f"it tells {told:.0%} of the label: see that it is known before the label is"
        feature, note = _encode(profile, _feature_name(name, taken), total_rows)
        if profile.is_unique and not is_all:
            note = "nearly another value in every row of the sample"
        if note:
            chosen.notes.setdefault(name, note)
        taken |= {feature.name, feature.name + "__length"}
        chosen.features.append(feature)
    chosen.features = _share_tables(chosen.features, profiles)
    return chosen


def share_of_label(profile: ColumnProfile, labels: NDArray[np.float64]) -> float:
    """Return the share of the label's entropy that a column tells, with Miller and Madow's correction.

    Rare values are one class, and so are missing ones; many numbers are cut into bins.
    """
    keep = ~np.isnan(labels)
    if profile.lengths is not None:
        classes = np.minimum(profile.lengths, _BINS)
    elif profile.is_number and len(profile.values) > _TOLD_VALUES:
        borders = np.unique([profile.quantile(share) for share in np.linspace(0, 1, _BINS + 1)[1:-1]])
        classes = profile.rows_of(np.searchsorted(borders, profile.numbers, side="right"), -1)
    else:
        order = np.argsort(-profile.counts, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        is_rare = (place >= _TOLD_VALUES) | (profile.counts < _MIN_TOLD)
        classes = profile.rows_of(np.where(is_rare, _TOLD_VALUES, place), -1)
    _, codes = np.unique(classes[keep], return_inverse=True)
    positives = labels[keep] > 0.5
    rows = len(codes)
    joint = np.stack(
        [
            np.bincount(codes[~positives], minlength=codes.max() + 1),
            np.bincount(codes[positives], minlength=codes.max() + 1),
        ]
    )
    shares = joint / rows
    own = shares.sum(axis=1)
    entropy = -(own * np.log(own)).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = shares * np.log(shares / (own[:, None] * shares.sum(axis=0)))
    told = np.nansum(terms) - (joint.shape[1] - 1) / (2 * rows)
    return float(max(told, 0) / entropy)


# ------------------------------------------------------------------------------------------------------------- left out


def _own_reason(profile: ColumnProfile, roles: Roles, labels: set[str]) -> str | None:
    name = profile.name
    if name == roles.label_column:
        return "the label"
    if name in labels:
        return "it looks like another label"
    if name == roles.time:
        return "the time"
    if _OUTPUT_NAME.search(name):
        return "it is named like a model's output or the log's own propensity: a leak?"
    if _VISIT_NAME.search(name) and profile.num_distinct > _MIN_VISITS * profile.num_rows:
        return "it names a visit or a page of results, and new rows have new ones"
    if name == roles.weight:
        return f'it looks like a weight of rows: to use it, write weight = "{name}" below [features]'
    if profile.time_format and not (profile.is_number and len(profile.values) <= _FEW_NUMBERS):
        few = "" if profile.missing <= _MOST_MISSING_TIMES else f" that is missing in {profile.missing:.1%} of the rows"
        return f"another time{few}, which is no category and no number that says much"
    if profile.time_unit:
        return f"times in {profile.time_unit}: as milliseconds or seconds, they could be features.timestamp"
    if re.fullmatch(r"(?i)split|fold|subset", name) and {v.lower() for v in profile.head(4)} & {"train", "test"}:
        return "it says to which split a row belongs: cut the log by it into a file for each, if you want that split"
    return None


def _emptiness(profile: ColumnProfile, roles: Roles) -> str | None:
    if profile.num_present == 0:
        return "it is missing in every row"
    if profile.is_constant:
        return f"it has one value, {profile.values[0].as_py():.40}"
    if profile.missing > _MOST_MISSING:
        return f"it is missing in {profile.missing:.2%} of the rows"
    is_id = profile.is_unique and not (profile.is_number and profile.has_fractions)
    if is_id and profile.name != roles.group and profile.num_distinct > 0.9 * profile.num_rows:
        return "it has another value in nearly every row"
    return None


# ------------------------------------------------------------------------------------------------------------ encodings


def _encode(profile: ColumnProfile, name: str, total_rows: int) -> tuple[FeatureChoice, str | None]:
    """Choose a feature's encoding, and say what is odd."""
    settings: list[tuple[str, str]] = []
    if name != profile.name:
        settings.append(("columns", f"[{quoted(profile.name)}]"))
    if not profile.is_list and is_amount(profile):
        if settings:
            settings = [("column", quoted(profile.name))]
        return FeatureChoice(name, profile.name, "number", (*settings, *_steps(profile))), None
    note = None
    if profile.separator is not None:
        settings.append(("separator", quoted(profile.separator or ",")))
        assert profile.lengths is not None
        longest = int(profile.lengths.max())
        if longest > _LONGEST_LIST:
            note = f"the longest list has {longest:,} values: the first {_LONGEST_LIST} are kept"
        settings.append(("max_length", str(min(max(longest, 1), _LONGEST_LIST))))
    encoding, size = choose_encoding(profile.num_distinct, total_rows)
    if size >= _MOST_BUCKETS:
        note = f"about {profile.num_distinct:,} values share {_MOST_BUCKETS:,} rows of a table"
    if profile.has_decimal_comma:
        note = "numbers with a comma, which a build reads as categories: write them with a point"
    if profile.is_number is False and profile.number_share > 0.9:
        odd = [v for v, n in zip(profile.values.to_pylist(), profile.numbers.tolist(), strict=True) if math.isnan(n)]
        note = f"{1 - profile.number_share:.1%} of the values are no numbers, such as {odd[0]!r:.40}: a category then"
    kind: FeatureKind = "list" if profile.is_list else "category"
    return FeatureChoice(name, profile.name, kind, (*settings, ("encoding", encoding))), note


def choose_encoding(num_distinct: int, total_rows: int) -> tuple[str, int]:
    """Return the encoding of a category, as TOML, and the rows of its table."""
    if num_distinct <= _MOST_WORDS:
        min_count = next(
            count for count, rows in ((1, 5_000), (2, 10**6), (5, 10**7), (10, math.inf)) if total_rows <= rows
        )
        more = f", min_count = {min_count}" if min_count > 1 else ""
        return f'{{ kind = "vocabulary"{more} }}', num_distinct + 2
    digits = 10 ** int(math.log10(2 * num_distinct))
    size = next(step * digits for step in (1, 2, 5, 10) if step * digits >= 2 * num_distinct)
    size = min(size, _MOST_BUCKETS)
    return f'{{ kind = "hash", num_buckets = {size:_} }}', size


def _share_tables(features: list[FeatureChoice], profiles: Mapping[str, ColumnProfile]) -> list[FeatureChoice]:
    """Let lists share the table of what they are lists of, such as a history of items: names and values tell."""
    owners = {one.name: owner for one in features if (owner := _owner_of(one, features, profiles))}
    members: dict[str, list[str]] = {}
    for name, owner in owners.items():
        members.setdefault(owner, [owner]).append(name)
    tables = {name: owner for owner, names in members.items() for name in names}
    encodings = {feature.name: dict(feature.settings).get("encoding", "") for feature in features}
    shared = []
    for feature in features:
        if table := tables.get(feature.name):
            encoding = max((encodings[name] for name in members[table]), key=_table_size)
            more = {"encoding": encoding} | ({"table": quoted(table)} if table != feature.name else {})
            feature = replace(feature, settings=tuple((dict(feature.settings) | more).items()))
        shared.append(feature)
    return shared


def _owner_of(one: FeatureChoice, features: list[FeatureChoice], profiles: Mapping[str, ColumnProfile]) -> str | None:
    """Find the category whose name a list's name has, and most of whose values it has."""
    tokens = profiles[one.column].tokens
    if one.kind != "list" or tokens is None:
        return None
    for owner in features:
        stem = re.sub(r"(s|y|ies)$", "", owner.name.lower())
        if owner.kind == "category" and len(stem) >= _MIN_STEM and stem in one.name.lower():
            values = profiles[owner.column].values
            if as_mask(pc.is_in(tokens, value_set=values)).mean() > _MIN_KNOWN:
                return owner.name
    return None


def _table_size(encoding: str) -> int:
    """Rows of a hashed table; 0 for a vocabulary, which is learnt."""
    buckets = re.search(r"num_buckets = ([\d_]+)", encoding)
    return int(buckets[1]) if buckets else 0


def is_amount(profile: ColumnProfile) -> bool:
    """Tell whether a column holds amounts, which have an order and a scale, and not codes.

    Fractions are amounts. Of whole numbers the name tells; else the small ones of an amount are the frequent ones.
    """
    if not profile.is_number:
        return False
    if profile.has_fractions:
        return True
    if _NUMBER_NAME.search(profile.name):
        return len(profile.values) > _FEW_NUMBERS / 3
    if _CODE_NAME.search(profile.name):
        return False
    if len(profile.values) <= _FEW_NUMBERS:
        return False
    low, high = float(profile.numbers.min()), float(profile.numbers.max())
    num_small = int(((profile.numbers >= 1) & (profile.numbers <= 10)).sum())
    if not -10 <= low <= 1 or high < 2 * _FEW_NUMBERS or num_small < _SMALL_NUMBERS:
        return False
    border = np.quantile(profile.numbers, 0.1)  # of the distinct ones
    return bool(profile.counts[profile.numbers <= border].sum() > 0.4 * profile.counts.sum())


def _steps(profile: ColumnProfile) -> list[tuple[str, str]]:
    middle, high = profile.quantile(0.5), profile.quantile(0.99)
    has_tail = profile.numbers.min() >= -10 and high > 10 * max(middle, 1.0)
    steps = []
    if profile.missing > 0 and not has_tail and middle:
        steps.append(("fill", f"{middle:.6g}"))
    if has_tail:
        steps.append(("log1p", "true"))
    return [*steps, ("standardise", "true")]


# ---------------------------------------------------------------------------------------------------------------- names


def _feature_name(column: str, taken: set[str]) -> str:
    """Turn a column's name into a feature's: letters, digits and underscores."""
    base = re.sub(r"[^A-Za-z0-9_]+", "_", column).strip("_") or "column"
    base = f"c_{base}" if base[0].isdigit() else base
    if column in RESERVED_NAMES or base in RESERVED_NAMES:
        base = f"{base}_value"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
