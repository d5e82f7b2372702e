"""List and show a model's registered versions, promote one or roll back; ``jobs.registry.registry`` keeps them."""

import json
from argparse import ArgumentParser
from pathlib import Path

from jobs.cli.conventions import local, plain_parser, run_program
from jobs.registry.registry import Registry
from jobs.registry.version_actions import ACTIONS


def main() -> int:
    """Carry out one action and print its result."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.action == "promote" and arguments.version is None:
        parser.error("promote needs --version N")
    if arguments.action in ("list", "rollback") and arguments.version is not None:
        parser.error(f"{arguments.action} takes no --version")
    if arguments.force and arguments.action != "promote":
        parser.error(f"{arguments.action} takes no --force")
    is_server = arguments.registry.startswith(("http://", "https://"))
    folder = Path("runs/registry") if is_server else local(arguments.registry)
    registry = Registry.open(arguments.registry if is_server else None, folder, must_exist=True)
    found, text = ACTIONS[arguments.action](registry, arguments)
    print(json.dumps(found) if arguments.json else text)
    return 0


def _parser() -> ArgumentParser:
    parser = plain_parser(
        "jobs.models",
        "List a model's versions, show one, promote one to champion, or roll back to the champion before.",
        "python -m jobs.models promote --version 3",
    )
    parser.add_argument("action", choices=list(ACTIONS))
    parser.add_argument(
        "--registry", default="runs/registry", metavar="DIR|URL", help="folder, or an MLflow server's http:// address"
    )
    parser.add_argument("--name", default="ctr", help="of the model (default: ctr)")
    parser.add_argument("--version", type=int, metavar="N", help="to promote or show; show without it: the champion")
    parser.add_argument("--force", action="store_true", help="promote a version that was refused")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    run_program(main)
