"""Leaderboard: its TOML file, and the cells of the matrix that it names."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from features.schema import STRICT
from jobs.cli.config import Config, Entry, Texts, check_names, load_config
from jobs.cli.errors import ConfigError

LIBRARIES = {"lightgbm": "lightgbm>=4,<5"}
"""Library of a model -> what pip installs."""


@checked(frozen=True, config=STRICT)
class RankedModel(Entry):
    """Model: a row of the matrix."""

    seeds: tuple[int, ...] | None = None
    """Seeds of this model; None: the leaderboard's."""
    library: Literal["twinfocus", "lightgbm"] = "twinfocus"
    """Library that trains it; ``lightgbm`` takes dataset, seed and threads of the config, and nothing else."""


@checked(frozen=True, config=STRICT)
class Leaderboard:
    """Leaderboard: what its TOML file holds."""

    output: str
    """Folder of the page and its tables."""
    datasets: Annotated[tuple[Entry, ...], Field(min_length=1)]
    models: Annotated[tuple[RankedModel, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    reference: str
    """Model that every other one is compared with, over the seeds that both have."""
    overrides: Texts = ()
    """Overrides of every cell."""
    parallel: Annotated[int, Field(ge=1)] = 1
    """Cells trained at the same time; give each its share of the cores with training.threads_per_worker."""
    num_resamples: Annotated[int, Field(ge=1)] = 500
    """Resamples of the paired bootstrap."""
    cells_folder: str | None = None
    """Folder of runs and results, which several leaderboards may share; None: ``output``."""

    def __post_init__(self) -> None:
        check_names("datasets", self.datasets)
        check_names("models", self.models)
        if self.reference not in {model.name for model in self.models}:
            raise ValueError(f"reference {self.reference!r} is not the name of a model")

    def check_libraries(self) -> None:
        """Refuse a model whose library is not installed.

        Raises:
            ConfigError: tells how to install it.
        """
        for model in self.models:
            if model.library != "twinfocus" and importlib.util.find_spec(model.library) is None:
                raise ConfigError(
                    f'{model.name}: library = "{model.library}" needs a package that is not here: pip install '
                    f"'{LIBRARIES[model.library]}'"
                )

    def cells(self) -> Iterator["Cell"]:
        """Yield every run of the matrix, seed by seed, so that all models have a first result early."""
        folder = Path(self.cells_folder or self.output)
        most = max(len(model.seeds or self.seeds) for model in self.models)
        for i in range(most):
            for dataset in self.datasets:
                for model in self.models:
                    seeds = model.seeds or self.seeds
                    if i < len(seeds):
                        yield Cell(folder, dataset, model, seeds[i], self.overrides)


@dataclass(frozen=True)
class Cell:
    """Cell: one run of the matrix; ``folder`` is where it and its result are kept."""

    folder: Path
    dataset: Entry
    model: RankedModel
    seed: int
    shared: Texts

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.folder / "runs" / self.dataset.folder / self.model.folder / f"seed={self.seed}"

    @property
    def result(self) -> Path:
        """File of the result."""
        return self.folder / "results" / f"{self.dataset.folder}--{self.model.folder}--seed={self.seed}.json"

    @property
    def scores(self) -> Path:
        """File of the logits of all rows, NumPy npz."""
        return self.result.with_suffix(".npz")

    @property
    def configs(self) -> Texts:
        """Config files, later ones win."""
        return (*self.dataset.configs, *self.model.configs)

    @property
    def overrides(self) -> Texts:
        """Overrides of the config files, the seed last."""
        seed = f"training.seed={self.seed}"
        return (*self.shared, *self.dataset.overrides, *self.model.overrides, seed)

    def config(self) -> Config:
        """Resolve the config.

        Raises:
            ConfigError: names the model beside the key.
        """
        try:
            return load_config(list(self.configs), list(self.overrides))
        except ConfigError as error:
            raise ConfigError(f"{self.model.name} on {self.dataset.name}: {error}") from error
