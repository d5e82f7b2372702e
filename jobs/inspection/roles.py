"""Roles of columns: label, group, time and weight, chosen by their names and by what they hold."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.encode import prepare
from features.schema import FeatureSchema, Label, SparseFeature, VocabularyEncoding
from features.values import ColumnError
from jobs.cli.errors import ConfigError
from jobs.inspection.column_profile import ColumnProfile
from jobs.inspection.log_sample import LogSample

Profiles = Mapping[str, ColumnProfile]

_LABEL_WORDS = (
    ("click", "clicked", "clk", "clicks"),
    ("label", "target", "y"),
    ("conversion", "converted", "attributed", "purchase", "purchased", "install", "installed", "order", "ordered"),
    ("buy", "bought", "subscribed", "liked", "like", "response", "outcome"),
)
"""Words of a label's name, the best first."""
_TRAIT_NAME = re.compile(
    r"(?i)gender|sex|male|weekend|holiday|work|member|subscriber|premium|vip|(^|_)(new|sso|mobile|wifi|app|active)(_|$)"
)
"""Names of what is known of a user or a moment before anything happens."""
_ACTION_NAME = re.compile(r"(?i)^(behaviou?r|action|event|activity)(_?(type|name|id))?$|_?(event|action)_type$")
_ACTIONS = (
    ("click", "clicked", "clk"),
    ("buy", "purchase", "purchased", "order", "transaction", "conversion", "install"),
)
"""Values of a column of actions that are a positive label, the best first."""
_RATING_NAME = re.compile(r"(?i)^(rating|ratings|stars|overall|review_score)$")
_YES = ("yes", "y", "t", "positive", "pos", "clicked", "click", "buy", "purchase")
_GROUP_NAMES = (
    r"^(user|u|member|customer|client|visitor|account|reviewer|person|viewer)(_?(id|key|no|hash|code))?$|^uid$",
    r"(^|_|\.)(user|uid|customer|visitor|account)(_?id)?$|^user\.id$|cookie|^(uuid|guid|idfa|gaid)$",
    r"session|(^|_)(query|page|list|impression|request)(_?id)?$",
    r"^device_?id$|^ip$",
)
_PAGE_NAME = re.compile(_GROUP_NAMES[2])
_NO_LABEL = re.compile(r"[\s<>=!]")
"""Characters that a label's column cannot have, as a rule has them."""
_WEIGHT_NAME = re.compile(r"(?i)^(instance_|sample_|row_)?weight$")
_TIME_NAMES = (r"event|click_?time|^time$|timestamp|^ts$|impression_time", r"time|stamp|hour", r"date|day|dt")
_MOST_MISSING = 0.001
_MIN_ROWS = 10


@dataclass(frozen=True)
class Roles:
    """Columns that are no features.

    Attributes:
        label: rule, as the config says it.
        labels: (n,) label of each row of the sample, NaN where it has none.
        is_guess: whether nothing but its two values speaks for the label.
        others: rules of other candidates.
        group: column; None: none.
        time: column; None: none.
        weight: column; None: none.
    """

    label: str
    labels: NDArray[np.float64]
    is_guess: bool
    others: tuple[str, ...]
    group: str | None
    time: str | None
    weight: str | None

    @property
    def label_column(self) -> str:
        """Return the column of the label."""
        return Label.parse(self.label).column

    @property
    def is_page(self) -> bool:
        """Tell whether a group is a page of results or a session, not a person."""
        return self.group is not None and _PAGE_NAME.search(self.group.lower()) is not None


