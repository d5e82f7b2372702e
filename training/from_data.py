"""Training settings that follow from the data, for what a config leaves open: a first model that needs no tuning.

Each rule reads a dataset's manifest alone. The constants were chosen on validation rows of nine public logs of 7,000 to
390,000 rows (docs/results.md, "A first model with nothing set"). A key that the config sets is never touched.
"""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from features.disk.dataset import DatasetManifest, Split
from training.config import MLPEncoder, PlattCalibration, TrainingConfig

STEPS_AN_EPOCH = 200
"""Number of steps that an epoch has at least, as far as the batch sizes allow it."""
LEAST_BATCH, LARGEST_BATCH = 256, 4096
"""Range of the batch size: below it a step costs as much as a larger one, and beyond it rates would have to rise."""
EVALUATED_ROWS = 500_000
"""Validation rows that an evaluation inside an epoch reads at most."""
MOST_REGULARISED_ROWS = 20_000_000
"""Training rows up to which rare ids are regularised: counting the ids reads all rows once before the first step."""

MODEL = "model"
"""Prefix of the keys that describe the network; they are chosen together or not at all."""


@dataclass(frozen=True)
class Chosen:
    """A setting that was chosen from the data.

    Attributes:
        key: key within the training section, with dots.
        value: its value.
        reason: what of the data it follows from, in words.
    """

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        """Format the setting as a line of a config, with its reason."""
        return f"training.{self.key} = {_toml(self.value)}  # {self.reason}"


def open_keys(training: Mapping[str, Any]) -> tuple[str, ...]:
    """List the keys that rules choose and a training section leaves open.

    Args:
        training: the section as the user wrote it, without defaults.
    """
    own_network = any(key != "base_logit" for key in _table(training, MODEL))
    kind = _table(training, "optimizer").get("kind", "fused")
    return tuple(
        key
        for key in RULES
        if not _is_set(training, key)
        and not (own_network and key.startswith(f"{MODEL}.") and key != "model.base_logit")
        and not (kind != "fused" and key.startswith("optimizer.embedding"))
    )


def choose(config: TrainingConfig, manifest: DatasetManifest) -> tuple[Chosen, ...]:
    """Choose the settings that a config leaves to its data (``TrainingConfig.from_data``).

    Args:
        config: the training section.
        manifest: manifest of the dataset that it is trained on.
    """
    chosen = []
    for key in config.from_data:
        found = RULES[key](manifest, config)
        if found is not None:
            chosen.append(Chosen(key, *found))
    return tuple(chosen)


def with_chosen(config: TrainingConfig, chosen: Iterable[Chosen]) -> TrainingConfig:
    """Return the config with these settings, and nothing left open."""
    for setting in chosen:
        config = _with(config, setting.key.split("."), setting.value)
    return dataclasses.replace(config, from_data=())


def settled(config: TrainingConfig, manifest: DatasetManifest) -> TrainingConfig:
    """Return the config with everything that it leaves open chosen from the data."""
    return with_chosen(config, choose(config, manifest))


def with_values_of(config: TrainingConfig, other: TrainingConfig) -> TrainingConfig:
    """Return the config with the open settings as another config has them, such as that of a run to go on with."""
    for key in config.from_data:
        parts = key.split(".")
        value: Any = other
        for part in parts:
            value = getattr(value, part, None)
        if value is not None:
            config = _with(config, parts, value)
    return dataclasses.replace(config, from_data=())


# --------------------------------------------------------------------------------------------------------------- rules

Found = tuple[Any, str] | None
"""A value and its reason; None: the default stays."""


def _train(manifest: DatasetManifest) -> Split:
    return manifest.split("train")


def _valid_rows(manifest: DatasetManifest) -> int:
    return manifest.splits["valid"].num_rows if "valid" in manifest.splits else 0


def _batch(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    rows, streams = _train(manifest).num_rows, config.reader.num_streams
    size = 2 ** math.floor(math.log2(max(1, rows / STEPS_AN_EPOCH)))
    size = min(max(size, LEAST_BATCH), LARGEST_BATCH)
    size = -(-size // streams) * streams
    return size, f"{rows:,} training rows: {math.ceil(rows / size):,} steps an epoch"


def _base_logit(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    rate = _train(manifest).label_rate
    if not 0 < rate < 1:
        return None
    return round(math.log(rate / (1 - rate)), 4), f"log-odds of the training split's label rate, {rate:.3g}"


def _embedding_rate(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    return 0.1, "row-wise Adagrad over zero tables"


def _embedding_l2(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    split = _train(manifest)
    if split.num_rows > MOST_REGULARISED_ROWS:
        return None
    ids = max((found.cardinality for found in split.sparse.values()), default=0)
    return 0.1, f"up to {ids:,} ids a feature in {split.num_rows:,} rows: rare ids stay near zero"


def _max_epochs(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    if not _valid_rows(manifest):
        return 1, "no validation rows say when to stop"
    return 20, "validation says when to stop"


def _patience(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    return 3, "evaluations without improvement"


def _factor(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    return 0.3, "the rates fall at each of them"


def _per_epoch(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    if not _valid_rows(manifest):
        return None
    return 3, "the best model may come before an epoch's end"


def _sample_rows(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    rows = _valid_rows(manifest)
    return None if rows <= EVALUATED_ROWS else (EVALUATED_ROWS, f"of {rows:,} validation rows, while training")


def _monitor(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    return {"logloss": -1.0}, "probabilities are what is served"


def _calibration(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    if not _valid_rows(manifest):
        return None
    return PlattCalibration(only_where_it_helps=True), "fitted on validation, kept where unseen rows gain by it"


def _easy(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    units, words = _width(manifest)
    return MLPEncoder(hidden_units=units[:1], dropout=0.2, batch_norm=False), words


def _hard(manifest: DatasetManifest, config: TrainingConfig) -> Found:
    units, words = _width(manifest)
    return MLPEncoder(hidden_units=units, dropout=0.2, batch_norm=False), words


def _width(manifest: DatasetManifest) -> tuple[tuple[int, ...], str]:
    rows = _train(manifest).num_rows
    return (64, 32), f"{rows:,} training rows"


RULES = {
    "global_batch_size": _batch,
    "max_epochs": _max_epochs,
    "monitor": _monitor,
    "calibration": _calibration,
    "evaluation.per_epoch": _per_epoch,
    "evaluation.sample_rows": _sample_rows,
    "schedule.factor": _factor,
    "schedule.patience": _patience,
    "optimizer.embedding_learning_rate": _embedding_rate,
    "optimizer.embedding_l2": _embedding_l2,
    "model.base_logit": _base_logit,
    "model.easy": _easy,
    "model.hard": _hard,
}
"""Key within the training section -> the rule that chooses it."""


# ---------------------------------------------------------------------------------------------------------- small tools


def _table(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_set(tree: Mapping[str, Any], key: str) -> bool:
    *tables, last = key.split(".")
    for name in tables:
        tree = _table(tree, name)
    return last in tree


def _with(config: Any, parts: Collection[str], value: Any) -> Any:
    first, *rest = parts
    return dataclasses.replace(config, **{first: _with(getattr(config, first), rest, value) if rest else value})


def _toml(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else format(value, "_" if isinstance(value, int) else "g")
