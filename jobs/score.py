"""Score raw logs with an artifact, here or on Spark's executors: a row out for every row in, malformed ones too."""

import argparse
import json
import os
from pathlib import Path

from tqdm import tqdm

from features.disk.atomic import replacing
from features.rawlog import expand_paths
from jobs.cli.conventions import EXIT_DATA, local, plain_parser, run_program
from jobs.registry.found_artifact import MODELS, REGISTRY, find_artifact
from jobs.scoring.score_rows import HEADER, describe, exceeds_limit, write_scores

_EXAMPLE = (
    "python -m jobs.score --artifact runs/demo/artifact --input clicks.csv --output scores.csv\n"
    "  python -m jobs.score --artifact models:/ctr@champion --registry runs/registry --input clicks.csv "
    "--output scores.csv\n"
    "  python -m jobs.score --engine spark --artifact runs/demo/artifact --input logs --output scores\n"
    "  spark-submit --py-files dist/twinfocus.zip jobs/score.py --engine spark \\\n"
    "    --artifact /shared/artifact --input '/shared/logs/day=*/*.csv.gz' --output /shared/scores"
)


def main() -> int:
    parser = plain_parser(
        "jobs.score",
        "Score raw rows: writes CSV with file, line, probability and, for a malformed row, the error.",
        _EXAMPLE,
    )
    parser.add_argument(
        "--artifact",
        required=True,
        metavar="DIR|MODEL",
        help=f"folder, file:// or s3:// URL, {MODELS}NAME@ALIAS or {MODELS}NAME/VERSION",
    )
    parser.add_argument(
        "--registry",
        default=REGISTRY,
        metavar="DIR|URL",
        help=f"of {MODELS}...: folder, or an MLflow server's address (default: {REGISTRY})",
    )
    parser.add_argument("--input", required=True, nargs="+", metavar="RAW", help="files, folders or globs")
    parser.add_argument(
        "--output",
        required=True,
        metavar="PLACE",
        help="local: a CSV file, with .json beside it for the summary; spark: a folder with a CSV file for each raw "
        "file, and _scores.json",
    )
    parser.add_argument("--engine", choices=("local", "spark"), default="local", help="local: this process alone")
    parser.add_argument("--verbose", action="store_true", help="show Spark's own log")
    arguments = parser.parse_args()
    return _score_with_spark(arguments) if arguments.engine == "spark" else _score_here(arguments)


def _score_here(arguments: argparse.Namespace) -> int:
    from training.ship.predict import Predictor

    artifact = find_artifact(arguments.artifact, arguments.registry)
    predictor = Predictor.load(artifact.place)
    output = local(arguments.output)
    num_rows = num_errors = 0
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(HEADER.decode())
        for path in expand_paths(tuple(arguments.input)):
            lines = tqdm(predictor.read_log(path), disable=None, unit="row", desc=Path(path).name)
            rows, errors = write_scores(file, path, predictor, lines)
            num_rows, num_errors = num_rows + rows, num_errors + errors
    summary = {"rows": num_rows, "errors": num_errors, "output": str(output), "artifact": artifact.named}
    output.with_name(output.name + ".json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    print(describe(num_rows, num_errors, output))
    return EXIT_DATA if exceeds_limit(num_rows, num_errors, predictor) else 0


def _score_with_spark(arguments: argparse.Namespace) -> int:
    from jobs.scoring.score_folder import plan_job, score_folder
    from pipeline.executors.tasks import start_tasks
    from pipeline.session import stop_spark

    job = plan_job(arguments.artifact, arguments.input, arguments.output, arguments.registry)
    spark = start_tasks("PYSPARK_GATEWAY_PORT" in os.environ, arguments.verbose)
    try:
        summary = score_folder(spark, job)
    finally:
        stop_spark(spark)
    print(describe(summary["rows"], summary["errors"], job.output), f"in {len(job.files):,} files")
    return EXIT_DATA if exceeds_limit(summary["rows"], summary["errors"], job.predictor) else 0


if __name__ == "__main__":
    run_program(main)
