"""DatasetManifest: the one file that says what a dataset is; the two halves meet here and nowhere else.

``manifest.json`` is replaced in one step, so it is also the commit: files it does not name are not part of the dataset.
"""

import hashlib
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from features.disk import atomic
from features.disk.object_store import ObjectPath, download_all
from features.disk.place import Place, locate, temporary_folder
from features.disk.relative_path import RelativePath, is_inside
from features.disk.versions import Format
from features.learnt import Learnt
from features.schema import STRICT, FeatureSchema, SparseFeature

MANIFEST_NAME = "manifest.json"
BUILD_NAME = "build.json"
"""File beside the manifest: what the last build said of itself."""
DATASET_LOCK_NAME = ".lock"
"""Lock file that a writer to the dataset holds."""
SPLITS = ("train", "valid", "test")
DATASET_FORMAT = Format(
    "dataset",
    "update twinfocus here, or build the dataset again with this program",
    # Version 1 differs in its schema fingerprint alone, which ``load`` computes anew; version 2 has no ``input_files``
    # and no ``warnings``, and its schema none of the keys that came with them: all of them are optional.
    (lambda manifest: manifest, lambda manifest: manifest),
)


class DatasetError(ValueError):
    """A dataset is absent, damaged, or not the one that was asked for."""


Count = Annotated[int, Field(ge=0)]


def inside(dataset: Path | str, path: str) -> Path:
    """Find a file or folder of a dataset by its relative path.

    Raises:
        DatasetError: a link leads out of the dataset's folder, to what whoever made the dataset may not read.
    """
    found = Path(dataset) / path
    if not is_inside(dataset, found):
        raise DatasetError(f"{found} is a link out of the dataset's folder: it is not opened; copy the file there")
    return found


@dataclass(frozen=True, config=STRICT)
class DataFile:
    """One Parquet file."""

    path: RelativePath
    num_bytes: Count
    row_groups: tuple[Count, ...]
    """Rows of each row group, in file order."""
    sha256: str

    @property
    def num_rows(self) -> int:
        """Count the rows of all row groups."""
        return sum(self.row_groups)


@dataclass(frozen=True, config=STRICT)
class FeatureStatistics:
    """Statistics of a sparse feature in a split; collision rate and cardinality are over distinct raw values.

    Where nothing is learnt from a feature's values and there are many rows, cardinality, head share and collision rate
    are estimates (``is_estimated``): counting every distinct value would cost more than the whole rest of a build.
    """

    cardinality: int
    null_rate: float
    oov_rate: float
    """Share of non-missing values outside the vocabulary; 0 for other encodings."""
    head_share: float
    """Share of the most frequent value among the non-missing ones."""
    max_id: int
    collision_rate: float | None = None
    """Hashed features: share of distinct values whose id is shared with another value."""
    num_truncated: int = 0
    """Multi-valued features: values dropped beyond max_length."""
    is_estimated: bool = False


@dataclass(frozen=True, config=STRICT)
class DenseStatistics:
    """Statistics of a dense feature in a split, before fill and transformations."""

    null_rate: float
    mean: float
    standard_deviation: float
    minimum: float
    maximum: float


@dataclass(frozen=True, config=STRICT)
class SequenceStatistics:
    """Statistics of a sequence in a split."""

    mean_length: float
    """Events of a row, on average over all rows."""
    empty_rate: float
    """Share of the rows without an event."""
    max_ids: dict[str, int]
    """Column of ids -> the largest one."""
    num_truncated: int = 0
    """Events dropped beyond max_length; 0 for a built history, which keeps no more."""
    oov_rates: dict[str, float] = field(default_factory=dict)
    """Column of ids with a vocabulary -> share of events out of it, or without a value; of earlier builds not known."""
    dwell_counts: tuple[Count, ...] = ()
    """Events by the id of their dwell time (``features.dwell``), from 0, which is one that is not known, to the largest
    that there is; no key in the file without dwell weights."""


@dataclass(frozen=True, config=STRICT)
class Split:
    """One split's files, in the order their rows are numbered."""

    files: tuple[DataFile, ...]
    label_rate: float
    sparse: dict[str, FeatureStatistics] = field(default_factory=dict)
    dense: dict[str, DenseStatistics] = field(default_factory=dict)
    sequences: dict[str, SequenceStatistics] = field(default_factory=dict)
    """Sequence -> its statistics; no key in the file where the schema has none."""

    @property
    def num_rows(self) -> int:
        """Count the rows of all files."""
        return sum(f.num_rows for f in self.files)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits over the files' contents, in order: equal if and only if the rows are."""
        return hashlib.sha256("\n".join(f.sha256 for f in self.files).encode()).hexdigest()


