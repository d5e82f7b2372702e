"""Predictor: raw rows in, click probabilities out, equal to the trained model's."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from features.encoding import MissingColumnError, RawRow, RowEncoder, RowError
from features.learnt import Learnt
from features.rawlog import LogError, LogFormat, Lookup, read_lines
from features.schema import FeatureSchema
from training.batch import to_batch
from training.calibration import CALIBRATION_NAME, Calibration, CalibrationError
from training.config import TrainingConfig
from training.model.ctr_model import CTRModel
from training.parallelize import needs_padded_tables

ARTIFACT_NAME = "artifact.json"
WEIGHTS_NAME = "weights.safetensors"
GOLDEN_NAME = "golden.jsonl"
GOLDEN_TOLERANCE = 1e-6
"""Largest difference between a golden row's stored and replayed probability."""
BATCH_SIZE = 4096


class ArtifactError(ValueError):
    """An artifact is damaged, of another version, or does not score its own golden rows."""


class Predictor:
    """Scores raw rows with one model."""

    def __init__(
        self, model: CTRModel, schema: FeatureSchema, learnt: Learnt, config: dict[str, Any], calibration: Calibration
    ) -> None:
        self.model = model.eval()
        self.schema = schema
        self.config = config
        self.calibration = calibration
        self._encoder = RowEncoder(schema, learnt)

    @classmethod
    def load(cls, artifact: Path | str) -> "Predictor":
        """Read an artifact, check every file and replay its golden rows.

        Raises:
            ArtifactError: a file is missing or changed, a fingerprint is foreign, or a golden row scores differently.
        """
        folder = Path(artifact)
        description = _read_description(folder)
        config = _read_json(folder / "config.json")
        try:
            schema = TypeAdapter(FeatureSchema).validate_python(config["features"])
            training = TypeAdapter(TrainingConfig).validate_python(config["training"])
        except (ValidationError, KeyError) as error:
            raise ArtifactError(f"{folder / 'config.json'} is not understood: {error}") from error
        learnt = Learnt.load(folder / "learnt", schema)
        if (schema.fingerprint, learnt.fingerprint) != (
            description["schema_fingerprint"],
            description["learnt_fingerprint"],
        ):
            raise ArtifactError(f"{folder} belongs to another feature schema: export the model again")
        num_embeddings = {f.name: learnt.num_embeddings(f) for f in schema.sparse}
        model = CTRModel(schema, num_embeddings, training.model, pad_tables=needs_padded_tables(training))
        try:
            model.load_state_dict(load_file(folder / WEIGHTS_NAME))
        except (SafetensorError, RuntimeError) as error:
            raise ArtifactError(f"{folder / WEIGHTS_NAME} does not fit the artifact's config: {error}") from error
        predictor = cls(model, schema, learnt, config, _read_calibration(folder, training))
        predictor._replay(folder / GOLDEN_NAME)
        return predictor

    def predict(self, rows: Sequence[RawRow]) -> NDArray[np.float64]:
        """Calibrated click probabilities of raw rows.

        Args:
            rows: raw column -> value; columns that no feature uses are ignored, an unseen value is out-of-vocabulary.

        Returns:
            (rows,) probabilities.

        Raises:
            RowError: a column is missing or a value malformed; names row and column.
        """
        scores = [np.empty(0)]
        for start in range(0, len(rows), BATCH_SIZE):
            columns = self._encoder.encode(rows[start : start + BATCH_SIZE])
            with torch.no_grad():
                logits = self.model(to_batch(columns, self.schema)).fused
            scores.append(torch.sigmoid(self.calibration.apply(logits.double())).numpy())
        return np.concatenate(scores)

    def read_log(self, path: str) -> Iterator[tuple[int, dict[str, Any] | LogError]]:
        """Lines of a raw log of the kind the model was trained on, as ``features.rawlog.read_lines`` gives them.

        Raises:
            LogError: as ``read_lines``.
        """
        input_config = self.config["pipeline"]["input"]
        log_format = TypeAdapter(LogFormat).validate_python(input_config["format"])
        lookups = TypeAdapter(tuple[Lookup, ...]).validate_python(input_config["lookups"])
        return read_lines(path, log_format, lookups)

    def find_error(self, row: RawRow) -> str | None:
        """Why one raw row cannot be scored; None if it can.

        Raises:
            MissingColumnError: a column is missing, which is no single row's fault.
        """
        try:
            self._encoder.check(row)
        except MissingColumnError:
            raise
        except RowError as error:
            return str(error)
        return None

    def _replay(self, golden: Path) -> None:
        lines = [json.loads(line) for line in golden.read_text(encoding="utf-8").splitlines()]
        scores = self.predict([line["row"] for line in lines])
        for number, (line, score) in enumerate(zip(lines, scores, strict=True), start=1):
            if not abs(score - line["probability"]) <= GOLDEN_TOLERANCE:
                raise ArtifactError(
                    f"{golden} row {number} scores {score:.8f} here but {line['probability']:.8f} when exported: "
                    "this installation would serve other probabilities"
                )


def _read_description(folder: Path) -> dict[str, Any]:
    description = _read_json(folder / ARTIFACT_NAME)
    if description.get("version") != 1:
        raise ArtifactError(f"{folder} has artifact version {description.get('version')}; this program reads version 1")
    for name, digest in description["files"].items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ArtifactError(f"{path} is missing or was changed after export: export the model again")
    return description


def _read_calibration(folder: Path, config: TrainingConfig) -> Calibration:
    if config.calibration.kind == "none":
        return Calibration()
    try:
        return Calibration.from_json(_read_json(folder / CALIBRATION_NAME))
    except CalibrationError as error:
        raise ArtifactError(f"{folder} is not a usable artifact: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path.parent} is not a usable artifact: {path.name} cannot be read ({error})") from error
