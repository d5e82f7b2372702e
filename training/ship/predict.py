"""Predictor: raw rows in, click probabilities out, equal to the trained model's."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from features.bucket_tables import MODEL_ID_LENGTH
from features.disk.artifact import GOLDEN_NAME, WEIGHTS_NAME, Artifact, ArtifactError, open_artifact
from features.disk.place import Place
from features.disk.run_folder import CALIBRATION_NAME, CONFIG_NAME, LEARNT_NAME
from features.encode import BlockTexts
from features.encode_rows import FeatureEncoder, MappingTexts
from features.fingerprint import FINGERPRINT_FORMAT, departures
from features.learnt import Learnt
from features.log_format import LogFormat, Lookup
from features.raw_block import RawBlock
from features.read.log_reader import LogReader, wanted_of_features
from features.rows import Columns, RawRow, RowError
from features.schema import FeatureSchema
from features.unknown_values import ValueCounter, ValueRates, ValueReport, ValueTally
from training.config import TablePrecision, TrainingConfig, read_saved_training
from training.data.batch import to_batch
from training.judge.calibration import Calibration, CalibrationError
from training.model.ctr_model import CTRModel
from training.model.histories import BucketTables
from training.plugins import PluginError
from training.ship.history_buckets import HistoryBuckets
from training.ship.quantization import QuantizationError, check_layout, restore_artifact

GOLDEN_TOLERANCE = 1e-6
"""Largest difference between a golden row's stored and replayed probability."""
BATCH_SIZE = 4096


class Predictor:
    """Scores raw rows with one model.

    Attributes:
        buckets: bucket tables of histories, of a sequence whose encoder is ``sdim``.
    """

    def __init__(
        self,
        model: CTRModel,
        schema: FeatureSchema,
        learnt: Learnt,
        config: dict[str, Any],
        calibration: Calibration,
        model_id: str = "",
    ) -> None:
        self.model = model.eval()
        self.schema, self.learnt = schema, learnt
        self.config = config
        self.calibration = calibration
        self._encoder = FeatureEncoder(schema, learnt)
        self.buckets = HistoryBuckets(self.model, schema, learnt, model_id)
        self.value_counter = ValueCounter(schema, learnt)
        self.value_rates: ValueRates = {}
        """Shares of missing and unknown values in the dataset that the model was trained on; empty: not known."""

    @classmethod
    def load(cls, artifact: Place | str) -> "Predictor":
        """Read an artifact, check every file and replay its golden rows.

        Raises:
            ArtifactError: a file is missing or changed, a fingerprint is foreign, a golden row scores differently, or
                the model needs a plugin that the user has not named.
            StorageError: its store cannot be read.
        """
        with open_artifact(artifact) as opened:
            return cls._load(opened)

    @classmethod
    def _load(cls, artifact: Artifact) -> "Predictor":
        folder, config = artifact.folder, artifact.read_json(CONFIG_NAME)
        tables = artifact.description["tables"]
        if tables not in get_args(TablePrecision):
            version = artifact.description["version"]
            raise ArtifactError(f"{folder} has tables of {tables!r:.80}, which version {version} has not")
        try:
            schema = TypeAdapter(FeatureSchema).validate_python(config["features"])
            training = read_saved_training(config["training"], folder)
        except PluginError as error:
            raise ArtifactError(str(error)) from error
        except (ValidationError, KeyError, RecursionError) as error:
            raise ArtifactError(f"{folder / CONFIG_NAME} is not understood: {error}") from error
        learnt = Learnt.load(folder / LEARNT_NAME, schema)
        version = FINGERPRINT_FORMAT.version_of(artifact.description, folder, ArtifactError)
        if (schema.fingerprint_of_version(version), learnt.fingerprint) != (
            artifact.description.get("schema_fingerprint"),
            artifact.description.get("learnt_fingerprint"),
        ):
            raise ArtifactError(f"{folder} belongs to another feature schema: export the model again")
        model = _load_model(folder / WEIGHTS_NAME, schema, learnt, training, tables)
        calibration, model_id = _read_calibration(artifact, training), _model_id(artifact, training)
        predictor = cls(model, schema, learnt, config, calibration, model_id)
        predictor.value_rates = artifact.value_rates
        predictor._replay(folder / GOLDEN_NAME)
        return predictor

    def predict(self, rows: Sequence[RawRow], tally: ValueTally | None = None) -> NDArray[np.float64]:
        """Predict calibrated click probabilities of raw rows.

        Args:
            rows: raw column -> value; columns that no feature uses are ignored, an unseen value is out-of-vocabulary.
                A bucket table of ``buckets.make`` may stand in place of a history.
            tally: missing and unknown values are counted here; None: they are not counted.

        Returns:
            (rows,) probabilities.

        Raises:
            RowError: a column is missing or a value malformed; names row and column.
        """
        scores = [np.empty(0)]
        for start in range(0, len(rows), BATCH_SIZE):
            taken = self.buckets.take(rows[start : start + BATCH_SIZE])
            columns = self._encoder.encode(taken.rows)
            if tally is not None:
                elsewhere = taken.num_elsewhere(columns, self.schema)
                self.value_counter.count(columns, MappingTexts(taken.rows, self.schema), tally, elsewhere)
            scores.append(self._score(columns, taken.tables))
        return np.concatenate(scores)

    def predict_block(
        self, block: RawBlock, tally: ValueTally | None = None, histories: Columns | None = None
    ) -> tuple[NDArray[np.float64], Mapping[int, str]]:
        """Predict calibrated click probabilities of a block of raw rows.

        Args:
            block: (n,) rows with the columns of ``log_reader.wanted``.
            tally: missing and unknown values are counted here; None: they are not counted.
            histories: columns of sequences that were made of other rows, as files have them; None: rows have their own.

        Returns:
            (n,) probabilities, NaN for a malformed row; and malformed row -> why it is.

        Raises:
            ColumnError: a column has a type that no feature of it can be made of.
        """
        columns, prepared = self._encoder.encode_columns(block.columns, block.lists, histories, block.repeats)
        good = np.flatnonzero(prepared.is_good)
        scores = np.full(len(block), np.nan)
        for start in range(0, len(good), BATCH_SIZE):
            rows = good[start : start + BATCH_SIZE]
            part = {name: values[rows] for name, values in columns.items()}
            if tally is not None:
                self.value_counter.count(part, BlockTexts(prepared, rows), tally)
            scores[rows] = self._score(part)
        if prepared.reason is None:
            return scores, {}
        bad = np.flatnonzero(prepared.reason >= 0)
        return scores, {row: prepared.reasons[prepared.reason[row]] for row in bad.tolist()}

    def _score(self, columns: Columns, tables: Mapping[str, BucketTables] | None = None) -> NDArray[np.float64]:
        with torch.no_grad():
            logits = self.model(to_batch(columns, self.schema), tables).fused
        return torch.sigmoid(self.calibration.apply(logits.double())).numpy()

    def report_values(self, tally: ValueTally) -> ValueReport:
        """Hold counts of values against the dataset that the model was trained on."""
        return ValueReport(tally, self.value_rates, self.schema)

    @cached_property
    def log_reader(self) -> LogReader:
        """Reader of raw logs in the format that the model was trained on.

        Raises:
            ArtifactError: the artifact's config does not say that format.
        """
        try:
            input_config = self.config["pipeline"]["input"]
            log_format = TypeAdapter(LogFormat).validate_python(input_config["format"])
            lookups = TypeAdapter(tuple[Lookup, ...]).validate_python(input_config["lookups"])
        except (KeyError, TypeError, ValidationError) as error:
            raise ArtifactError(f"the artifact's config does not say what its logs look like: {error}") from error
        wanted = wanted_of_features(self.schema, optional=log_format.optional)
        return LogReader(log_format, lookups, wanted, self.schema.values)

    def find_error(self, row: RawRow) -> str | None:
        """Find the reason why a raw row cannot be scored; None if it can.

        Raises:
            MissingColumnError: a column is missing: an error of the log, not of one row.
        """
        try:
            [row] = self.buckets.take([row]).rows
        except RowError as error:
            return str(error).removeprefix("row 1: ")
        return self._encoder.find_error(row)

    def _replay(self, golden: Path) -> None:
        try:
            # Not splitlines: a value may hold other characters that end a line.
            lines = [json.loads(line) for line in golden.read_text(encoding="utf-8").split("\n") if line]
            expected = [float(line["probability"]) for line in lines]
            scores = self.predict([dict(line["row"]) for line in lines])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ArtifactError(f"{golden} does not hold rows of this model: {error}") from error
        if not lines:
            raise ArtifactError(f"{golden} is empty: nothing shows that this installation scores as the trained model")
        for number, (probability, score) in enumerate(zip(expected, scores, strict=True), start=1):
            if not abs(score - probability) <= GOLDEN_TOLERANCE:
                raise ArtifactError(
                    f"{golden} row {number} scores {score:.8f} here but {probability:.8f} when exported: "
                    "this installation would serve other probabilities"
                )


