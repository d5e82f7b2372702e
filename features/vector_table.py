"""VectorTable: vectors of a feature's values, laid out by the ids of the feature's embedding table.

Shapes: V rows of the table, W numbers of a vector, N values of a file.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import pc
from features.disk.vector_file import VectorFile
from features.encode import Finisher, prepare
from features.hashing import MISSING_ID
from features.learnt import Learnt
from features.schema import VOCABULARY_KINDS, FeatureSchema, SparseFeature
from features.values import ColumnError, as_mask, loose_texts
from features.values import texts as canonical_texts
from features.vector_source import VectorFileError, find_vector_feature

MAX_FLOAT16 = 65504.0


@dataclass(frozen=True)
class VectorCounts:
    """Counts of a file's values and of a table's rows.

    Attributes:
        values: values of the file.
        unknown: those outside the vocabulary, which are left out.
        shared: those whose id another value had before, which are left out.
        rows: rows of the table that stand for values.
        covered: rows with a vector.
    """

    values: int
    unknown: int
    shared: int
    rows: int
    covered: int

    def __str__(self) -> str:
        """Describe how much of the table the file covers."""
        share = self.covered / self.rows if self.rows else 0.0
        words = f"vectors for {self.covered:,} of {self.rows:,} ids ({share:.1%})"
        if self.unknown:
            words += f"; {self.unknown:,} of the file's {self.values:,} values are outside the vocabulary"
        if self.shared:
            words += f"; {self.shared:,} share an id with a value before them, whose vector stays"
        return words


@dataclass(frozen=True)
class VectorTable:
    """VectorTable: a row for each id of a feature.

    Attributes:
        vectors_VW: float32 or float16; zeros where there is no vector.
        is_known_V: ids that have one.
        sha256: digest of the file that they are from.
        counts: what became of the file's values.
    """

    vectors_VW: NDArray[Any]
    is_known_V: NDArray[np.bool_]
    sha256: str
    counts: VectorCounts

    def summary(self) -> dict[str, Any]:
        """Describe the table as a run's metrics hold it."""
        return {"sha256": self.sha256, "dimension": self.vectors_VW.shape[1], **asdict(self.counts)}


def make_vector_table(
    file: VectorFile,
    schema: FeatureSchema,
    learnt: Learnt,
    name: str,
    *,
    normalise: bool = False,
    half: bool = False,
) -> VectorTable:
    """Lay vectors out by the ids that a feature's own encoding gives their values.

    Where several values have one id, as buckets of a hash have, the first one of the file wins.

    Args:
        file: values and vectors.
        schema: schema of the features.
        learnt: its learnt state.
        name: the feature.
        normalise: divide each vector by its length; one of length 0 stays.
        half: keep float16 numbers.

    Raises:
        VectorFileError: a value is missing, cannot be read, or is there twice; no value has an id; or a number is too
            large for float16.
    """
    feature = find_vector_feature(schema, name)
    ids = _encode(file, schema, learnt, feature)
    num_rows = learnt.num_embeddings(feature)
    unknown = {MISSING_ID} | ({learnt.oov_id(name)} if feature.encoding.kind in VOCABULARY_KINDS else set())
    has_id = ~np.isin(ids, [*unknown])
    if not has_id.any():
        raise VectorFileError(
            f"{file.name}: none of its {len(ids):,} values is in the vocabulary of {name!r} (such as "
            f"{file.values[0].as_py()!r:.80}): give raw values, as the log has them"
        )
    known, first = np.unique(ids[has_id], return_index=True)
    places = np.flatnonzero(has_id)[first]
    vectors = file.vectors_NW[places]
    if normalise:
        vectors = _normalised(vectors)
    if half and np.abs(vectors).max() > MAX_FLOAT16:
        raise VectorFileError(f"{file.name} holds numbers that are too large for float16: keep float32, or normalise")
    table = np.zeros((num_rows, vectors.shape[1]), np.float16 if half else np.float32)
    is_known = np.zeros(num_rows, np.bool_)
    table[known], is_known[known] = vectors, True
    counts = VectorCounts(
        values=len(ids),
        unknown=int(np.count_nonzero(~has_id)),
        shared=int(np.count_nonzero(has_id)) - len(known),
        rows=num_rows - len(unknown),
        covered=len(known),
    )
    return VectorTable(table, is_known, file.sha256, counts)


def _normalised(vectors_NW: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_N1 = np.sqrt(np.square(vectors_NW, dtype=np.float64).sum(axis=1, keepdims=True))
    return (vectors_NW / np.where(lengths_N1 > 0, lengths_N1, 1.0)).astype(np.float32)


def _encode(file: VectorFile, schema: FeatureSchema, learnt: Learnt, feature: SparseFeature) -> NDArray[np.int32]:
    """Encode a file's values as the feature's are in rows, (N,)."""
    alone = FeatureSchema(schema.label, (feature,), values=schema.values)
    try:
        prepared = prepare(alone, {feature.columns[0]: file.values}, needed=[feature.name])
        is_text = feature.encoding.kind in ("hash", "vocabulary")
        texts = canonical_texts(file.values, schema.values)[0] if is_text else loose_texts(file.values, schema.values)
    except ColumnError as error:
        raise VectorFileError(f"{file.name}: values of {feature.name!r}: {error}") from error
    bad = as_mask(texts.is_null()) | ~prepared.is_good
    if bad.any():
        row = int(bad.argmax())
        raise VectorFileError(
            f"{file.name}: row {row + 1} has no value that {feature.name!r} can have "
            f"({file.values[row].as_py()!r:.80}): leave out such rows"
        )
    if len(distinct := pc.unique(texts)) < len(texts):
        _refuse_twice(file, texts, distinct)
    return Finisher(schema, learnt, only=[feature.name]).ids(feature, prepared)[0]


def _refuse_twice(file: VectorFile, texts: pa.Array, distinct: pa.Array) -> None:
    codes = pc.index_in(texts, value_set=distinct).to_numpy(zero_copy_only=False)
    row = int(np.setdiff1d(np.arange(len(codes)), np.unique(codes, return_index=True)[1])[0])
    first = int(np.flatnonzero(codes == codes[row])[0])
    raise VectorFileError(
        f"{file.name} has the value {texts[row].as_py()!r:.80} twice (rows {first + 1} and {row + 1}): keep one of them"
    )
