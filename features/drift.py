"""Drift: what each feature looks like in a dataset, as counts that are kept beside it, and how far two of them differ.

All counts are over the bins of one dataset, its most frequent ids and edges at its quantiles, so those of several days
add up, and no bin is chosen by the rows that it is to judge.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from features.dataset import Count, DataFile, DatasetError, DatasetManifest, Split, inside
from features.encoding import Columns
from features.hashing import MISSING_ID
from features.learnt import Learnt
from features.schema import STRICT, VOCABULARY_KINDS, FeatureSchema, SparseFeature
from features.storage import ObjectPath, Place, locate, temporary_folder

NUM_TOP_IDS = 256
"""Bins of a sparse feature, besides the rest and missing values."""
NUM_QUANTILES = 10
"""Bins of a dense feature, if no value is frequent: deciles, which the usual bounds of the PSI are for."""
MIN_COUNT = 30
"""Bins with fewer values, counted or expected, are compared as one. B bins of luck alone are (B - 1) (1 / n + 1 / m)
apart (PSI of n and m values), so 1 / MIN_COUNT each way is the most that luck is worth."""
SMOOTHING = 0.5
"""Added to every count that is compared: a bin that was empty once is rare, not impossible."""
NUM_SAMPLED_IDS = 2_048
"""Distinct ids that a sample holds: all of them while they are as few."""
NUM_COUNTED_IDS = 65_536
"""While bins are chosen: a count is short by at most one in so many values, and exact for a table as small."""
NUM_QUANTILE_ROWS = 65_536
"""Rows, evenly spaced, that quantiles are of."""
BATCH_ROWS = 131_072
"""In memory at a time."""

Counts = NDArray[np.int64]
Bins: TypeAlias = Mapping[str, tuple[int, ...] | tuple[float, ...]]
"""Feature -> ids of a sparse one, edges of a dense one."""
Fraction = Annotated[float, Field(ge=0, le=1)]


class DriftError(ValueError):
    """Counts cannot be read, added up or compared: they are damaged, or of other bins, features or ids."""


# ------------------------------------------------------------------------------------------------------- distributions


@dataclass(frozen=True, config=STRICT)
class IdSample:
    """Some of a feature's ids, and how often exactly each comes.

    Which ids may be in it follows from a hash of the id alone (one in 2^level), so an id that one dataset's sample has
    and another's, at the same level, has not is new there (adaptive sampling, Flajolet 1990).
    """

    level: Annotated[int, Field(ge=0, le=64)] = 0
    ids: tuple[Count, ...] = ()
    """Rising, without the one of missing values."""
    counts: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.counts) or any(a >= b for a, b in pairwise(self.ids)):
            raise ValueError("a sample needs rising ids with a count each")


@dataclass(frozen=True, config=STRICT)
class SparseDistribution:
    """How often each id comes; every id of a multi-valued feature counts, and a row without one as missing."""

    ids: tuple[Count, ...]
    """Most frequent first, in the dataset that the bins were chosen in."""
    counts: tuple[Count, ...]
    rest: Count
    """Values with other ids."""
    missing: Count
    """Always 0 for vocabularies, where a missing value has the id of unknown ones."""
    sample: IdSample
    kind: Literal["sparse"] = "sparse"

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids have {len(self.counts)} counts")

    @property
    def bins(self) -> tuple[int, ...]:
        return self.ids


@dataclass(frozen=True, config=STRICT)
class DenseDistribution:
    """How many values are in each bin, after fill and transformations; edge i is the least value of bin i + 1.

    A value that is itself a tenth of all, a fill value say, has a bin of its own.
    """

    edges: tuple[FiniteFloat, ...]
    counts: tuple[Count, ...]
    missing: Count
    """NaN; datasets hold a feature's ``fill`` instead."""
    kind: Literal["dense"] = "dense"

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1 or any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError(f"{len(self.edges)} edges must rise and have {len(self.edges) + 1} counts")

    @property
    def bins(self) -> tuple[float, ...]:
        return self.edges

    @property
    def rest(self) -> int:
        """No value is outside all bins."""
        return 0


