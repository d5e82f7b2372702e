"""Dataset: a checked dataset with the learnt state of the model that reads it; imports no reading engine."""

from dataclasses import dataclass, replace
from pathlib import Path

from features.disk.dataset import DatasetError, DatasetManifest
from features.disk.object_store import ObjectPath
from features.disk.place import Place, locate
from features.dwell import cut_off_of
from features.learnt import Learnt
from features.schema import FeatureSchema
from training.data.file_cache import ShardCache


@dataclass(frozen=True)
class Dataset:
    """A dataset that was checked and is ready to be read.

    Attributes:
        path: its folder.
        manifest: its manifest.
        learnt: the learnt state of the model that reads it: the dataset's own, or an earlier one.
        is_ahead: whether the files know values that ``learnt`` does not.
    """

    path: Place
    manifest: DatasetManifest
    learnt: Learnt
    is_ahead: bool = False

    @classmethod
    def open(cls, path: Place | str) -> "Dataset":
        """Load a dataset's manifest and learnt state, and check files and ids.

        Raises:
            DatasetError, LearntError: names what is missing, cut or outside its table.
            StorageError: its store cannot be read.
        """
        path = locate(path)
        manifest = DatasetManifest.load(path)
        learnt = manifest.load_learnt(path)
        for name, split in manifest.splits.items():
            if split.num_rows:
                manifest.check_files(path, name)
        manifest.check_ids(learnt)
        return cls(path, manifest, learnt)

    def seen_by(self, learnt: Learnt) -> "Dataset":
        """Pair the rows with a model's earlier learnt state: later values are out of its vocabulary.

        Raises:
            DatasetError: the dataset's learnt state does not extend the model's.
        """
        if not self.learnt.extends(learnt):
            raise DatasetError(
                f"{self.path} was built with other vocabularies (learnt state {self.learnt.fingerprint[:12]}) than the "
                f"run's ({learnt.fingerprint[:12]}), and does not go on with them: its ids mean something else"
            )
        return replace(self, learnt=learnt, is_ahead=self.learnt.fingerprint != learnt.fingerprint)

    def with_choices_of(self, schema: FeatureSchema) -> "Dataset":
        """Take a model's own choices (pooling), which are not part of the dataset.

        Raises:
            DatasetError: the schema's columns are not the dataset's.
        """
        return replace(self, manifest=self.manifest.with_choices_of(schema))

    @property
    def mean_lengths(self) -> dict[str, float]:
        """Map each sequence's keys to its mean number of events a row of the training split."""
        found = self.manifest.split("train").sequences
        return {key: found[s.name].mean_length for s in self.manifest.schema.sequence for key in s.keys}

    @property
    def dwell_cut_offs(self) -> dict[str, int]:
        """Map sequences with dwell weights to the largest id of a dwell time that counts, of the training split."""
        found = self.manifest.split("train").sequences
        cut_offs = {name: cut_off_of(statistics.dwell_counts) for name, statistics in found.items()}
        return {name: cut_off for name, cut_off in cut_offs.items() if cut_off is not None}

    def num_embeddings(self) -> dict[str, int]:
        """Count the rows of the table that each feature, and each part of a sequence, is looked up in."""
        return {f.name: self.learnt.num_embeddings(f) for f in self.manifest.schema.id_features}

    def later_ids(self) -> dict[str, int] | None:
        """Map each feature with a vocabulary, and each part of a sequence with one, to the id that replaces later ids.

        None: the dataset has no later ids.
        """
        known, features = self.learnt.vocabularies, self.manifest.schema.id_features
        later = {f.name: self.learnt.oov_id(f.learnt_name) for f in features if f.learnt_name in known}
        return later if self.is_ahead else None

    def has_split(self, name: str) -> bool:
        """Tell whether the split has a row."""
        return name in self.manifest.splits and self.manifest.splits[name].num_rows > 0

    def files(self, cache_bytes: int) -> Path | ShardCache:
        """Return the folder of the files, or for a store a cache of local copies, at most ``cache_bytes``."""
        return ShardCache(self.path, cache_bytes) if isinstance(self.path, ObjectPath) else self.path.absolute()
