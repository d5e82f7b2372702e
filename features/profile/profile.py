"""Profiles: distributions of every feature of a dataset, as counts that are kept beside it.

Later datasets are held against the counts, so no old day has to be read again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from features.disk import atomic
from features.disk.dataset import Count, DataFile, DatasetError, DatasetManifest, Split, inside
from features.disk.object_store import ObjectPath
from features.disk.place import Place, locate, temporary_folder
from features.learnt import Learnt
from features.profile.bins import Bins, choose_bins, count
from features.profile.distribution import Distribution, DriftError, add
from features.rows import Columns
from features.schema import STRICT, VOCABULARY_KINDS, FeatureSchema

PROFILE_BATCH_ROWS = 131_072
"""Rows in memory at a time."""

Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class DataProfile:
    """One split of one dataset, or the sum of several: rows, labels, rates and a distribution a feature."""

    schema_fingerprint: str
    root_fingerprint: str
    """Fingerprint of the first learnt state of a chain of vocabularies: datasets that share it agree on their ids."""
    datasets: tuple[str, ...]
    """Fingerprints of the datasets that were counted."""
    num_rows: Count
    num_positives: Count
    null_rates: dict[str, Fraction]
    oov_rates: dict[str, Fraction]
    """Out-of-vocabulary rate of each feature with a vocabulary."""
    features: dict[str, Annotated[Distribution, Field(discriminator="kind")]]
    version: Literal[1, 2] = 2
    """1: the fingerprints are of version 1; see ``upgraded``."""

    def __post_init__(self) -> None:
        if set(self.null_rates) != set(self.features) or not set(self.oov_rates) <= set(self.features):
            raise ValueError("every feature needs a null rate and a distribution")

    @property
    def label_rate(self) -> float:
        """Share of positive rows; 0 without rows."""
        return self.num_positives / self.num_rows if self.num_rows else 0.0

    @property
    def bins(self) -> Bins:
        """Bins with which another dataset is measured to be compared with this one."""
        return {name: distribution.bins for name, distribution in self.features.items()}

    def save(self, path: Path) -> None:
        """Write the profile as JSON, in one step."""
        atomic.write_json(path, asdict(self), indent=None, separators=(",", ":"))

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

    def upgraded(self, manifest: DatasetManifest) -> "DataProfile":
        """Replace the fingerprints by those of the current version, which its dataset's manifest has.

        Raises:
            DriftError: an earlier version made it, and of another dataset.
        """
        if self.version == 2:
            return self
        is_own = self.schema_fingerprint == manifest.schema.fingerprint_of_version(1)
        if not (is_own and len(self.datasets) == 1 and manifest.has_fingerprint(self.datasets[0])):
            raise DriftError("the profile is not of this dataset: measure again")
        return replace(
            self, schema_fingerprint=manifest.schema_fingerprint, datasets=(manifest.fingerprint,), version=2
        )

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
    """Add profiles of several datasets up, to a reference for the next one.

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
        bins: those of the profile that this one is to be compared with or added to; None: this dataset's own.

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
    """Read the features' columns of a split, some rows at a time."""
    # Here, as whoever only compares profiles needs none of it.
    from pyarrow import ArrowException, parquet

    names = [c.name for f in schema.sparse for c in f.kind.columns(f)] + list(schema.dense_names)
    for data_file, path in _local_files(locate(dataset), split.files):
        try:
            with parquet.ParquetFile(path) as file:
                rows = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
                if rows != data_file.row_groups:
                    raise DatasetError(f"{path} has other row groups than the manifest says: build the dataset again")
                for i in range(len(rows)):
                    for batch in file.iter_batches(PROFILE_BATCH_ROWS, row_groups=[i], columns=names):
                        yield {name: _to_numpy(batch.column(name)) for name in names}
        except (ArrowException, OSError, KeyError) as error:
            raise DatasetError(f"{path} cannot be read ({error}): build the dataset again") from error


def _to_numpy(array: Any) -> NDArray[Any]:
    """Convert to (n,) numbers; lists, which are padded to one length, to (n, max_length)."""
    if not array.type.num_fields:
        return array.to_numpy(zero_copy_only=False)
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)


def _local_files(dataset: Place, files: Sequence[DataFile]) -> Iterator[tuple[DataFile, Path]]:
    """Give each file with a local path, which is good until the next one is asked for."""
    if not isinstance(dataset, ObjectPath):
        yield from ((file, inside(dataset, file.path)) for file in files)
        return
    for file in files:
        with temporary_folder() as folder:
            copy = folder / "part.parquet"
            (dataset / file.path).download(copy, file.num_bytes, file.sha256)
            yield file, copy