Distribution: TypeAlias = SparseDistribution | DenseDistribution


def add(first: Distribution, second: Distribution) -> Distribution:
    """Counts of both together.

    Raises:
        DriftError: they are over other bins.
    """
    _check_bins(first, second)
    counts = tuple(a + b for a, b in zip(first.counts, second.counts, strict=True))
    missing = first.missing + second.missing
    if isinstance(first, SparseDistribution) and isinstance(second, SparseDistribution):
        sample = _Sample(first.sample)
        sample.add(np.array(second.sample.ids, np.int64), np.array(second.sample.counts, np.int64), second.sample.level)
        return SparseDistribution(first.ids, counts, first.rest + second.rest, missing, sample.result())
    return replace(first, counts=counts, missing=missing)


def _check_bins(first: Distribution, second: Distribution) -> None:
    if (first.kind, first.bins) != (second.kind, second.bins):
        raise DriftError("the counts are over other bins: measure one with the bins of the other")


# ----------------------------------------------------------------------------------------------------------- distances


def psi(reference: Distribution, current: Distribution) -> float:
    """Population stability index, sum of (q - p) ln(q / p) over bins; 0 for equal shares, 0.25 is usually called much.

    Raises:
        DriftError: they are over other bins, or one has no values.
    """
    return population_stability(*_compared(reference, current))


def jensen_shannon(reference: Distribution, current: Distribution) -> float:
    """Jensen-Shannon divergence in bits: 0 for equal shares, 1 for shares without a common bin.

    Raises:
        DriftError: as ``psi``.
    """
    p, q = (_smooth(counts) for counts in _compared(reference, current))
    middle = (p + q) / 2
    return float(p @ np.log2(p / middle) + q @ np.log2(q / middle)) / 2


def population_stability(first: NDArray[Any], second: NDArray[Any]) -> float:
    """PSI of counts, or weights with a mean near 1, over the same bins; each bin's is smoothed."""
    p, q = _smooth(first), _smooth(second)
    return float((q - p) @ np.log(q / p))


def _smooth(counts: NDArray[Any]) -> NDArray[np.float64]:
    smoothed = counts + SMOOTHING
    return smoothed / smoothed.sum()


def _compared(reference: Distribution, current: Distribution) -> tuple[Counts, Counts]:
    """Counts of both over the same bins: rare ones and the rest as one, without those that are empty twice."""
    _check_bins(reference, current)
    both = np.array([reference.counts, current.counts], np.int64).reshape(2, -1)
    others = np.array([[d.rest, d.missing] for d in (reference, current)], np.int64)
    sizes = both.sum(1) + others.sum(1)
    if not sizes.all():
        raise DriftError("a distribution without values cannot be compared")
    expected = both[0] * min(1, sizes[1] / sizes[0])
    is_rare = expected < MIN_COUNT
    others[:, 0] += both[:, is_rare].sum(1)
    kept = np.c_[both[:, ~is_rare], others]
    kept = kept[:, kept.any(0)]
    return kept[0], kept[1]


@dataclass(frozen=True)
class NewIds:
    """Of the ids that come at least ``min_count`` times: those that the reference has not."""

    num_new: int
    num_ids: int
    num_new_values: int
    num_values: int
    """Of all ids, rarer ones too."""

    @property
    def id_share(self) -> float:
        return self.num_new / self.num_ids if self.num_ids else 0.0

    @property
    def value_share(self) -> float:
        return self.num_new_values / self.num_values if self.num_values else 0.0


