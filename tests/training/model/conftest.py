"""Schemas, batches and models small enough to check by hand."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from features.kinds import LENGTH_SUFFIX
from features.schema import DenseFeature, FeatureSchema, SparseFeature, VocabularyEncoding
from training.config import ModelConfig
from training.data.batch import Batch, to_batch
from training.model.ctr_model import CTRModel


@pytest.fixture(scope="session")
def make_schema() -> Callable[..., FeatureSchema]:
    def make(names: str = "user item", bags: str = "", dense: str = "", pooling: str = "mean") -> FeatureSchema:
        """``bags``: which of the sparse ``names`` are multi-valued."""
        sparse = tuple(
            SparseFeature(
                name=name,
                encoding=VocabularyEncoding(),
                separator="|" if name in bags.split() else None,
                max_length=3,
                pooling=pooling,  # pyright: ignore[reportArgumentType]
            )
            for name in names.split()
        )
        return FeatureSchema(label="click", sparse=sparse, dense=tuple(DenseFeature(name=n) for n in dense.split()))

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    def make(
        schema: FeatureSchema, rows: Mapping[str, int], num_rows: int, batch_size: int | None = None, seed: int = 0
    ) -> Batch:
        """Random rows with ids from 1 up; ``rows`` is the number of rows of each feature's table."""
        random = np.random.default_rng(seed)
        columns = {}
        for feature in schema.sparse:
            shape = (num_rows, feature.max_length) if feature.separator else (num_rows,)
            columns[feature.name] = random.integers(1, rows[feature.name], shape, dtype=np.int32)
            if feature.separator:
                columns[feature.name + LENGTH_SUFFIX] = random.integers(0, 4, num_rows, dtype=np.int32)
        for dense in schema.dense:
            columns[dense.name] = random.normal(size=num_rows).astype(np.float32)
        columns["label"] = random.integers(0, 2, num_rows).astype(np.float32)
        return to_batch(columns, schema, batch_size)

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., CTRModel]:
    def make(schema: FeatureSchema, rows: Mapping[str, int], config: ModelConfig, **kwargs: object) -> CTRModel:
        """Embeddings and biases far from zero, so that nothing is equal by being negligible."""
        model = CTRModel(schema, rows, config, **kwargs)  # pyright: ignore[reportArgumentType]
        random = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for table in model.tables:
                values = torch.randn(table.num_embeddings, table.width, generator=random)
                model.embedding.bags.embedding_bags[table.name].weight[:, : table.width] = values  # pyright: ignore
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.copy_(torch.randn(parameter.shape, generator=random))
        return model

    return make