def choose_roles(
    sample: LogSample, profiles: Profiles, label: str | None, group: str | None, time: str | None
) -> Roles:
    """Choose the columns that are no features; what the user names is taken.

    Raises:
        ConfigError: no column can be a label, or what the user names is none; names the option.
    """
    candidates = _label_candidates(profiles)
    if label is None and (not candidates or candidates[0][1] > _GUESS):
        raise ConfigError(_no_label(profiles, [rule for rule, _ in candidates]))
    rule, score = (label, 0) if label is not None else candidates[0]
    _check(profiles, "--label", _parse(rule).column)
    if file := sample.lacking.get(_parse(rule).column):
        raise ConfigError(
            f"{file} has no column {_parse(rule).column!r}, the label of the others: give --input "
            "the files that have it"
        )
    labels = label_values(sample, rule)
    is_found = ~np.isnan(labels)
    if is_found.mean() < 0.5 or len(np.unique(labels[is_found])) < 2:
        seen = profiles[Label.parse(rule).column].head(5)
        raise ConfigError(
            f"--label {rule!r} gives no rows of two classes in the sample; values of the column are "
            f'{", ".join(map(repr, seen))}: give a rule, such as --label "{Label.parse(rule).column} == {seen[0]}"'
        )
    column = Label.parse(rule).column
    others = tuple(one for one, score in candidates if score <= _GUESS and Label.parse(one).column != column)
    if group is not None:
        _check(profiles, "--group", group)
    if time is not None:
        _check(profiles, "--time", time)
        if profiles[time].time_format is None and not has_times(sample, time):
            seen = ", ".join(map(repr, profiles[time].head(3)))
            raise ConfigError(f"--time {time}: its values are in no known format ({seen})")
    taken = {column}
    group = group or _choose_group(profiles, taken)
    time = time or _choose_time(sample, profiles, taken | {group or ""})
    weights = [p.name for p in profiles.values() if _WEIGHT_NAME.match(p.name) and p.is_number and p.numbers.min() >= 0]
    return Roles(rule, labels, score >= _GUESS, others, group, time, weights[0] if weights else None)


def _no_label(profiles: Profiles, weak: list[str]) -> str:
    text = (
        "no column looks like a label (two values, or a rating, or actions such as click and buy): name it by "
        f'--label COLUMN or --label "rating >= 4"; columns: {", ".join(profiles)}'
    )
    if weak:
        text += f"; with two values: {', '.join(weak)}"
    constant = [p.name for p in profiles.values() if is_label_name(p.name) and not p.is_list and len(p.values) == 1]
    if constant:
        text += f"; with one value in the rows that were read: {', '.join(constant)}"
    unfit = [name for name in profiles if _NO_LABEL.search(name) and is_label_name(name)]
    if unfit:
        text += f"; no label, as its name has a space or a sign of comparison: {', '.join(map(repr, unfit))}"
    return text


def label_values(sample: LogSample, rule: str) -> NDArray[np.float64]:
    """Return the label of each row as a build reads it, NaN where it has none."""
    column = Label.parse(rule).column
    schema = FeatureSchema(rule, (SparseFeature("x", VocabularyEncoding(), ("",)),))
    found = []
    for block in sample.blocks:
        columns = {"": pa.nulls(len(block), pa.string()), column: block.columns[column]}
        try:
            ready = prepare(schema, columns, with_own=True)
        except ColumnError as error:
            raise ConfigError(f"--label {rule!r}: column {column!r}: {error}") from error
        found.append(np.where(ready.is_good, ready.own["label"], np.nan))
    return np.concatenate(found)


def _parse(rule: str) -> Label:
    try:
        return Label.parse(rule)
    except ValueError as error:
        raise ConfigError(f"--label: {error}") from error


def _check(profiles: Profiles, option: str, column: str) -> None:
    if column not in profiles:
        raise ConfigError(f"{option}: no column is called {column!r}; there are: {', '.join(profiles)}")


# ---------------------------------------------------------------------------------------------------------------- label

_ACTION, _RATING, _GUESS = 10, 20, 30
"""Scores of candidates that no word of their names speaks for; a lower one is better."""


