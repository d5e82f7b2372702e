"""Export a run's best checkpoint as an artifact: everything a scorer needs, and golden rows to check its scores.

Tables may be quantised; golden rows then have the quantised model's probabilities.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from features.disk.artifact import (
    GOLDEN_NAME,
    VALUE_RATES_KEY,
    WEIGHTS_NAME,
    check_output,
    new_artifact,
    write_description,
)
from features.disk.atomic import write_json
from features.disk.place import Place, temporary_folder
from features.disk.run_folder import CALIBRATION_NAME, CONFIG_NAME, LEARNT_NAME, METRICS_NAME, RunError
from features.fingerprint import FINGERPRINT_FORMAT
from features.log_files import LogFile, find_files, local_copy
from features.log_format import LogError
from features.raw_block import RawBlock
from features.read.portions import Portion
from features.schema import FeatureSchema
from features.unknown_values import value_rates
from features.values import loose_texts
from training.config import TablePrecision, TrainingConfig
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.run import Run, build_model
from training.fit.scoring import score
from training.fit.vectors import kept_vectors
from training.judge.calibration import Calibration
from training.judge.scores import Scores
from training.model.ctr_model import CTRModel
from training.sharding import checkpoint
from training.ship.predict import Predictor
from training.ship.quantization import check_finite, quantize, to_tensors

NUM_GOLDEN_ROWS = 64
_GOLDEN_BYTES = 1 << 16
_GOLDEN_DWELL = 5
"""Seconds that the user of a golden row stayed at the newest of its events."""
"""Bytes of a raw log that are read at a time for golden rows."""


class Best(NamedTuple):
    """A run's best checkpoint, unsharded, and what belongs to it."""

    model: CTRModel
    dataset: Dataset
    config: TrainingConfig
    calibration: Calibration
    step: int
    """Optimizer steps the checkpoint has seen."""

    def score(self, split: str) -> Scores:
        """Score a split's rows in file order, with the calibrated logits that an artifact would serve.

        Raises:
            DatasetError, ReaderError: the dataset has no such split, or a row of it is missing or damaged.
        """
        # Sampled training rows stand for all of them where each negative counts for those that are left out.
        reader = Reader(self.dataset, split, replace(self.config, sampled_negatives="weights"))
        return score(self.model, reader, torch.device("cpu")).calibrated(self.calibration)

    def history_lengths(self, split: str) -> dict[str, NDArray[np.int64]]:
        """Count the events of each row of a split, (n,) in file order, by sequence.

        Raises:
            DatasetError, ReaderError: as ``score``.
        """
        sequences = self.dataset.manifest.schema.sequence
        if not sequences:
            return {}
        found: dict[str, list[NDArray[np.int64]]] = {sequence.name: [] for sequence in sequences}
        for batch in Reader(self.dataset, split, self.config).batches(epoch=0):
            for sequence in sequences:
                lengths = batch.sparse_features[sequence.keys[0]].lengths()[: batch.num_rows]
                found[sequence.name].append(lengths.numpy().astype(np.int64))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def with_tables(self, tables: TablePrecision) -> "Best":
        """Quantise the tables as they would be served in that precision; itself with float32."""
        return self if tables == "float32" else self._replace(model=quantize(self.model, tables))


def load_best(run: Run, dataset: Dataset | None = None) -> Best:
    """Load the unsharded model of a run's best checkpoint with its dataset, training config and calibration.

    Args:
        dataset: score on this dataset instead; None: the run's own.

    Raises:
        ValueError subclasses: the run, its checkpoint or the dataset cannot be used, or they do not belong together.
    """
    trained_on = run.trained_on()
    config = run.config()
    dataset = dataset or Dataset.open(trained_on.dataset)
    if dataset.manifest.schema_fingerprint != trained_on.schema_fingerprint:
        raise RunError(f"{dataset.path} was built with another feature schema than {run.path} was trained with")
    dataset = dataset.with_choices_of(run.schema())
    if dataset.learnt.fingerprint != trained_on.learnt_fingerprint:
        dataset = dataset.seen_by(run.learnt(dataset.manifest.schema))
    best = checkpoint.best(run.checkpoints_of(config))
    checkpoint.check_size(best, build_model(dataset, config, torch.device("meta")))
    model = build_model(dataset, config, torch.device("cpu"), kept_vectors(run, config.model))
    checkpoint.restore_model(best, model)
    calibration = _calibration(run, config, best.step).after(run.correction())
    return Best(model.eval(), dataset, config, calibration, best.step)


