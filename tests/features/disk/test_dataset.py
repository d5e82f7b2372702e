"""The manifest and the learnt files: round trip, and each kind of damage."""

import dataclasses

import pytest

from features.disk.dataset import DataFile, DatasetError, DatasetManifest, FeatureStatistics, Rejected, Split
from features.learnt import Learnt, LearntError
from features.schema import FeatureSchema, SparseFeature, VocabularyEncoding

SCHEMA = FeatureSchema("click", sparse=(SparseFeature("user", VocabularyEncoding()),))
LEARNT = Learnt({"user": ["a", "é"]}, {}, {})


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "part").write_bytes(b"12345")
    file = DataFile("part", 5, (2, 3), "0" * 64)
    statistics = FeatureStatistics(2, 0.0, 0.0, 0.5, max_id=3)
    LEARNT.save(tmp_path / "learnt")
    manifest = DatasetManifest(
        SCHEMA,
        SCHEMA.fingerprint,
        LEARNT.fingerprint,
        "learnt",
        {"train": Split((file,), 0.5, {"user": statistics})},
        Rejected(0, {}, None),
        5,
        0,
        {"train": ["log.csv"]},
        {},
    )
    manifest.write(tmp_path)
    return tmp_path


def test_round_trip(dataset):
    manifest = DatasetManifest.load(dataset)
    assert manifest.schema == SCHEMA
    assert manifest.split("train").num_rows == 5
    assert manifest.load_learnt(dataset) == LEARNT
    manifest.check_files(dataset, "train")
    manifest.check_ids(LEARNT)
    assert LEARNT.num_embeddings(SCHEMA.sparse[0]) == 4


def test_absent(tmp_path):
    with pytest.raises(DatasetError, match=r"is not a dataset: it has no manifest\.json"):
        DatasetManifest.load(tmp_path)


def test_damaged_manifest(dataset):
    path = dataset / "manifest.json"
    path.write_text(path.read_text()[:-50])
    with pytest.raises(DatasetError, match="cannot be read"):
        DatasetManifest.load(dataset)


def test_foreign_schema(dataset):
    path = dataset / "manifest.json"
    path.write_text(path.read_text().replace('"click"', '"tap"'))
    with pytest.raises(DatasetError, match="another version of the encoding rules"):
        DatasetManifest.load(dataset)


def test_missing_split(dataset):
    with pytest.raises(DatasetError, match="no 'test' split; it has: train"):
        DatasetManifest.load(dataset).split("test")


def test_cut_or_deleted_file(dataset):
    manifest = DatasetManifest.load(dataset)
    (dataset / "part").write_bytes(b"123")
    with pytest.raises(DatasetError, match=r"has 3 bytes where manifest\.json says 5"):
        manifest.check_files(dataset, "train")
    (dataset / "part").unlink()
    with pytest.raises(DatasetError, match="is missing"):
        manifest.check_files(dataset, "train")


def test_learnt_files_of_another_build(dataset):
    Learnt({"user": ["a", "b"]}, {}, {}).save(dataset / "learnt")
    with pytest.raises(DatasetError, match="does not match"):
        DatasetManifest.load(dataset).load_learnt(dataset)
    (dataset / "learnt" / "vocabulary.user.json").unlink()
    with pytest.raises(LearntError, match="missing or damaged"):
        DatasetManifest.load(dataset).load_learnt(dataset)


def test_id_outside_its_table(dataset):
    manifest = DatasetManifest.load(dataset)
    split = manifest.splits["train"]
    sparse = {"user": dataclasses.replace(split.sparse["user"], max_id=4)}
    manifest = dataclasses.replace(manifest, splits={"train": dataclasses.replace(split, sparse=sparse)})
    with pytest.raises(DatasetError, match="'user' has id 4 in split 'train' but its table has 4 rows"):
        manifest.check_ids(LEARNT)
