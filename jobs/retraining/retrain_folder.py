"""RetrainFolder: a retraining's files (see ``features.disk.retrain_folder``), raw log, registry and rules."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.disk.dataset import DatasetManifest
from features.disk.retrain_folder import RetrainFiles
from features.disk.window import SOURCE_SPLIT
from features.fingerprint import digest
from features.log_files import NoMatchError
from features.log_format import LogError
from features.read.log_reader import places_of_table
from jobs.cli.config import Config
from jobs.cli.errors import ConfigError
from jobs.cli.retrain_config import RetrainConfig
from jobs.registry.model_versions import ModelVersion
from jobs.registry.registry import Registry
from jobs.retraining.date_index import DateIndex
from jobs.retraining.file_states import describe_changes, read_states, to_values
from jobs.retraining.raw_partitions import (
    RawPartition,
    date_of,
    find_late,
    find_partitions,
    is_late,
    is_young,
    list_log,
)
from jobs.retraining.todo import Todo, plan

TRAINED_TAG, REBUILT_TAG, RUN_TAG, TABLES_TAG = "trained_on", "rebuilt", "run", "tables"
"""Tags of a version: the partitions that it was trained on, how often those of them were built again that were, the
path of its run below the root, and the precision of its served tables."""
UNREADABLE = "unreadable"
"""Key of a file of checks, and a rule in it: why the raw files of a partition could not be built, and their states."""
BUILD = "build"
"""Key of a file of checks: how often the partition had been built again when it was checked; None: it is not built."""


@dataclass(frozen=True)
class RetrainFolder(RetrainFiles):
    """Folder of a retraining with its config: one log, one model."""

    config: Config
    rules: RetrainConfig
    _manifests: dict[Path, DatasetManifest] = field(default_factory=dict, repr=False, compare=False)

    # -------------------------------------------------------------------------------------------------- the raw log

    @property
    def dates(self) -> DateIndex:
        """Index of the dates of raw files."""
        return DateIndex(self.dates_folder)

    def undated_files(self) -> tuple[str, ...]:
        """List the raw files to scan for dates, the new and changed ones that are ready; none if dates are in paths.

        Raises:
            LogError: there is no raw file.
        """
        if self.rules.partition_by == "path":
            return ()
        files = [file.absolute for file in list_log(self.rules.partitions).files]
        return tuple(file for file in self.dates.unknown(files) if not is_young(file, self.rules))

    def notes(self) -> list[str]:
        """Say which files of the log are left out by their names or are there twice, a sentence each."""
        return list_log(self.rules.partitions).notes()

    def raw(self) -> dict[str, RawPartition]:
        """List the partitions of the log, oldest first.

        A built partition stays in the list when its raw files are gone. With retrain.late = "build", late partitions
        follow that of their date. A date that is not ready is not there.

        Raises:
            ValueError: the log is empty, or the folder has partitions with dates of another length.
        """
        there, built = self._there(), self._sources()
        found = {name: RawPartition({}) for name in built} | there
        if self.rules.late == "build":
            found |= find_late(found, built)
        for name in built:
            found[name] = _files_now(name, there.get(date_of(name)), built, only_own=self.rules.late == "build")
        lengths = {len(date_of(name)): name for name in found}
        if len(lengths) > 1:
            raise ValueError(
                f"{self.root} has partitions such as {' and '.join(lengths.values())}: choose another root"
            )
        return dict(sorted(found.items()))

    def unready(self) -> dict[str, str]:
        """Say of each date that is not ready why; it does not exist yet."""
        reasons = {date: partition.unready(self.rules) for date, partition in self._listed().items()}
        return {date: reason for date, reason in reasons.items() if reason is not None}

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

    def changed_files(self) -> dict[str, dict[str, str]]:
        """Say what became of the raw files that built partitions were made of: partition -> path -> words.

        Files are held against the size and time that the manifest gives; where rows are dated one by one, ``changed``
        counts the rows instead, since a file then grows by the rows of other dates too. Logs are deleted when they are
        old: where all files of a partition are gone, that is told of the newest ``retrain.window`` ones alone.
        """
        if self.rules.partition_by != "path":
            return {}
        found, recent = {}, self.built()[-self.rules.window :]
        for name, files in self._sources().items():
            before = [file for file in self.manifest(name).input_files if file.path in files]
            states = read_states(file.path for file in before)
            if name in recent or any(states.values()):
                found[name] = describe_changes(before, states)
        return {name: changes for name, changes in found.items() if changes}

    def to_rebuild(self, raw: Mapping[str, RawPartition]) -> tuple[str, ...]:
        """List the built partitions to build again, in order: changed ones if the config says so, or if stopped.

        A stopped one is also built again when files are added to it, whatever ``retrain.late`` says.
        """
        changed, sources = {*self.changed(), *self.changed_files()}, self._sources()
        stopped = {*self.stopped()} & {*sources}
        names = changed if self.rules.changed == "rebuild" else changed & stopped
        names |= {name for name in stopped if raw[name].without(sources[name]).files}
        names |= {name for name in self.built()[-self.rules.window :] if not self.has_own_features(name)}
        return tuple(name for name in sorted(names) if raw[name].files)

    def waiting(self, raw: Mapping[str, RawPartition]) -> dict[str, str]:
        """Say why partitions could not be read; they wait until their files, a lookup or the config changes."""
        found = {}
        for path in self.checks_files():
            record = self.read(path).get(UNREADABLE)
            if record and path.stem in raw and record["seen"] == self.seen(raw[path.stem]):
                found[path.stem] = record["reason"]
        return found

    def done(self, raw: Mapping[str, RawPartition]) -> tuple[str, ...]:
        """List the partitions that need no build: built and unchanged, or unreadable and unchanged."""
        return tuple(sorted({*self.built()} - {*self.to_rebuild(raw)} | {*self.waiting(raw)}))

    def seen(self, partition: RawPartition) -> dict[str, Any]:
        """Describe what the build of a partition depends on: the states of its files and lookups, and the config."""
        lookups = self.config.pipeline.input.lookups
        tables = {str(path) for file in partition.files for one in lookups for path in places_of_table(one, file)}
        paths = {*partition.files, *tables}
        config = self.config.to_dict()
        sections = {name: config[name] for name in ("features", "pipeline")}
        return {"files": to_values(read_states(sorted(paths))), "config": digest(sections)}

    def _there(self) -> dict[str, RawPartition]:
        return {date: found for date, found in self._listed().items() if found.unready(self.rules) is None}

    def _listed(self) -> dict[str, RawPartition]:
        nothing = f"no partition is there: nothing matches {self.rules.partitions}"
        try:
            by_path = self.rules.partition_by == "path"
            found = find_partitions(self.rules.partitions) if by_path else self.dates.partitions()
        except NoMatchError as error:
            raise ValueError(f"{nothing} ({error})") from error
        if not found and self.dates.unreadable():
            raise LogError(f"no file of the log can be read: {next(iter(self.dates.unreadable().values()))}")
        if not found and not self.rules.min_age_seconds:
            raise ValueError(nothing)
        return found

    def _sources(self) -> dict[str, list[str]]:
        """Map each built partition to the raw files that it was built from."""
        return {name: self.manifest(name).inputs.get(SOURCE_SPLIT, []) for name in self.built()}

    # -------------------------------------------------------------------------------------------------- what was made

    def manifest(self, name: str) -> DatasetManifest:
        """Read the manifest of a built partition; a folder's never changes, and so is cached."""
        return self._manifest(self.partition(name))

    def _manifest(self, folder: Path) -> DatasetManifest:
        if folder not in self._manifests:
            self._manifests[folder] = DatasetManifest.load(folder)
        return self._manifests[folder]

    def has_own_features(self, name: str) -> bool:
        """Tell whether a partition was built from the config's features; without ``other_features`` all have to be."""
        own = self.config.features.fingerprint
        return not self.rules.other_features or self.manifest(name).schema_fingerprint == own

    def last_built(self) -> Path | None:
        """Find the last dataset in the chain of builds, which the next build extends; None: none is built.

        Raises:
            ConfigError: it has other features than the config, which does not allow that.
        """
        own = self.config.features.fingerprint
        folders = {folder.name: folder for folder in self.build_folders()}
        if self.rules.other_features:
            folders = {name: f for name, f in folders.items() if self._manifest(f).schema_fingerprint == own}
        bases = [self._manifest(folder).config["pipeline"].get("base") for folder in folders.values()]
        ends = {*folders} - {Path(base).name for base in bases if base is not None}
        if not ends:
            return None
        last = folders[max(ends)]
        if self._manifest(last).schema_fingerprint != own:
            raise ConfigError(
                f"config key 'features': {last} was built from other features, so its ids mean something else: go back "
                "to them, set retrain.other_features = true, or begin again in another retrain.root"
            )
        return last

    def unreadable(self) -> dict[str, str]:
        """Say why partitions could not be read when they were built last; of built ones, while nothing has changed."""
        records = {path.stem: self.read(path).get(UNREADABLE) for path in self.checks_files()}
        reasons, built = {name: record["reason"] for name, record in records.items() if record}, {*self.built()}
        if not reasons.keys() & built:
            return reasons
        same = self.waiting(self.raw())
        return {name: reason for name, reason in reasons.items() if name in same or name not in built}

    def checks(self, name: str) -> dict[str, Any]:
        """Read the checks of a partition."""
        return self.read(self.checks_file(name))

    def is_checked(self, name: str) -> bool:
        """Tell whether the newest build of a partition was checked."""
        return self.checks_file(name).exists() and self.checks(name).get(BUILD, 0) == self.num_rebuilds(name)

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

    def trained_on(self, version: ModelVersion) -> list[str]:
        """List the partitions that a version was trained on; those that were built again since are left out."""
        rebuilt = json.loads(version.tags.get(REBUILT_TAG, "{}"))
        return still_trained_on(self, json.loads(version.tags[TRAINED_TAG]), rebuilt)

    def look(self, as_of: str | None, champion: ModelVersion | None) -> Todo:
        """Plan what to do, from the log, the built partitions, their checks and the champion."""
        trained = None if champion is None else self.trained_on(champion)
        raw = self.raw()
        done = self.done(raw)
        foreign = {name: None for name in done if name in self.built() and not self.has_own_features(name)}
        return plan(list(raw), as_of, done, {**self.stopped(), **foreign}, trained, self.rules)


def still_trained_on(files: RetrainFiles, names: Sequence[str], rebuilt: Mapping[str, int]) -> list[str]:
    """Select the partitions that were not built again since a version was trained on them.

    Args:
        files: folder of the retraining.
        names: partitions that the version was trained on.
        rebuilt: how often they had been built again by then; those that are not in it, never.
    """
    return [name for name in names if files.num_rebuilds(name) <= rebuilt.get(name, 0)]


def _files_now(name: str, date: RawPartition | None, built: Mapping[str, list[str]], *, only_own: bool) -> RawPartition:
    """Select the files that are there of a built partition: its own, and unless it is late, what no other one has."""
    if date is None:
        return RawPartition({})
    others = [other for other in built if other != name and date_of(other) == date_of(name)]
    rest = date.without(file for other in others for file in built[other])
    return rest.without(rest.without(built[name]).files) if only_own or is_late(name) else rest
