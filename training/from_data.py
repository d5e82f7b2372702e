"""Training settings that follow from the data, for what a config leaves open: a first model that needs no tuning.

Each rule reads a dataset's manifest alone. The constants were chosen on validation rows of nine public logs of 7,000 to
390,000 rows (docs/results.md, "A first model with nothing set"). A key that the config sets is never touched.

What decides most is how well the ids are known, that is, how many training rows there are for each row of the tables.
Where they are well known, a wide network on large batches, Adam over every row of every table at a rate that falls
along a cosine, and an average of the weights rank and calibrate best. Where most ids are rare, a network without batch
norm on small batches does, with tables that only move where they are looked up, and an L2 that holds rare ids near
zero.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from features.disk.dataset import DatasetManifest, Split
from training.config import (
    CosineDecay,
    DenseOptimizer,
    EvaluationConfig,
    FusedOptimizer,
    MLPEncoder,
    PlattCalibration,
    ScheduleConfig,
    TrainingConfig,
)

WELL_KNOWN = 25.0
"""Training rows for each distinct value of all features from which on ids count as well known."""
MOST_DENSE_ROWS = 500_000
"""Rows of all tables up to which each of them may be updated at every step."""
EVALUATED_ROWS = 500_000
"""Upper bound of the validation rows that an evaluation reads while training."""
_APART = {"base_logit", "sequences", "vectors", "pretrained"}
"""Keys of ``model`` that say nothing of the size of its encoders."""
MOST_COUNTED_ROWS = 20_000_000
"""Training rows up to which rare ids are regularised: counting the ids reads all rows once before the first step."""


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

    A table that is set in part is the user's, whole; of ``model`` that leaves the constant part of the logit, and
    encoders of sequences and files of vectors leave the others.

    Args:
        training: the section as the user wrote it, without defaults.
    """
    model = training.get("model")
    named = set(model) if isinstance(model, Mapping) else set()
    is_own = {key: key in training for key in RULES}
    is_own["model.base_logit"] = "base_logit" in named
    is_own["model.easy"] = is_own["model.hard"] = bool(named - _APART)
    return tuple(key for key in RULES if not is_own[key])


def choose(config: TrainingConfig, manifest: DatasetManifest) -> tuple[Chosen, ...]:
    """Choose the settings that a config leaves to its data (``TrainingConfig.from_data``).

    Args:
        config: the training section.
        manifest: manifest of the dataset that it is trained on.
    """
    found = {key: RULES[key](manifest, config) for key in config.from_data}
    return tuple(Chosen(key, *setting) for key, setting in found.items() if setting is not None)


def with_chosen(config: TrainingConfig, chosen: Iterable[Chosen]) -> TrainingConfig:
    """Return the config with these settings, and nothing left open."""
    for setting in chosen:
        config = _with(config, setting.key, setting.value)
    return dataclasses.replace(config, from_data=())


def with_values_of(config: TrainingConfig, other: TrainingConfig) -> TrainingConfig:
    """Return the config with the open settings as another config has them, such as that of a run to go on with."""
    for key in config.from_data:
        value: Any = other
        for name in key.split("."):
            value = getattr(value, name)
        config = _with(config, key, value)
    return dataclasses.replace(config, from_data=())


# --------------------------------------------------------------------------------------------------------------- rules

Setting = tuple[Any, str] | None
"""A value and its reason; None: the default stays."""


def _train(manifest: DatasetManifest) -> Split:
    return manifest.split("train")


def _valid_rows(manifest: DatasetManifest) -> int:
    return manifest.splits["valid"].num_rows if "valid" in manifest.splits else 0


def _knowledge(manifest: DatasetManifest) -> tuple[bool, str]:
    """Tell whether ids are well known, in tables that are small enough to be updated as a whole, and say it."""
    split, num_ids, rows = _train(manifest), 0, 0
    for feature in manifest.schema.sparse:
        found, buckets = split.sparse.get(feature.name), getattr(feature.encoding, "num_buckets", 0)
        if found is not None:
            # A window of days knows no more than its largest day's values; a vocabulary's ids go up to all of them.
            values = found.cardinality if buckets else max(found.cardinality, found.max_id)
            num_ids, rows = num_ids + values, rows + max(values, buckets)
    words = f"{split.num_rows:,} training rows, {num_ids:,} values"
    if split.num_rows < WELL_KNOWN * num_ids:
        return False, f"{words}: many rare ids"
    if rows > MOST_DENSE_ROWS:
        return False, f"{words}, {rows:,} rows of tables: too many to update at every step"
    return True, f"{words}: well known ids"