def _label_candidates(profiles: Profiles) -> list[tuple[str, int]]:
    """List rules with their scores, the best first."""
    found = []
    for profile in profiles.values():
        if profile.is_list or _NO_LABEL.search(profile.name):
            continue
        rule = _two_valued(profile)
        if rule is not None:
            is_weak = rule != profile.name or profile.missing > _MOST_MISSING or _TRAIT_NAME.search(profile.name)
            is_weak = is_weak or profile.counts.min() < min(_MIN_ROWS, profile.num_rows / 50)
            found.append((rule, _name_score(profile.name, _GUESS + bool(is_weak))))
        elif _ACTION_NAME.search(profile.name) and (rule := _action_rule(profile)):
            found.append((rule, _ACTION))
        elif _RATING_NAME.match(profile.name) and profile.is_number and 2 < len(profile.values) <= 20:
            found.append((f"{profile.name} >= {_rating_border(profile):g}", _RATING))
    return sorted(found, key=lambda item: item[1])


def _name_score(name: str, otherwise: int) -> int:
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)]
    scores = [score for score, known in enumerate(_LABEL_WORDS) for word in known if word in words]
    return min(scores, default=otherwise)


def is_label_name(name: str) -> bool:
    """Tell whether a word of a column's name says that it is a label."""
    return _name_score(name, _GUESS) < _GUESS


def _two_valued(profile: ColumnProfile) -> str | None:
    """Rule of a column with two values, of which the larger, or the rarer, is positive; None: it is no label."""
    if len(profile.values) != 2 or profile.missing > 0.5:
        return None
    if profile.is_number:
        low, high = sorted(profile.numbers.tolist())
        return profile.name if (low, high) == (0, 1) else f"{profile.name} == {high:g}"
    values = profile.values.to_pylist()
    if {value.lower() for value in values} == {"true", "false"}:
        return profile.name
    positive = [value for value in values if value.lower() in _YES]
    chosen = positive[0] if positive else values[int(np.argmin(profile.counts))]
    return f"{profile.name} == {_item(chosen)}" if '"' not in chosen else None


def _action_rule(profile: ColumnProfile) -> str | None:
    values = {value.lower(): value for value in profile.head(100)}
    for known in _ACTIONS:
        found = [values[word] for word in known if word in values]
        if found and len(values) > len(found):
            return f"{profile.name} {'==' if len(found) == 1 else 'in'} {', '.join(map(_item, found))}"
    return None


def _item(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z_][\w-]*", text) else f'"{text}"'


def _rating_border(profile: ColumnProfile) -> float:
    """Return the value from which on a rating is good: four of five stars, or the nearest."""
    wish = 0.8 * float(profile.numbers.max())
    return min(profile.numbers[profile.numbers > profile.numbers.min()].tolist(), key=lambda value: abs(value - wish))


# ------------------------------------------------------------------------------------------------------- group and time


def _choose_group(profiles: Profiles, taken: set[str]) -> str | None:
    for pattern in _GROUP_NAMES:
        for name, profile in profiles.items():
            is_some = not profile.is_list and 2 < len(profile.values) < 0.9 * profile.num_present
            if name not in taken and re.search(pattern, name.lower()) and is_some:
                return name
    return None


def has_times(sample: LogSample, name: str) -> bool:
    """Tell whether the files themselves say that a column holds times."""
    return all(
        pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        for kind in {block.columns[name].type for block in sample.blocks}
    )


def _choose_time(sample: LogSample, profiles: Profiles, taken: set[str]) -> str | None:
    found: list[tuple[int, int, str]] = []
    for name, profile in profiles.items():
        if name in taken or profile.is_list or profile.missing > _MOST_MISSING or len(profile.values) < 2:
            continue
        if profile.time_format is None and not has_times(sample, name):
            continue
        score = next((i for i, pattern in enumerate(_TIME_NAMES) if re.search(pattern, name.lower())), 9)
        found.append((score, -len(profile.values), name))
    return min(found)[2] if found else None
