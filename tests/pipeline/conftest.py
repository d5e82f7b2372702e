"""Fixtures of the pipeline's tests: build a dataset from a config tree, read it back."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from features.disk.dataset import DatasetManifest


@pytest.fixture
def build(spark, tmp_path):
    """``build(features, pipeline) -> (manifest, folder)``: run the whole job on a config tree."""
    from jobs.cli.config import parse_config
    from jobs.launch.dataset_build import check_build
    from jobs.launch.dataset_build import run_build as build_job

    def run(features: dict, pipeline: dict, folder: str = "dataset") -> tuple[DatasetManifest, Path]:
        dataset = tmp_path / folder
        tree = {
            "features": features,
            "pipeline": {"output": str(dataset), **pipeline},
            "training": {"dataset": str(dataset)},
        }
        config = parse_config(tree)
        check_build(config)
        build_job(spark, config)
        return DatasetManifest.load(dataset), dataset

    return run


@pytest.fixture
def read_split():
    """``read_split(manifest, folder, split) -> pyarrow.Table`` in the order rows are numbered."""

    def read(manifest: DatasetManifest, dataset: Path, split: str = "train") -> pyarrow.Table:
        manifest.check_files(dataset, split)
        return pyarrow.concat_tables(
            [pyarrow.parquet.read_table(dataset / f.path, partitioning=None) for f in manifest.split(split).files]
        )

    return read
