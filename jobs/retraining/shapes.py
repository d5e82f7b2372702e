"""Shape: histograms of the features that drifted most, small enough to keep beside the results of data checks.

A distance says that a feature drifted; its histograms show which values came or went.
"""

from dataclasses import asdict, field
from itertools import pairwise
from typing import Any

from pydantic.dataclasses import dataclass as checked

from features.profile.distribution import DenseDistribution, Distribution, SparseDistribution
from features.profile.profile import DataProfile
from jobs.retraining.data_checks import CheckResult, Checks

DISTANCES = ("psi", "js")
"""Rules of data checks whose value is a distance."""
NUM_FEATURES = 6
NUM_IDS = 14
"""Ids of a sparse feature at most, the most frequent of either side; the others are one bar."""


@checked(frozen=True)
class Shape:
    """Shape: histograms of one feature, now and in the reference."""

    bins: tuple[str, ...]
    """Names of the bins."""
    current: tuple[float, ...]
    """Shares of values in each bin, now."""
    reference: tuple[float, ...]


@checked(frozen=True)
class KeptChecks(Checks):
    """Data checks of a partition, read from its file; unknown keys are ignored."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    """Histograms by feature; empty for a first dataset."""
    written: str | None = None
    """Time of the file's last change, UTC."""


def find_distances(found: Checks) -> list[CheckResult]:
    """Select the results that are distances of features to the datasets before, the largest first."""
    return sorted((r for r in found.results if r.rule in DISTANCES and r.feature), key=lambda result: -result.value)


def shapes(found: Checks, current: DataProfile, reference: DataProfile) -> dict[str, Any]:
    """Make the histograms of the features that drifted most: feature -> its ``Shape`` as JSON values.

    Args:
        found: data checks of both; features come in the order of their distances, the largest first.
        current: profile of the dataset that was checked.
        reference: profile of those before it, over the same bins.
    """
    names = [str(result.feature) for result in find_distances(found)[:NUM_FEATURES]]
    return {name: asdict(_shape(current.features[name], reference.features[name])) for name in names}


def _shape(current: Distribution, reference: Distribution) -> Shape:
    sides = [_sparse(d) if isinstance(d, SparseDistribution) else _dense(d) for d in (current, reference)]
    totals = [sum(side.values()) or 1 for side in sides]
    ours, theirs = ({name: n / total for name, n in side.items()} for side, total in zip(sides, totals, strict=True))
    kept = list(ours)
    if isinstance(current, SparseDistribution):
        *ids, _, _ = kept  # the rest and what is missing stay
        largest = sorted(ids, key=lambda name: -max(ours[name], theirs[name]))[:NUM_IDS]
        for side in (ours, theirs):
            side["other ids"] += sum(side[name] for name in ids if name not in largest)
        kept = [*sorted(largest, key=lambda name: -theirs[name]), *kept[-2:]]
    return Shape(tuple(kept), *(tuple(round(side[name], 6) for name in kept) for side in (ours, theirs)))


def _sparse(found: SparseDistribution) -> dict[str, int]:
    counts = {f"id {number}": count for number, count in zip(found.ids, found.counts, strict=True)}
    return {**counts, "other ids": found.rest, "missing": found.missing}


def _dense(found: DenseDistribution) -> dict[str, int]:
    edges = [f"{edge:.3g}" for edge in found.edges]
    names = [f"below {edges[0]}", *(f"{a} to {b}" for a, b in pairwise(edges)), f"{edges[-1]} up"] if edges else ["all"]
    # Edges that differ beyond three digits would share a name.
    names = [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return {**dict(zip(names, found.counts, strict=True)), "missing": found.missing}
