"""Score a raw log with an artifact, on this machine: one output row for every input row, malformed ones included."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from features.encoding import RawRow, RowError
from features.rawlog import LogError, expand_paths
from jobs.command import EXIT_DATA, local, plain_parser, run_program

if TYPE_CHECKING:
    from training.predict import Predictor

CHUNK_ROWS = 16_384

Scored = tuple[int, float | None, str]
"""Line number, probability (None for a malformed row), and what is wrong with the row ("" if nothing)."""


def main() -> int:
    parser = plain_parser(
        "jobs.score",
        "Score raw rows: writes CSV with file, line, probability and, for a malformed row, the error.",
        "python -m jobs.score --artifact runs/demo/artifact --input clicks.csv --output scores.csv",
    )
    parser.add_argument("--artifact", required=True, metavar="DIR", help="folder, file:// or s3:// URL")
    parser.add_argument("--input", required=True, nargs="+", metavar="RAW", help="files, folders or globs")
    parser.add_argument("--output", required=True, metavar="FILE", help="CSV; with .json beside it for the summary")
    arguments = parser.parse_args()

    from training.predict import Predictor

    predictor = Predictor.load(arguments.artifact)
    output = local(arguments.output)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    num_rows = num_errors = 0
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "line", "probability", "error"])
            for path in expand_paths(tuple(arguments.input)):
                lines = tqdm(predictor.read_log(path), disable=None, unit="row", desc=Path(path).name)
                for scored in _score(predictor, lines):
                    for number, probability, error in scored:
                        writer.writerow([path, number, "" if probability is None else f"{probability:.9g}", error])
                        num_errors += bool(error)
                    num_rows += len(scored)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    summary = {"rows": num_rows, "errors": num_errors, "output": str(output)}
    output.with_name(output.name + ".json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    print(f"scored {num_rows - num_errors:,} of {num_rows:,} rows to {output}; {num_errors:,} malformed")
    limit = predictor.config["pipeline"]["quality"]["max_rejected_fraction"]
    return EXIT_DATA if num_errors > limit * num_rows else 0


def _score(predictor: "Predictor", lines: Iterable[tuple[int, RawRow | LogError]]) -> Iterator[list[Scored]]:
    """Score chunk by chunk; a row that cannot be encoded keeps its place."""
    iterator = iter(lines)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        errors = {number: str(row) for number, row in chunk if isinstance(row, LogError)}
        good = {number: row for number, row in chunk if not isinstance(row, LogError)}
        try:
            probabilities = predictor.predict(list(good.values()))
        except RowError:
            errors |= {number: error for number, row in good.items() if (error := predictor.find_error(row))}
            good = {number: row for number, row in good.items() if number not in errors}
            probabilities = predictor.predict(list(good.values()))
        scores = dict(zip(good, probabilities, strict=True))
        yield [(number, scores.get(number), errors.get(number, "")) for number, _ in chunk]


if __name__ == "__main__":
    run_program(main)
