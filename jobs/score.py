"""Score raw logs with an artifact, in this process or on Spark's executors; every row gets a line, even malformed."""

from jobs.cli.conventions import plain_parser, run_program
from jobs.registry.found_artifact import MODELS, REGISTRY

_EXAMPLE = (
    "python -m jobs.score --artifact runs/demo/artifact --input clicks.csv --output scores.csv\n"
    "  python -m jobs.score --artifact models:/ctr@champion --registry runs/registry --input clicks.csv "
    "--output scores.csv\n"
    "  python -m jobs.score --artifact runs/a/artifact --history data/yesterday --input today.csv --output s.csv\n"
    "  python -m jobs.score --engine spark --artifact runs/demo/artifact --input logs --output scores\n"
    "  spark-submit --py-files dist/twinfocus.zip jobs/score.py --engine spark \\\n"
    "    --artifact /shared/artifact --input '/shared/logs/day=*/*.csv.gz' --output /shared/scores"
)


def main() -> int:
    """Score with the chosen engine, and print how many rows were scored."""
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
    parser.add_argument(
        "--history",
        metavar="DATASET",
        help="dataset whose build left the events that came before, for a model whose histories the pipeline builds; "
        "rows see earlier rows of the log too, where it has the label",
    )
    parser.add_argument("--engine", choices=("local", "spark"), default="local", help="local: this process alone")
    parser.add_argument("--verbose", action="store_true", help="show Spark's own log")
    arguments = parser.parse_args()
    if arguments.engine == "spark":
        from jobs.scoring.spark_engine import score_with_spark

        return score_with_spark(arguments)
    from jobs.scoring.local_engine import score_here

    return score_here(arguments)


if __name__ == "__main__":
    run_program(main)