def _calibration(run: Run, config: TrainingConfig, step: int) -> Calibration:
    if not run.is_calibrated(config.calibration):
        return Calibration()
    if not (run.path / CALIBRATION_NAME).is_file() or (values := run.read(CALIBRATION_NAME)).get("step") != step:
        raise RunError(
            f"{run.path} has no calibration of its best checkpoint, step {step}: it is fitted when training ends, so "
            "go on with jobs.train --resume"
        )
    return Calibration.from_json(values)


def export(run: Run, output: Place, golden_input: str | None = None, tables: TablePrecision = "float32") -> Predictor:
    """Write the artifact of a run's best checkpoint; it appears in one step, replacing an older artifact.

    Args:
        run: a finished run.
        output: folder to write.
        golden_input: raw log to take golden rows from; None: the files the dataset was built from.
        tables: precision of the tables that are served.

    Returns:
        The predictor, loaded back from what was written.

    Raises:
        ArtifactError: the output folder holds something else.
        ReplacementError: another export is writing to it.
        RunError: no raw row is there to take.
        QuantizationError: a table holds numbers that the precision cannot.
        StorageError: the output's store cannot be written; an older artifact stays as it was.
    """
    check_output(output)  # before anything is computed
    with new_artifact(output) as folder:
        _write_artifact(run, folder, golden_input, tables)
    return Predictor.load(output)


def _write_artifact(run: Run, folder: Path, golden_input: str | None, tables: TablePrecision) -> None:
    """Write the artifact's files, ``artifact.json`` last."""
    best = load_best(run)
    dataset, calibration = best.dataset, best.calibration
    config = run.read(CONFIG_NAME)
    tensors = to_tensors(best.model, tables)
    if tables != "float32":
        check_finite(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS_NAME)
    dataset.learnt.save(folder / LEARNT_NAME)
    write_json(folder / CONFIG_NAME, config)
    write_json(folder / METRICS_NAME, run.read(METRICS_NAME))
    if best.config.calibration.kind != "none" or calibration != Calibration():
        write_json(folder / CALIBRATION_NAME, calibration.to_json())
    served = best.with_tables(tables).model
    predictor = Predictor(served, dataset.manifest.schema, dataset.learnt, config, calibration)
    rows = golden_rows(predictor, dataset, golden_input)
    scores = predictor.predict(rows)
    with (folder / GOLDEN_NAME).open("w", encoding="utf-8") as file:
        for row, probability in zip(rows, scores, strict=True):
            line = {"row": row, "probability": float(probability)}
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")  # str: dates in lists
    trained_on = run.trained_on()
    identity: dict[str, Any] = {
        "schema_fingerprint": dataset.manifest.schema_fingerprint,
        "learnt_fingerprint": dataset.learnt.fingerprint,
        FINGERPRINT_FORMAT.key: FINGERPRINT_FORMAT.version,
        "trained_on": {"fingerprint": trained_on.fingerprint, "rows": trained_on.to_json()["rows"]},
    }
    if not dataset.is_ahead:  # else the statistics count as known what this model does not know
        identity[VALUE_RATES_KEY] = value_rates(dataset.manifest)
    num_parameters = sum(p.numel() for p in best.model.parameters())
    write_description(folder, tables, {**identity, "num_parameters": num_parameters})


