"""Predictor: raw rows in, click probabilities out, equal to the trained model's."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from features.disk.object_store import VERSION, ObjectPath, download_all
from features.disk.place import Place, locate, temporary_folder
from features.disk.relative_path import check_relative, is_inside
from features.encoding import MissingColumnError, RawRow, RowEncoder, RowError
from features.learnt import Learnt
from features.rawlog import LogError, LogFormat, Lookup, read_lines
from features.schema import FeatureSchema
from training.config import TablePrecision, TrainingConfig, read_saved_training
from training.data.batch import to_batch
from training.judge.calibration import CALIBRATION_NAME, Calibration, CalibrationError
from training.model.ctr_model import CTRModel
from training.plugins import PluginError
from training.sharding.parallelize import needs_padded_tables
from training.ship.quantization import QuantizationError, check_layout, restore

ARTIFACT_NAME = "artifact.json"
WEIGHTS_NAME = "weights.safetensors"
GOLDEN_NAME = "golden.jsonl"
GOLDEN_TOLERANCE = 1e-6
"""Largest difference between a golden row's stored and replayed probability."""
BATCH_SIZE = 4096
VERSIONS = (1, 2)
"""Of artifacts: 1 has float32 tables, 2 quantised ones."""

P = TypeVar("P", Path, ObjectPath)


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
    def load(cls, artifact: Place | str) -> "Predictor":
        """Read an artifact, check every file and replay its golden rows.

        Raises:
            ArtifactError: a file is missing or changed, a fingerprint is foreign, a golden row scores differently, or
                the model needs a plugin that the user has not named.
            StorageError: its store cannot be read.
        """
        place = locate(artifact)
        if not isinstance(place, ObjectPath):
            return cls._load(place)
        with temporary_folder() as folder:
            _download(place, folder)
            return cls._load(folder)

    @classmethod
    def _load(cls, folder: Path) -> "Predictor":
        folder, description = _read_description(folder)
        config = _read_json(folder / "config.json")
        try:
            schema = TypeAdapter(FeatureSchema).validate_python(config["features"])
            training = read_saved_training(config["training"], folder)
        except PluginError as error:
            raise ArtifactError(str(error)) from error
        except (ValidationError, KeyError, RecursionError) as error:
            raise ArtifactError(f"{folder / 'config.json'} is not understood: {error}") from error
        learnt = Learnt.load(folder / "learnt", schema)
        if (schema.fingerprint, learnt.fingerprint) != (
            description.get("schema_fingerprint"),
            description.get("learnt_fingerprint"),
        ):
            raise ArtifactError(f"{folder} belongs to another feature schema: export the model again")
        model = _load_model(folder / WEIGHTS_NAME, schema, learnt, training, description.get("tables", "float32"))
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
            ArtifactError: the artifact does not say what that is.
            LogError: as ``read_lines``.
        """
        try:
            input_config = self.config["pipeline"]["input"]
            log_format = TypeAdapter(LogFormat).validate_python(input_config["format"])
            lookups = TypeAdapter(tuple[Lookup, ...]).validate_python(input_config["lookups"])
        except (KeyError, TypeError, ValidationError) as error:
            raise ArtifactError(f"the artifact's config does not say what its logs look like: {error}") from error
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
    """The network of a config with the stored weights; memory is taken for it only when their shapes are the same."""
    num_embeddings = {f.name: learnt.num_embeddings(f) for f in schema.sparse}
    padded = needs_padded_tables(training)
    try:
        stored = load_file(weights)
        with torch.device("meta"):
            outline = CTRModel(schema, num_embeddings, training.model, pad_tables=padded, device="meta")
        check_layout(outline, stored, tables)
        device = "cpu" if tables == "float32" else "meta"  # tables that are not kept take no memory
        model = CTRModel(schema, num_embeddings, training.model, pad_tables=padded, device=device)
        restore(model, stored, tables)
    except (SafetensorError, QuantizationError, RuntimeError) as error:
        raise ArtifactError(f"{weights} does not fit the artifact's config: {error}") from error
    return model


def _download(artifact: ObjectPath, to: Path) -> None:
    """Fetch an artifact's files to the same places in a local folder; what they hold is checked when they are read."""
    if not (artifact / ARTIFACT_NAME).is_file():
        raise ArtifactError(f"{artifact} is not an artifact: it has no {ARTIFACT_NAME}; run jobs.export first")
    (to / ARTIFACT_NAME).write_bytes((artifact / ARTIFACT_NAME).read_bytes())
    description = _read_json(to / ARTIFACT_NAME)
    files = _files_of(artifact, description)
    download_all(files, files.sizes(), _files_of(to, description))


def _files_of(artifact: P, description: dict[str, Any]) -> P:
    """The folder of an artifact's files: in an object store each export has one of its own."""
    folder = description.get("folder")
    if folder is None:
        return artifact
    if not isinstance(folder, str) or not VERSION.fullmatch(folder):
        raise ArtifactError(f"{artifact} is not opened: {folder!r:.80} is no folder of an artifact")
    return artifact / folder


def _read_description(artifact: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the artifact's files, all of them checked, and what ``artifact.json`` says."""
    description = _read_json(artifact / ARTIFACT_NAME)
    version, tables = description.get("version"), description.get("tables", "float32")
    if version not in VERSIONS:
        raise ArtifactError(f"{artifact} has artifact version {version!r:.80}; this program reads versions 1 and 2")
    if tables not in get_args(TablePrecision) or (version == 1) != (tables == "float32"):
        raise ArtifactError(f"{artifact} has tables of {tables!r:.80}, which version {version} has not")
    folder = _files_of(artifact, description)
    files = description.get("files")
    if not isinstance(files, dict) or not {WEIGHTS_NAME, GOLDEN_NAME, "config.json"} <= set(files):
        raise ArtifactError(f"{artifact / ARTIFACT_NAME} does not list the artifact's files")
    for name, digest in files.items():
        try:
            path = folder / check_relative(name)
        except ValueError as error:
            raise ArtifactError(f"{folder} is not opened: {error}") from error
        if not is_inside(artifact, path):
            raise ArtifactError(f"{folder} is not opened: {name!r} leads out of its folder")
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ArtifactError(f"{path} is missing or was changed after export: export the model again")
    return folder, description


def _read_calibration(folder: Path, config: TrainingConfig) -> Calibration:
    if config.calibration.kind == "none":
        return Calibration()
    try:
        return Calibration.from_json(_read_json(folder / CALIBRATION_NAME))
    except CalibrationError as error:
        raise ArtifactError(f"{folder} is not a usable artifact: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path.parent} is not a usable artifact: {path.name} cannot be read ({error})") from error
