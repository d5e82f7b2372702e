"""Inspection: a raw log looked at, from its files to a first config that was checked as a build checks it."""

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.encode import prepare
from features.log_files import find_files, show
from features.odd_values import OddCounts, count_odd_values, tell_odd_values
from features.schema import FeatureSchema
from features.values import seconds
from jobs.cli.config import Config, parse_config
from jobs.cli.errors import ConfigError
from jobs.cli.text_table import text_table
from jobs.inspection.column_profile import ColumnProfile, find_value_settings, profile_lists, profile_texts
from jobs.inspection.feature_choice import Choices, choose_features
from jobs.inspection.first_config import FirstConfig
from jobs.inspection.log_sample import LogSample, take_sample
from jobs.inspection.roles import Roles, choose_roles, has_times
from jobs.inspection.split_choice import choose_split
from pipeline.build.sources import plan_sources

_FEW_POSITIVES = 0.001
_LONGEST_NOTE = 70


@dataclass
class Inspection:
    """Inspection: what was found in a log, and its first config.

    Attributes:
        sample: rows of it.
        profiles: of its columns.
        roles: columns that are no features.
        choices: features.
        odd: what is odd, a sentence each.
        toml: text of the first config.
    """

    sample: LogSample
    profiles: dict[str, ColumnProfile]
    roles: Roles
    choices: Choices
    odd: list[str] = field(default_factory=list)
    toml: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """Describe each column: name, kind, distinct values, share missing, encoding, note."""
        features = {feature.column: feature for feature in self.choices.features}
        found = []
        for name in [*self.profiles, *(name for name in self.sample.left_out if name not in self.profiles)]:
            profile, feature = self.profiles.get(name), features.get(name)
            kind = feature.kind if feature else ""
            notes = [self.choices.notes.get(name), self.choices.left_out.get(name, self.sample.left_out.get(name))]
            if name == self.roles.label_column:
                kind, notes = "label", [f"rate {np.nanmean(self.roles.labels):.4f}"]
            elif name == self.roles.time:
                kind, notes = "time", [profile and profile.time_format]
            elif name == self.roles.group:
                notes.insert(0, "group")
            found.append(
                {
                    "name": name,
                    "kind": kind or "left out",
                    "distinct": profile.num_distinct if profile else None,
                    "missing": round(profile.missing, 4) if profile else None,
                    "encoding": feature.encoding if feature else None,
                    "note": "; ".join(note for note in notes if note) or None,
                }
            )
        return found

    def describe(self) -> str:
        """Describe the log for a person: a table of its columns, and what is odd."""
        table = [("column", "kind", "distinct", "missing", "encoding", "note")]
        for row in self.rows():
            note = row["note"] or ""
            shown = note if len(note) <= _LONGEST_NOTE else f"{note[: _LONGEST_NOTE - 3]}..."
            has_profile = row["distinct"] is not None
            distinct = f"{row['distinct']:,}" if has_profile else ""
            missing = f"{row['missing']:.1%}" if has_profile else ""
            table.append((show(row["name"]), row["kind"], distinct, missing, row["encoding"] or "", shown))
        lines = [text_table(table, align="<<>><"), ""]
        return "\n".join([*lines, *(f"odd: {text}" for text in self.odd)])

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        return {
            "rows": self.sample.num_rows,
            "total_rows": self.sample.total_rows,
            "is_all": self.sample.is_all,
            "rejected": dict(self.sample.rejected),
            "format": self.sample.format.kind,
            "label": self.roles.label,
            "label_candidates": list(self.roles.others),
            "group_id": self.roles.group,
            "timestamp": self.roles.time,
            "columns": self.rows(),
            "odd": self.odd,
        }


