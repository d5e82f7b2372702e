"""First config of a log: TOML with comments that say why."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby

from features.log_format import Candidates, LogFormat
from features.schema import Values
from jobs.inspection.feature_choice import Choices, FeatureChoice
from jobs.inspection.roles import Roles
from jobs.inspection.split_choice import SplitChoice
from jobs.inspection.toml_text import comment, quoted, shorten, text_list


@dataclass(frozen=True)
class FirstConfig:
    """Everything that the text of a first config says.

    Attributes:
        path: where it is to be written.
        log: in a few words, for the first line.
        roles: columns that are no features.
        time_format: of the time; None: the column's type says it.
        choices: features.
        values: reading of raw values.
        split: splits and their files.
        format: of the log.
        max_rejected: share of rejected rows that a build must bear; None: the default.
        odd: what is odd, a sentence each.
    """

    path: str
    log: str
    roles: Roles
    time_format: str | None
    choices: Choices
    values: Values
    split: SplitChoice
    format: LogFormat
    max_rejected: float | None
    odd: Sequence[str]

    @property
    def name(self) -> str:
        """Name of the dataset and of the run: the file's, without its ending."""
        return self.path.rsplit("/", 1)[-1].removesuffix(".toml") or "first"

    def to_toml(self) -> str:
        """Write the config."""
        parts = [self._header(), self._row(), *self._values(), *self._features(), *self._left_out(), self._pipeline()]
        return "\n\n".join("\n".join(part) for part in parts) + "\n"

    def _header(self) -> list[str]:
        path = shlex.quote(self.path)
        lines = [
            *comment(f"First config for {self.log}. Every choice is a guess: read it before you trust it."),
            "#",
            f"# python -m jobs.build_dataset --config {path}",
            f"# python -m jobs.train         --config {path} --run {shlex.quote(f'runs/{self.name}')}",
        ]
        for text in self.odd:
            lines += ["#", *comment(f"Odd: {text}")]
        return lines

    def _row(self) -> list[str]:
        roles = self.roles
        lines = ["[features]"]
        if roles.is_guess:
            lines += comment("nothing but its two values speaks for this column")
        lines.append(f"label = {quoted(roles.label)}")
        if roles.others:
            lines += comment(f"or: {'; '.join(f'label = {quoted(rule)}' for rule in roles.others)}")
        if roles.group:
            lines.append(f"group_id = {quoted(roles.group)} # for GAUC")
        if roles.time:
            form = f", format = {quoted(self.time_format)}" if self.time_format not in (None, "unix") else ""
            lines.append(f"timestamp = {{ column = {quoted(roles.time)}{form} }}")
        return lines

    def _values(self) -> list[list[str]]:
        lines = []
        if self.values.null_tokens:
            lines.append(f"null_tokens = {text_list(self.values.null_tokens)}")
        lines += [f"{name} = true" for name in ("strip", "whole_floats", "list_literals") if getattr(self.values, name)]
        return [["[features.values]", *lines]] if lines else []

    def _features(self) -> list[list[str]]:
        groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[FeatureChoice]] = {}
        for feature in self.choices.features:
            groups.setdefault((feature.group, feature.settings), []).append(feature)
        tables = []
        for (group, settings), features in sorted(groups.items(), key=lambda item: item[0][0] == "dense"):
            names = shorten(feature.name for feature in features)
            key = "name" if len(features) == 1 else "names"
            value = quoted(names[0]) if len(features) == 1 else text_list(names)
            tables.append([f"[[features.{group}]]", f"{key} = {value}", *(f"{k} = {v}" for k, v in settings)])
        return tables

    def _left_out(self) -> list[list[str]]:
        reasons = {k: v for k, v in self.choices.left_out.items() if v not in ("the label", "the time")}
        lines = []
        for reason, found in groupby(sorted(reasons, key=lambda name: reasons[name]), key=lambda name: reasons[name]):
            lines += comment(f"  {', '.join(shorten(found))}: {reason}", "    ")
        return [["# Left out:", *lines]] if lines else []

    def _pipeline(self) -> list[str]:
        lines = ["[pipeline]", f"output = {quoted(f'data/{self.name}')}"]
        for split, paths in self.split.inputs.items():
            lines.append(f"input.{split} = {quoted(paths[0]) if len(paths) == 1 else text_list(paths)}")
        if self.split.rule:
            lines += [*comment(self.split.reason), f"split = {self.split.rule}"]
        if self.max_rejected is not None:
            lines.append(f"quality.max_rejected_fraction = {self.max_rejected:g} # see what is odd above")
        settings = _format_settings(self.format)
        return [*lines, "", "[pipeline.input.format]", *settings] if settings else lines


def _format_settings(found: LogFormat) -> list[str]:
    """Write the keys of a format that are not at their defaults."""
    lines = []
    for one in fields(found):  # pyright: ignore[reportArgumentType]
        value = getattr(found, one.name)
        if value == one.default:
            continue
        if isinstance(value, bool):
            shown = str(value).lower()
        elif isinstance(value, Candidates):
            keys = {key.name: getattr(value, key.name) for key in fields(value)}  # pyright: ignore[reportArgumentType]
            shown = ", ".join(f"{name} = {quoted(text)}" for name, text in keys.items() if text is not None)
            shown = f"{{ {shown} }}"
        else:
            shown = quoted(value) if isinstance(value, str) else text_list(shorten(value))
        lines.append(f"{one.name} = {shown}")
    return lines
