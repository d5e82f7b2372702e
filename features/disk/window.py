"""Windows: several partitions (datasets of single days, say) joined to one dataset without copying their rows.

Each partition was built alone, its vocabularies going on with those of the one before, so an id means the same in all
of them and the newest partition's learnt state is the whole window's.
"""

import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from features.disk.atomic import adding_folder
from features.disk.dataset import (
    MANIFEST_NAME,
    BuiltHistory,
    DataFile,
    DatasetError,
    DatasetManifest,
    DenseStatistics,
    FeatureStatistics,
    Histories,
    InputFile,
    Lists,
    Rejected,
    SequenceStatistics,
    Split,
    inside,
)
from features.disk.user_histories import USER_HISTORIES_NAME, UserHistories
from features.dwell import add_counts
from features.learnt import Learnt

SOURCE_SPLIT = "train"
"""Split of a partition: its only one, since the use of its rows is decided later."""


class OtherWindow(DatasetError):
    """The folder for a window holds something else."""


@dataclass(frozen=True)
class Partition:
    """A dataset that may be a part of others."""

    path: Path
    manifest: DatasetManifest
    learnt: Learnt

    @classmethod
    def open(cls, path: Path) -> "Partition":
        """Load and check a partition.

        Raises:
            DatasetError, LearntError: it is absent or damaged, or has splits of its own.
        """
        manifest = DatasetManifest.load(path)
        if manifest.sampled is not None:
            raise DatasetError(
                f"{path} lacks negatives (pipeline.sample): models are compared on a partition before they are trained "
                "on it, and need all rows of it; build it without"
            )
        if set(manifest.splits) != {SOURCE_SPLIT}:
            raise DatasetError(
                f"{path} has splits {', '.join(manifest.splits)}: a partition has {SOURCE_SPLIT!r} alone, so build it "
                "without pipeline.split"
            )
        manifest.check_files(path, SOURCE_SPLIT)
        return cls(path, manifest, manifest.load_learnt(path))

    @property
    def split(self) -> Split:
        """Return the partition's only split."""
        return self.manifest.split(SOURCE_SPLIT)


def join(partitions: Mapping[str, Sequence[Path]], output: Path) -> DatasetManifest:
    """Make one dataset of partitions; it appears in one step, and its files are links to theirs where the disk can.

    Args:
        partitions: split -> folders of the partitions that it is made of, in order.
        output: folder to make. One that holds the same window already is left as it is.

    Raises:
        DatasetError: a partition cannot be used, or the partitions do not go on with each other.
        OtherWindow: ``output`` holds something else.
    """
    opened = {split: [Partition.open(path) for path in paths] for split, paths in partitions.items() if paths}
    everyone = [partition for parts in opened.values() for partition in parts]
    newest = _newest(everyone)
    with adding_folder(output) as temporary:
        newest.learnt.save(temporary / "learnt")
        manifest = DatasetManifest(
            schema=newest.manifest.schema,
            schema_fingerprint=newest.manifest.schema_fingerprint,
            learnt_fingerprint=newest.learnt.fingerprint,
            learnt_path="learnt",
            splits={split: _join_split(split, parts, temporary) for split, parts in opened.items()},
            rejected=_join_rejected(everyone),
            num_input_rows=sum(partition.manifest.num_input_rows for partition in everyone),
            num_duplicates=sum(partition.manifest.num_duplicates for partition in everyone),
            inputs=_join_inputs(opened),
            config=newest.manifest.config,
            input_files=_join_input_files(everyone),
            warnings=tuple(f"{part.path.name}: {text}" for part in everyone for text in part.manifest.warnings),
            histories=_join_histories(everyone, temporary),
            lists=_join_lists(everyone),
        )
        manifest.write(temporary)
    _check_same(output, manifest)
    return manifest


def _newest(partitions: Sequence[Partition]) -> Partition:
    """Find the partition whose learnt state extends that of every other.

    Raises:
        DatasetError: there is none, or the schemas differ.
    """
    if not partitions:
        raise DatasetError("a window needs a partition")
    newest = partitions[0]
    for partition in partitions:
        if partition.manifest.schema_fingerprint != newest.manifest.schema_fingerprint:
            raise DatasetError(f"{partition.path} and {newest.path} were built from different feature schemas")
        if partition.learnt.extends(newest.learnt):
            newest = partition
        elif not newest.learnt.extends(partition.learnt):
            raise DatasetError(
                f"{partition.path} and {newest.path} give the same ids to different values: build the later one with "
                "pipeline.base = the earlier one"
            )
    return newest


def _check_same(output: Path, manifest: DatasetManifest) -> None:
    if not (output / MANIFEST_NAME).exists() or DatasetManifest.load(output).fingerprint != manifest.fingerprint:
        raise OtherWindow(f"{output} exists and is another dataset: choose another folder")


