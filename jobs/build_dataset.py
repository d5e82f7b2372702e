"""Build a dataset from raw logs: Parquet files, learnt state, and the manifest that training reads.

The work is ``pipeline.build.dataset``; ``jobs/launch/dataset_build.py`` checks the whole config and sums up.
"""

from jobs.cli.config_arguments import config_parser, parse_config_arguments
from jobs.cli.conventions import run_program
from pipeline.java import JAVA_OPTIONS

_EXAMPLE = (
    "python -m jobs.build_dataset --config jobs/configs/frappe.toml pipeline.output=data/frappe\n"
    f'  spark-submit --driver-java-options "{JAVA_OPTIONS}" \\\n'
    "    --py-files dist/twinfocus.zip jobs/build_dataset.py --config jobs/configs/frappe.toml"
)


def main() -> int:
    """Build the dataset and print its summary."""
    parser = config_parser("jobs.build_dataset", "Turn raw logs into a dataset, with Spark.", _EXAMPLE)
    parser.add_argument("--verbose", action="store_true", help="show Spark's own log")
    arguments, config = parse_config_arguments(parser)

    from jobs.launch.dataset_build import check_build, describe_build, run_build
    from pipeline.build.sources import plan_sources
    from pipeline.session import start_spark, stop_spark

    check_build(config)
    plan = plan_sources(config.pipeline, config.features)
    spark = start_spark(config.pipeline.spark, arguments.verbose)
    try:
        summary = run_build(spark, config, plan)
    finally:
        stop_spark(spark)
    print(describe_build(summary))
    return 0


if __name__ == "__main__":
    run_program(main)
