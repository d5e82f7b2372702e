"""Attribute a run's predictions to features, branches and gates; the last line of stdout is one JSON object.

Permutation importance: each feature is permuted over all rows of the split and the split is scored again, so the cost
is features x repeats evaluations.
"""

import json
import sys

from tqdm import tqdm

from features.disk.run_folder import ATTRIBUTION_NAME
from jobs.cli.conventions import local, plain_parser, run_program
from jobs.scoring.attribution_text import describe_attribution
from jobs.scoring.run_data import describe_data

MAX_ROWS = 200_000


def main() -> int:
    """Attribute, write attribution.json, and print a summary."""
    parser = plain_parser(
        "jobs.attribute",
        "Say which features, branches and gates the best checkpoint's predictions rest on.",
        "python -m jobs.attribute --run runs/demo --split valid",
    )
    parser.add_argument("--run", required=True, metavar="DIR")
    parser.add_argument("--dataset", metavar="DIR", help="another dataset built with the same vocabularies")
    parser.add_argument("--split", default="valid", choices=["train", "valid", "test"])
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="permutations of each feature (default: 3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the permutations (default: 0)")
    parser.add_argument(
        "--max-rows", type=int, default=MAX_ROWS, metavar="N", help=f"evenly spaced rows of a longer split ({MAX_ROWS})"
    )
    arguments = parser.parse_args()
    for name in ("repeats", "max_rows"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    if arguments.seed < 0:
        parser.error("--seed must be 0 or more")

    from training.data.columns import read_columns
    from training.data.opened_dataset import Dataset
    from training.data.reader import Reader
    from training.fit.run import Run
    from training.ship.attribution import attribute, num_passes
    from training.ship.export import load_best

    run = Run(local(arguments.run))
    best = load_best(run, Dataset.open(arguments.dataset) if arguments.dataset else None)
    data = describe_data(run, best.dataset, arguments.split, is_named=bool(arguments.dataset))
    reader, schema = Reader(best.dataset, arguments.split, best.config), best.dataset.manifest.schema
    columns = read_columns(reader, arguments.max_rows)
    split_rows, rows = reader.num_rows, len(columns["label"])
    if rows < split_rows:
        print(f"{rows:,} evenly spaced rows of {split_rows:,}; --max-rows takes more", file=sys.stderr)
    with tqdm(total=num_passes(schema, arguments.repeats), unit="pass", disable=None) as bar:
        found = attribute(
            best.model,
            columns,
            schema,
            best.config.model.objective,
            best.calibration,
            num_repeats=arguments.repeats,
            seed=arguments.seed,
            batch_size=best.config.evaluation_batch_size,
            on_pass=bar.update,
        )
    settings = {"step": best.step, "dataset": str(best.dataset.path), "split": arguments.split}
    settings |= {"split_rows": split_rows, "repeats": arguments.repeats, "data": data}
    run.write(ATTRIBUTION_NAME, {**settings, "seed": arguments.seed, **found})
    print(describe_attribution(found))
    drops = {kind: {e["name"]: e["auc_drop"] for e in found[kind]} for kind in ("features", "branches")}
    print(json.dumps({**settings, **{name: found[name] for name in ("rows", "auc", "logloss")}, "auc_drop": drops}))
    return 0


if __name__ == "__main__":
    run_program(main)