def _batch(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    rows, streams = _train(manifest).num_rows, config.reader.num_streams
    steps, least, largest = (40, 512, 8192) if _knowledge(manifest)[0] else (280, 256, 4096)
    size = min(max(2 ** round(math.log2(max(1, rows / steps))), least), largest)
    size = -(-size // streams) * streams
    return size, f"{rows:,} training rows: {math.ceil(rows / size):,} steps an epoch"


def _base_logit(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    rate = _train(manifest).label_rate
    if not 0 < rate < 1:
        return None
    if config.sampled_negatives == "weights":  # each negative counts for those that the build left out
        rate = rate / (rate + (1 - rate) / manifest.negatives_rate)
    return round(math.log(rate / (1 - rate)), 4), f"log-odds of the training label rate, {rate:.3g}"


def _optimizer(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    is_known, words = _knowledge(manifest)
    if is_known:
        return DenseOptimizer(learning_rate=3e-3, embedding_l2=0.03), words
    l2 = 0.1 if _train(manifest).num_rows <= MOST_COUNTED_ROWS else 0.0
    return FusedOptimizer(embedding_learning_rate=0.1, embedding_l2=l2), words


def _average(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    is_known, words = _knowledge(manifest)
    return (0.99, words) if is_known else None


def _epochs(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    if not _valid_rows(manifest):
        return 1, "no validation rows say when to stop"
    return 20, "at most: validation says when to stop"


def _schedule(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    is_known, words = _knowledge(manifest)
    if is_known:
        return ScheduleConfig(decay=CosineDecay(), factor=1.0, patience=5), words
    return ScheduleConfig(factor=0.7, patience=5), words


def _evaluation(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    rows = _valid_rows(manifest)
    if not rows:
        return None
    sample = EVALUATED_ROWS if rows > EVALUATED_ROWS else None
    words = "the best model may come before an epoch's end"
    return EvaluationConfig(per_epoch=1 if _knowledge(manifest)[0] else 2, sample_rows=sample), words


def _monitor(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    return {"logloss": -1.0}, "probabilities are what is served"


def _calibration(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    if not _valid_rows(manifest):
        return None
    return PlattCalibration(only_where_it_helps=True), "fitted on validation, kept where unseen rows gain by it"


def _easy(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    is_known, words = _knowledge(manifest)
    return MLPEncoder(hidden_units=(400,) if is_known else (200,), batch_norm=is_known), words


def _hard(manifest: DatasetManifest, config: TrainingConfig) -> Setting:
    is_known, words = _knowledge(manifest)
    return MLPEncoder(hidden_units=(400, 400) if is_known else (256, 128), batch_norm=is_known), words


RULES = {
    "global_batch_size": _batch,
    "max_epochs": _epochs,
    "optimizer": _optimizer,
    "schedule": _schedule,
    "ema_decay": _average,
    "evaluation": _evaluation,
    "monitor": _monitor,
    "calibration": _calibration,
    "model.base_logit": _base_logit,
    "model.easy": _easy,
    "model.hard": _hard,
}
"""Key within the training section -> the rule that chooses it."""


# --------------------------------------------------------------------------------------------------------------- tools


def _with(config: TrainingConfig, key: str, value: Any) -> TrainingConfig:
    first, _, rest = key.partition(".")
    if rest:
        value = dataclasses.replace(getattr(config, first), **{rest: value})
    return dataclasses.replace(config, **{first: value})


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _toml(value: Any) -> str:
    """Write a value as TOML; what is as a class has it by default is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        defaults = {field.name: _default(field) for field in dataclasses.fields(value)}
        value = {k: v for k, v in values.items() if k == "kind" or (v is not None and v != defaults[k])}
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else format(value, "_" if isinstance(value, int) else "")
