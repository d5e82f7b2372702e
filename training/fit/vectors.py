"""Files of vectors in a training: their identity in the config, tables that a run keeps, starts of embedding tables."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from features.disk.run_folder import RunError, RunFolder
from features.disk.vector_file import read_vectors
from features.disk.vector_tables import load_vector_table, save_vector_table, vector_table_path
from features.vector_source import VectorFileError, VectorSource
from features.vector_table import VectorTable, make_vector_table
from training.config import ModelConfig, VectorsConfig
from training.data.opened_dataset import Dataset
from training.model.embedding import HISTORY_STREAMS, EmbeddingTable

_log = logging.getLogger(__name__)


def settle_vectors(config: ModelConfig) -> ModelConfig:
    """Write the dimension and the digest of each file of vectors into a config.

    Raises:
        VectorFileError: a file cannot be used, or is not the one that the config says.
        StorageError: its store cannot be read.
    """
    return replace(
        config,
        vectors={name: _settled("vectors", name, source) for name, source in config.vectors.items()},
        pretrained={name: _settled("pretrained", name, source) for name, source in config.pretrained.items()},
    )


def _settled(section: str, name: str, source: Any) -> Any:
    try:
        file = read_vectors(source)
    except VectorFileError as error:
        raise VectorFileError(f"training.model.{section}.{name}: {error}") from error
    return replace(source, dimension=file.dimension, sha256=file.sha256)


def with_dimensions(config: ModelConfig) -> ModelConfig:
    """Write the dimension of each file of vectors into a config that has none, for a model that is only planned.

    Raises:
        VectorFileError, StorageError: as ``settle_vectors``.
    """
    known = {n: c if c.dimension is not None else _settled("vectors", n, c) for n, c in config.vectors.items()}
    return replace(config, vectors=known)


def changed_vectors(before: ModelConfig, now: ModelConfig) -> list[str]:
    """Name the files of vectors that are not those of an earlier config, with both digests; the configs are settled."""
    pairs = [
        (f"training.model.{section}.{name}", getattr(before, section)[name], source)
        for section in ("vectors", "pretrained")
        for name, source in getattr(now, section).items()
        if name in getattr(before, section)
    ]
    return [
        f"{key}: {new.path} (sha256 {new.sha256[:12]}, and it began with {old.sha256[:12]})"
        for key, old, new in pairs
        if new.sha256 != old.sha256
    ]


def without_paths(config: ModelConfig) -> ModelConfig:
    """Return a config without the paths of files of vectors, whose digests say what they are."""

    def unplaced(sources: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: replace(source, path="vectors.npz", ids_path=None) if source.sha256 else source
            for name, source in sources.items()
        }

    return replace(config, vectors=unplaced(config.vectors), pretrained=unplaced(config.pretrained))


def keep_vectors(run: RunFolder, config: ModelConfig, dataset: Dataset) -> dict[str, VectorTable]:
    """Make the tables of fixed vectors that a run begins with, unless it has them, and keep them in its folder.

    Any rank may call it, and several at once: each writes the same.

    Raises:
        VectorFileError: a file cannot be used, or is not the one that the config says.
        StorageError: its store cannot be read.
        OSError: the run's folder cannot be written.
    """
    found = {}
    for name, source in config.vectors.items():
        path, made_of = vector_table_path(run.path, name), _made_of(source, dataset)
        table = load_vector_table(path, made_of) if source.sha256 else None
        if table is None:
            table = _make(f"vectors.{name}", source, dataset, source.feature, source.normalise, source.precision)
            save_vector_table(path, table, made_of)
            _log.info("vectors %s: %s", name, table.counts)
        found[name] = table
    return found


def kept_vectors(run: RunFolder, config: ModelConfig) -> dict[str, VectorTable]:
    """Load the tables of fixed vectors that a run was begun with.

    Raises:
        RunError: one is missing.
        ValueError: one is damaged.
    """
    found = {name: load_vector_table(vector_table_path(run.path, name)) for name in config.vectors}
    missing = [name for name, table in found.items() if table is None]
    if missing:
        raise RunError(f"{run.path} has no {vector_table_path(run.path, missing[0])}: train the model again")
    return {name: table for name, table in found.items() if table is not None}


def read_starts(config: ModelConfig, dataset: Dataset, tables: tuple[EmbeddingTable, ...]) -> dict[str, VectorTable]:
    """Read the vectors that embedding tables start with: name of a table -> its first rows.

    Args:
        config: model with its ``pretrained``.
        dataset: dataset whose ids the tables have.
        tables: the model's.

    Raises:
        VectorFileError: a file cannot be used, a feature has no table of the vectors' width in a stream, or two
            features share a table.
        StorageError: its store cannot be read.
    """
    found: dict[str, VectorTable] = {}
    for feature, source in config.pretrained.items():
        key = f"training.model.pretrained.{feature}"
        streams = (source.stream,) if source.stream else HISTORY_STREAMS
        own = [table for table in tables if feature in table.features and table.stream in streams]
        if not own:
            raise VectorFileError(f"{key}: no table of that feature is in a stream of the model ({', '.join(streams)})")
        vectors = _make(f"pretrained.{feature}", source, dataset, feature, source.normalise, "float32")
        for table in own:
            if table.width != vectors.vectors_VW.shape[1]:
                raise VectorFileError(
                    f"{key}: {source.path} has vectors of {vectors.vectors_VW.shape[1]} numbers, and the table of the "
                    f"{table.stream} stream has rows of {table.width}: give the feature that embedding_dim, or name "
                    "the stream that is as wide"
                )
            if table.name in found:
                raise VectorFileError(f"{key}: another feature of the same table has vectors too: name one of them")
            found[table.name] = vectors
        _log.info("%s starts with %s", ", ".join(table.name for table in own), vectors.counts)
    return found


def describe_starts(
    config: ModelConfig, tables: tuple[EmbeddingTable, ...], starts: Mapping[str, VectorTable]
) -> dict[str, dict[str, Any]]:
    """Describe the vectors that tables start with, feature by feature, as a run's history holds them."""
    found = {}
    for feature in config.pretrained:
        names = [table.name for table in tables if feature in table.features and table.name in starts]
        found[feature] = {"tables": names, **starts[names[0]].summary()}
    return found


def _make(
    key: str, source: VectorSource, dataset: Dataset, feature: str, normalise: bool, precision: str
) -> VectorTable:
    try:
        half = precision == "float16"
        schema = dataset.manifest.schema
        return make_vector_table(read_vectors(source), schema, dataset.learnt, feature, normalise=normalise, half=half)
    except VectorFileError as error:
        raise VectorFileError(f"training.model.{key}: {error}") from error


def _made_of(source: VectorsConfig, dataset: Dataset) -> str:
    schema, learnt = dataset.manifest.schema_fingerprint, dataset.learnt.fingerprint
    return json.dumps([source.sha256, source.feature, source.normalise, source.precision, schema, learnt])