def new_ids(reference: SparseDistribution, current: SparseDistribution, min_count: int) -> NewIds:
    """Count new ids, exactly up to ``NUM_SAMPLED_IDS`` distinct ones, beyond that in a sample of the ids.

    Rare ids are not judged: of a long tail most are new every day.
    """
    level = max(reference.sample.level, current.sample.level)
    known, samples = (_Sample(d.sample, level) for d in (reference, current))
    is_frequent = samples.counts >= min_count
    is_new = is_frequent & ~np.isin(samples.ids, known.ids)
    return NewIds(
        int(is_new.sum()), int(is_frequent.sum()), int(samples.counts[is_new].sum()), int(samples.counts.sum())
    )


# ------------------------------------------------------------------------------------------------------------- profile


@dataclass(frozen=True, config=STRICT)
class DataProfile:
    """One split of one dataset, or the sum of several: rows, labels, rates and a distribution a feature."""

    schema_fingerprint: str
    root_fingerprint: str
    """Of what was learnt first, before vocabularies went on: datasets that share it agree on their ids."""
    datasets: tuple[str, ...]
    """Fingerprints of the datasets that were counted."""
    num_rows: Count
    num_positives: Count
    null_rates: dict[str, Fraction]
    oov_rates: dict[str, Fraction]
    """Of features with a vocabulary."""
    features: dict[str, Annotated[Distribution, Field(discriminator="kind")]]
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        if set(self.null_rates) != set(self.features) or not set(self.oov_rates) <= set(self.features):
            raise ValueError("every feature needs a null rate and a distribution")

    @property
    def label_rate(self) -> float:
        return self.num_positives / self.num_rows if self.num_rows else 0.0

    @property
    def bins(self) -> Bins:
        """What another dataset must be measured with to be compared with this one."""
        return {name: distribution.bins for name, distribution in self.features.items()}

    def save(self, path: Path) -> None:
        """Write it as JSON, in one step."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), separators=(",", ":")) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> "DataProfile":
        """Read what ``save`` wrote.

        Raises:
            DriftError: it is absent or damaged.
        """
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValidationError as error:
            [first, *_] = error.errors()
            raise DriftError(f"{path} is damaged ({first['msg']} at {first['loc']}): measure again") from error
        except OSError as error:
            raise DriftError(f"{path} cannot be read: {error}") from error

    def check_comparable(self, other: "DataProfile") -> None:
        """Refuse to compare ids and floats that mean other things.

        Raises:
            DriftError: the schemas, what was learnt first, or the bins differ.
        """
        if self.schema_fingerprint != other.schema_fingerprint:
            raise DriftError("the datasets were built from different feature schemas")
        if self.root_fingerprint != other.root_fingerprint:
            raise DriftError("the datasets' ids mean different things: build the later one with pipeline.base")
        if self.bins != other.bins:
            raise DriftError("the datasets were counted over other bins: measure one with the bins of the other")


def total(profiles: Sequence[DataProfile]) -> DataProfile:
    """Several datasets as one, a reference for the next.

    Raises:
        DriftError: there is none, they cannot be added up, or a dataset is there twice.
    """
    if not profiles:
        raise DriftError("a reference needs a dataset")
    result = profiles[0]
    for profile in profiles[1:]:
        result.check_comparable(profile)
        if set(result.datasets) & set(profile.datasets):
            raise DriftError("a dataset must not be in a reference twice")
        rows = (result.num_rows, profile.num_rows)
        result = replace(
            result,
            datasets=result.datasets + profile.datasets,
            num_rows=sum(rows),
            num_positives=result.num_positives + profile.num_positives,
            null_rates=_mean_rates(result.null_rates, profile.null_rates, rows),
            oov_rates=_mean_rates(result.oov_rates, profile.oov_rates, rows),
            features={name: add(d, profile.features[name]) for name, d in result.features.items()},
        )
    return result


def _mean_rates(first: dict[str, float], second: dict[str, float], rows: tuple[int, int]) -> dict[str, float]:
    share = rows[0] / (sum(rows) or 1)
    return {name: min(1.0, share * rate + (1 - share) * second[name]) for name, rate in first.items()}


def measure(
    dataset: Place | str, manifest: DatasetManifest, split: str = "train", bins: Bins | None = None
) -> DataProfile:
    """Count every feature of a split, in the memory of one batch; its rows are read once, for new bins twice.

    Args:
        dataset: the folder that ``manifest`` is of; of an object store, one file at a time is here.
        bins: of the profile that this one is to be compared with or added to; None: this dataset's own.

    Raises:
        DatasetError: the split is empty, or a file is missing, damaged or not the one that the manifest names.
        LearntError: what was learnt is damaged.
        DriftError: the bins are of other features.
        StorageError: its store cannot be read.
    """
    part, schema = manifest.split(split), manifest.schema
    statistics = {**part.sparse, **part.dense}
    absent = {*schema.sparse_names, *schema.dense_names} - set(statistics)
    if absent:
        raise DatasetError(f"split {split!r} has no statistics of {', '.join(sorted(absent))}: build it again")
    manifest.check_files(dataset, split)
    if bins is None:
        bins = choose_bins(schema, _read(dataset, part, schema), part.num_rows)
    return DataProfile(
        schema_fingerprint=manifest.schema_fingerprint,
        root_fingerprint=_root(manifest.load_learnt(dataset)),
        datasets=(manifest.fingerprint,),
        num_rows=part.num_rows,
        num_positives=round(part.label_rate * part.num_rows),
        null_rates={name: found.null_rate for name, found in statistics.items()},
        oov_rates={f.name: part.sparse[f.name].oov_rate for f in schema.sparse if f.encoding.kind in VOCABULARY_KINDS},
        features=count(schema, _read(dataset, part, schema), bins),
    )


def _root(learnt: Learnt) -> str:
    """Fingerprint of the state that a chain of extended vocabularies began with: tokens before the unknown one's id."""
    tokens = {name: tokens[: learnt.oov_id(name) - 1] for name, tokens in learnt.vocabularies.items()}
    return replace(learnt, vocabularies=tokens, out_of_vocabulary={}).fingerprint


