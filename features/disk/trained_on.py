"""TrainedOn: ``dataset.json`` of a run, the identity of the dataset that it was trained on, split by split."""

from collections.abc import Mapping
from dataclasses import asdict, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from features.disk.dataset import DatasetError, DatasetManifest, Split
from features.fingerprint import FINGERPRINT_FORMAT
from features.schema import FeatureSchema


@dataclass(frozen=True)
class SplitRows:
    """Rows of one split: how many, and the fingerprint of their files' contents."""

    num_rows: int
    fingerprint: str

    @classmethod
    def of(cls, split: Split) -> "SplitRows":
        """Describe a split of a manifest."""
        return cls(split.num_rows, split.fingerprint)


@dataclass(frozen=True)
class TrainedOn:
    """The dataset of a run. Keys that are not known here are left alone."""

    dataset: str
    """Folder or URL of the dataset."""
    schema_fingerprint: str
    learnt_fingerprint: str
    fingerprint: str | None = None
    """Fingerprint of the manifest; None in runs of earlier versions, which did not keep it."""
    rows: dict[str, SplitRows] = field(default_factory=dict)
    """Split -> its rows; empty where ``fingerprint`` is None."""
    fingerprint_version: int = 1
    negatives_rate: float = 1.0
    """Rate of negatives that its training split kept."""

    @classmethod
    def of(cls, dataset: object, manifest: DatasetManifest) -> "TrainedOn":
        """Describe a dataset for a run that is trained on it.

        Args:
            dataset: its folder or URL.
            manifest: as it was loaded.
        """
        rows = {name: SplitRows.of(split) for name, split in manifest.splits.items()}
        return cls(
            str(dataset),
            manifest.schema_fingerprint,
            manifest.learnt_fingerprint,
            manifest.fingerprint,
            rows,
            FINGERPRINT_FORMAT.version,
            manifest.negatives_rate,
        )

    @classmethod
    def from_json(cls, values: Any, schema: FeatureSchema) -> "TrainedOn":
        """Read what ``to_json`` gave, now or in an earlier version, whose fingerprints become those of this one.

        Args:
            values: what ``dataset.json`` holds.
            schema: the run's own, of its ``config.json``.

        Raises:
            DatasetError: a key is absent or wrong, a newer version wrote it, or the schema is not the one it is of.
        """
        found = cls.parse(values)
        if found.schema_fingerprint != schema.fingerprint_of_version(found.fingerprint_version):
            raise DatasetError("dataset.json is of another feature schema than config.json has")
        return replace(found, schema_fingerprint=schema.fingerprint, fingerprint_version=FINGERPRINT_FORMAT.version)

    @classmethod
    def parse(cls, values: Any) -> "TrainedOn":
        """Read what ``dataset.json`` holds as it stands: for who compares rows alone, and no schema.

        Raises:
            DatasetError: a key is absent or wrong, or a newer version wrote it.
        """
        FINGERPRINT_FORMAT.version_of(values, "the run's dataset.json", DatasetError)
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            [first, *_] = error.errors()
            raise DatasetError(f"dataset.json is not understood: {first['msg']} at {first['loc']}") from error

    def to_json(self) -> dict[str, Any]:
        """JSON values of ``dataset.json``."""
        return asdict(self)

    def difference(self, manifest: DatasetManifest) -> str | None:
        """Say in what a dataset differs from the one the run was trained on.

        Returns:
            Words such as "test has 174 rows (fingerprint 0f3a...) where the run's dataset had 380 (91bc...)"; None
            where nothing differs, and where the run does not say what its dataset was.
        """
        return None if self.fingerprint in (None, manifest.fingerprint) else _difference(self.rows, manifest)

    def describe(self, manifest: DatasetManifest, split: str) -> dict[str, Any]:
        """Identity of rows that were scored, and of the run's own, as JSON values.

        Args:
            manifest: of the dataset that the rows are of.
            split: which of its splits was scored.

        Returns:
            ``rows`` and ``fingerprint`` of the split; ``trained_on``, the same of the run's own dataset, or None
            where that has no such split or is not known; ``is_own``, whether the dataset is the run's own, or None.
        """
        found, own = manifest.split(split), self.rows.get(split)
        return {
            "rows": found.num_rows,
            "fingerprint": found.fingerprint,
            "trained_on": own and {"rows": own.num_rows, "fingerprint": own.fingerprint},
            "is_own": None if self.fingerprint is None else self.fingerprint == manifest.fingerprint,
        }


def _difference(rows: Mapping[str, SplitRows], manifest: DatasetManifest) -> str:
    parts = []
    for name in dict.fromkeys([*rows, *manifest.splits]):
        before, split = rows.get(name), manifest.splits.get(name)
        now = split and SplitRows.of(split)
        if before != now:
            parts.append(f"{name} has {_shown(now)} where the run's dataset had {_shown(before)}")
    return "; ".join(parts) or "what was learnt from its training split is not the same"


def _shown(rows: SplitRows | None) -> str:
    return "no rows" if rows is None else f"{rows.num_rows:,} rows (fingerprint {rows.fingerprint[:12]})"
