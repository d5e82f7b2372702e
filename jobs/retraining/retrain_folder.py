"""RetrainFolder: a retraining's files (see ``features.disk.retrain_folder``), raw log, registry and rules."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.disk.dataset import DatasetManifest
from features.disk.retrain_folder import RetrainFiles
from features.disk.window import SOURCE_SPLIT
from features.log_files import NoMatchError
from jobs.cli.config import Config
from jobs.cli.retrain_config import RetrainConfig
from jobs.registry.model_versions import ModelVersion
from jobs.registry.registry import Registry
from jobs.retraining.date_index import DateIndex
from jobs.retraining.raw_partitions import RawPartition, date_of, find_late, find_partitions, list_log
from jobs.retraining.todo import Todo, plan

TRAINED_TAG, RUN_TAG, TABLES_TAG = "trained_on", "run", "tables"
"""Tags of a version: the partitions that it was trained on, the path of its run below the root, and the precision of
its served tables."""


@dataclass(frozen=True)
class RetrainFolder(RetrainFiles):
    """Folder of a retraining with its config: one log, one model."""

    config: Config
    rules: RetrainConfig
    _manifests: dict[str, DatasetManifest] = field(default_factory=dict, repr=False, compare=False)

    # -------------------------------------------------------------------------------------------------- the raw log

    @property
    def dates(self) -> DateIndex:
        """Index of the dates of raw files."""
        return DateIndex(self.dates_folder)

    def undated_files(self) -> tuple[str, ...]:
        """List the raw files to scan for dates, the new and changed ones; none if dates are in paths.

        Raises:
            LogError: there is no raw file.
        """
        if self.rules.partition_by == "path":
            return ()
        return self.dates.unknown([file.absolute for file in list_log(self.rules.partitions).files])

    def notes(self) -> list[str]:
        """Say which files of the log are left out by their names or are there twice, a sentence each."""
        return list_log(self.rules.partitions).notes()

    def raw(self) -> dict[str, RawPartition]:
        """List the partitions of the log, oldest first.

        A built partition stays in the list when its raw files are gone. With retrain.late = "build", late partitions
        follow that of their date.

        Raises:
            ValueError: the log is empty, or the folder has partitions with dates of another length.
        """
        found, built = self._there(), self._sources()
        if self.rules.late == "build":
            found |= find_late(found, built)
        found = {**{name: RawPartition(dict.fromkeys(files)) for name, files in built.items()}, **found}
        lengths = {len(date_of(name)): name for name in found}
        if len(lengths) > 1:
            raise ValueError(
                f"{self.root} has partitions such as {' and '.join(lengths.values())}: choose another root"
            )
        return dict(sorted(found.items()))

    def late(self) -> dict[str, RawPartition]:
        """Find the files that came after their date's partition was built and are in no partition."""
        return find_late(self._there(), self._sources())

    def changed(self) -> dict[str, int]:
        """Count rows that raw files of built partitions have gained or lost since; unchanged ones are left out."""
        if self.rules.partition_by == "path":
            return {}
        there, changed = self.dates.files(), {}
        for name, files in self._sources().items():
            now = sum(there[file].dates.get(date_of(name), 0) for file in files if file in there)
            changed[name] = now - self.manifest(name).num_input_rows
        return {name: more for name, more in changed.items() if more}

    def _there(self) -> dict[str, RawPartition]:
        nothing = f"no partition is there: nothing matches {self.rules.partitions}"
        try:
            by_path = self.rules.partition_by == "path"
            found = find_partitions(self.rules.partitions) if by_path else self.dates.partitions()
        except NoMatchError as error:
            raise ValueError(f"{nothing} ({error})") from error
        if not found:
            raise ValueError(nothing)
        return found

    def _sources(self) -> dict[str, list[str]]:
        """Map each built partition to the raw files that it was built from."""
        return {name: self.manifest(name).inputs.get(SOURCE_SPLIT, []) for name in self.built()}

    # -------------------------------------------------------------------------------------------------- what was made

    def manifest(self, name: str) -> DatasetManifest:
        """Read the manifest of a built partition, which never changes and so is cached."""
        if name not in self._manifests:
            self._manifests[name] = DatasetManifest.load(self.partition(name))
        return self._manifests[name]

    def last_built(self) -> str | None:
        """Find the last partition in the chain of builds, which the next build extends; None: none is built."""
        bases = {}
        for name in self.built():
            base = self.manifest(name).config["pipeline"].get("base")
            bases[name] = None if base is None else Path(base).name
        ends = set(bases) - set(bases.values())
        return max(ends) if ends else None

    def checks(self, name: str) -> dict[str, Any]:
        """Read the checks of a partition."""
        return self.read(self.checks_file(name))

    def stopped(self) -> dict[str, Any]:
        """Read the checks of the partitions that data checks stopped."""
        found = {path.stem: self.checks(path.stem) for path in self.checks_files()}
        return {name: checks for name, checks in found.items() if checks["level"] == "stop"}

    def registry(self) -> Registry:
        """Open the registry; make it if it is missing."""
        return Registry.open(self.rules.registry, self.registry_folder)

    def champion(self) -> ModelVersion | None:
        """Return the champion; None: there is none yet."""
        has_one = self.rules.registry is not None or self.registry_folder.is_dir()
        return self.registry().champion(self.rules.model) if has_one else None

    def run_of(self, version: ModelVersion) -> Path:
        """Return the folder of the run that a version was exported from."""
        return self.root / version.tags[RUN_TAG]

    def look(self, as_of: str | None, champion: ModelVersion | None) -> Todo:
        """Plan what to do, from the log, the built partitions, their checks and the champion."""
        trained = None if champion is None else json.loads(champion.tags[TRAINED_TAG])
        return plan(list(self.raw()), as_of, self.built(), self.stopped(), trained, self.rules)