def golden_rows(predictor: Predictor, dataset: Dataset, golden_input: str | None) -> list[dict[str, Any]]:
    """Read the first well-formed raw rows, cut to the columns that scoring needs.

    Raises:
        RunError: the raw files are gone, or hold no well-formed row.
    """
    splits = [dataset.manifest.inputs[name] for name in ("test", "valid", "train") if name in dataset.manifest.inputs]
    patterns = (golden_input,) if golden_input else tuple(splits[0])
    try:
        reader = predictor.log_reader
        found = reader.find_files({"": patterns}).splits[""] if golden_input else find_files(patterns)
        file = found.files[0]
        with temporary_folder() as folder:
            rows = _first_rows(predictor, str(local_copy(file.real, folder)), file)
    except LogError as error:
        raise RunError(f"golden rows need a raw log of this dataset: {error}; give one with --golden-input") from error
    if not rows:
        raise RunError(f"golden rows need a raw log: {patterns[0]} has no well-formed row; give --golden-input")
    return rows


def _first_rows(predictor: Predictor, path: str, file: LogFile) -> list[dict[str, Any]]:
    reader, rows = predictor.log_reader, []
    tables = reader.find_tables(file.real)
    wanted = reader.wanted_of_file(tables)
    built = {name for sequence in predictor.schema.sequence if sequence.history for name in sequence.raw_lists}
    wanted = replace(wanted, optional=wanted.optional | built)  # the log has none of them
    for block in reader.read(Portion(path), wanted, tables, file.partition, step=_GOLDEN_BYTES):
        _, faults = predictor.predict_block(block)
        well_formed = np.array([row for row in range(len(block)) if row not in faults], np.int64)
        rows += _python_rows(block, well_formed[: NUM_GOLDEN_ROWS - len(rows)], predictor.schema)
        if len(rows) == NUM_GOLDEN_ROWS:
            break
    return [_with_histories(row, place % 3, predictor.schema) for place, row in enumerate(rows)]


def _with_histories(row: dict[str, Any], num_events: int, schema: FeatureSchema) -> dict[str, Any]:
    """Give a row of a log the histories that a build would make: here of the row's own values, at its own time.

    Golden rows tell whether another program gives the same score; any history does for that.
    """
    found = dict(row)
    for sequence in schema.sequence:
        if sequence.history is None:
            continue
        assert schema.timestamp is not None
        raw = {f.name: row[f.columns[0]] for f in schema.sparse if f.name in sequence.parts}
        values = {column: raw[part] for part, column in sequence.raw_part_columns.items()}
        values |= {sequence.time_column: row[schema.timestamp.column]} if sequence.gaps else {}
        events = min(num_events, sequence.max_length)
        found |= {name: [value] * events for name, value in values.items()}
        if sequence.dwell_weights:
            found[sequence.raw_dwell_column] = [_GOLDEN_DWELL * 4**event for event in range(events)]
    return found


def _unix_times(values: pa.Array, schema: FeatureSchema) -> pa.Array:
    """Convert Arrow times, or lists of them, to numbers where the schema's times are numbers; others stay."""
    units = {"unix": "s", "unix_ms": "ms"}
    time = schema.timestamp
    items = values.type.value_type if pa.types.is_nested(values.type) else values.type
    if time is None or time.format not in units or not pa.types.is_timestamp(items):
        return values
    unit, number = pa.timestamp(units[time.format], items.tz), pa.int64()
    if pa.types.is_nested(values.type):
        return values.cast(pa.list_(unit), safe=False).cast(pa.list_(number))
    return values.cast(unit, safe=False).cast(number)


def _python_rows(block: RawBlock, rows: NDArray[np.int64], schema: FeatureSchema) -> list[dict[str, Any]]:
    """Convert some rows to values that JSON has, each with the id or float of the raw one."""
    columns, names = [], schema.feature_columns
    times = {sequence.time_column for sequence in schema.sequence if sequence.gaps}
    times |= {schema.timestamp.column} if schema.timestamp and times else set()
    for name in names:
        values = block.columns[name].take(pa.array(rows))
        if name in times:
            values = _unix_times(values, schema)
        if name in block.lists:
            lists = block.lists[name].take(pa.array(rows)).to_pylist()
            columns.append([v if one is None else one for v, one in zip(values.to_pylist(), lists, strict=True)])
        elif pa.types.is_nested(values.type) or pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            columns.append(values.to_pylist())
        else:
            columns.append(loose_texts(values).to_pylist())
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
