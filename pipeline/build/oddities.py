"""Oddities: what is plainly odd in a build that succeeds, told in a sentence each, with its cure.

Nothing is changed or refused: a split of one class, a feature that says nothing, a side table that matches no row, a
time in the future are all built; but none of them passes without a word.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.disk.dataset import FeatureStatistics
from features.odd_values import OddCounts, count_odd_values, tell_odd_values
from features.raw_block import RawBlock
from features.schema import FeatureSchema
from pipeline.build.measure import Sums
from pipeline.config import HashSplit, OddityLimits, PipelineConfig

_SAMPLE_ROWS = 2_000
"""Rows of each block whose texts are looked at."""
_NUM_HEADS = 5
_FIRST_YEAR, _FIRST_TIME = 1990, 631_152_000
_DAY = 86_400


@dataclass
class Signs:
    """Signs of something odd in some blocks; they are added up.

    Attributes:
        texts: odd texts in samples of the raw columns.
        groups: frequent values of the split's column -> rows.
        early: rows with a time before 1990.
        late: rows with a time after tomorrow.
    """

    texts: OddCounts = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)
    early: int = 0
    late: int = 0

    def look_at(
        self, schema: FeatureSchema, raw: RawBlock, groups: pa.Array | None, times: NDArray[np.int64] | None
    ) -> None:
        """Look at one block.

        Args:
            schema: the features.
            raw: its good rows.
            groups: (n,) values of the split's column; None: the split has none.
            times: (n,) Unix seconds; None: the schema has no time.
        """
        sample = {name: values.slice(0, _SAMPLE_ROWS) for name, values in raw.columns.items()}
        lists = {name: values.slice(0, _SAMPLE_ROWS) for name, values in raw.lists.items()}
        self.texts += count_odd_values(schema, sample, lists)
        if groups is not None:
            counts = groups.drop_null().value_counts()
            numbers = counts.field("counts").to_numpy()
            for place in np.argsort(-numbers, kind="stable")[:_NUM_HEADS].tolist():
                self.groups[counts.field("values")[place].as_py()] += int(numbers[place])
        if times is not None:
            self.early += int((times < _FIRST_TIME).sum())
            self.late += int((times > time.time() + _DAY).sum())

    def __add__(self, other: "Signs") -> "Signs":
        """Add the signs of other blocks."""
        return Signs(
            self.texts + other.texts, self.groups + other.groups, self.early + other.early, self.late + other.late
        )


def tell_oddities(
    schema: FeatureSchema,
    config: PipelineConfig,
    total: Sums,
    num_left_out: int,
    signs: Signs,
    statistics: Mapping[str, Mapping[str, FeatureStatistics]],
    matched: Mapping[str, int],
    rejected_files: Sequence[str],
    unsplit: Mapping[str, int],
) -> list[str]:
    """Say what is odd, a sentence each.

    Args:
        schema: the features.
        config: the build's config, with its limits.
        total: sums over all good rows.
        num_left_out: good rows that sampling left out of the training split.
        signs: what was seen in the blocks.
        statistics: split -> feature -> statistics.
        matched: path of a lookup's table -> rows whose key it has.
        rejected_files: files of which no line is a row.
        unsplit: text file that one task read alone -> its bytes.
    """
    limits, rows = config.quality.odd, sum(total.rows.values())
    told = tell_odd_values(signs.texts, schema)
    told += _splits(config, total, num_left_out, limits)
    told += _groups(config, signs, rows, limits)
    told += _features(statistics["train"], limits)
    told += tell_times(schema, signs, rows)
    told += _lost_events(schema, num_left_out)
    told += _outliers(schema, total, limits)
    told += _histories(schema, total)
    num_read = rows + num_left_out
    for path, count in matched.items():
        if count < limits.min_lookup_share * num_read:
            told.append(
                f"the lookup {path} has the key of {count / num_read:.1%} of all rows: see that both write it alike"
            )
    if rejected_files:
        more = f" and {len(rejected_files) - 3} more" if len(rejected_files) > 3 else ""
        told.append(f"no line is a row in {', '.join(rejected_files[:3])}{more}: see the rejected lines")
    return told + _unsplit(unsplit, limits)


def _lost_events(schema: FeatureSchema, num_left_out: int) -> list[str]:
    """Tell of built histories whose events may be among the negatives that sampling left out."""
    lacking = [f"{one.name} ({one.history.where})" for one in schema.sequence if one.history and one.history_rule]
    if not num_left_out or not lacking:
        return []
    return [
        f"pipeline.sample left {num_left_out:,} negatives out, which are no events: the histories {', '.join(lacking)} "
        "lack those of them that the rule calls events; keep all rows (pipeline.sample.negatives = 1), or take "
        'where = "label", whose events sampling keeps'
    ]


def _unsplit(unsplit: Mapping[str, int], limits: OddityLimits) -> list[str]:
    large = {file: size for file, size in unsplit.items() if size > limits.max_unsplit_bytes}
    if not large:
        return []
    named = ", ".join(f"{file} ({size / 1e6:,.0f} MB)" for file, size in list(large.items())[:3])
    more = f" and {len(large) - 3} more" if len(large) > 3 else ""
    return [
        f"one task reads all of {named}{more}, as a compressed text cannot be cut, nor one whose ends of lines are no "
        "single bytes: write it as several files, or as Parquet with zstd"
    ]


def _splits(config: PipelineConfig, total: Sums, num_left_out: int, limits: OddityLimits) -> list[str]:
    told = []
    rows = sum(total.rows.values()) + num_left_out
    for split, count in total.rows.items():
        positives = total.labels[split]
        if positives in (0, count):
            told.append(
                f"split {split!r} has rows of one class alone (label {positives / count:g} in all {count:,}): no model "
                "can be judged on it; move the split's border, or take more rows"
            )
        if isinstance(config.split, HashSplit) and split != "train" and split not in config.inputs():
            wanted = getattr(config.split, split)
            if abs(count / rows - wanted) > limits.max_split_distance + 4 * math.sqrt(wanted / rows):
                told.append(
                    f"split {split!r} has {count / rows:.0%} of the rows where pipeline.split asks for {wanted:.0%}"
                )
    return told


def _groups(config: PipelineConfig, signs: Signs, rows: int, limits: OddityLimits) -> list[str]:
    if not signs.groups or not isinstance(config.split, HashSplit):
        return []
    [(value, count)] = signs.groups.most_common(1)
    if count <= limits.max_group_share * rows:
        return []
    return [
        f"{config.split.column} {value!r} has {count / rows:.0%} of all rows, which the split keeps together: leave "
        "that value out of the log (a robot?), or split by another column or by time"
    ]


def _features(statistics: Mapping[str, FeatureStatistics], limits: OddityLimits) -> list[str]:
    told = []
    for name, found in statistics.items():
        if found.null_rate == 1:
            told.append(f"feature {name!r} is missing in every training row: see its column, or leave it out")
        elif found.cardinality == 1 and found.null_rate == 0:
            told.append(f"feature {name!r} has one value in every training row: it says nothing; leave it out")
        if (found.collision_rate or 0) > limits.max_collision_rate:
            told.append(
                f"feature {name!r}: {found.collision_rate:.0%} of its {found.cardinality:,} values share an id with "
                "another: give it more num_buckets"
            )
    return told


def tell_times(schema: FeatureSchema, signs: Signs, rows: int) -> list[str]:
    """Say which share of the rows has times that no log has, and what they look like."""
    if schema.timestamp is None or not (signs.early or signs.late):
        return []
    told = []
    name, unit = schema.timestamp.column, schema.timestamp.format
    if signs.early:
        told.append(f"{signs.early / rows:.1%} of the times in {name!r} are before {_FIRST_YEAR}")
    if signs.late:
        told.append(f"{signs.late / rows:.1%} of the times in {name!r} are after tomorrow")
    cure = f"see features.timestamp.format = {unit!r}"
    if unit == "unix" and signs.late > rows / 2:
        cure = "these look like milliseconds: set features.timestamp.format = 'unix_ms'"
    elif unit == "unix_ms" and signs.early > rows / 2:
        cure = "these look like seconds: set features.timestamp.format = 'unix'"
    return [f"{' and '.join(told)}: {cure}"]


def _histories(schema: FeatureSchema, total: Sums) -> list[str]:
    """Tell of histories in which training rows see rows of a split that lies among them in time."""
    if "train" not in total.times:
        return []
    told, newest = [], total.times["train"].newest
    for sequence in schema.sequence:
        history = sequence.history
        for split in history.splits if history is not None else ():
            if split != "train" and split in total.times and total.times[split].oldest < newest:
                told.append(
                    f"sequence {sequence.name!r}: rows of {split!r} lie among training rows in time and are events of "
                    'their histories, so it is trained on what judges it: set history.splits = ["train"], or split by '
                    "time"
                )
    return told


def _outliers(schema: FeatureSchema, total: Sums, limits: OddityLimits) -> list[str]:
    told = []
    for feature in schema.dense:
        found = total.transformed.get(feature.name)
        if not feature.standardise or found is None or not found.deviation:
            continue
        farthest = max(found.maximum - found.mean, found.mean - found.minimum) / found.deviation
        if farthest > limits.max_deviations:
            told.append(
                f"feature {feature.name!r} has a value {farthest:,.0f} standard deviations from its mean, which swamps "
                "all others: give it clip or log1p"
            )
    return told
