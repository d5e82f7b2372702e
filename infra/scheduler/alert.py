"""Say that a scheduler has given up on retraining.

``jobs.retrain`` tells the webhook itself how it ended; this is for what it cannot tell: that it was killed, timed out
or never started, and that there will be no other try.
"""

import json

from jobs.cli.conventions import plain_parser, run_program
from jobs.retraining.alert import alert


def main() -> int:
    parser = plain_parser(
        "infra.scheduler.alert",
        "Print what failed as JSON, and post it to the webhook of TWINFOCUS_WEBHOOK if that is set.",
        'python -m infra.scheduler.alert --by cron "the machine is out of memory"',
    )
    parser.add_argument("error", help="what happened")
    parser.add_argument("--by", default="scheduler", metavar="NAME", help="who says so (default: %(default)s)")
    arguments = parser.parse_args()
    summary = {"verdict": "failed", "stopped_by": arguments.by, "error": arguments.error}
    print(json.dumps(summary), flush=True)
    alert(summary, ["failed"])
    return 0


if __name__ == "__main__":
    run_program(main)