def _join_split(split: str, parts: Sequence[Partition], output: Path) -> Split:
    (output / split).mkdir()
    files: list[DataFile] = []
    for part in parts:
        for file in part.split.files:
            name = f"{split}/part-{len(files):05d}.parquet"
            _link(inside(part.path, file.path), output / name)
            files.append(replace(file, path=name))
    rows = [part.split.num_rows for part in parts]
    return Split(
        files=tuple(files),
        label_rate=_mean([part.split.label_rate for part in parts], rows),
        sparse={
            name: _join_sparse([part.split.sparse[name] for part in parts], rows) for name in parts[0].split.sparse
        },
        dense={name: _join_dense([part.split.dense[name] for part in parts], rows) for name in parts[0].split.dense},
        sequences={
            name: _join_sequences([part.split.sequences[name] for part in parts], rows)
            for name in parts[0].split.sequences
        },
    )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _join_sparse(parts: Sequence[FeatureStatistics], rows: Sequence[int]) -> FeatureStatistics:
    """Join statistics; cardinality, head share and collision rate become estimates."""
    collisions = [part.collision_rate for part in parts if part.collision_rate is not None]
    return FeatureStatistics(
        cardinality=max(part.cardinality for part in parts),
        null_rate=_mean([part.null_rate for part in parts], rows),
        oov_rate=_mean([part.oov_rate for part in parts], rows),
        head_share=_mean([part.head_share for part in parts], rows),
        max_id=max(part.max_id for part in parts),
        collision_rate=max(collisions) if collisions else None,
        num_truncated=sum(part.num_truncated for part in parts),
        is_estimated=len(parts) > 1 or parts[0].is_estimated,
    )


def _join_dense(parts: Sequence[DenseStatistics], rows: Sequence[int]) -> DenseStatistics:
    """Join statistics; moments are over the rows that have a value."""
    counts = [(1 - part.null_rate) * num_rows for part, num_rows in zip(parts, rows, strict=True)]
    mean = _mean([part.mean for part in parts], counts)
    square = _mean([part.standard_deviation**2 + part.mean**2 for part in parts], counts)
    present = [part for part, count in zip(parts, counts, strict=True) if count > 0] or parts
    return DenseStatistics(
        null_rate=_mean([part.null_rate for part in parts], rows),
        mean=mean,
        standard_deviation=math.sqrt(max(0.0, square - mean**2)),
        minimum=min(part.minimum for part in present),
        maximum=max(part.maximum for part in present),
    )


def _join_sequences(parts: Sequence[SequenceStatistics], rows: Sequence[int]) -> SequenceStatistics:
    """Join statistics of one sequence; a share of unknown events is known where all of them know it."""
    known = [name for name in parts[0].oov_rates if all(name in part.oov_rates for part in parts)]
    events = [part.mean_length * number for part, number in zip(parts, rows, strict=True)]
    return SequenceStatistics(
        mean_length=_mean([part.mean_length for part in parts], rows),
        empty_rate=_mean([part.empty_rate for part in parts], rows),
        max_ids={name: max(part.max_ids[name] for part in parts) for name in parts[0].max_ids},
        num_truncated=sum(part.num_truncated for part in parts),
        oov_rates={name: _mean([part.oov_rates[name] for part in parts], events) for name in known},
        dwell_counts=add_counts(*(part.dwell_counts for part in parts)),
    )


def _join_histories(parts: Sequence[Partition], output: Path) -> Histories | None:
    """Add up what builds said of their histories; the events for a later build are those of the newest rows."""
    described = [part.manifest.histories for part in parts]
    known = [histories for histories in described if histories is not None]
    if len(known) < len(parts):
        return None
    files = [inside(part.path, histories.path) for part, histories in zip(parts, known, strict=True)]
    newest = max(files, key=lambda file: UserHistories(file, parts[0].manifest.schema).newest)
    _link(newest, output / USER_HISTORIES_NAME)
    return Histories(
        USER_HISTORIES_NAME,
        {name: _join_built([histories.sequences[name] for histories in known]) for name in known[0].sequences},
    )


def _join_built(parts: Sequence[BuiltHistory]) -> BuiltHistory:
    """Join statistics of one history."""
    return replace(
        parts[0],
        num_events=sum(part.num_events for part in parts),
        num_dropped=sum(part.num_dropped for part in parts),
        num_rows=sum(part.num_rows for part in parts),
        num_seen=sum(part.num_seen for part in parts),
    )


def _join_inputs(opened: Mapping[str, Sequence[Partition]]) -> dict[str, list[str]]:
    """Join the lists of input files: the raw logs of each split, and the lookups of all."""
    inputs: dict[str, list[str]] = {}
    for split, parts in opened.items():
        for part in parts:
            for name, files in part.manifest.inputs.items():
                inputs.setdefault(split if name == SOURCE_SPLIT else name, []).extend(files)
    return {name: list(dict.fromkeys(files)) for name, files in inputs.items()}


def _join_input_files(parts: Sequence[Partition]) -> tuple[InputFile, ...]:
    """Join the states of the input files; a file that partitions read in different states has them all."""
    files = {file for part in parts for file in part.manifest.input_files}
    return tuple(sorted(files, key=lambda file: (file.path, file.modified, file.num_bytes)))


def _join_rejected(parts: Sequence[Partition]) -> Rejected:
    """Add up the counts of rejected rows; the rows themselves stay in the partitions."""
    reasons: Counter[str] = Counter()
    for part in parts:
        reasons.update(part.manifest.rejected.reasons)
    return Rejected(sum(part.manifest.rejected.num_rows for part in parts), dict(sorted(reasons.items())), None)


def _join_lists(parts: Sequence[Partition]) -> Lists | None:
    """Add up the counts of lists, if all partitions have them."""
    found = [asdict(part.manifest.lists) for part in parts if part.manifest.lists is not None]
    if len(found) < len(parts):
        return None
    return Lists(**{name: sum(counts[name] for counts in found) for name in found[0]})


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    total = sum(weights)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / total if total else 0.0
