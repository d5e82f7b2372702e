"""Check Python, Java, the packages, ports, disk and memory; name each fault and its cure.

Only the standard library is used here and packages are imported in another process, so that a broken or missing one is
reported instead of crashing the report.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from jobs.doctoring.checks import as_table, examine


def main() -> int:
    """Check everything and print the findings; return 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.doctor",
        description="Check Python, Java, the packages, ports, disk and memory; exit code 1 if something is wrong.",
        epilog="example:\n  python -m jobs.doctor --json doctor.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="FILE", help="also write the findings there")
    parser.add_argument("--quick", action="store_true", help="look at versions only, import nothing")
    arguments = parser.parse_args()
    findings = examine(quick=arguments.quick)
    print(as_table(findings))
    if arguments.json:
        text = json.dumps([dataclasses.asdict(f) for f in findings], indent=1) + "\n"
        try:
            Path(arguments.json).write_text(text, encoding="utf-8")
        except OSError as error:
            print(f"error: {arguments.json} cannot be written: {error.strerror}", file=sys.stderr)
            return 1
    return int(any(f.status == "wrong" for f in findings))


if __name__ == "__main__":
    sys.exit(main())
