"""score_with_spark: score raw logs into a folder, on Spark's executors."""

import sys
from argparse import Namespace

from jobs.cli.conventions import EXIT_DATA
from jobs.scoring.score_folder import plan_job, score_folder
from jobs.scoring.score_rows import describe_scoring, exceeds_limit, print_remarks
from pipeline.session import stop_spark
from pipeline.tasks import start_tasks


def score_with_spark(arguments: Namespace) -> int:
    """Score on Spark's executors; return the exit code.

    Args:
        arguments: arguments of ``jobs.score``.
    """
    job = plan_job(arguments.artifact, arguments.input, arguments.output, arguments.registry, arguments.history)
    for note in job.notes:
        print(f"warning: {note}", file=sys.stderr)
    spark = start_tasks(arguments.verbose)
    try:
        summary = score_folder(spark, job)
    finally:
        stop_spark(spark)
    print(describe_scoring(summary["rows"], summary["errors"], job.output), f"in {len(job.files):,} files")
    print_remarks(summary)
    return EXIT_DATA if exceeds_limit(summary["rows"], summary["errors"], job.predictor) else 0
