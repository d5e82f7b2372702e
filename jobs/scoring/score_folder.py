"""score_folder: score raw files on Spark's executors, one CSV file for each raw file, with its rows in order.

Each attempt of a task writes its part under a unique name, and the driver uses those of the attempts that Spark
accepts. Spark's own writers choose file names, distribute the rows over files, and do not keep their order.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from features.disk.artifact import ArtifactError
from features.disk.atomic import new_folder, write_json
from features.disk.relative_path import check_relative
from features.rawlog import expand_paths
from jobs.cli.conventions import local
from jobs.registry.found_artifact import REGISTRY, FoundArtifact, find_artifact
from jobs.scoring.score_rows import HEADER, Part, ScoreError, Work, load_predictor, score_portion
from pipeline.config import InputConfig
from pipeline.executors.portions import PORTION_BYTES, Portion, count_lines, number_lines, plan_portions
from pipeline.executors.tasks import run_tasks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from training.ship.predict import Predictor

SCORES_SUMMARY_NAME = "_scores.json"
"""File of counts, which marks a folder of scores; the underscore makes readers of partitioned folders skip it."""
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class ScoreJob:
    """Scoring job, checked before Spark starts."""

    artifact: FoundArtifact
    predictor: "Predictor"
    input: InputConfig
    files: dict[str, str]
    """Output paths: raw file -> path of its scores below ``output``."""
    output: Path


def plan_job(artifact: str, inputs: Sequence[str], output: str, registry: str = REGISTRY) -> ScoreJob:
    """Check the artifact, replay its golden rows, and list the files.

    Args:
        artifact: folder, URL or version in ``registry``; its files must be readable by every executor.
        inputs: files, folders or globs.
        output: folder; an older folder of scores is replaced.
        registry: folder or address of the registry, for a version.

    Raises:
        ArtifactError: the artifact cannot be used, or does not say what its logs look like.
        LogError: an input is missing.
        ScoreError: output and input lie within each other, two files would have one name, or the output is no folder of
            scores.
    """
    found = find_artifact(artifact, registry)
    predictor = load_predictor(found.place, found.sha256)
    try:
        given = TypeAdapter(InputConfig).validate_python(predictor.config["pipeline"]["input"])
    except (KeyError, TypeError, ValidationError) as error:
        raise ArtifactError(f"the artifact's config does not say what its logs look like: {error}") from error
    folder = local(output).resolve()
    refuse_foreign(folder)
    files = expand_paths(tuple(inputs))
    _check_apart(folder, inputs, files)
    return ScoreJob(found, predictor, given, name_outputs(inputs, files, given.format.kind), folder)


def refuse_foreign(output: Path) -> None:
    """Raise ScoreError unless ``output`` is absent, an empty folder, or a folder of scores."""
    if not output.exists():
        return
    if not output.is_dir() or (not (output / SCORES_SUMMARY_NAME).is_file() and any(output.iterdir())):
        raise ScoreError(
            f"{output} exists and is no folder of scores (it has no {SCORES_SUMMARY_NAME}): choose another one"
        )


def _check_apart(output: Path, inputs: Sequence[str], files: Sequence[str]) -> None:
    """Refuse an output within the input, which the next job would read, or around it, which would replace the input."""
    folders = [Path(pattern).resolve() for pattern in inputs if Path(pattern).is_dir()]
    within = [folder for folder in folders if output.is_relative_to(folder)]
    around = [file for file in files if Path(file).resolve().is_relative_to(output)]
    if within or around:
        raise ScoreError(f"{output} and the input {[*within, *around][0]} are one within the other: choose another one")


def name_outputs(inputs: Sequence[str], files: Sequence[str], kind: str) -> dict[str, str]:
    """Name the scores of each raw file: its path below the inputs' common folder, with ``0.csv`` for ``0.csv.gz``.

    Returns:
        Raw file -> relative path of its scores.

    Raises:
        ScoreError: two files would have the same path, or a file and a folder.
        ValueError: a pattern climbs out of the folder that it begins with.
    """
    root = os.path.commonpath([os.path.normpath(_fixed_folder(pattern).absolute()) for pattern in inputs])
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for file in files:
        name = os.path.relpath(file, root)
        for suffix in (".gz", ".bz2", f".{kind}"):
            name = name.removesuffix(suffix)
        names[file] = check_relative(f"{name}.csv")
        other = owners.setdefault(names[file], file)
        if other != file:
            raise ScoreError(f"{other} and {file} would both be scored to {names[file]}: score them apart")
    folders = {str(folder): name for name in owners for folder in PurePath(name).parents}
    for name in owners.keys() & folders.keys():
        raise ScoreError(f"{owners[name]} would be scored to {name}, which is a folder too: score them apart")
    return names


def _fixed_folder(pattern: str) -> Path:
    """Return the fixed leading folder of a path or glob."""
    path = Path(pattern)
    if path.is_dir():
        return path
    return path.parent if path.is_file() else Path(*takewhile(lambda part: not set(part) & set("*?["), path.parts))


def score_folder(spark: "SparkSession", job: ScoreJob, portion_bytes: int = PORTION_BYTES) -> dict[str, Any]:
    """Score every file; the output appears atomically when all of it is written.

    Returns:
        The summary that is also in the output's ``_scores.json``.

    Raises:
        ScoreError: a task failed with an error that a retry cannot cure, or the counts of rows do not agree.
        TaskError: Spark failed.
        LogError: an input file or a lookup is missing.
        ReplacementError: another job is writing to the output.
    """
    portions = plan_portions(list(job.files), job.input.format, job.input.lookups, portion_bytes)
    with new_folder(job.output, refuse_foreign) as (new, scratch):
        parts = _score_portions(spark, job, portions, scratch)
        files = [
            {"input": file, "output": name, **_lay(parts[file], scratch, new / name)}
            for file, name in job.files.items()
        ]
        rows, errors = (sum(file[key] for file in files) for key in ("rows", "errors"))
        summary = {"rows": rows, "scored": rows - errors, "errors": errors, "output": str(job.output)}
        summary |= {"artifact": job.artifact.named, "files": files}
        write_json(new / SCORES_SUMMARY_NAME, summary)
    return summary


def _score_portions(
    spark: "SparkSession", job: ScoreJob, portions: Sequence[Portion], folder: Path
) -> dict[str, list[Part]]:
    """Score portions on the executors; return raw file -> its parts in order, whose files are in ``folder``."""
    cut = [portion for portion in portions if portion.end is not None]
    counts = dict(zip(cut, run_tasks(spark, count_lines, cut, job.output), strict=True))
    portions = number_lines(portions, [counts.get(portion, 0) for portion in portions])
    work = Work(job.artifact.place, job.artifact.sha256, str(folder), job.input.format, job.input.lookups)
    parts: dict[str, list[Part]] = defaultdict(list)
    for portion, answer in zip(portions, run_tasks(spark, partial(score_portion, work), portions, folder), strict=True):
        if "failure" in answer:
            raise ScoreError(answer["failure"])
        parts[portion.file].append(Part(**answer))
    return parts


def _lay(parts: Sequence[Part], scratch: Path, to: Path) -> dict[str, int]:
    """Concatenate the parts of one raw file below a header, and check that no line is repeated and no byte is lost."""
    last = 0
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("wb") as file:
        file.write(HEADER)
        for part in parts:
            path = scratch / part.name
            if part.first_line is not None:
                if part.first_line <= last or part.last_line is None:
                    raise ScoreError(f"{to.name}: line {part.first_line} comes twice, or after line {last}")
                last = part.last_line
            with path.open("rb") as source:
                shutil.copyfileobj(source, file, _COPY_BYTES)
            path.unlink()
    if to.stat().st_size != len(HEADER) + sum(part.num_bytes for part in parts):
        raise ScoreError(f"{to.name} has {to.stat().st_size} bytes, others than the executors wrote")
    return {"rows": sum(part.num_rows for part in parts), "errors": sum(part.num_errors for part in parts)}
