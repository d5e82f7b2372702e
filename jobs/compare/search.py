"""A hyper-parameter search as its TOML file has it: models, where values are drawn from, and the trials that gives."""

import dataclasses
import json
import math
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from features.disk.dataset import DatasetManifest
from features.schema import STRICT
from jobs.cli.config import Config, Entry, Texts, check_names, load_config
from jobs.cli.errors import ConfigError
from training.config import Positive

THE_SAME_FOR_ALL = ("dataset", "monitor", "max_epochs", "device")
"""Training keys by which trials can be ranked beside each other."""
NOT_SEARCHED = (*THE_SAME_FOR_ALL, "num_workers", "threads_per_worker")
"""A trial is one worker, and its threads decide nothing but time."""
Scalar = bool | int | float | str
Value = Scalar | list[Scalar]


@checked(frozen=True, config=STRICT)
class Range:
    """Where one key's values are drawn from: exactly one of the four."""

    choice: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    """Both ends may be drawn."""

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of choice, uniform, log_uniform, integer (got {', '.join(given) or 'none'})")
        low, high = self.uniform or self.log_uniform or self.integer or (0, 1)
        if not (low < high and math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{given[0]} = [{low}, {high}] is empty: the first number must be below the second")
        if self.log_uniform and low <= 0:
            raise ValueError(f"log_uniform = [{low}, {high}] must be above 0")

    def at(self, position: float) -> Value:
        """The value at a position in [0, 1); numbers that are not whole get four digits, as a person would write."""
        if self.choice:
            return self.choice[int(position * len(self.choice))]
        if self.integer:
            low, high = self.integer
            return low + int(position * (high - low + 1))
        low, high = self.uniform or self.log_uniform or (0.0, 1.0)
        value = low + position * (high - low) if self.uniform else low * (high / low) ** position
        return min(max(float(f"{value:.4g}"), low), high)


Space = dict[str, Range]


@checked(frozen=True, config=STRICT)
class Model(Entry):
    """Config files laid over the dataset's, then overrides, then a space of its own over the common one."""

    space: Space = dataclasses.field(default_factory=dict)


@checked(frozen=True, config=STRICT)
class Search:
    """A search's TOML file."""

    output: str
    configs: Annotated[Texts, Field(min_length=1)]
    """The dataset's."""
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    space: Space = dataclasses.field(default_factory=dict)
    """Dotted config key -> where its values are drawn from, for every model."""
    overrides: Texts = ()
    """For every model."""
    num_trials: Positive = 12
    """Of each model."""
    max_epochs: Positive = 20
    grace_epochs: Positive = 2
    """No trial is stopped before."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """At grace_epochs times each power of it, about this fraction of the trials goes on: 1 / reduction_factor."""
    parallel: Positive = 1
    """Trials at once; they share out the cores."""
    seed: Annotated[int, Field(ge=0)] = 2023

    def __post_init__(self) -> None:
        check_names("models", self.models)
        if self.grace_epochs > self.max_epochs:
            raise ValueError(f"grace_epochs ({self.grace_epochs}) must not be above max_epochs ({self.max_epochs})")
        for model in self.models:
            space = self.space_of(model)
            if not space:
                raise ValueError(f"{model.name} has no space: name at least one key")
            for key in space:
                section, _, rest = key.partition(".")
                if section != "training" or rest.partition(".")[0] in NOT_SEARCHED:
                    raise ValueError(
                        f"space: {key!r} cannot be searched: only keys of [training] can, but for "
                        f"{', '.join(NOT_SEARCHED)}"
                    )

    def space_of(self, model: Model) -> Space:
        return {**self.space, **model.space}

    def trials(self) -> dict[str, list["Trial"]]:
        """Model -> its trials, each with its checked config.

        Raises:
            ConfigError: names the model beside the key; or the trials cannot be ranked beside each other.
        """
        trials = {model.name: self._trials(model) for model in self.models}
        first, *others = (trial for of_model in trials.values() for trial in of_model)
        for trial in others:
            for key in THE_SAME_FOR_ALL:
                ours, theirs = (getattr(t.config.training, key) for t in (trial, first))
                if ours != theirs:
                    raise ConfigError(
                        f"training.{key} must be the same for every trial, but it is {ours!r} for {trial.name} and "
                        f"{theirs!r} for {first.name}"
                    )
        return trials

    def _trials(self, model: Model) -> list["Trial"]:
        trials = []
        for number, values in enumerate(sample(self.space_of(model), self.num_trials, self.seed), 1):
            try:
                departures = _departures((*self.overrides, *model.overrides), self.max_epochs, values)
                config = _load((*self.configs, *model.configs), departures)
            except ConfigError as error:
                raise ConfigError(f"{model.name}, trial {number}: {error}") from error
            trials.append(Trial(self, model, number, values, departures, config))
        return trials


def sample(space: Space, num_trials: int, seed: int) -> list[dict[str, Value]]:
    """Draw the trials' values.

    Each key has a stream of its own: two models draw the same values for a key they share, another key changes nothing,
    and more trials only add to the list.
    """
    columns = {
        key: [where.at(position) for position in np.random.default_rng([seed, *key.encode()]).random(num_trials)]
        for key, where in space.items()
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@dataclass(frozen=True)
class Trial:
    """One sample of a model's space."""

    search: Search
    model: Model
    number: int
    """From 1."""
    values: dict[str, Value]
    departures: str
    """TOML: all that sets this trial apart from the config files."""
    config: Config

    @property
    def name(self) -> str:
        return f"{self.model.name}, trial {self.number}"

    @property
    def folder(self) -> Path:
        """There only while the trial runs."""
        return Path(self.search.output) / "trials" / f"{self.model.folder}-{self.number:03d}"

    @property
    def result(self) -> Path:
        return self.folder.with_suffix(".json")

    def request(self) -> dict[str, Any]:
        """What a result must agree with to be kept."""
        return {
            "config": self.config.to_dict(),
            "data": DatasetManifest.load(self.config.training.dataset).fingerprint,
            "grace_epochs": self.search.grace_epochs,
            "reduction_factor": self.search.reduction_factor,
        }


def _departures(overrides: Texts, max_epochs: int, values: dict[str, Value]) -> str:
    """TOML of all that sets a trial apart: one dotted key a line, later ones instead of earlier ones."""
    lines = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r} is not of the form section.key=value")
        if key == "training.max_epochs":
            raise ConfigError(f"override {override!r}: max_epochs of the search sets it, for every model alike")
        lines[key] = text if _is_toml(f"value = {text}") else json.dumps(text)
    lines["training.max_epochs"] = str(max_epochs)
    lines |= {key: json.dumps(value) for key, value in values.items()}  # TOML writes these values as JSON does
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    if not _is_toml(text):
        raise ConfigError(f"these keys do not fit together, one sets a table that another reaches into:\n{text}")
    return text


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _load(configs: Texts, departures: str) -> Config:
    """The config as whoever lays the departures over the files as one more file gets it."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(departures)
        file.flush()
        return load_config([*configs, file.name])