# ------------------------------------------------------------------------------------------------------------- reading


def _read(dataset: Place | str, split: Split, schema: FeatureSchema) -> Iterator[Columns]:
    """The features' columns of a split, some rows at a time."""
    # Here, as whoever only compares profiles needs none of it.
    from pyarrow import ArrowException, parquet

    names = [*schema.sparse_names, *schema.dense_names, *(f.length_name for f in schema.multi_valued.values())]
    for data_file, path in _local_files(locate(dataset), split.files):
        try:
            with parquet.ParquetFile(path) as file:
                rows = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
                if rows != data_file.row_groups:
                    raise DatasetError(f"{path} has other row groups than the manifest says: build the dataset again")
                for i in range(len(rows)):
                    for batch in file.iter_batches(BATCH_ROWS, row_groups=[i], columns=names):
                        yield {name: _to_numpy(batch.column(name)) for name in names}
        except (ArrowException, OSError, KeyError) as error:
            raise DatasetError(f"{path} cannot be read ({error}): build the dataset again") from error


def _to_numpy(array: Any) -> NDArray[Any]:
    """(n,) numbers, or (n, max_length) of lists, which are padded to one length."""
    if not array.type.num_fields:
        return array.to_numpy(zero_copy_only=False)
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)


def _local_files(dataset: Place, files: Sequence[DataFile]) -> Iterator[tuple[DataFile, Path]]:
    """Each file, and where it is on this machine until the next one is asked for."""
    if not isinstance(dataset, ObjectPath):
        yield from ((file, inside(dataset, file.path)) for file in files)
        return
    for file in files:
        with temporary_folder() as folder:
            copy = folder / "part.parquet"
            (dataset / file.path).download(copy, file.num_bytes, file.sha256)
            yield file, copy


# ------------------------------------------------------------------------------------------------------------ counting