def inspect_log(
    paths: Sequence[str],
    output: str,
    rows: int,
    given: dict[str, Any],
    label: str | None = None,
    group: str | None = None,
    time: str | None = None,
) -> Inspection:
    """Look at a log and write the text of its first config, which a build takes.

    Args:
        paths: files, folders or globs, as a config names them.
        output: path of the config, for its comments and names.
        rows: rows to look at, at most.
        given: keys of ``pipeline.input.format`` that are known.
        label: rule of the label; None: it is found.
        group: column of the group; None: it is found.
        time: column of the time; None: it is found.

    Raises:
        LogError, StorageError: the log cannot be read.
        ConfigError: there is no label, or what the user names is not there.
    """
    found = find_files(paths)
    sample = take_sample(found, given, rows)
    texts = sample.texts_of_singles()
    profiles = {name: profile_texts(name, column, sample.total_rows) for name, column in texts.items()}
    for name in sample.lists:
        profiles[name] = profile_lists(name, sample.arrays(name), sample.total_rows)
    profiles = {name: profiles[name] for name in sample.blocks[0].columns if name in profiles}
    values = find_value_settings([*profiles.values()])
    roles = choose_roles(sample, profiles, label, group, time)
    choices = choose_features(profiles, roles, sample.total_rows, sample.is_all)
    if not any(feature.group == "sparse" for feature in choices.features):
        raise ConfigError("no column of the log can be a category, and a model needs one at least")
    split = choose_split(paths, found.files, roles, _times_of(sample, profiles, roles.time), sample.is_spread)
    odd = [*found.notes(), *_tell(sample, roles, choices)]
    if roles.time and split.rule and 'kind = "hash"' in split.rule:
        odd.append(f"rows are split by a hash, not by time: {split.reason}")
    result = Inspection(sample, profiles, roles, choices, odd)
    is_typed = roles.time is None or has_times(sample, roles.time)
    time_format = None if is_typed or roles.time is None else profiles[roles.time].time_format
    text = FirstConfig(
        path=output,
        log=_say_log(paths, sample),
        roles=roles,
        time_format=time_format,
        choices=choices,
        values=values,
        split=split,
        format=sample.format,
        max_rejected=None,
        odd=result.odd,
    )
    config = _check(text)
    odd, share = _try_rows(sample, config.features)
    result.odd += odd
    bearable = (
        None if share <= config.pipeline.quality.max_rejected_fraction / 2 else min(float(f"{2 * share:.1g}"), 1.0)
    )
    text = FirstConfig(**{**vars(text), "odd": result.odd, "max_rejected": bearable})
    plan_sources(_check(text).pipeline, config.features)
    result.toml = text.to_toml()
    return result


def _check(text: FirstConfig) -> Config:
    return parse_config(tomllib.loads(text.to_toml()))


def _say_log(paths: Sequence[str], sample: LogSample) -> str:
    rows = (
        f"all {sample.num_rows:,} rows" if sample.is_all else f"{sample.num_rows:,} of about {sample.total_rows:,} rows"
    )
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{', '.join(paths[:3])}{more}, from {rows}"


def _times_of(sample: LogSample, profiles: dict[str, ColumnProfile], name: str | None) -> NDArray[np.float64] | None:
    """Return the time of each row in Unix seconds, NaN where it has none."""
    if name is None:
        return None
    if profiles[name].time_format is not None:
        return profiles[name].times()
    read = [seconds(block.columns[name], "unix") for block in sample.blocks]  # times by their type
    return np.concatenate([np.where(is_time, found, np.nan) for found, is_time in read])


def _tell(sample: LogSample, roles: Roles, choices: Choices) -> list[str]:
    told = list(sample.notes)
    if roles.is_guess:
        told.append(f"no column is named like a label; {roles.label!r} has two values: see --label")
    rate = float(np.nanmean(roles.labels))
    if min(rate, 1 - rate) < _FEW_POSITIVES:
        told.append(f"the label is {rate:.4%} positive: a model needs some thousands of both")
    told += [f"{name}: {note}" for name, note in choices.notes.items()]
    told += [f"{name} is left out: {r}" for name, r in choices.left_out.items() if r.endswith("?")]
    return told


def _try_rows(sample: LogSample, schema: FeatureSchema) -> tuple[list[str], float]:
    """Encode the sample as a build does; say what is odd, and which share of its lines is no row."""
    reasons: Counter[str] = Counter(sample.rejected)
    odd: OddCounts = Counter()
    for block in sample.blocks:
        ready = prepare(schema, block.columns, block.lists, with_own=True)
        for place, reason in enumerate(ready.reasons):
            assert ready.reason is not None
            reasons[reason] += int((ready.reason == place).sum())
        texts = {name: values for name, values in block.columns.items() if pa.types.is_string(values.type)}
        odd += count_odd_values(schema, texts, block.lists)
    num_lines = sample.num_rows + sample.rejected.total()
    told = tell_odd_values(odd, schema)
    told += [
        f"{count:,} of {num_lines:,} lines are no rows for a build: {reason}"
        for reason, count in reasons.items()
        if count
    ]
    return told, reasons.total() / num_lines
