"""Sources: the files of each split, their columns, lookups and portions, found on the driver before Spark starts.

A missing file, column or lookup ends the job here, in a second, and not an hour into it.
"""

from dataclasses import dataclass, field

from features.disk.dataset import InputFile
from features.log_files import STORE, FoundLogs, LogFile, identity_of
from features.log_format import LogFormat
from features.raw_block import Wanted
from features.read.log_reader import LogReader, wanted_of_features
from features.read.portions import check_file
from features.read.streams import PACKED_SUFFIXES, open_stream
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
        state: its path, size and time of change, before anything is read of it.
        wanted: columns to read of it.
        lookups: path of each lookup's table.
    """

    number: int
    split: str
    file: LogFile
    state: InputFile
    wanted: Wanted
    lookups: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.state.num_bytes


@dataclass(frozen=True)
class InputPlan:
    """All files of a build.

    Attributes:
        files: in the order of splits, then of paths.
        found: split -> what its patterns led to.
        lookups: tables of the lookups, before anything is read of them.
    """

    files: tuple[SourceFile, ...]
    found: dict[str, FoundLogs] = field(default_factory=dict)
    lookups: tuple[InputFile, ...] = ()

    def inputs(self) -> dict[str, list[str]]:
        """Map each split and lookup to its files, for the manifest."""
        inputs = {split: [file.absolute for file in logs.files] for split, logs in self.found.items()}
        for number, _ in enumerate(self.files[0].lookups if self.files else ()):
            inputs[f"lookup {number}"] = sorted({source.lookups[number] for source in self.files})
        return inputs

    def input_files(self) -> tuple[InputFile, ...]:
        """State of each file and lookup, for the manifest, sorted by path."""
        states = {source.state for source in self.files} | set(self.lookups)
        return tuple(sorted(states, key=lambda state: state.path))

    def num_bytes(self) -> int:
        """Sum the sizes of the logs in bytes, what is compressed counted five times."""
        return sum(unpacked_bytes(one.file.real, one.num_bytes) for one in self.files)

    def notes(self) -> list[str]:
        """Say what was left out and what was named twice."""
        return [note for logs in self.found.values() for note in logs.notes()]


def unpacked_bytes(name: str, num_bytes: int) -> int:
    """Estimate the bytes that a file unpacks to, by its name and size."""
    return num_bytes * (_UNPACKS_TO if name.lower().endswith(tuple(PACKED_SUFFIXES)) else 1)


def plan_sources(config: PipelineConfig, schema: FeatureSchema) -> InputPlan:
    """Find every file and its lookups, and look at the columns of each.

    Raises:
        LogError: names the pattern, file, column or lookup that is missing.
        StorageError: a store cannot be listed.
    """
    reader = log_reader(config, schema)
    found, declared = reader.find_files(config.inputs())
    sources: list[SourceFile] = []
    tables: dict[str, InputFile] = {}
    for split, logs in found.items():
        for file in logs.files:
            lookups = reader.find_tables(file.real)
            state = InputFile(**identity_of(file))
            for path in {*lookups} - {*tables}:
                tables[path] = InputFile(**identity_of(LogFile(path, path, path)))
            own = reader.wanted_of_file(lookups, declared.get(file.real, frozenset()))
            if state.num_bytes and not file.real.startswith(STORE):
                check_file(file.real, config.input.format, own, file.partition)
            sources.append(SourceFile(len(sources), split, file, state, own, lookups))
    return InputPlan(tuple(sources), found, tuple(tables.values()))


def log_reader(config: PipelineConfig, schema: FeatureSchema) -> LogReader:
    """Make the reader of a build's logs: of the columns that it needs from files, paths and lookups."""
    split = (config.split.column,) if isinstance(config.split, HashSplit) and config.split.column else ()
    as_text = {*split, *config.dedupe, *schema.carry, *((schema.group_id,) if schema.group_id else ())}
    as_text |= {sequence.history.of for sequence in schema.sequence if sequence.history is not None}
    rules = (sequence.history_rule for sequence in schema.sequence)
    as_text |= {rule.column for rule in rules if rule is not None and rule.is_text}
    wanted = wanted_of_features(
        schema,
        tuple(dict.fromkeys([*schema.raw_columns, *split, *config.dedupe])),
        frozenset(as_text),
        frozenset((schema.weight,) if schema.weight else ()),
        config.input.format.optional,
    )
    return LogReader(config.input.format, config.input.lookups, wanted, schema.values)


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
        if source.num_bytes and log_format.is_text and not source.file.real.startswith(STORE):
            with open_stream(source.file.real) as stream:
                head = stream.read(_HEAD_BYTES)
            return plan.num_bytes() * max(head.count(b"\n"), 1) // max(len(head), 1)
    return 0
