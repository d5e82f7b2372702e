"""The folder of a retraining: everything that is kept of one log and its model.

dates/               which dates raw files are of, where their paths do not say
partitions/DATE/     datasets, each going on with the one before     checks/DATE.json   may it be trained on?
partitions/DATE~1/   the same, built again from files that changed
profiles/DATE.json   what its columns look like                      windows/DATE/      what a candidate trains on
runs/DATE/           the candidate, its artifact in it               verdicts/DATE.json what became of it
configs/DATE.json    resolved config of a candidate's training       registry/          versions of the model
last.json            what the last retraining came to                status.html        page of jobs.status
compared/DATE/       a day's rows as a champion of other features reads them
retrain.json         version of this layout
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.disk.atomic import write_json
from features.disk.dataset import MANIFEST_NAME
from features.disk.lock import is_held, lock
from features.disk.run_folder import ARTIFACT_FOLDER
from features.disk.versions import Format

RETRAIN_FORMAT = Format(
    "retraining folder",
    "update twinfocus here, or begin again in another retrain.root",
    # Version 1 has no partitions that were built again (DATE~1).
    (lambda folder: folder,),
)
_AGAIN = "~"
_VERSION_NAME, _LAST_NAME, _LOCK_NAME = "retrain.json", "last.json", ".lock"


@dataclass(frozen=True)
class RetrainFiles:
    """Files of a retraining; nothing need be there.

    Attributes:
        root: the folder.
    """

    root: Path

    def partition(self, name: str) -> Path:
        """Return the folder of a partition's dataset: the newest one, where it was built again."""
        return self._build_folder(name, self.num_rebuilds(name))

    def next_partition(self, name: str) -> Path:
        """Return the folder to build a partition in: another one each time, so that bases keep their meaning."""
        number = self.num_rebuilds(name)
        return self._build_folder(name, number + (self._build_folder(name, number) / MANIFEST_NAME).exists())

    def num_rebuilds(self, name: str) -> int:
        """Count how often a partition was built again."""
        numbers = (path.parent.name.rpartition(_AGAIN)[2] for path in self._manifests_of(f"{name}{_AGAIN}*"))
        return max(map(int, filter(str.isdecimal, numbers)), default=0)

    def _build_folder(self, name: str, number: int) -> Path:
        return self.root / "partitions" / (f"{name}{_AGAIN}{number}" if number else name)

    def _manifests_of(self, folders: str) -> Iterator[Path]:
        return self.root.glob(f"partitions/{folders}/{MANIFEST_NAME}")

    def window(self, day: str) -> Path:
        """Return the folder of the dataset that a day's candidate trains on."""
        return self.root / "windows" / day

    def compared(self, day: str) -> Path:
        """Return the folder of a day's rows as a champion of other features reads them."""
        return self.root / "compared" / day

    def compared_window(self, day: str) -> Path:
        """Return the folder of the dataset that a champion of other features is compared on."""
        return self.compared(day) / "window"

    def run(self, day: str) -> Path:
        """Return the folder of a day's candidate."""
        return self.root / "runs" / day

    def profile(self, name: str) -> Path:
        """Return the file of a partition's profile."""
        return self.root / "profiles" / f"{name}.json"

    def checks_file(self, name: str) -> Path:
        """Return the file of what data checks said of a partition."""
        return self.root / "checks" / f"{name}.json"

    def verdict_file(self, day: str) -> Path:
        """Return the file of what became of a day's candidate."""
        return self.root / "verdicts" / f"{day}.json"

    def config_file(self, day: str) -> Path:
        """Return the file of the resolved config that a day's candidate is trained with."""
        return self.root / "configs" / f"{day}.json"

    @property
    def dates_folder(self) -> Path:
        """Return the folder of what is known of raw files' dates."""
        return self.root / "dates"

    @property
    def registry_folder(self) -> Path:
        """Return the folder of the registry, unless a server keeps it."""
        return self.root / "registry"

    @property
    def last_file(self) -> Path:
        """Return the file of what the last retraining came to."""
        return self.root / _LAST_NAME

    @property
    def version_file(self) -> Path:
        """Return the file with the layout's version; without one it is version 1."""
        return self.root / _VERSION_NAME

    @property
    def page(self) -> Path:
        """Return the file of jobs.status's page."""
        return self.root / "status.html"

    # -------------------------------------------------------------------------------------------------- what is there

    def built(self) -> list[str]:
        """List the partitions that have a dataset, in order."""
        return sorted({partition_name(folder) for folder in self.build_folders()})

    def build_folders(self) -> list[Path]:
        """List the folders of all datasets of partitions, in order, also of those that were built again since."""
        return sorted(path.parent for path in self._manifests_of("[!.]*"))

    def half_built(self) -> list[str]:
        """List the partitions whose dataset has no manifest yet, in order."""
        names = {partition_name(path) for path in self.root.glob("partitions/[!.]*") if path.is_dir()}
        return sorted(names - {*self.built()})

    def undecided(self) -> list[str]:
        """List the days whose candidate was begun and has no verdict yet, in order."""
        days = sorted(path.name for path in self.root.glob("runs/[!.]*") if path.is_dir())
        return [day for day in days if not self.verdict_file(day).exists()]

    def checks_files(self) -> list[Path]:
        """List the files of data checks, in order."""
        return sorted(self.root.glob("checks/[!.]*.json"))

    def verdict_files(self) -> list[Path]:
        """List the files of verdicts, oldest first."""
        return sorted(self.root.glob("verdicts/[!.]*.json"))

    def leftovers(self) -> list[Path]:
        """List the folders that nobody needs: half a window, half an artifact, partitions that were built again.

        Not even a rollback to a model of theirs: its run keeps its vocabularies, and its window the rows and the base.
        """
        again = [path for path in self.build_folders() if path != self.partition(partition_name(path))]
        return [*self.root.glob("windows/.*"), *self.root.glob(f"runs/*/.{ARTIFACT_FOLDER}.*"), *again]

    # -------------------------------------------------------------------------------------------- reading and writing

    def read(self, path: Path) -> dict[str, Any]:
        """Read a file of checks, a verdict or the last summary.

        Raises:
            ValueError, OSError: it is absent or damaged.
        """
        return json.loads(path.read_text(encoding="utf-8"))

    def write(self, path: Path, value: Mapping[str, Any]) -> None:
        """Write a file of checks, a verdict or the last summary in one step.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)

    def check_version(self) -> str | None:
        """Check that this program knows the layout.

        Returns:
            A sentence for the user where the folder is of an older version.

        Raises:
            ValueError: it is of a newer version, or its file with the version is damaged.
        """
        return RETRAIN_FORMAT.upgrade_note(self._version(), self.root)

    @contextlib.contextmanager
    def alone(self) -> Iterator[str | None]:
        """Lock the folder and upgrade it to this program's version.

        Yields:
            A sentence for the user where the folder was of an older version.

        Raises:
            ValueError: another retraining holds it, or it is of a newer version.
        """
        message = f"another retraining is at work in {self.root}: wait for it to end"
        with lock(self.root / _LOCK_NAME, message):
            note = self.check_version()
            if not self.version_file.exists() or self._version() != {"version": RETRAIN_FORMAT.version}:
                self.write(self.version_file, {"version": RETRAIN_FORMAT.version})
            yield note

    def is_held(self) -> bool | None:
        """Tell whether a retraining holds the folder; None: this system does not tell."""
        return is_held(self.root / _LOCK_NAME)

    def _version(self) -> dict[str, Any]:
        if not self.version_file.exists():  # of version 1, or new
            return {} if any(self.root.glob("[!.]*")) else {"version": RETRAIN_FORMAT.version}
        try:
            return self.read(self.version_file)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.version_file} cannot be read ({error}): restore it; without it the folder counts as version 1"
            ) from error


def partition_name(path: Path) -> str:
    """Return the name of the day or partition that a file or folder of a retraining is of."""
    return path.stem.partition(_AGAIN)[0]
