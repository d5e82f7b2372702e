"""Fingerprints are what they were: a dataset, a run or an artifact that somebody has stays theirs."""

import json
from pathlib import Path

from features.disk.dataset import DatasetManifest
from tests.golden.fingerprints import BASES, CONFIGS, FINGERPRINTS, FROZEN, LAYERS, OTHERS, current

VERSION = "version 2"
"""Of today's definition."""


def test_fingerprints_are_as_they_were() -> None:
    assert current() == json.loads(FINGERPRINTS.read_text(encoding="utf-8"))[VERSION]


def test_the_frozen_dataset_is_of_version_1() -> None:
    written = json.loads((Path(__file__).parent / "v1" / "dataset" / "manifest.json").read_text(encoding="utf-8"))
    known = json.loads(FINGERPRINTS.read_text(encoding="utf-8"))
    assert written["schema_fingerprint"] == known["version 1"][FROZEN]
    manifest = DatasetManifest.load(Path(__file__).parent / "v1" / "dataset")
    assert manifest.schema.fingerprint == known[VERSION][FROZEN]


def test_every_shipped_config_is_here() -> None:
    names = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.toml")}
    assert {name for name in names if name.partition("/")[0] not in OTHERS} == {*BASES, *LAYERS}
