"""VectorSource: where a file of vectors is, as a config says it; configs and models need no pyarrow for it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from features.schema import STRICT, FeatureSchema, SparseFeature

SUFFIXES = (".parquet", ".npz", ".npy")
"""Endings of files of vectors."""


class VectorFileError(ValueError):
    """A file of vectors is missing, damaged, or does not hold what it should; names the file and the cure."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class VectorSource:
    """A file of vectors, and where in it they are."""

    path: str
    """Parquet, npz or npy file, on disk or in an object store."""
    ids_path: str | None = None
    """File of the values, .npy; only for vectors in an .npy."""
    id_column: Annotated[str, Field(min_length=1)] = "id"
    """Column (Parquet) or array (npz) of the values."""
    vector_column: Annotated[str, Field(min_length=1)] = "vector"
    """Column or array of the vectors."""
    dimension: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    """Numbers of a vector; None: those that the file has when training starts."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Digest of the file; None: that of the file when training starts. Any other file is refused then."""

    def __post_init__(self) -> None:
        suffix = Path(self.path).suffix
        if suffix not in SUFFIXES:
            raise ValueError(f"{self.path!r} is no file of vectors: its name must end in {', '.join(SUFFIXES)}")
        if (suffix == ".npy") != (self.ids_path is not None):
            raise ValueError(
                "an .npy file has vectors alone, and needs ids_path, the .npy file of their values; other files have "
                "both, and no ids_path"
            )


def find_vector_feature(schema: FeatureSchema, name: str) -> SparseFeature:
    """Find the feature that vectors are of.

    Raises:
        VectorFileError: it is not single-valued, sparse and of one column.
    """
    feature = next((f for f in schema.sparse if f.name == name), None)
    if feature is None or feature.kind.takes_lists or len(feature.columns) > 1:
        raise VectorFileError(f"{name!r} has vectors, but is no sparse feature of one value and one column")
    return feature
