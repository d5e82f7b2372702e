"""Make a run's report.html: one file that holds everything and opens without a network.

A report is read long after the machine of its run is gone, so the page holds its data and its plotting library.
"""

import sys
from pathlib import Path

from features.disk.run_folder import REPORT_NAME
from jobs.cli.conventions import local, plain_parser, run_program


def main() -> int:
    """Write the page and print a summary of it."""
    parser = plain_parser(
        "jobs.report", "Make a run's self-contained report.html.", "python -m jobs.report --run runs/demo"
    )
    parser.add_argument("--run", required=True, metavar="DIR")
    parser.add_argument("--output", metavar="FILE", help="default: report.html in the run folder")
    arguments = parser.parse_args()

    from jobs.pages.report_files import read_run
    from jobs.pages.report_page import render_report

    run = local(arguments.run)
    output = Path(arguments.output) if arguments.output else run / REPORT_NAME
    files = read_run(run)
    page = render_report(files)
    output.write_text(page, encoding="utf-8")
    if files.manifest is not None and "dataset" in files.notes:
        print(f"warning: {files.notes['dataset']}", file=sys.stderr)
    splits = ", ".join(files.evaluations) or "none"
    print(
        f"{output} ({len(page.encode()) / 1e6:.1f} MB): {len(files.progress)} points of training, curves of: {splits}"
    )
    return 0


if __name__ == "__main__":
    run_program(main)