@dataclass(frozen=True, config=STRICT)
class InputFile:
    """A raw file that a build read, in the state that it had when the build began."""

    path: str
    """Absolute path or URL, as in ``DatasetManifest.inputs``."""
    num_bytes: Count
    modified: int
    """Time of its last change in Unix nanoseconds."""


@dataclass(frozen=True, config=STRICT)
class Rejected:
    """Malformed rows kept aside: how many, why, and where."""

    num_rows: int
    reasons: dict[str, int]
    path: RelativePath | None
    """Folder of JSON lines {file, line, reason}, relative to the dataset; None when there are none."""


@dataclass(frozen=True, config=STRICT)
class Sampled:
    """Down-sampling of the training split's negatives."""

    negatives: Annotated[float, Field(gt=0, lt=1)]
    """Rate of negatives that were kept."""
    num_left_out: Count
    """Negatives that are in no file."""


@dataclass(frozen=True, config=STRICT)
class BuiltHistory:
    """A history that the build made, counted over its own rows."""

    of: str
    """Raw column that names users."""
    where: str
    """Rule of the rows that are events."""
    delay: Count
    """Seconds from an event until a row may see it: the lag, and what filters wait for."""
    num_events: Count
    num_dropped: Count
    """Events that the dwell and burst filters left out."""
    num_rows: Count
    """Rows that see an event."""
    num_seen: Count
    """Events that all rows see together."""


@dataclass(frozen=True, config=STRICT)
class Histories:
    """Histories that the build made, and the events that a later build goes on with."""

    path: RelativePath
    """File of the events, relative to the dataset (``features.disk.user_histories``)."""
    sequences: dict[str, BuiltHistory]


@dataclass(frozen=True, config=STRICT)
class Lists:
    """Lists of candidates in the raw files."""

    num_lists: Count
    """Rows of the log whose candidates are rows."""
    num_candidates: Count
    num_empty: Count
    """Rows of the log without a candidate; they make no row."""
    num_rejected: Count
    """Rows of the log with a list that was rejected as a whole; each is one of the rejected rows."""
    num_unseen: Count
    """Clicks on what is not in its list; no row says them."""


