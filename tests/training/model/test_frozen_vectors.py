"""Fixed vectors in a model: against a naive one, in every selection, encoder and history encoder."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from features.ragged import Ragged
from features.schema import FeatureSchema, HashEncoding, SequenceFeature, SparseFeature, Timestamp
from features.vector_table import VectorCounts, VectorTable
from tests.training.model.test_encoders import CONFIGS as ENCODER_CONFIGS
from tests.training.model.test_histories import CONFIGS as HISTORY_CONFIGS
from training.config import (
    GateSelection,
    MLPEncoder,
    ModelConfig,
    MoESelection,
    SharedSelection,
    StreamGatesSelection,
    VectorsConfig,
)
from training.data.batch import Batch, to_batch
from training.model.ctr_model import CTRModel
from training.model.embedding import ModelError
from training.model.frozen_vectors import FrozenVectors

SCHEMA = FeatureSchema(
    "click",
    (
        SparseFeature("user", HashEncoding(7)),
        SparseFeature("item", HashEncoding(9)),
        SparseFeature("cate", HashEncoding(5)),
        SparseFeature("tags", HashEncoding(5), separator=" ", max_length=2),
    ),
    sequence=(
        SequenceFeature("clicks", ("item", "cate"), 6, gaps=(60,), newest="first"),
        SequenceFeature("buys", ("cate",), 4, newest="first"),
    ),
    timestamp=Timestamp("time"),
)
ROWS = {"user": 7, "item": 9, "cate": 5, "tags": 5}
ROWS |= {"clicks__item": 9, "clicks__cate": 5, "clicks__gap": 3, "buys__cate": 5}
TEXT = VectorsConfig(path="a.npz", feature="item", dimension=3)
IMAGE = VectorsConfig(path="b.npz", feature="item", dimension=2, in_sequences=False, precision="float16")
CATE = VectorsConfig(path="c.npz", feature="cate", dimension=5)
VECTORS = {"text": TEXT, "image": IMAGE, "cate_text": CATE}
MLP = MLPEncoder((6, 5), dropout=0.0)


def make_table(config: VectorsConfig, seed: int = 0, missing: tuple[int, ...] = (0, 3)) -> VectorTable:
    rows = np.random.default_rng(seed).normal(size=(ROWS[config.feature], config.dimension or 0))
    rows[[*missing]] = 0
    is_known = np.ones(len(rows), np.bool_)
    is_known[[*missing]] = False
    return VectorTable(rows.astype(config.precision), is_known, "0" * 64, VectorCounts(9, 0, 0, 9, 7))


TABLES = {name: make_table(config, seed) for seed, (name, config) in enumerate(VECTORS.items())}


def make_model(seed: int = 1, tables: dict[str, VectorTable] = TABLES, **blocks: Any) -> CTRModel:
    """A model whose learnt vectors of missing ones are not the zeros that they start as."""
    config = ModelConfig(embedding_dim=4, embedding_init_std=0.5, easy=MLP, hard=MLP, vectors=VECTORS)
    model = CTRModel(SCHEMA, ROWS, replace(config, **blocks), seed=seed, vectors=tables)
    with torch.no_grad():
        for number, missing in enumerate(model.vectors.missing.values(), start=1):
            missing.copy_(torch.arange(len(missing)) + number)
    return model


def make_batch(num_rows: int = 12, padded: int = 0) -> Batch:
    rng = np.random.default_rng(5)
    columns: dict[str, Any] = {
        **{name: rng.integers(0, ROWS[name], num_rows).astype(np.int32) for name in ("user", "item", "cate")},
        "tags": rng.integers(1, 5, (num_rows, 2), dtype=np.int32),
        "tags__length": rng.integers(0, 3, num_rows).astype(np.int32),
        "label": rng.integers(0, 2, num_rows).astype(np.float32),
    }
    for sequence in SCHEMA.sequence:
        lengths = rng.integers(0, sequence.max_length + 1, num_rows)
        for key in sequence.keys:
            columns[key] = Ragged.of(rng.integers(0, ROWS[key], lengths.sum()).astype(np.int32), lengths)
    return to_batch(columns, SCHEMA, num_rows + padded)


def naive_field(vectors: FrozenVectors, name: str, stream: str, id_: int) -> torch.Tensor:
    """One value's field: its vector times the matrix, or the learnt vector of the missing."""
    table = TABLES[name]
    if not table.is_known_V[id_]:
        return vectors.missing[f"{name}__{stream}"]
    return torch.from_numpy(table.vectors_VW[id_].astype(np.float32)) @ vectors.projections[f"{name}__{stream}"]


@pytest.mark.parametrize("padded", [0, 4])
def test_fields_and_events_are_the_naive_ones(padded: int) -> None:
    model, batch = make_model(), make_batch(padded=padded)
    before = model.embedding(batch.sparse_features, batch.dense_features, batch.num_rows)
    streams, histories = model.vectors(batch.sparse_features, *before)
    ids = {name: of.to_dense() for name, of in batch.sparse_features.to_dict().items()}
    for stream in ("easy", "hard"):
        assert streams[stream].shape[1] == before[0][stream].shape[1] + 3
        torch.testing.assert_close(streams[stream][:, :-3], before[0][stream], rtol=0, atol=0)
        for place, (name, config) in enumerate(VECTORS.items()):
            expected = [naive_field(model.vectors, name, stream, int(ids[config.feature][b])) for b in range(12)]
            torch.testing.assert_close(streams[stream][:, place - 3], torch.stack(expected))
        for sequence, names in (("clicks", ["text", "cate_text"]), ("buys", ["cate_text"])):
            old, new = before[1][stream][sequence], histories[stream][sequence]
            k, width = old.target_BK.shape[1], model.embedding.widths[stream]
            added = [
                torch.stack(
                    [
                        naive_field(model.vectors, name, stream, int(id_))
                        for row in ids[f"{sequence}__{VECTORS[name].feature}"][:12]
                        for id_ in row
                    ]
                )
                for name in names
            ]
            events = torch.cat([old.events_NE[:, :k], *added, old.events_NE[:, k:]], dim=1)
            torch.testing.assert_close(new.events_NE, events)
            places = [list(VECTORS).index(name) - 3 for name in names]
            target = torch.cat([old.target_BK, streams[stream][:, places].flatten(1)], dim=1)
            torch.testing.assert_close(new.target_BK, target)
            assert new.target_BK.shape[1] == k + len(names) * width
    for stream in ("first_order_easy", "shared"):
        assert streams[stream].shape == before[0][stream].shape


