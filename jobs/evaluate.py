"""Score a split with a run's best checkpoint; the last line of stdout is one JSON object."""

import json
import sys

from features.disk.run_folder import evaluation_name
from jobs.cli.conventions import local, plain_parser, run_program
from jobs.scoring.run_data import describe_data


def main() -> int:
    """Score the split, write its metrics and curves, and print the metrics."""
    parser = plain_parser(
        "jobs.evaluate",
        "Evaluate a run's best checkpoint on one split.",
        "python -m jobs.evaluate --run runs/demo --split test",
    )
    parser.add_argument("--run", required=True, metavar="DIR")
    parser.add_argument("--dataset", metavar="DIR", help="another dataset built with the same vocabularies")
    parser.add_argument("--split", default="test", choices=["train", "valid", "test"])
    arguments = parser.parse_args()

    from training.data.opened_dataset import Dataset
    from training.fit.run import Run
    from training.judge.by_length import metrics_by_length
    from training.judge.metrics import curves, evaluate, remarks
    from training.ship.export import load_best

    run = Run(local(arguments.run))
    best = load_best(run, Dataset.open(arguments.dataset) if arguments.dataset else None)
    data = describe_data(run, best.dataset, arguments.split, is_named=bool(arguments.dataset))
    scores = best.score(arguments.split)
    metrics, lengths = evaluate(scores), best.history_lengths(arguments.split)
    by_length = {name: metrics_by_length(scores, of_rows) for name, of_rows in lengths.items()}
    more = {"by_length": by_length} if by_length else {}
    entry = {"metrics": metrics, "curves": curves(scores), "data": data, **more}
    run.write(evaluation_name(arguments.split), entry)
    for words in (found := remarks(metrics)):
        print(f"warning: {words}", file=sys.stderr)
    print(json.dumps({"split": arguments.split, **metrics, "remarks": found, "data": data, **more}))
    return 0


if __name__ == "__main__":
    run_program(main)
