"""Actions on a model's versions: list, show, promote, roll back; each returns JSON values and text."""

import dataclasses
from argparse import Namespace
from typing import Any

from jobs.cli.text_table import text_table
from jobs.registry.model_versions import ModelVersion
from jobs.registry.registry import Registry

Found = tuple[dict[str, Any], str]
"""Result of an action: JSON values for programs, and text."""


def _list(registry: Registry, arguments: Namespace) -> Found:
    versions = registry.list(arguments.name)
    header = ("version", "aliases", "registered", "artifact", "refused")
    rows = [
        (str(v.version), ", ".join(v.aliases), v.created, (v.sha256 or "")[:12], "; ".join(v.refusals))
        for v in versions
    ]
    title = f"{arguments.name} in {registry.place}: {len(versions)} versions"
    found = {"name": arguments.name, "versions": [_described(version) for version in versions]}
    return found, f"{title}\n\n{text_table([header, *rows])}" if rows else title


def _show(registry: Registry, arguments: Namespace) -> Found:
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
    return found, f"{_titled(version)}\n\n{text_table(rows)}"


def _promote(registry: Registry, arguments: Namespace) -> Found:
    before = registry.champion(arguments.name)
    version = registry.promote(arguments.name, arguments.version, despite_refusal=arguments.force)
    return _described(version), f"{_titled(version)}; before: {_number(before)}"


def _rollback(registry: Registry, arguments: Namespace) -> Found:
    before = registry.champion(arguments.name)
    version = registry.rollback(arguments.name)
    return _described(version), f"{_titled(version)} again; before: {_number(before)}"


def _described(version: ModelVersion) -> dict[str, Any]:
    return {**dataclasses.asdict(version), "refusals": version.refusals}


def _titled(version: ModelVersion) -> str:
    named = f"is {' and '.join(version.aliases)}" if version.aliases else "has no alias"
    return f"{version.name} version {version.version} {named}"


def _number(version: ModelVersion | None) -> str:
    return "none" if version is None else f"version {version.version}"


ACTIONS = {"list": _list, "show": _show, "promote": _promote, "rollback": _rollback}
"""Actions by name."""
