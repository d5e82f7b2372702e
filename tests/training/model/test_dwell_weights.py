"""Dwell weights: equal ones change nothing, whole ones are repeated events, and none is lost on the way to a logit."""

import math
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from features.dwell import NUM_DWELL_IDS, dwell_ids
from features.ragged import Ragged
from features.schema import FeatureSchema, HashEncoding, SequenceFeature, SparseFeature, Timestamp
from tests.training.model.test_histories import CASES, LENGTHS, Case, make, make_inputs
from training.config import DINHistory, MLPEncoder, ModelConfig, SDIMHistory
from training.data.batch import Batch, to_batch
from training.model.ctr_model import CTRModel
from training.model.dwell_weights import DwellWeights, mean_one
from training.model.histories import SDIM

SPEC_DWELL = [35.0, 200.0, 600.0, 300.0]
CLICKS = SequenceFeature("clicks", ("item",), 9, newest="first", dwell_weights=True)
SCHEMA = FeatureSchema("y", (SparseFeature("item", HashEncoding(9)),), sequence=(CLICKS,))


def make_batch(schema: FeatureSchema, lists: list[list[int]], dwell: list[list[float]]) -> Batch:
    rng = np.random.default_rng(1)
    columns: dict[str, Any] = {"item": rng.integers(0, 9, len(lists)).astype(np.int32)}
    lengths = np.array(list(map(len, lists)), np.int64)
    columns["clicks__item"] = Ragged.of(np.array([*chain.from_iterable(lists)], np.int32), lengths)
    if schema.sequence[0].gaps:
        columns["clicks__gap"] = Ragged.of(np.ones(lengths.sum(), np.int32), lengths)
    if schema.sequence[0].dwell_weights:
        columns["clicks__dwell"] = Ragged.of(dwell_ids(np.array([*chain.from_iterable(dwell)], np.float64)), lengths)
    return to_batch(columns, schema, len(lists) + 1)


def test_the_specs_constants_and_what_is_not_known() -> None:
    batch = make_batch(
        SCHEMA, [[1] * 4, [1] * 5, [], [1] * 2], [SPEC_DWELL, [*SPEC_DWELL, math.nan], [], [math.nan] * 2]
    )
    weights = mean_one(DwellWeights(SCHEMA)(batch.sparse_features)["clicks"], torch.tensor([4, 5, 0, 2])).squeeze(1)
    assert (weights[:4] / 4).tolist() == pytest.approx([0.1707, 0.2526, 0.3048, 0.2719], rel=0.02)
    assert weights[4:8].tolist() == weights[:4].tolist() and weights[8:].tolist() == [1, 1, 1]


def test_weights_do_not_depend_on_the_order_of_events() -> None:
    lengths = torch.tensor([400, 1, 90])
    weights = DwellWeights(SCHEMA).get_buffer("clicks")[torch.randint(0, NUM_DWELL_IDS, (491,))]
    order = torch.cat([torch.randperm(400), torch.tensor([400]), 401 + torch.randperm(90)])
    assert torch.equal(mean_one(weights[order], lengths), mean_one(weights, lengths)[order])
    assert torch.equal(mean_one(torch.full((491,), 0.7), lengths), torch.ones(491, 1))


def test_a_cut_off_is_kept_with_the_weights() -> None:
    model = DwellWeights(SCHEMA, {"clicks": 7})
    assert torch.equal(model.get_buffer("clicks")[7:], model.get_buffer("clicks")[7].expand(NUM_DWELL_IDS - 7))
    other = DwellWeights(SCHEMA)
    assert not torch.equal(other.get_buffer("clicks"), model.get_buffer("clicks"))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.get_buffer("clicks"), model.get_buffer("clicks"))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("weight", [0.0, 0.37, 5.0])
