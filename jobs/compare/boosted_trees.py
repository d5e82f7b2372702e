"""Gradient-boosted trees of LightGBM on a built dataset: the baseline that a sceptic tries first."""

import dataclasses
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.rows import Columns
from features.schema import FeatureSchema
from training.config import TrainingConfig
from training.data.columns import read_columns
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.judge.scores import Scores

LEARNING_RATE, MAX_TREES, PATIENCE = 0.05, 2_000, 50
"""Settings beside LightGBM's own defaults; trees end when so many of them have not lowered validation's logloss."""
TREES_WITHOUT_VALIDATION = 100


def train_trees(
    dataset: Dataset, config: TrainingConfig, splits: list[str]
) -> tuple[dict[str, Any], dict[str, Scores]]:
    """Train trees on the training split and score other splits; everything is in memory.

    A sparse feature is one category, a multi-valued one its first value and the number of values, a dense feature one
    number.

    Args:
        dataset: dataset with a training split.
        config: the training section, of which seed and threads are taken.
        splits: splits to score.

    Returns:
        What stands beside metrics in a result, and the scores of each split in the reader's order.
    """
    import lightgbm

    schema, started = dataset.manifest.schema, time.perf_counter()
    rows = {name: _read(dataset, name, config) for name in ["train", *splits]}
    matrices = {name: _matrix(columns, schema) for name, columns in rows.items()}
    train = lightgbm.Dataset(
        matrices["train"],
        rows["train"]["label"],
        weight=rows["train"]["weight"],
        categorical_feature=list(range(len(schema.sparse))),
    )
    parameters = {
        "objective": "binary",
        "learning_rate": LEARNING_RATE,
        "seed": config.seed,
        "num_threads": config.threads_per_worker or 0,
        "deterministic": True,
        "verbose": -1,
    }
    valid, stop = [], []
    if has_valid := "valid" in splits:
        held = rows["valid"]
        valid.append(train.create_valid(matrices["valid"], held["label"], weight=held["weight"]))
        stop.append(lightgbm.early_stopping(PATIENCE, verbose=False))
    booster = lightgbm.train(
        parameters,
        train,
        MAX_TREES if has_valid else TREES_WITHOUT_VALIDATION,
        valid_sets=valid,
        callbacks=stop,
    )
    seconds = time.perf_counter() - started
    best = booster.best_iteration if has_valid else booster.current_iteration()
    found = {
        name: Scores(
            np.asarray(booster.predict(matrices[name], raw_score=True), np.float64),
            rows[name]["label"],
            rows[name]["weight"],
            rows[name].get("group_id"),
        )
        for name in splits
    }
    leaves = sum(tree["num_leaves"] for tree in booster.dump_model(num_iteration=best)["tree_info"])
    about = {"parameters": leaves, "epochs": 1, "best_step": best, "seconds": {"train": seconds}}
    return about, found


def _read(dataset: Dataset, split: str, config: TrainingConfig) -> Columns:
    # Where negatives were left out by the build, weights make the probabilities those of all rows.
    reader = Reader(dataset, split, dataclasses.replace(config, sampled_negatives="weights"))
    return read_columns(reader, reader.num_rows)


def _matrix(columns: Columns, schema: FeatureSchema) -> NDArray[np.float64]:
    """(n, number of columns): categories, numbers, then the numbers of values of multi-valued features."""
    first = [columns[f.name] if columns[f.name].ndim == 1 else columns[f.name][:, 0] for f in schema.sparse]
    counts = [f.kind.lengths(columns, f) for f in schema.sparse if f.kind.takes_lists]
    return np.stack([*first, *(columns[name] for name in schema.dense_names), *counts], axis=1).astype(np.float64)
