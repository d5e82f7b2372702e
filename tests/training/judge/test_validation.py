"""What a validation split must hold for what a config asks of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from features.disk.dataset import DatasetManifest
from features.disk.run_folder import RunError
from training.config import PlattCalibration, TrainingConfig
from training.judge.validation import check_validation

MakeDataset = Callable[..., Any]


def with_label_rate(manifest: DatasetManifest, rate: float) -> DatasetManifest:
    splits = {name: dataclasses.replace(split, label_rate=rate) for name, split in manifest.splits.items()}
    return dataclasses.replace(manifest, splits=splits)


@pytest.mark.parametrize(
    ("monitor", "undefined"),
    [
        ({"auc": 1.0}, "auc"),
        ({"logloss": -1.0, "gauc": 1.0}, "gauc"),
        ({"ne": -1.0, "auc": 1.0}, "ne, auc"),
        ({"logloss": -1.0, "ece": -1.0}, None),
    ],
)
@pytest.mark.parametrize("rate", [0.0, 1.0, 0.25])
def test_one_class(make_dataset: MakeDataset, monitor: dict[str, float], undefined: str | None, rate: float) -> None:
    config = TrainingConfig(dataset="d", monitor=monitor)
    manifest = with_label_rate(make_dataset().manifest, rate)
    if undefined is None or rate == 0.25:
        return check_validation(manifest, config)
    message = (
        rf"training\.monitor uses {undefined}, undefined on .* all 40 validation rows of d have label {rate:g}: .*"
    )
    with pytest.raises(RunError, match=message + r"training\.monitor = \{ logloss = -1\.0 \}"):
        check_validation(manifest, config)
    return None


def test_no_validation_split_is_no_error_without_a_calibration(make_dataset: MakeDataset) -> None:
    manifest = make_dataset(valid=()).manifest
    check_validation(manifest, TrainingConfig(dataset="d"))
    with pytest.raises(RunError, match=r"training\.calibration needs a validation split with both labels, and d"):
        check_validation(manifest, TrainingConfig(dataset="d", calibration=PlattCalibration()))
