"""See and change which versions of a model there are and which one serves; ``jobs.registry.registry`` keeps them."""

import dataclasses
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.cli.conventions import local, plain_parser, run_program
from jobs.registry.model_versions import ModelVersion
from jobs.registry.registry import Registry


def main() -> int:
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
    found, text = _ACTIONS[arguments.action](registry, arguments)
    print(json.dumps(found) if arguments.json else text)
    return 0


def _parser() -> ArgumentParser:
    parser = plain_parser(
        "jobs.models",
        "List a model's versions, show one, promote one to champion, or roll back to the champion before.",
        "python -m jobs.models promote --version 3",
    )
    parser.add_argument("action", choices=list(_ACTIONS))
    parser.add_argument(
        "--registry", default="runs/registry", metavar="DIR|URL", help="folder, or an MLflow server's http:// address"
    )
    parser.add_argument("--name", default="ctr", help="of the model (default: ctr)")
    parser.add_argument("--version", type=int, metavar="N", help="to promote or show; show without it: the champion")
    parser.add_argument("--force", action="store_true", help="promote a version that was refused")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


# -------------------------------------------------------------------------------------------------------------- actions


def _list(registry: Registry, arguments: Namespace) -> tuple[dict[str, Any], str]:
    versions = registry.list(arguments.name)
    header = ("version", "aliases", "registered", "artifact", "refused")
    rows = [
        (str(v.version), ", ".join(v.aliases), v.created, (v.sha256 or "")[:12], "; ".join(v.refusals))
        for v in versions
    ]
    title = f"{arguments.name} in {registry.place}: {len(versions)} versions"
    found = {"name": arguments.name, "versions": [_described(version) for version in versions]}
    return found, f"{title}\n\n{_table([header, *rows])}" if rows else title


def _show(registry: Registry, arguments: Namespace) -> tuple[dict[str, Any], str]:
    suffix = "@champion" if arguments.version is None else f"/{arguments.version}"
    version = registry.find(f"models:/{arguments.name}{suffix}")
    metrics, params = registry.logged(version)
    promotions = [p for p in registry.history(version.name) if p.version == version.version]
    found = {
        **_described(version),
        "metrics": metrics,
        "params": params,
        "promotions": [{"at": promotion.at, "undone": promotion.undone} for promotion in promotions],
    }
    rows = [("registered", version.created), ("run", version.run_id)]
    rows += [("promoted", p.at + (", then rolled back" if p.undone else "")) for p in promotions]
    rows += [("refused", reason) for reason in version.refusals]
    rows += [(f"tag {name}", value) for name, value in sorted(version.tags.items()) if name != "refused"]
    rows += [(name, f"{value:g}") for name, value in sorted(metrics.items())]
    rows += sorted(params.items())
    return found, f"{_titled(version)}\n\n{_table(rows)}"


def _promote(registry: Registry, arguments: Namespace) -> tuple[dict[str, Any], str]:
    before = registry.champion(arguments.name)
    version = registry.promote(arguments.name, arguments.version, despite_refusal=arguments.force)
    return _described(version), f"{_titled(version)}; before: {_number(before)}"


def _rollback(registry: Registry, arguments: Namespace) -> tuple[dict[str, Any], str]:
    before = registry.champion(arguments.name)
    version = registry.rollback(arguments.name)
    return _described(version), f"{_titled(version)} again; before: {_number(before)}"


_ACTIONS = {"list": _list, "show": _show, "promote": _promote, "rollback": _rollback}


def _described(version: ModelVersion) -> dict[str, Any]:
    return {**dataclasses.asdict(version), "refusals": version.refusals}


def _titled(version: ModelVersion) -> str:
    named = f"is {' and '.join(version.aliases)}" if version.aliases else "has no alias"
    return f"{version.name} version {version.version} {named}"


def _number(version: ModelVersion | None) -> str:
    return "none" if version is None else f"version {version.version}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the last one as it is."""
    widths = [*[max(map(len, column)) for column in zip(*rows, strict=True)][:-1], 0]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    run_program(main)
