"""Sources: the files of each split, their columns, lookups and portions, found on the driver before Spark starts.

A missing file, column or lookup ends the job here, in a second, and not an hour into it.
"""

from dataclasses import dataclass, field
from typing import Any

from features.log_files import FoundLogs, LogFile, find_splits, identity_of, size_of
from features.log_format import LogFormat
from features.raw_block import Wanted
from features.read.streams import open_stream
from features.schema import FeatureSchema
from pipeline.config import HashSplit, PipelineConfig

_UNPACKS_TO = 5
"""Bytes of text that a compressed byte stands for, about."""


@dataclass(frozen=True)
class SourceFile:
    """A file of the build.

    Attributes:
        number: its place among all files, from 0; with a row's offset it is the row's identity.
        split: split that it was given for.
        file: where it is.
        num_bytes: its size.
    """

    number: int
    split: str
    file: LogFile
    num_bytes: int


@dataclass(frozen=True)
class InputPlan:
    """All files of a build.

    Attributes:
        files: in the order of splits, then of paths.
        found: split -> what its patterns led to.
    """

    files: tuple[SourceFile, ...]
    found: dict[str, FoundLogs] = field(default_factory=dict)

    def inputs(self) -> dict[str, list[str]]:
        """Map each split to its files, for the manifest."""
        return {split: [file.absolute for file in logs.files] for split, logs in self.found.items()}

    def identities(self) -> list[dict[str, Any]]:
        """Describe each file with its size and time, for the manifest."""
        return [identity_of(source.file) for source in self.files]

    def num_bytes(self) -> int:
        """Sum the sizes of the logs in bytes, what is compressed counted five times."""
        return sum(size * (_UNPACKS_TO if is_packed(name) else 1) for name, size in self._sizes())

    def _sizes(self) -> list[tuple[str, int]]:
        return [(source.file.real, source.num_bytes) for source in self.files]

    def notes(self) -> list[str]:
        """Say what was left out and what was named twice."""
        return [note for logs in self.found.values() for note in logs.notes()]


def is_packed(name: str) -> bool:
    """Tell by its name whether a file is compressed."""
    return name.lower().endswith((".gz", ".bz2", ".zst", ".zstd", ".lz4"))


def plan_sources(config: PipelineConfig, schema: FeatureSchema) -> InputPlan:
    """Find every file.

    Raises:
        LogError: names the pattern or file that is missing.
        StorageError: a store cannot be listed.
    """
    found = find_splits(config.inputs())
    files = [(split, file) for split, logs in found.items() for file in logs.files]
    sources = [SourceFile(n, split, file, size_of(file.real)) for n, (split, file) in enumerate(files)]
    return InputPlan(tuple(sources), found)


def wanted_columns(config: PipelineConfig, schema: FeatureSchema) -> Wanted:
    """List the raw columns that a build needs, from files, paths and lookups, and what each is used as."""
    split = (config.split.column,) if isinstance(config.split, HashSplit) and config.split.column else ()
    columns = tuple(dict.fromkeys([*schema.raw_columns, *split, *config.dedupe]))
    optional = frozenset(config.input.format.optional)
    lists = frozenset(f.columns[0] for f in schema.sparse if f.kind.takes_lists)
    texts = {c for f in schema.sparse if f.encoding.kind in ("hash", "vocabulary") for c in f.columns}
    texts |= {*split, *config.dedupe, *schema.carry, *((schema.group_id,) if schema.group_id else ())}
    numbers = {c for f in schema.sparse for c in f.columns} | {f.source for f in schema.dense}
    numbers |= {schema.weight} if schema.weight else set()
    return Wanted(columns, frozenset(numbers - texts), lists, optional)


EXACT_ROWS = 200_000
"""Number of rows up to which every value is counted; above it, head shares come from a sample of about that size."""
_HEAD_BYTES = 1 << 20


def sample_step(plan: InputPlan, log_format: LogFormat) -> int:
    """Compute of how many rows one is in the sample for statistics; it depends on the input alone.

    Raises:
        LogError: the first file cannot be read.
    """
    return max(_guess_rows(plan, log_format) // EXACT_ROWS, 1)


def _guess_rows(plan: InputPlan, log_format: LogFormat) -> int:
    for source in plan.files:
        if source.num_bytes and log_format.kind in ("csv", "tsv", "jsonl", "libffm"):
            with open_stream(source.file.real) as stream:
                head = stream.read(_HEAD_BYTES)
            return plan.num_bytes() * max(head.count(b"\n"), 1) // max(len(head), 1)
    return 0
