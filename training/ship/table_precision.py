"""Comparison of table precisions: a trained model's bytes, time and metrics in each, on the same rows."""

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np
import torch

from features.rows import Columns
from features.schema import FeatureSchema
from training.config import TablePrecision
from training.data.batch import Batch, to_batch
from training.data.columns import read_columns
from training.data.reader import Reader
from training.judge.metrics import evaluate
from training.judge.scores import to_probs
from training.model.ctr_model import CTRModel
from training.ship.export import Best
from training.ship.quantization import table_bytes, to_tensors

PRECISIONS: tuple[TablePrecision, ...] = get_args(TablePrecision)
BATCH_SIZES = (1, 64, 4096)
MIN_ROUNDS, MAX_ROUNDS = 5, 500
MAX_TIMED_ROWS = 200_000


def compare_precisions(best: Best, split: str, *, seconds: float = 3.0, seed: int = 0) -> list[dict[str, Any]]:
    """Compare the table precisions of a model.

    Args:
        best: a trained model, calibrated as it is served.
        split: split whose rows are scored; batches for timing are drawn from them.
        seconds: for timing each batch size.

    Returns:
        One entry a precision, float32 first: ``tables``; ``table_bytes`` and ``weight_bytes`` (of all tensors);
        ``rows``, ``auc``, ``logloss``, ``calibration``; ``max_difference`` and ``mean_difference`` of a probability
        from float32's; and ``latency``, for each batch size the median ``milliseconds`` of a forward pass and
        ``rows_per_second``.

    Raises:
        DatasetError, ReaderError: the dataset has no such split, or a row of it is missing or damaged.
        ValueError: the scores hold NaN.
    """
    served: dict[TablePrecision, Best] = {tables: best.with_tables(tables) for tables in PRECISIONS}
    columns = read_columns(Reader(best.dataset, split, best.config), MAX_TIMED_ROWS)
    models: dict[TablePrecision, CTRModel] = {tables: one.model for tables, one in served.items()}
    latency = time_models(models, columns, best.dataset.manifest.schema, seconds=seconds, seed=seed)
    entries, exact = [], np.empty(0)
    for tables, one in served.items():
        scores = one.score(split)
        metrics, probs = evaluate(scores), to_probs(scores.logits)
        exact = probs if tables == "float32" else exact
        difference, tensors = np.abs(probs - exact), to_tensors(best.model, tables)
        entries.append(
            {
                "tables": tables,
                "table_bytes": table_bytes(best.model, tensors),
                "weight_bytes": sum(tensor.nbytes for tensor in tensors.values()),
                **{name: metrics[name] for name in ("rows", "auc", "logloss", "calibration")},
                "max_difference": float(difference.max()),
                "mean_difference": float(difference.mean()),
                "latency": latency[tables],
            }
        )
    return entries


def time_models(
    models: Mapping[TablePrecision, CTRModel], columns: Columns, schema: FeatureSchema, *, seconds: float, seed: int
) -> dict[TablePrecision, list[dict[str, float]]]:
    """Time forward passes over rows drawn from columns, the models taking turns over the same batches."""
    found: dict[TablePrecision, list[dict[str, float]]] = {tables: [] for tables in models}
    for batch_size in BATCH_SIZES:
        times: dict[TablePrecision, list[float]] = {tables: [] for tables in models}
        ends = time.perf_counter() + seconds
        for number, rows in enumerate(_draw(columns, batch_size, seed)):
            if number == MAX_ROUNDS or (number > MIN_ROUNDS and time.perf_counter() > ends):
                break
            order = list(models)[number % len(models) :] + list(models)[: number % len(models)]
            for tables in order:
                # A batch of its own for each: what one lookup finds out about a batch, it keeps in it.
                spent = _time(models[tables], to_batch(rows, schema))
                if number:  # the first pass compiles kernels and allocates
                    times[tables].append(spent)
        for tables, spent in times.items():
            median = statistics.median(spent)
            found[tables].append(
                {"batch_size": batch_size, "milliseconds": 1e3 * median, "rows_per_second": batch_size / median}
            )
    return found


def _draw(columns: Columns, batch_size: int, seed: int) -> Iterator[Columns]:
    """Yield batches of rows drawn with replacement, without end."""
    random, n = np.random.default_rng(seed), len(columns["label"])
    for _ in itertools.count():
        rows = random.integers(n, size=batch_size)
        yield {name: column[rows] for name, column in columns.items()}


def _time(model: CTRModel, batch: Batch) -> float:
    with torch.no_grad():
        started = time.perf_counter()
        model(batch)
        return time.perf_counter() - started
