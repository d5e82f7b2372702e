"""Files of vectors, and their tables by id: what is read, what is left out and counted, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from features.disk.vector_file import read_vectors
from features.disk.vector_tables import load_vector_table, save_vector_table
from features.encode_rows import FeatureEncoder
from features.learnt import Learnt
from features.schema import BoundariesEncoding, FeatureSchema, HashEncoding, SparseFeature, Values, VocabularyEncoding
from features.vector_source import VectorFileError, VectorSource
from features.vector_table import VectorTable, make_vector_table
from tests.stand_ins.object_store import Bucket

SCHEMA = FeatureSchema(
    "click",
    (
        SparseFeature("item", VocabularyEncoding(), table="items"),
        SparseFeature("other", VocabularyEncoding(), table="items"),
        SparseFeature("bucket", HashEncoding(9), columns=("item",)),
        SparseFeature("size", BoundariesEncoding((1.0, 2.0)), columns=("item",)),
        SparseFeature("tags", HashEncoding(9), separator="|"),
        SparseFeature("cross", HashEncoding(9), columns=("item", "other")),
    ),
    values=Values(null_tokens=("none",)),
)
LEARNT = Learnt({name: ["a", "7", "c"] for name in ("item", "other")}, out_of_vocabulary={"item": 2, "other": 2})
"""The out-of-vocabulary id stands among the others, as in a dataset that goes on with another."""
VECTORS = [[3.0, 4.0], [0.0, 0.0], [5.0, -12.0], [1.0, 2.0]]


def write(folder: Path, values: Any, vectors: Any = VECTORS, form: str = "parquet") -> VectorSource:
    path = folder / f"vectors.{form}"
    if form == "parquet":
        pq.write_table(pa.table({"id": pa.array(values), "vector": vectors}), path)
    elif form == "npz":
        np.savez(path, id=np.asarray(values), vector=np.asarray(vectors))
    else:
        np.save(path, np.asarray(vectors))
        np.save(folder / "ids.npy", np.asarray(values))
        return VectorSource(path=str(path), ids_path=str(folder / "ids.npy"))
    return VectorSource(path=str(path))


def make(source: VectorSource, name: str = "item", **options: Any) -> VectorTable:
    return make_vector_table(read_vectors(source), SCHEMA, LEARNT, name, **options)


@pytest.mark.parametrize("form", ["parquet", "npz", "npy"])
def test_rows_are_the_ids_that_a_row_of_the_log_gets(form: str, tmp_path: Path) -> None:
    values = ["a", "c", "7", "unseen"]
    table = make(write(tmp_path, values, form=form))
    schema = FeatureSchema("click", SCHEMA.sparse[:2], values=SCHEMA.values)
    encoder = FeatureEncoder(schema, LEARNT)
    rows = [{"item": value, "other": None} for value in values[:3]]
    ids = [encoder.encode([row])["item"][0] for row in rows]
    assert sorted(ids) == [1, 3, 4]
    for id_, vector in zip(ids, VECTORS, strict=False):
        np.testing.assert_array_equal(table.vectors_VW[id_], vector)
    assert table.is_known_V.tolist() == [False, True, False, True, True]
    assert not table.vectors_VW[[0, 2]].any() and table.vectors_VW.dtype == np.float32
    counts = table.counts
    assert (counts.values, counts.unknown, counts.shared, counts.rows, counts.covered) == (4, 1, 0, 3, 3)
    assert str(counts) == "vectors for 3 of 3 ids (100.0%); 1 of the file's 4 values are outside the vocabulary"


def test_whole_numbers_are_the_texts_of_the_log(tmp_path: Path) -> None:
    for values in (np.array([7, 8], np.int64), pa.array([7.0, 8.0]), pa.array(["7", "8"]).dictionary_encode()):
        table = make(write(tmp_path, values, VECTORS[:2]))
        assert table.is_known_V.nonzero()[0].tolist() == [LEARNT.ids_of("item")["7"]]


def test_a_vector_of_length_one(tmp_path: Path) -> None:
    """AdSEE: (3, 4) becomes (.6, .8); a vector of zeros stays one, and is none that is missing."""
    table = make(write(tmp_path, ["a", "7", "c", "unseen"]), normalise=True)
    ids = LEARNT.ids_of("item")
    np.testing.assert_array_equal(table.vectors_VW[ids["a"]], np.float32([0.6, 0.8]))
    np.testing.assert_allclose(table.vectors_VW[ids["c"]], [5 / 13, -12 / 13], rtol=1e-7)
    assert not table.vectors_VW[ids["7"]].any() and table.is_known_V[ids["7"]]
    assert make(write(tmp_path, ["a"], [[1e30, 1e30]]), normalise=True).vectors_VW[1, 0] == np.float32(0.5**0.5)


def test_the_first_value_of_a_bucket_wins(tmp_path: Path) -> None:
    values = [f"v{n}" for n in range(40)]
    vectors = np.arange(80, dtype=np.float32).reshape(40, 2) + 1
    table = make(write(tmp_path, values, vectors.tolist()), "bucket")
    encoder = FeatureEncoder(FeatureSchema("click", (SCHEMA.sparse[2],)), Learnt())
    first: dict[int, int] = {}
    for row, id_ in enumerate(encoder.encode([{"item": value} for value in values])["bucket"]):
        first.setdefault(int(id_), row)
    assert len(first) == table.counts.covered == 8 == table.counts.rows and table.counts.shared == 32
    for id_, row in first.items():
        np.testing.assert_array_equal(table.vectors_VW[id_], vectors[row])
    assert "32 share an id" in str(table.counts)


def test_buckets_of_numbers_have_vectors_too(tmp_path: Path) -> None:
    table = make(write(tmp_path, [0, 5], VECTORS[:2]), "size")
    assert table.is_known_V.tolist() == [False, True, False, True]


def test_half_precision(tmp_path: Path) -> None:
    table = make(write(tmp_path, ["a"], [[0.1, 2.0]]), half=True)
    assert table.vectors_VW.dtype == np.float16 and table.vectors_VW[1].tolist() == [np.float16(0.1), 2.0]
    with pytest.raises(VectorFileError, match="too large for float16"):
        make(write(tmp_path, ["a"], [[1e5, 0.0]]), half=True)


REFUSED = {
    "twice": (["a", "c", "a"], VECTORS[:3], r"the value 'a' twice \(rows 1 and 3\)"),
    "missing value": (["a", None], VECTORS[:2], r"row 2 has no value that 'item' can have \(None\)"),
    "a text that means missing": (["none", "a"], VECTORS[:2], r"row 1 has no value"),
    "a fraction": ([1.5, 7.0], VECTORS[:2], r"row 1 has no value that 'item' can have \(1.5\)"),
    "nothing known": (["x", "y"], VECTORS[:2], r"none of its 2 values is in the vocabulary of 'item' \(such as 'x'\)"),
    "not finite": (["a", "c"], [[1.0, 2.0], [np.inf, 0.0]], r"vector of 'c' \(row 2\) holds a number that is not fin"),
    "NaN": (["a", "c"], [[np.nan, 2.0], [1.0, 0.0]], r"vector of 'a' \(row 1\)"),
    "too large": (["a"], [[1e300]], r"not finite"),
    "lengths": (["a", "c"], [[1.0, 2.0], [1.0]], r"different lengths.*2 numbers in row 1, 1 of 'c' \(row 2\)"),
    "no numbers": (["a"], [[]], r"different lengths, or none|lists of null"),
    "no vector": (["a", "c"], [[1.0], None], r"'c' \(row 2\) has no vector"),
    "a missing number": (["a", "c"], [[1.0], [None]], r"vectors with missing numbers"),
    "texts": (["a"], [["1"]], r"lists of string"),
    "no lists": (["a"], [1.0], r"is double, and not lists"),
    "nothing": (pa.array([], pa.string()), pa.array([], pa.list_(pa.float32())), r"has no rows"),
}


@pytest.mark.parametrize(("values", "vectors", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(values: Any, vectors: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(VectorFileError, match=message):
        make(write(tmp_path, values, vectors))


@pytest.mark.parametrize("name", ["tags", "cross", "nobody"])
def test_a_feature_that_can_have_no_vectors(name: str, tmp_path: Path) -> None:
    with pytest.raises(VectorFileError, match=f"'{name}' has vectors, but is no sparse feature of one value"):
        make(write(tmp_path, ["a"], [[1.0]]), name)


def test_files_that_are_not_what_the_config_says(tmp_path: Path) -> None:
    source = write(tmp_path, ["a"], [[1.0, 2.0]])
    digest = read_vectors(source).sha256
    same = VectorSource(path=source.path, dimension=2, sha256=digest)
    assert read_vectors(same).dimension == 2
    cases = {
        "has vectors of 2 numbers, and dimension is 3": {"dimension": 3},
        "is another file than it was": {"sha256": "0" * 64},
        r"no column 'key' \(id_column\); it has: id, vector": {"id_column": "key"},
        r"no column 'key' \(vector_column\)": {"vector_column": "key"},
    }
    for message, changes in cases.items():
        with pytest.raises(VectorFileError, match=message):
            read_vectors(VectorSource(path=source.path, **changes))
    with pytest.raises(VectorFileError, match=r"nowhere.npz is missing"):
        read_vectors(VectorSource(path=str(tmp_path / "nowhere.npz")))
    for form in ("parquet", "npz"):
        (broken := tmp_path / f"broken.{form}").write_bytes(b"PAR1 and no more")
        with pytest.raises(VectorFileError, match="cannot be read as vectors"):
            read_vectors(VectorSource(path=str(broken)))
    np.savez(tmp_path / "objects.npz", id=np.array(["a", 1], object), vector=np.ones((2, 2)))
    with pytest.raises(VectorFileError, match="cannot be read as vectors"):
        read_vectors(VectorSource(path=str(tmp_path / "objects.npz")))
    arrays = write(tmp_path, ["a", "c"], np.ones((3, 2)), "npy")
    with pytest.raises(VectorFileError, match="3 vectors and 2 values"):
        read_vectors(arrays)
    with pytest.raises(VectorFileError, match=r"shape \(N, W\), and has \(2,\) and \(3,\)"):
        read_vectors(write(tmp_path, ["a", "c"], np.ones(3), "npy"))
    for wrong in ({"path": "a.csv"}, {"path": "a.npy"}, {"path": "a.npz", "ids_path": "b.npy"}):
        with pytest.raises(ValidationError):
            VectorSource(**wrong)


def test_the_digest_of_a_pair_is_of_both(tmp_path: Path) -> None:
    digests = {read_vectors(write(tmp_path, values, [[1.0]], "npy")).sha256 for values in (["a"], ["c"])}
    assert len(digests) == 2


def test_a_table_comes_back_from_a_run(tmp_path: Path) -> None:
    path = tmp_path / "vectors" / "text.safetensors"
    assert load_vector_table(path) is None
    for half in (False, True):
        table = make(write(tmp_path, ["a", "unseen"], VECTORS[:2]), half=half)
        save_vector_table(path, table, "this")
        again = load_vector_table(path, "this")
        assert again is not None and again.counts == table.counts and again.sha256 == table.sha256
        for ours, theirs in ((again.vectors_VW, table.vectors_VW), (again.is_known_V, table.is_known_V)):
            assert ours.dtype == theirs.dtype and ours.flags.writeable
            np.testing.assert_array_equal(ours, theirs)
        assert load_vector_table(path, "that") is None
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        load_vector_table(path)


def test_a_file_in_a_store(bucket: Bucket, tmp_path: Path) -> None:
    source = write(tmp_path, ["a", "c"], VECTORS[:2])
    bucket.write("vectors.parquet", Path(source.path).read_bytes())
    there, here = read_vectors(VectorSource(path=f"{bucket.url}/vectors.parquet")), read_vectors(source)
    assert there.sha256 == here.sha256 and there.values == here.values
    np.testing.assert_array_equal(there.vectors_NW, here.vectors_NW)
    with pytest.raises(VectorFileError, match=r"s3://.*/nothing\.parquet is missing"):
        read_vectors(VectorSource(path=f"{bucket.url}/nothing.parquet"))