def test_equal_weights_change_no_bit(case: Case, weight: float) -> None:
    encoder, inputs = make(case).eval(), make_inputs(LENGTHS)
    found = encoder(*inputs, torch.full((sum(LENGTHS),), weight))
    if case[0] == "transformer":  # a mask of numbers goes through another kernel than one of bits
        assert torch.allclose(found, encoder(*inputs), atol=1e-6)
    else:
        assert torch.equal(found, encoder(*inputs))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_event_that_weighs_twice_as_much_is_as_two_of_it(case: Case) -> None:
    """As far as a weight can be that: positions and square roots of lengths are told what repeats."""
    kind, config = case
    if getattr(config, "length", None) is not None or getattr(config, "divide_by_root_length", False):
        config = replace(config, **{"length": 64} if kind == "transformer" else {"length": None})
    if kind == "asta":
        config = replace(config, divide_by_root_length=False)
    if kind == "sdim" and config.short is not None:
        config = replace(config, short=replace(config.short, length=None))
    encoder = make((kind, config)).eval()
    if kind == "transformer":
        with torch.no_grad():
            encoder.position.zero_()
    target, events, lengths = make_inputs(LENGTHS)
    times = torch.randint(1, 4, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    rows = torch.repeat_interleave(torch.arange(len(LENGTHS)), lengths)
    repeated = torch.zeros(len(LENGTHS), dtype=torch.int64).index_add(0, rows, times)
    expected = encoder(target, events.repeat_interleave(times, dim=0), repeated)
    # Sums grow with the number of events, means do not: weights have the mean 1.
    is_sum = kind == "asta" or (kind == "din" and not config.softmax) or (kind == "sdim" and not config.normalize)
    found = encoder(target, events, lengths, times.float())
    if kind == "sdim" and config.short is not None:
        found, expected = found[:, : encoder.dim], expected[:, : encoder.dim]
    if is_sum:
        ratio = (repeated / lengths.clamp(min=1)).unsqueeze(1)
        rest = target if kind == "asta" and config.residual else torch.zeros_like(target)
        found = (found - rest) * ratio + rest
    assert torch.allclose(found, expected, atol=2e-5)
    assert not torch.allclose(
        encoder(target, events, lengths), encoder(target, events, lengths, times.float()), atol=1e-4
    )


def test_a_weight_has_a_gradient_through_every_event() -> None:
    for case in CASES:
        encoder, (target, events, lengths) = make(case).train(), make_inputs(LENGTHS)
        encoder(target, events, lengths, torch.rand(sum(LENGTHS))).square().sum().backward()
        assert events.grad is not None and torch.isfinite(events.grad).all() and events.grad.abs().sum() > 0


def test_bucket_tables_have_the_weights() -> None:
    encoder = make(("sdim", SDIMHistory(num_hashes=12, bits=2, length=4))).eval()
    assert isinstance(encoder, SDIM)
    target, events, lengths = make_inputs(LENGTHS, gap_dim=0)
    weights = torch.rand(sum(LENGTHS))
    table = encoder.bucket_table(events, lengths, weights)
    assert torch.equal(encoder.from_table(target, table), encoder(target, events, lengths, weights))


@pytest.mark.parametrize("gaps", [(), (60,)])
def test_a_model_reads_weights_and_without_them_is_as_before(gaps: tuple[int, ...]) -> None:
    sequence = replace(CLICKS, gaps=gaps)
    schema = replace(SCHEMA, sequence=(sequence,), timestamp=Timestamp("t"))
    plain = replace(schema, sequence=(replace(sequence, dwell_weights=False),))
    sizes = {"item": 9, "clicks__item": 9, "clicks__gap": 3, "clicks__dwell": NUM_DWELL_IDS}
    mlp = MLPEncoder((8,), batch_norm=False, dropout=0.0)
    config = ModelConfig(
        embedding_dim=4, embedding_init_std=0.5, easy=mlp, hard=mlp, sequences={"clicks": DINHistory(softmax=True)}
    )
    lists = [[1, 2, 3], [], [4, 5, 6, 7]]
    dwell = [[5.0, 900.0, math.nan], [], [40.0] * 4]
    models = [CTRModel(one, sizes, config).eval() for one in (plain, schema)]
    assert [table.name for table in models[0].tables] == [table.name for table in models[1].tables]
    before, after = (m(make_batch(s, lists, dwell)).fused for m, s in zip(models, (plain, schema), strict=True))
    assert torch.equal(before[1:], after[1:]) and before[0] != after[0]
    assert "dwell_weights.clicks" in models[1].state_dict() and "dwell_weights.clicks" not in models[0].state_dict()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_bfloat16_nearly_the_same(case: Case) -> None:
    encoder, (target, events, lengths) = make(case).eval(), make_inputs(LENGTHS)
    weights = torch.rand(sum(LENGTHS), generator=torch.Generator().manual_seed(4)) + 0.2
    expected = encoder(target, events, lengths, weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(target.bfloat16(), events.bfloat16(), lengths, weights)
    assert found.dtype == torch.bfloat16 and torch.isfinite(found).all()
    if case[0] != "sdim":  # whose hash may turn at a bit
        assert (found - expected).abs().max() < 0.1 * expected.abs().max()