@dataclass(frozen=True, config=STRICT)
class DatasetManifest:
    """Everything a dataset consists of. Row accounting: num_input_rows = splits + left out + rejected + duplicates."""

    schema: FeatureSchema
    schema_fingerprint: str
    learnt_fingerprint: str
    learnt_path: RelativePath
    """Folder of the learnt files, relative to the dataset."""
    splits: dict[str, Split]
    rejected: Rejected
    num_input_rows: int
    num_duplicates: int
    inputs: dict[str, list[str]]
    """Split or lookup -> the input files it was read from."""
    config: dict[str, Any]
    """The resolved config tree of the job that wrote the dataset."""
    input_files: tuple[InputFile, ...] = ()
    """State of each input file, sorted by path; empty in datasets of earlier versions, which did not keep it."""
    warnings: tuple[str, ...] = ()
    """Oddities of the input and of the rows that the build told of, a sentence each."""
    sampled: Sampled | None = None
    """Down-sampling of negatives; None, and no key in the file, where every row was kept."""
    histories: Histories | None = None
    """Histories that the build made; None, and no key in the file, where it made none."""
    lists: Lists | None = None
    """Lists of candidates that the rows were made of; None, and no key in the file, where a row of the log is a row, or
    where only those of some times were taken (pipeline.input.times)."""
    version: int = DATASET_FORMAT.version

    @property
    def negatives_rate(self) -> float:
        """Return the rate of the training split's negatives that were kept."""
        return 1.0 if self.sampled is None else self.sampled.negatives

    @property
    def fingerprint(self) -> str:
        """Hash of the schema, of what was learnt and of every file's content: equal if and only if the data are."""
        return self._fingerprint(self.schema_fingerprint)

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Tell whether a stored fingerprint, by the formula of any version, is this dataset's."""
        return fingerprint in (self.fingerprint, self._fingerprint(self.schema.fingerprint_of_version(1)))

    def _fingerprint(self, schema_fingerprint: str) -> str:
        files = [f.sha256 for _, split in sorted(self.splits.items()) for f in split.files]
        return hashlib.sha256("\n".join([schema_fingerprint, self.learnt_fingerprint, *files]).encode()).hexdigest()

    def with_choices_of(self, schema: FeatureSchema) -> "DatasetManifest":
        """Take a model's choices (pooling) from another schema of the same columns.

        Raises:
            DatasetError: the schema's columns are others.
        """
        if schema.fingerprint != self.schema_fingerprint:
            raise DatasetError(
                f"the dataset was built from another feature schema (fingerprint {self.schema_fingerprint[:12]}) than "
                f"the model's ({schema.fingerprint[:12]}): build it again"
            )
        return replace(self, schema=schema)

    def write(self, dataset: Path) -> None:
        """Replace ``dataset/manifest.json`` in one step, after everything it names is on disk."""
        values = asdict(self)
        for name in ("sampled", "histories", "lists"):
            if values[name] is None:
                del values[name]
        for split in values["splits"].values():
            for sequence in split["sequences"].values():
                if not sequence["dwell_counts"]:
                    del sequence["dwell_counts"]
            if not split["sequences"]:
                del split["sequences"]
        atomic.write_json(dataset / MANIFEST_NAME, values, durable=True, sort_keys=True, ensure_ascii=False)

    @classmethod
    def load(cls, dataset: Place | str) -> "DatasetManifest":
        """Read and check a dataset's manifest; one of an earlier version has the fingerprints of this one from here on.

        Raises:
            DatasetError: no manifest, not readable, made by a newer version, or of another schema than it says.
            StorageError: its store cannot be read.
        """
        path = locate(dataset) / MANIFEST_NAME
        if not path.is_file():
            raise DatasetError(f"{dataset} is not a dataset: it has no {MANIFEST_NAME}; run jobs.build_dataset first")
        try:
            text = path.read_bytes()
            version = DATASET_FORMAT.version_of(TypeAdapter(dict[str, Any]).validate_json(text), path, DatasetError)
            manifest = TypeAdapter(cls).validate_json(text)
        except (OSError, ValidationError) as error:
            raise DatasetError(f"{path} cannot be read: {error}") from error
        schema = manifest.schema
        if schema.fingerprint_of_version(version) != manifest.schema_fingerprint:
            raise DatasetError(f"{path} was written by another version of the encoding rules: build the dataset again")
        return replace(manifest, schema_fingerprint=schema.fingerprint, version=DATASET_FORMAT.version)

    def load_learnt(self, dataset: Place | str) -> Learnt:
        """Read the learnt state the manifest refers to.

        Raises:
            LearntError: a file is missing or damaged.
            DatasetError: the files are not the ones the manifest was written with.
            StorageError: they cannot be fetched.
        """
        place = locate(dataset)
        if isinstance(place, ObjectPath):
            folder = place / self.learnt_path
            with temporary_folder() as copy:
                download_all(folder, folder.sizes(), copy)
                learnt = Learnt.load(copy, self.schema)
        else:
            folder = inside(place, self.learnt_path)
            learnt = Learnt.load(folder, self.schema)
        if learnt.fingerprint != self.learnt_fingerprint:
            raise DatasetError(f"{folder} does not match {MANIFEST_NAME}: build the dataset again")
        return learnt

    def split(self, name: str) -> Split:
        """Return the split called ``name``.

        Raises:
            DatasetError: there is none, or it has no rows.
        """
        if name not in self.splits or not self.splits[name].num_rows:
            raise DatasetError(f"the dataset has no {name!r} split; it has: {', '.join(self.splits)}")
        return self.splits[name]

    def check_files(self, dataset: Place | str, name: str) -> None:
        """Check that a split's files are all there with the size the manifest gives.

        Raises:
            DatasetError: names the first file that is missing or cut.
            StorageError: its store cannot be listed.
        """
        place = locate(dataset)
        stored = place.sizes() if isinstance(place, ObjectPath) else {}
        for file in self.split(name).files:
            if isinstance(place, ObjectPath):
                path, size = place / file.path, stored.get(file.path)
            else:
                path = inside(place, file.path)
                size = path.stat().st_size if path.is_file() else None
            if size is None:
                raise DatasetError(f"{path} is named in {MANIFEST_NAME} but is missing: build the dataset again")
            if size != file.num_bytes:
                raise DatasetError(
                    f"{path} has {size} bytes where {MANIFEST_NAME} says {file.num_bytes}: "
                    "it was cut or changed; build the dataset again"
                )

    def check_ids(self, learnt: Learnt) -> None:
        """Check that every id is inside its table.

        Raises:
            DatasetError: names the first feature with an id outside its table.
        """
        for name, split in self.splits.items():
            for feature in self.schema.sparse:
                if feature.name not in split.sparse:
                    raise DatasetError(f"split {name!r} has no statistics of feature {feature.name!r}: build it again")
                _check_max_id(name, feature, split.sparse[feature.name].max_id, learnt)
            for part in self.schema.parts:
                if part.sequence not in split.sequences:
                    raise DatasetError(
                        f"split {name!r} has no statistics of sequence {part.sequence!r}: build it again"
                    )
                _check_max_id(name, part, split.sequences[part.sequence].max_ids[part.name], learnt)


def _check_max_id(split: str, feature: SparseFeature, max_id: int, learnt: Learnt) -> None:
    rows = learnt.num_embeddings(feature)
    if max_id >= rows:
        raise DatasetError(f"feature {feature.name!r} has id {max_id} in split {split!r} but its table has {rows} rows")