def choose_bins(schema: FeatureSchema, batches: Iterable[Columns], num_rows: int) -> Bins:
    """Bins of every feature: the most frequent ids, ties by id, and edges at the quantiles.

    Args:
        batches: columns as in the Parquet files, ``num_rows`` in all.
    """
    frequent = {feature.name: _FrequentIds() for feature in schema.sparse}
    samples: dict[str, list[NDArray[Any]]] = {name: [] for name in schema.dense_names}
    step, start = -(-num_rows // NUM_QUANTILE_ROWS) or 1, 0
    for batch in batches:
        for feature in schema.sparse:
            ids, _ = _values(feature, batch)
            frequent[feature.name].add(*np.unique(ids, return_counts=True))
        for name, parts in samples.items():
            parts.append(batch[name][-start % step :: step])
        start += len(batch[schema.sparse[0].name])
    edges = {name: quantile_edges(np.concatenate(parts)) if parts else () for name, parts in samples.items()}
    return {**{name: found.top() for name, found in frequent.items()}, **edges}


def count(schema: FeatureSchema, batches: Iterable[Columns], bins: Bins) -> dict[str, Distribution]:
    """Count every feature over bins.

    Args:
        batches: columns as in the Parquet files.

    Raises:
        DriftError: the bins are of other features.
    """
    names = (*schema.sparse_names, *schema.dense_names)
    if set(bins) != set(names):
        raise DriftError(f"the bins are of {', '.join(bins)}, the features are {', '.join(names)}")
    sparse = {feature: _SparseCounter(bins[feature.name]) for feature in schema.sparse}
    dense = {name: _DenseCounter(bins[name]) for name in schema.dense_names}
    for batch in batches:
        for feature, counter in sparse.items():
            counter.add(*_values(feature, batch))
        for name, counter in dense.items():
            counter.add(batch[name])
    found = chain(((f.name, counter) for f, counter in sparse.items()), dense.items())
    return {name: counter.result() for name, counter in found}


def quantile_edges(values: NDArray[Any], weights: NDArray[Any] | None = None) -> tuple[float, ...]:
    """Edges that cut floats into parts of about equal weight; a value that is several quantiles gets a bin of its own.

    Args:
        values: (n,) floats; NaN does not count.
        weights: (n,) not negative; None: 1 each.
    """
    weights = np.ones(len(values)) if weights is None else weights
    is_known = ~np.isnan(values)
    values, weights = values[is_known], weights[is_known]
    if not len(values):
        return ()
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(weights[order])
    wanted = mass[-1] * np.arange(1, NUM_QUANTILES) / NUM_QUANTILES
    # A quantile is one of the values, not between two: else a frequent value could not be told from its neighbours.
    quantiles = values[order][np.searchsorted(mass, wanted).clip(0, len(values) - 1)]
    distinct, times = np.unique(quantiles, return_counts=True)
    behind = np.nextafter(distinct[times > 1], np.array(np.inf, values.dtype))
    edges = np.unique(np.concatenate([distinct, behind]))
    return tuple(edges[np.isfinite(edges)].astype(float).tolist())


def bin_counts(values: NDArray[Any], edges: Sequence[float], weights: NDArray[Any] | None = None) -> NDArray[Any]:
    """(edges + 1,) how many values, or how much weight, each bin of ``quantile_edges`` has; without NaN."""
    places = np.searchsorted(np.array(edges, np.float64), values.astype(np.float64), side="right")
    return np.bincount(places, weights, minlength=len(edges) + 1)


def _values(feature: SparseFeature, batch: Columns) -> tuple[NDArray[Any], int]:
    """Ids of non-missing values, and how many are missing."""
    ids, num_missing = batch[feature.name], 0
    if feature.is_multi_valued:
        lengths = batch[feature.length_name]
        num_missing = int((lengths == 0).sum())
        ids = ids[np.arange(ids.shape[1]) < lengths[:, None]]
    is_missing = ids == MISSING_ID
    return ids[~is_missing], num_missing + int(is_missing.sum())


class _FrequentIds:
    """Counts of ids, the rarest ones forgotten when they are too many (Misra and Gries 1982, merged as by Agarwal)."""

    def __init__(self) -> None:
        self.ids, self.counts = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def add(self, ids: NDArray[Any], counts: Counts) -> None:
        self.ids, self.counts = _merge(self.ids, self.counts, ids, counts)
        if len(self.ids) > NUM_COUNTED_IDS:
            place = len(self.ids) - NUM_COUNTED_IDS - 1
            left = self.counts - np.partition(self.counts, place)[place]
            self.ids, self.counts = self.ids[left > 0], left[left > 0]

    def top(self) -> tuple[int, ...]:
        return tuple(self.ids[np.lexsort((self.ids, -self.counts))[:NUM_TOP_IDS]].tolist())


class _Sample:
    """An ``IdSample`` that grows, and forgets every second id when it is full."""

    def __init__(self, sample: IdSample, level: int = 0) -> None:
        self.level = 0
        self.ids, self.counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.add(np.array(sample.ids, np.int64), np.array(sample.counts, np.int64), max(level, sample.level))

    def add(self, ids: NDArray[Any], counts: Counts, level: int = 0) -> None:
        """Add counts of ids, all or those of a sample of this level."""
        if level > self.level:
            self._keep(level)
        kept = _is_sampled(ids, self.level)
        self.ids, self.counts = _merge(self.ids, self.counts, ids[kept], counts[kept])
        while len(self.ids) > NUM_SAMPLED_IDS:
            self._keep(self.level + 1)

    def _keep(self, level: int) -> None:
        self.level = level
        kept = _is_sampled(self.ids, level)
        self.ids, self.counts = self.ids[kept], self.counts[kept]

    def result(self) -> IdSample:
        return IdSample(self.level, tuple(self.ids.tolist()), tuple(self.counts.tolist()))


def _is_sampled(ids: NDArray[Any], level: int) -> NDArray[np.bool_]:
    """Whether the last ``level`` bits of an id's hash (splitmix64) are 0."""
    mixed = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed & np.uint64(2**level - 1) == 0


def _merge(first: Counts, first_counts: Counts, second: NDArray[Any], counts: Counts) -> tuple[Counts, Counts]:
    """Distinct ids of both, rising, with the sums of their counts."""
    ids, place = np.unique(np.concatenate([first, second.astype(np.int64)]), return_inverse=True)
    sums = np.zeros(len(ids), np.int64)
    np.add.at(sums, place, np.concatenate([first_counts, counts]))
    return ids, sums


class _SparseCounter:
    def __init__(self, ids: Sequence[float]) -> None:
        self.ids = np.array(ids, np.int64)
        self.order = np.argsort(self.ids)
        self.counts = np.zeros(len(ids), np.int64)
        self.rest = self.missing = 0
        self.sample = _Sample(IdSample())

    def add(self, ids: NDArray[Any], num_missing: int) -> None:
        distinct, counts = np.unique(ids, return_counts=True)
        self.sample.add(distinct, counts)
        places = np.searchsorted(self.ids, distinct, sorter=self.order)
        bins = self.order[places.clip(0, max(len(self.ids) - 1, 0))] if len(self.ids) else places
        is_bin = self.ids[bins] == distinct if len(self.ids) else np.zeros(len(distinct), bool)
        self.counts[bins[is_bin]] += counts[is_bin]
        self.rest += int(counts[~is_bin].sum())
        self.missing += num_missing

    def result(self) -> SparseDistribution:
        ids, counts = tuple(self.ids.tolist()), tuple(self.counts.tolist())
        return SparseDistribution(ids, counts, self.rest, self.missing, self.sample.result())


class _DenseCounter:
    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(edges)
        self.counts = np.zeros(len(edges) + 1, np.int64)
        self.missing = 0

    def add(self, values: NDArray[Any]) -> None:
        is_missing = np.isnan(values)
        self.counts += bin_counts(values[~is_missing], self.edges)
        self.missing += int(is_missing.sum())

    def result(self) -> DenseDistribution:
        return DenseDistribution(self.edges, tuple(self.counts.tolist()), self.missing)
