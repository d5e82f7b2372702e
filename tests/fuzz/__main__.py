"""Fuzz every loader. Exits with 1 if any input met anything but an error that its loader documents."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.fuzz.child import TWINS, run_in_a_process
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        epilog="example:\n  python -m tests.fuzz --inputs 2000 --target config --target manifest",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=100_000, metavar="N", help="inputs a target (default 100000)")
    names = (*TARGETS, TWINS)
    parser.add_argument("--target", action="append", choices=names, help="one of them; may be repeated (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/fuzz/fuzz.json"), help="JSON file (default %(default)s)"
    )
    arguments = parser.parse_args()
    found = _read(arguments.output)
    for name in arguments.target or names:
        found[name] = run_in_a_process(name, arguments.inputs, arguments.seed)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    _print_table({name: found[name] for name in arguments.target or names})
    print(f"written: {arguments.output}")
    return int(any(found[name]["defects"] for name in arguments.target or names))


def _read(path: Path) -> dict[str, Any]:
    """Other targets' results stay when one is run again."""
    return json.loads(path.read_text()) if path.is_file() else {}


def _print_table(found: dict[str, dict[str, Any]]) -> None:
    print(
        f"{'target':<11}{'inputs':>9}{'accepted':>10}{'refused':>9}{'defects':>9}{'slowest':>10}{'memory':>10}{'time':>8}"
    )
    for name, one in found.items():
        refused = sum(one["refused"].values())
        print(
            f"{name:<11}{one['inputs']:>9,}{one['accepted']:>10,}{refused:>9,}{len(one['defects']):>9,}"
            f"{one['slowest']:>8.2f} s{one['grown'] / 2**20:>+6.0f} MiB{one['seconds']:>6.0f} s"
        )
        for place, defect in one["defects"].items():
            print(f"  {defect['count']} x {place}: {defect.get('message', '')}")


if __name__ == "__main__":
    sys.exit(main())
