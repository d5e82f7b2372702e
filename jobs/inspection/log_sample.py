"""Sample of a raw log: rows from several places of it, read by the readers that a build uses."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from features.log_files import STORE, FoundLogs, LogFile, local_copy, show, size_of
from features.log_format import LogError, LogFormat
from features.raw_block import RawBlock, Wanted
from features.read.columnar import ParquetGroups, open_groups
from features.read.json_lines import parse_object
from features.read.lines import LineReader
from features.read.portions import Portion, column_names, plan_portions, read_portion
from features.read.streams import open_stream
from features.values import ColumnError, loose_texts
from jobs.inspection.candidate_lists import find_candidates, make_rows
from jobs.inspection.log_layout import LogLayout, find_layout
from pipeline.build.sources import unpacked_bytes

_MOST_FILES = 16
"""Files that rows are read of, and at most so many portions of them."""
_MOST_HEADERS = 500
"""Files whose columns are looked at."""
_MIN_PORTION = 1 << 22
_STEP = 1 << 20
_KEY_LINES = 2_000
"""JSON lines of a file whose keys are looked at."""
_MOST_INDEXES = 64
"""Indexes of a libsvm file up to which each is a column of numbers too."""
_NO_NAME = "it has no name"
_SHOWN_LIST = 40


@dataclass
class LogSample:
    """Rows of a log.

    Attributes:
        format: the log's, with the columns that some files lack as optional.
        blocks: the rows as they were read.
        rejected: reason -> lines that are no rows.
        first_rejected: file, line and reason of the first of them.
        left_out: column that cannot be a feature -> why.
        lists: columns that hold arrays.
        num_rows: rows of the sample.
        total_rows: rows of the log, an estimate unless ``is_all``.
        is_all: whether the sample is the whole log.
        is_spread: whether it has rows from the log's beginning, middle and end.
        notes: what is a guess or odd.
        binary: columns of bytes, which may be text.
        lacking: column that some files lack -> the first of them.
    """

    format: LogFormat
    blocks: list[RawBlock] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    first_rejected: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    lists: frozenset[str] = frozenset()
    num_rows: int = 0
    total_rows: int = 0
    is_all: bool = False
    is_spread: bool = False
    notes: list[str] = field(default_factory=list)
    binary: set[str] = field(default_factory=set)
    lacking: dict[str, str] = field(default_factory=dict)

    def texts_of_singles(self) -> dict[str, pa.StringArray]:
        """Convert every column of single values to text; what is missing is null."""
        found: dict[str, pa.StringArray] = {}
        for name in self.blocks[0].columns:
            if name in self.lists:
                continue
            try:
                parts = [pa.array(loose_texts(block.columns[name]), pa.string()) for block in self.blocks]
            except ColumnError as error:
                self.left_out[name] = str(error)
                continue
            found[name] = pa.concat_arrays(parts)
        return found

    def arrays(self, name: str) -> pa.ListArray:
        """Convert a column that holds arrays to lists of text, empty where it is missing."""
        lengths: list[np.ndarray] = []
        items: list[pa.StringArray] = []
        for block in self.blocks:
            values = _joined_lists(block.columns[name], block.lists.get(name))
            lengths.append(np.array([0 if size is None else size for size in values.value_lengths().to_pylist()]))
            items.append(loose_texts(values.flatten()))
        ends = np.append(0, np.cumsum(np.concatenate(lengths)))
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.concat_arrays(items))


def take_sample(found: FoundLogs, given: Mapping[str, Any], rows: int) -> LogSample:
    """Find the layout of a log and read rows of it.

    Args:
        found: its files.
        given: keys of ``pipeline.input.format`` that are known.
        rows: number of rows to read at most.

    Raises:
        LogError: no file has a row, one cannot be read, or they are not of one log; names the file.
        ConfigError: what is given is no format.
    """
    files = [(file, size) for file in found.files if (size := size_of(file.real))]
    if not files:
        raise LogError(f"no file of the log has a row: {', '.join(show(file.path) for file in found.files[:5])}")
    chosen = _spread(files, _MOST_FILES)
    with tempfile.TemporaryDirectory(prefix="twinfocus-") as folder:
        copies = [(file, str(local_copy(file.real, Path(folder))), size) for file, size in chosen]
        layout = _common_layout(copies, given)
        sample = LogSample(layout.format, notes=list(layout.notes))
        is_stored = any(file.real.startswith(STORE) for file, _ in files)
        headers = copies if is_stored else [(file, file.real, size) for file, size in _spread(files, _MOST_HEADERS)]
        wanted = _find_wanted(sample, headers)
        _read_rows(sample, copies, wanted, rows)
        if sample.binary and sample.rejected.total() > sample.num_rows:
            sample.left_out |= dict.fromkeys(sample.binary, "it holds bytes, and not all are text")
            sample.blocks, sample.num_rows, sample.rejected = [], 0, Counter()
            columns = tuple(name for name in wanted.columns if name not in sample.binary)
            _read_rows(sample, copies, replace(wanted, columns=columns), rows)
        if not sample.num_rows:
            reason = sample.first_rejected or "it has a header alone"
            raise LogError(f"no line of {show(files[0][0].path)} is a row: {reason}")
        sample.is_all = sample.is_all and len(chosen) == len(files)
        sample.is_spread = sample.is_all or sample.is_spread
        guess = 0 if sample.is_all else _estimate_rows(sample, copies, files)
        sample.total_rows = max(sample.num_rows, guess)
        _split_lists(sample, rows)
    return sample


def _split_lists(sample: LogSample, rows: int) -> None:
    """Make rows of lists of candidates, where the format names some or a column looks like them."""
    given = sample.format.candidates
    lists = given or find_candidates(sample.blocks)
    if lists is None:
        return
    if lists.column not in sample.blocks[0].columns:
        raise LogError(f"no column {lists.column!r}, of pipeline.input.format.candidates, in the log")
    if given is None:
        shown = next(text for text in sample.blocks[0].columns[lists.column].to_pylist() if text)
        sample.notes.append(
            f"{lists.column} holds lists of candidates, such as {shown[:_SHOWN_LIST]!r}: each candidate becomes a row, "
            f"with the columns {lists.name}, {lists.label} and {lists.position}"
        )
    sample.format = replace(sample.format, candidates=lists)
    num_lines = sample.num_rows
    sample.blocks, rate, is_all = make_rows(sample.blocks, sample.format, rows)
    sample.num_rows = sum(map(len, sample.blocks))
    for block in sample.blocks:
        sample.rejected.update(line.reason for line in block.rejected)
    if not sample.num_rows:
        raise LogError(f"no list of column {lists.column!r} has a candidate in the {num_lines:,} rows that were read")
    sample.is_all &= is_all
    sample.total_rows = max(round(sample.total_rows * rate), sample.num_rows)
    sample.lists -= {lists.column, lists.clicked or ""}


def _joined_lists(single: pa.Array, lists: pa.Array | None) -> pa.Array:
    """Return lists of a column; of JSON lines, a value that is no array is a list of one."""
    if not pa.types.is_string(single.type):
        return single
    found: Any = pa.nulls(len(single), pa.list_(pa.string())) if lists is None else lists
    if single.null_count == len(single):
        return found
    pairs = zip(found.to_pylist(), single.to_pylist(), strict=True)
    return pa.array([[text] if one is None and text is not None else one for one, text in pairs], pa.list_(pa.string()))


def _spread(files: Sequence[Any], most: int) -> list[Any]:
    """Choose files evenly, the first and the last among them."""
    places = np.unique(np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int))
    return [files[place] for place in places.tolist()]


# --------------------------------------------------------------------------------------------------------------- layout


def _common_layout(copies: list[tuple[LogFile, str, int]], given: Mapping[str, Any]) -> LogLayout:
    layouts: list[tuple[LogFile, LogLayout]] = []
    for file, path, _ in copies:
        try:
            layout = find_layout(path, given)
        except LogError as error:
            if len(copies) == 1 or not _is_blank(path):
                raise LogError(str(error).replace(path, show(file.path))) from error
            continue
        notes = tuple(note.replace(path, show(file.path)) for note in layout.notes)
        layouts.append((file, replace(layout, notes=notes)))
    if not layouts:
        raise LogError(f"no file of the log has a row, {show(copies[0][0].path)} neither")
    file, first = layouts[0]
    for other, layout in layouts[1:]:
        if _shape(layout.format) != _shape(first.format):
            raise LogError(
                f"{show(file.path)} and {show(other.path)} are not of one log: {_say(first.format)} and "
                f"{_say(layout.format)}; give the files of one log, or the format by pipeline.input.format.KEY=VALUE"
            )
    special = [layout for _, layout in layouts if layout.format.encoding != "UTF-8"]  # others may be ASCII alone
    quoted = [layout for _, layout in layouts if layout.format.escape or layout.format.quote is not None]
    return [*special, *quoted, first][0]


def _shape(found: LogFormat) -> tuple[Any, ...]:
    return found.kind, found.delimiter, found.header, len(found.columns)


def _say(found: LogFormat) -> str:
    if found.kind not in ("csv", "tsv"):
        return found.kind
    names = "with a header" if found.header else f"{len(found.columns)} columns without a header"
    return f"{found.kind} cut at {found.delimiter!r}, {names}"


def _is_blank(path: str) -> bool:
    with open_stream(path) as stream:
        return not stream.read(1 << 16).strip()


# -------------------------------------------------------------------------------------------------------------- columns


def _find_wanted(sample: LogSample, headers: list[tuple[LogFile, str, int]]) -> Wanted:
    """List the columns of all files and paths, and note those that cannot be read."""
    names: dict[str, int] = {}
    lists: set[str] = set()
    partition: dict[str, None] = {}
    num_files = 0
    owned: list[tuple[LogFile, set[str]]] = []
    for file, path, _ in headers:
        partition |= dict.fromkeys(file.partition)
        columns = _columns_of(sample, path, lists)
        if not columns:
            continue
        num_files += 1
        own = [name for name in columns if sample.left_out.get(name) is None]
        if names and len(names.keys() & set(own)) < len(own) / 2:
            raise LogError(
                f"{show(file.path)} has other columns ({', '.join(own[:6])}) than {show(headers[0][0].path)} "
                f"({', '.join([*names][:6])}): give the files of one log"
            )
        for name in own:
            names[name] = names.get(name, 0) + 1
        owned.append((file, {*own}))
    for name in partition.keys() & names.keys():
        sample.left_out[name] = "the paths of the files name such a column too: rename one of them"
        del names[name], partition[name]
    optional: tuple[str, ...] = ()
    if sample.format.kind not in ("jsonl", "libffm"):
        optional = tuple(name for name, count in names.items() if count < num_files)
        optional = tuple(dict.fromkeys([*sample.format.optional, *optional]))
    sample.format = replace(sample.format, optional=optional)
    for file, own in owned if optional else ():
        sample.lacking |= {name: show(file.path) for name in optional if name not in own | sample.lacking.keys()}
    names = {name: 0 for name in names if name not in sample.left_out}
    sample.lists = frozenset(lists & names.keys())
    return Wanted((*names, *partition), lists=sample.lists, optional=frozenset(optional))


def _columns_of(sample: LogSample, path: str, lists: set[str]) -> list[str]:
    kind = sample.format.kind
    if kind == "jsonl":
        return _json_columns(sample, path, lists)
    if kind == "libffm":
        return _libffm_columns(path, lists)
    if not sample.format.is_text:
        return list(_typed_columns(sample, open_groups(path, sample.format).schema, "", lists))
    columns = column_names(path, sample.format)
    for name in columns:
        if not name.strip():
            sample.left_out[name] = _NO_NAME
        elif columns.count(name) > 1:
            sample.left_out[name] = "the header has it twice"
    return list(dict.fromkeys(columns))


def _typed_columns(sample: LogSample, fields: Any, above: str, lists: set[str]) -> Iterator[str]:
    """List the columns of a Parquet or ORC file; of objects, their fields."""
    for one in fields:
        name, kind = above + one.name, one.type
        if pa.types.is_struct(kind):
            yield from _typed_columns(sample, [kind.field(i) for i in range(kind.num_fields)], f"{name}.", lists)
            continue
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        element = kind.value_type if is_list else kind
        if pa.types.is_dictionary(element):
            element = element.value_type
        if pa.types.is_nested(element) or pa.types.is_duration(element) or pa.types.is_interval(element):
            sample.left_out[name] = f"of type {kind}"
            continue
        if pa.types.is_binary(element) or pa.types.is_large_binary(element) or pa.types.is_fixed_size_binary(element):
            sample.binary.add(name)
        if is_list:
            lists.add(name)
        yield name


def _json_columns(sample: LogSample, path: str, lists: set[str]) -> list[str]:
    names: dict[str, None] = {}

    def look(found: Mapping[str, Any], above: str) -> None:
        for key, value in found.items():
            name = above + key
            if not name.isprintable():  # half a surrogate pair, say
                continue
            if isinstance(value, dict):
                look(value, f"{name}.")
            elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
                sample.left_out[name] = "its arrays hold objects or arrays"
            else:
                names[name] = None
                if isinstance(value, list):
                    lists.add(name)

    for line in _first_lines(path, sample.format):
        look(parse_object(line) or {}, "")
    return [name for name in names if name not in sample.left_out]


def _libffm_columns(path: str, lists: set[str]) -> list[str]:
    """List the fields; libsvm's indexes are a list, and their values numbers."""
    fields: dict[int, None] = {}
    has_fields = True
    for line in _first_lines(path, LogFormat(kind="libffm")):
        items = [item.split(b":") for item in line.split()[1:]]
        has_fields &= all(len(item) == 3 for item in items)
        numbers = [int(item[0]) for item in items if item[0].isdigit()]
        fields |= dict.fromkeys(numbers)
        lists |= {f"field_{number}" for number, count in Counter(numbers).items() if count > 1}
    if not has_fields:
        lists.add("index")
        values = [f"value_{number}" for number in sorted(fields)] if len(fields) <= _MOST_INDEXES else []
        return ["label", "index", *values]
    names = [f"field_{number}" for number in sorted(fields)]
    values = [f"value_{number}" for number in sorted(fields) if f"field_{number}" not in lists]
    return ["label", *names, *values]


