"""Search: the TOML file of a hyper-parameter search, its ranges of values, and the trials sampled from them."""

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
from jobs.cli.config import Config, Entry, Texts, check_names, is_saved_config, load_config
from jobs.cli.errors import ConfigError
from training.config import Positive, TrainingConfig

THE_SAME_FOR_ALL = ("dataset", "monitor", "max_epochs", "device")
"""Training keys that must be equal in all trials, so that these can be ranked together."""
NOT_SEARCHED = (*THE_SAME_FOR_ALL, "num_workers", "threads_per_worker")
"""Training keys that cannot be searched; a trial has one worker, and threads change only its speed."""
Scalar = bool | int | float | str
Value = Scalar | list[Scalar]


@checked(frozen=True, config=STRICT)
class Range:
    """Range of one key's values: exactly one of choice, uniform, log_uniform and integer."""

    choice: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    """Range of whole numbers, both ends included."""

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
        """Return the value at a position in [0, 1), the quantile; floats are rounded to four significant digits."""
        if self.choice:
            return self.choice[int(position * len(self.choice))]
        if self.integer:
            low, high = self.integer
            return low + int(position * (high - low + 1))
        low, high = self.uniform or self.log_uniform or (0.0, 1.0)
        value = low + position * (high - low) if self.uniform else low * (high / low) ** position
        return min(max(float(f"{value:.4g}"), low), high)


Space = dict[str, Range]
SearchRow = dict[str, Any]
"""Row of a search's tables: the result of a trial, or the best one of a model."""


@checked(frozen=True, config=STRICT)
class SearchedModel(Entry):
    """Model of a search: config files laid over the dataset's, overrides, and a space that extends the common one."""

    space: Space = dataclasses.field(default_factory=dict)


@checked(frozen=True, config=STRICT)
class Search:
    """Search: the content of its TOML file."""

    output: str
    configs: Annotated[Texts, Field(min_length=1)]
    """Config files of the dataset."""
    models: Annotated[tuple[SearchedModel, ...], Field(min_length=1)]
    space: Space = dataclasses.field(default_factory=dict)
    """Search space of every model: dotted config key -> range of its values."""
    overrides: Texts = ()
    """Overrides of every model."""
    num_trials: Positive = 12
    """Trials of each model."""
    max_epochs: Positive = 20
    grace_epochs: Positive = 2
    """Epochs of the first ASHA rung: no trial is stopped earlier."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """Reduction factor of ASHA: rungs are at grace_epochs times its powers; about 1 / reduction_factor of the trials
    pass each."""
    parallel: Positive = 1
    """Trials run at the same time, each with its share of the cores."""
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

    def space_of(self, model: SearchedModel) -> Space:
        """Merge a model's space over the common one."""
        return {**self.space, **model.space}

    def trials(self) -> dict[str, list["Trial"]]:
        """Sample the trials of every model, each with its checked config.

        Returns:
            Model name -> its trials.

        Raises:
            ConfigError: names the model and the key; or the trials cannot be ranked together.
        """
        trials = {model.name: self._trials(model) for model in self.models}
        first, *others = (trial for of_model in trials.values() for trial in of_model)
        for trial in others:
            for key in THE_SAME_FOR_ALL:
                ours, theirs = (_said(t.config.training, key) for t in (trial, first))
                if ours != theirs:
                    raise ConfigError(
                        f"training.{key} must be the same for every trial, but it is {ours!r} for {trial.name} and "
                        f"{theirs!r} for {first.name}"
                    )
        return trials

    def _trials(self, model: SearchedModel) -> list["Trial"]:
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

    Each key has a random stream of its own: two models draw the same values for a shared key, adding a key leaves the
    values of the others, and raising ``num_trials`` only appends.
    """
    columns = {
        key: [where.at(position) for position in np.random.default_rng([seed, *key.encode()]).random(num_trials)]
        for key, where in space.items()
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@dataclass(frozen=True)
class Trial:
    """Trial: one sample of a model's space."""

    search: Search
    model: SearchedModel
    number: int
    """Number of the trial, from 1."""
    values: dict[str, Value]
    departures: str
    """TOML text of all keys in which this trial departs from the config files."""
    config: Config

    @property
    def name(self) -> str:
        """Name for messages: model and number."""
        return f"{self.model.name}, trial {self.number}"

    @property
    def folder(self) -> Path:
        """Folder of the run, removed when the trial is over."""
        return Path(self.search.output) / "trials" / f"{self.model.folder}-{self.number:03d}"

    @property
    def result(self) -> Path:
        """File of the result."""
        return self.folder.with_suffix(".json")

    def request(self) -> dict[str, Any]:
        """Return the config, dataset and ASHA settings that a kept result must have been made with."""
        return {
            "config": self.config.to_dict(),
            "data": DatasetManifest.load(self.config.training.dataset).fingerprint,
            "grace_epochs": self.search.grace_epochs,
            "reduction_factor": self.search.reduction_factor,
        }

    def is_answered_by(self, request: dict[str, Any]) -> bool:
        """Tell whether a result of an earlier ``request`` is of this trial: same config, dataset and ASHA setting."""
        tree, data = request["config"], request["data"]
        same = {**self.request(), "config": tree, "data": data}
        is_data = DatasetManifest.load(self.config.training.dataset).has_fingerprint(data)
        return request == same and is_data and is_saved_config(tree, self.config)


def _said(training: TrainingConfig, key: str) -> Any:
    """Return the value of a key, or words for one that follows from the data."""
    return "what follows from the data" if key in training.from_data else getattr(training, key)


def _departures(overrides: Texts, max_epochs: int, values: dict[str, Value]) -> str:
    """Write a trial's departures as TOML: one dotted key a line, a later value replacing an earlier one."""
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
    """Load the config with the departures as a last config file, as ``jobs.train --config`` would."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(departures)
        file.flush()
        return load_config([*configs, file.name])