def _load_model(
    weights: Path, schema: FeatureSchema, learnt: Learnt, training: TrainingConfig, tables: TablePrecision
) -> CTRModel:
    """Load the network of a config with stored weights; their shapes are checked before memory is allocated."""
    num_embeddings = {f.name: learnt.num_embeddings(f) for f in schema.id_features}
    padded = training.pads_tables
    try:
        stored = load_file(weights)
        with torch.device("meta"):
            outline = CTRModel(schema, num_embeddings, training.model, pad_tables=padded, device="meta")
        check_layout(outline, stored, tables)
        device = "cpu" if tables == "float32" else "meta"  # tables that are not kept take no memory
        model = CTRModel(schema, num_embeddings, training.model, pad_tables=padded, device=device)
        restore_artifact(model, stored, tables)
    except (SafetensorError, QuantizationError, RuntimeError) as error:
        raise ArtifactError(f"{weights} does not fit the artifact's config: {error}") from error
    return model


def _model_id(artifact: Artifact, training: TrainingConfig) -> str:
    """Make the id of all that a bucket table depends on; the calibration and an export's time are no part of it."""
    description = artifact.description
    fingerprints = [description.get("schema_fingerprint"), description.get("learnt_fingerprint")]
    encoders = {name: [config.kind, departures(config)] for name, config in sorted(training.model.sequences.items())}
    told = json.dumps([description["files"][WEIGHTS_NAME], *fingerprints, encoders])
    return hashlib.sha256(told.encode()).hexdigest()[:MODEL_ID_LENGTH]


def _read_calibration(artifact: Artifact, config: TrainingConfig) -> Calibration:
    if config.calibration.kind == "none" and CALIBRATION_NAME not in artifact.description["files"]:
        return Calibration()
    try:
        return Calibration.from_json(artifact.read_json(CALIBRATION_NAME))
    except CalibrationError as error:
        raise ArtifactError(f"{artifact.folder} is not a usable artifact: {error}") from error
