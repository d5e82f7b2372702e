"""Vector tables of a run: ``vectors/NAME.safetensors``, fixed vectors by the ids of the run's vocabularies.

A run keeps what it was begun with, so that it can be scored and exported whatever becomes of the file of vectors.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from features.disk.atomic import replacing
from features.vector_table import VectorCounts, VectorTable

VECTORS_NAME = "vectors"
"""Folder of the tables in a run's folder."""

_KEY = "twinfocus"


def vector_table_path(run: Path, name: str) -> Path:
    """Return the file of a run's table."""
    return run / VECTORS_NAME / f"{name}.safetensors"


def save_vector_table(path: Path, table: VectorTable, made_of: str) -> None:
    """Write a table in one step.

    Args:
        path: its file.
        table: the table.
        made_of: text that differs where the table would.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    described = json.dumps({"made_of": made_of, "sha256": table.sha256, "counts": asdict(table.counts)})
    with replacing(path) as temporary:
        save_file({"table": table.vectors_VW, "is_known": table.is_known_V}, temporary, {_KEY: described})


def load_vector_table(path: Path, made_of: str | None = None) -> VectorTable | None:
    """Read a table; None: there is none, or none made of this. ``made_of`` None: any.

    Raises:
        ValueError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            described = json.loads(file.metadata()[_KEY])
            if made_of not in (None, described["made_of"]):
                return None
            table, is_known = (np.array(file.get_tensor(name)) for name in ("table", "is_known"))
        return VectorTable(table, is_known, described["sha256"], VectorCounts(**described["counts"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): train the model again") from error
