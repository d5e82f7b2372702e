"""score_here: score raw logs into one CSV file, in this process."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from features.disk.atomic import replacing
from features.disk.place import temporary_folder
from features.log_files import local_copy, size_of
from features.raw_block import RawBlock
from features.read.portions import Portion
from jobs.cli.conventions import EXIT_DATA, local
from jobs.registry.found_artifact import find_artifact
from jobs.scoring.score_rows import (
    LineCounts,
    describe_lists,
    describe_scoring,
    describe_values,
    exceeds_limit,
    header_of,
    print_values,
    write_scores,
)
from training.ship.predict import Predictor


def score_here(arguments: Namespace) -> int:
    """Score in this process; return the exit code.

    Args:
        arguments: arguments of ``jobs.score``.
    """
    artifact = find_artifact(arguments.artifact, arguments.registry)
    predictor = Predictor.load(artifact.place)
    output = local(arguments.output)
    reader, counts = predictor.log_reader, LineCounts()
    splits, declared = reader.find_files({"input": arguments.input})
    for note in splits["input"].notes():
        print(f"warning: {note}", file=sys.stderr)
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(header_of(reader.log_format).decode())
        for log in splits["input"].files:
            if not size_of(log.real):
                continue
            with temporary_folder() as folder:
                portion, tables = Portion(str(local_copy(log.real, folder))), reader.find_tables(log.real)
                wanted = reader.wanted_of_file(tables, declared.get(log.real, frozenset()))
                blocks = reader.read(portion, wanted, tables, log.partition, name=log.absolute)
                read = write_scores(file, log.path, predictor, _shown(blocks, log.path), before=0)
            counts.add(read.rows, read.errors, read.absent, read.values)
            counts.lists.add(blocks.end.lists)
        counts.check(reader.log_format)
    summary = {"rows": counts.rows, "errors": counts.errors, "output": str(output), "artifact": artifact.named}
    summary |= describe_lists(counts.lists) | describe_values(predictor.report_values(counts.values))
    output.with_name(output.name + ".json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    print(describe_scoring(counts.rows, counts.errors, output))
    print_values(summary)
    return EXIT_DATA if exceeds_limit(counts.rows, counts.errors, predictor) else 0


def _shown(blocks: Iterable[RawBlock], path: str) -> Iterator[RawBlock]:
    """Pass blocks on, and show on a terminal how many rows have passed."""
    with tqdm(disable=None, unit="row", desc=Path(path).name, leave=False) as bar:
        for block in blocks:
            yield block
            bar.update(len(block))