def _first_lines(path: str, log_format: LogFormat) -> Iterator[bytes]:
    with open_stream(path) as source:
        reader = LineReader(source, path, log_format.encoding, step=1 << 16)
        seen = 0
        while seen < _KEY_LINES and (lines := reader.read()):
            for index in range(min(len(lines), _KEY_LINES - seen)):
                yield lines.bytes_of(index)
            seen += len(lines)


# ----------------------------------------------------------------------------------------------------------------- rows


def _read_rows(sample: LogSample, copies: list[tuple[LogFile, str, int]], wanted: Wanted, rows: int) -> None:
    """Read rows of each portion in proportion to its bytes."""
    places: list[tuple[LogFile, Portion, float]] = []
    each = max(_MOST_FILES // len(copies), 1)
    for file, path, size in copies:
        portions = plan_portions(path, size, sample.format, max(size // each + 1, _MIN_PORTION))
        places += [(file, portion, size / len(portions)) for portion in portions]
    sample.is_all = True
    sample.is_spread = len(places) >= 4
    left = sum(size for _, _, size in places)
    with tqdm(total=rows, unit="row", unit_scale=True, disable=None, leave=False) as bar:
        for file, portion, size in places:
            wish = math.ceil((rows - sample.num_rows) * min(size / left, 1.0)) if left > 0 else rows - sample.num_rows
            left -= size
            bar.update(_read_some(sample, file, portion, wanted, wish))


def _read_some(sample: LogSample, file: LogFile, portion: Portion, wanted: Wanted, wish: int) -> int:
    taken, blocks = 0, []
    rejected: Counter[str] = Counter()
    if not wish:
        sample.is_all = False
        return 0
    for block in read_portion(portion, sample.format, wanted, _STEP, file.partition):
        for line in block.rejected:
            rejected[line.reason] += 1
            sample.first_rejected = sample.first_rejected or f"{show(file.path)} line {line.number}: {line.reason}"
        if taken + len(block) > wish:
            block = block.take(np.arange(len(block)) < wish - taken, block.rejected[:0])
        taken += len(block)
        if len(block):
            blocks.append(block)
        if taken >= wish:
            sample.is_all = False
            break
    if portion.start and rejected.total() > taken and sample.format.is_text:
        return 0  # it begins inside a quoted value
    sample.blocks += blocks
    sample.rejected += rejected
    sample.num_rows += taken
    return taken


def _estimate_rows(sample: LogSample, copies: list[tuple[LogFile, str, int]], files: list[tuple[LogFile, int]]) -> int:
    """Estimate the rows of a log from its bytes, or from what Parquet files say."""
    total = sum(size for _, size in files)
    if not sample.format.is_text:
        groups = [open_groups(path, sample.format) for _, path, _ in copies]
        counted = sum(one.first_row(one.num_groups) for one in groups if isinstance(one, ParquetGroups))
        return round(counted * total / sum(size for _, _, size in copies))
    num_bytes = sum(int(block.offsets[-1] - block.offsets[0]) for block in sample.blocks)
    num_steps = sum(len(block) - 1 for block in sample.blocks)
    unpacked = sum(unpacked_bytes(file.real, size) for file, size in files)
    return round(unpacked * num_steps / num_bytes) if num_bytes and num_steps else 0
