"""Compare table precisions of a run's model: bytes, time and metrics; the last line of stdout is one JSON object."""

import json
from typing import Any

from features.disk.run_folder import LEARNT_NAME, TABLES_NAME
from jobs.cli.conventions import local, plain_parser, run_program
from jobs.cli.text_table import text_table
from jobs.pages.table_section import rows
from jobs.pages.values import shown
from jobs.scoring.run_data import describe_data


def main() -> int:
    """Compare the precisions, write the result, and print it as a table and as JSON."""
    parser = plain_parser(
        "jobs.compare_tables",
        "Hold the best checkpoint with float16 and int8 tables against itself with float32: bytes, time, metrics.",
        "python -m jobs.compare_tables --run runs/demo --split test",
    )
    parser.add_argument("--run", required=True, metavar="DIR")
    parser.add_argument("--dataset", metavar="DIR", help="another dataset built with the same vocabularies")
    parser.add_argument("--split", default="valid", choices=["train", "valid", "test"])
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="for timing a batch size (default: 3)")
    arguments = parser.parse_args()

    import torch

    from training.data.opened_dataset import Dataset
    from training.fit.run import Run
    from training.ship.export import load_best
    from training.ship.table_precision import compare_precisions

    run = Run(local(arguments.run))
    best = load_best(run, Dataset.open(arguments.dataset) if arguments.dataset else None)
    found: dict[str, Any] = {
        "step": best.step,
        "dataset": str(best.dataset.path),
        "split": arguments.split,
        "data": describe_data(run, best.dataset, arguments.split, is_named=bool(arguments.dataset)),
        "threads": torch.get_num_threads(),
        "vocabulary_bytes": sum(path.stat().st_size for path in (run.path / LEARNT_NAME).iterdir()),
        "precisions": compare_precisions(best, arguments.split, seconds=arguments.seconds),
    }
    run.write(TABLES_NAME, found)
    header, lines = rows(found)
    print(text_table([header, *([shown(value) for value in line] for line in lines)], align=">"))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run_program(main)