SELECTIONS = [SharedSelection(), GateSelection(), MoESelection(), StreamGatesSelection(easy_context=("user",))]
BLOCKS: dict[str, dict[str, Any]] = {
    **{selection.kind: {"selection": selection} for selection in SELECTIONS},
    **{
        f"{kind} {i}": {"hard": config}
        for kind, configs in ENCODER_CONFIGS.items()
        for i, config in enumerate(configs)
        if kind not in ("none", "fgcnn")
    },
    **{
        f"history {kind} {i}": {"sequences": {"clicks": config}}
        for kind, configs in HISTORY_CONFIGS.items()
        for i, config in enumerate(configs)
    },
}


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
def test_every_block_takes_them_as_it_takes_any_field(blocks: dict[str, Any]) -> None:
    model, batch = make_model(**blocks).train(), make_batch()
    logits = model(batch)
    assert logits.fused.shape == (12,) and bool(torch.isfinite(logits.fused).all())
    sum(logit.pow(2).sum() for logit in logits).backward()  # pyright: ignore
    for name, parameter in model.vectors.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
    assert all(table.grad is None and not table.requires_grad for table in model.vectors.tables.values())
    assert len(model.vectors.tables) == 6


def test_only_the_projection_learns() -> None:
    model, batch = make_model(), make_batch()
    kept = {name: table.clone() for name, table in model.vectors.tables.items()}
    assert not any("vectors" in name and "table" in name for name in model.state_dict())
    assert not any("table" in name or "is_known" in name for name, _ in model.vectors.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.vectors.projections["text__hard"].detach().clone()
    model(batch).fused.sum().backward()
    optimizer.step()
    assert not torch.equal(model.vectors.projections["text__hard"], before)
    for name, table in model.vectors.tables.items():
        assert torch.equal(table, kept[name])


def test_a_value_without_a_vector_is_zeros_until_its_vector_is_learnt() -> None:
    """AdSEE: a missing image is the zero vector, and a flag."""
    config = ModelConfig(embedding_dim=4, easy=MLP, hard=MLP, vectors={"text": TEXT})
    tables = {"text": make_table(TEXT, missing=tuple(range(9)))}
    model, batch = CTRModel(SCHEMA, ROWS, config, vectors=tables), make_batch()
    streams, _ = model.vectors(batch.sparse_features, *model.embedding(batch.sparse_features, batch.dense_features, 12))
    assert not streams["hard"][:, -1].any()
    model(batch).fused.sum().backward()
    projection, missing = model.vectors.projections["text__hard"].grad, model.vectors.missing["text__hard"].grad
    assert projection is not None and not projection.any() and missing is not None and bool(missing.any())


def test_other_weights_start_as_without_them() -> None:
    with_them, without = make_model().state_dict(), make_model(vectors={}).state_dict()
    same = [name for name, value in without.items() if with_them[name].shape == value.shape]
    assert all(torch.equal(with_them[name], without[name]) for name in same if name.startswith("embedding."))
    started = make_model(seed=1).vectors.projections["text__hard"]
    assert torch.equal(started, make_model(seed=1, vectors={"text": TEXT}).vectors.projections["text__hard"])
    assert not torch.equal(started, make_model(seed=2).vectors.projections["text__hard"])
    assert set(with_them) - set(without) == {
        f"vectors.{part}.{name}__{stream}"
        for part in ("projections", "missing")
        for name in VECTORS
        for stream in ("easy", "hard")
    }


def test_parameters_of_the_projection_are_those_of_qin() -> None:
    """QIN's projection of 128 numbers to 128 has 16,384 parameters."""
    schema = FeatureSchema("click", (SparseFeature("item", HashEncoding(9)),))
    vectors = {"image": VectorsConfig(path="a.npz", feature="item", dimension=128)}
    config = ModelConfig(embedding_dim=128, vectors=vectors)
    model = CTRModel(schema, {"item": 9}, config, device="meta")
    assert model.vectors.projections["image__hard"].numel() == 16_384
    assert model.vectors.tables["image__table"].is_meta


def test_what_is_refused() -> None:
    with pytest.raises(ModelError, match=r"vectors\.text has no dimension"):
        make_model(vectors={"text": replace(TEXT, dimension=None)})
    with pytest.raises(ModelError, match=r"vectors\.text: the vectors are \(9, 3\) and the model asks for \(9, 4\)"):
        make_model(vectors={"text": replace(TEXT, dimension=4)})
    with pytest.raises(ValueError, match="'tags' has vectors, but is no sparse feature of one value"):
        make_model(vectors={"text": replace(TEXT, feature="tags")})
