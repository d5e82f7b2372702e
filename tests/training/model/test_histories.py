"""History encoders against naive ones that pad, and against the constants of their papers' specifications."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from tests.ranks import on_two_ranks
from training.config import ASTAHistory, DINHistory, MeanHistory, ModelConfig, SDIMHistory, TransformerHistory
from training.model.embedding import ModelError
from training.model.histories import (
    ASTA,
    DIN,
    HISTORY_ENCODERS,
    SDIM,
    Dice,
    EventTransformer,
    EventVectors,
    HistoryEncoder,
    HistoryEncoders,
    softmax_by,
)

CONFIGS: dict[str, list[Any]] = {
    "mean": [MeanHistory(), MeanHistory(length=2)],
    "din": [
        DINHistory(hidden_units=(7, 5)),
        DINHistory(hidden_units=(6,), activation="prelu", softmax=True, scale=True),
        DINHistory(hidden_units=(6,), activation="sigmoid", softmax=True, length=3),
        DINHistory(hidden_units=(), length=2),
        DINHistory(hidden_units=(5,), activation="relu", dropout=0.4),
    ],
    "asta": [ASTAHistory(), ASTAHistory(attention_dim=5, residual=False, divide_by_root_length=True, length=4)],
    "sdim": [
        SDIMHistory(num_hashes=12, bits=2),
        SDIMHistory(num_hashes=18, bits=9, normalize=False, length=5),
        SDIMHistory(num_hashes=6, bits=1, short=DINHistory(hidden_units=(4,), length=2)),
    ],
    "transformer": [
        TransformerHistory(),
        TransformerHistory(num_layers=3, num_heads=3, attention_dim=6, feed_forward_dim=5, dropout=0.3, length=4),
    ],
}
CASES = [(kind, config) for kind, configs in CONFIGS.items() for config in configs]
K, G = 4, 3
LENGTHS = [3, 0, 6, 1, 0, 7]

Case = tuple[str, Any]


def make(case: Case, gap_dim: int = G, dim: int = K) -> HistoryEncoder:
    """An encoder whose parameters are all far from 0 and 1."""
    torch.manual_seed(1)
    encoder = HISTORY_ENCODERS[case[0]](case[1], dim, gap_dim, 5)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 1.4 * parameter.shape[-1] ** -0.5)
        for norm in encoder.modules():
            if isinstance(norm, nn.BatchNorm1d):
                assert norm.running_mean is not None and norm.running_var is not None
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
    return encoder


def make_inputs(lengths: list[int], gap_dim: int = G, seed: int = 2) -> EventVectors:
    random = torch.Generator().manual_seed(seed)
    target = torch.randn(len(lengths), K, generator=random, requires_grad=True)
    events = torch.randn(sum(lengths), K + gap_dim, generator=random, requires_grad=True)
    return EventVectors(target, events, torch.tensor(lengths, dtype=torch.int64))


def trained(encoder: HistoryEncoder) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def gradients(encoder: HistoryEncoder, inputs: EventVectors, result: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss that is not linear in the result, by everything that has some."""
    named = {"target": inputs.target_BK, "events": inputs.events_NE, **trained(encoder)}
    weights = torch.linspace(0.5, 1.5, result.numel()).view_as(result)
    found = torch.autograd.grad((weights * result).pow(2).sum(), list(named.values()), allow_unused=True)
    return {name: g for (name, _), g in zip(named.items(), found, strict=True) if g is not None}


# --------------------------------------------------------------------------------------------------------- naive twins


def naive(encoder: HistoryEncoder, target_BK: Tensor, events_NE: Tensor, lengths: list[int]) -> Tensor:
    """Row by row, or padded where a batch norm reads all events; from the encoder's parameters."""
    longest = encoder.length or max(lengths)
    rows = [row[:longest] for row in events_NE.split(lengths)]
    if isinstance(encoder, SDIM):
        long_BK = torch.stack([naive_sdim(encoder, t, row[:, :K]) for t, row in zip(target_BK, rows, strict=True)])
        if encoder.short is None:
            return long_BK
        return torch.cat([long_BK, naive(encoder.short, target_BK, events_NE, lengths)], dim=1)
    if isinstance(encoder, DIN):
        return naive_din(encoder, target_BK, rows)
    by_row: Callable[[Tensor, Tensor], Tensor]
    if isinstance(encoder, ASTA):
        by_row = lambda t, row: naive_asta(encoder, t, row)  # noqa: E731
    elif isinstance(encoder, EventTransformer):
        by_row = lambda t, row: naive_transformer(encoder, t, row)  # noqa: E731
    else:
        by_row = lambda t, row: row[:, :K].mean(dim=0)  # noqa: E731
    empty = target_BK if getattr(encoder, "residual", False) else torch.zeros_like(target_BK)
    return torch.stack([by_row(t, row) if len(row) else e for t, row, e in zip(target_BK, rows, empty, strict=True)])


def naive_din(encoder: DIN, target_BK: Tensor, rows: list[Tensor]) -> Tensor:
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    is_event = torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    h, gap = padded[..., :K], padded[..., K:]
    t = target_BK[:, None].expand_as(h)
    x = F.linear(torch.cat([t, h, t - h, t * h, gap], dim=2), encoder.first.weight, encoder.first.bias)
    for layer in encoder.rest:
        x = naive_dice(layer, x, is_event) if isinstance(layer, Dice) else layer(x.flatten(0, 1)).view(*x.shape[:2], -1)
    scores = x[..., 0]
    if encoder.softmax:
        weights = torch.zeros_like(scores)
        for b, row in enumerate(rows):
            if len(row):
                weights[b, : len(row)] = torch.softmax(scores[b, : len(row)] * encoder.scale, dim=0)
    else:
        weights = scores * is_event
    return (weights[..., None] * h).sum(dim=1)


def naive_dice(dice: Dice, x_BLH: Tensor, is_event: Tensor) -> Tensor:
    valid = x_BLH[is_event]
    if dice.training:
        mean, variance = valid.mean(dim=0), valid.var(dim=0, unbiased=False)
    else:
        mean, variance = dice.norm.running_mean, dice.norm.running_var
    p = torch.sigmoid((x_BLH - mean) / torch.sqrt(variance + 1e-8))  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    return p * x_BLH + (1 - p) * dice.alpha * x_BLH


def naive_asta(encoder: ASTA, t: Tensor, row: Tensor) -> Tensor:
    keys, values = encoder.key(row), encoder.value(row)
    weights = torch.relu(keys @ encoder.query(t) / math.sqrt(keys.shape[1]))
    total = (weights[:, None] * values).sum(dim=0)
    result = encoder.output(total / math.sqrt(len(row)) if encoder.divides else total)
    return result + t if encoder.residual else result


def naive_sdim(encoder: SDIM, t: Tensor, row: Tensor) -> Tensor:
    sums = []
    for directions in encoder.R_MK.double().split(encoder.bits):
        same = ((row.double() @ directions.T >= 0) == (directions @ t.double() >= 0)).all(dim=1)
        total = row[same].sum(dim=0)
        length = total.norm()
        sums.append(total / length if encoder.normalize and length > 0 else total)
    return torch.stack(sums).mean(dim=0)


def naive_transformer(encoder: EventTransformer, t: Tensor, row: Tensor) -> Tensor:
    x, goal = encoder.event(row) + encoder.position[: len(row)], encoder.target(t)[None]
    for number, layer in enumerate(encoder.layers):
        is_last = number == len(encoder.layers) - 1
        x_Q, context = (goal, x) if is_last else (x, x)
        normed = layer.event_norm(context)
        q, k, v = layer.query(layer.query_norm(x_Q)), layer.key(normed), layer.value(normed)
        heads = []
        for qh, kh, vh in zip(*(m.chunk(layer.num_heads, dim=1) for m in (q, k, v)), strict=True):
            heads.append(torch.softmax(qh @ kh.T / math.sqrt(kh.shape[1]), dim=1) @ vh)
        x_Q = x_Q + layer.output(torch.cat(heads, dim=1))
        x_Q = x_Q + layer.contract(torch.relu(layer.expand(layer.mlp_norm(x_Q))))
        goal, x = (x_Q, x) if is_last else (goal, x_Q)
    return encoder.output(goal)[0]


# ------------------------------------------------------------------------------------------------------- every encoder


def test_every_history_encoder_is_tested_here() -> None:
    assert list(CONFIGS) == list(HISTORY_ENCODERS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gap_dim", [0, G])
@pytest.mark.parametrize("training", [True, False])
def test_results_and_gradients_are_those_of_a_naive_one(case: Case, gap_dim: int, training: bool) -> None:
    encoder, inputs = make(case, gap_dim).train(training), make_inputs(LENGTHS, gap_dim)
    for layer in encoder.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    found = encoder(*inputs)
    expected = naive(encoder, inputs.target_BK, inputs.events_NE[:, : K + encoder.gap_dim], LENGTHS)
    if gap_dim and isinstance(encoder, SDIM) and encoder.short is not None:
        assert encoder.short.gap_dim == gap_dim
    assert found.shape == (len(LENGTHS), encoder.output_dim)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    both = [gradients(encoder, inputs, result) for result in (found, expected)]
    assert both[0].keys() >= both[1].keys()
    for name, gradient in both[0].items():
        other = both[1].get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, other, rtol=2e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_a_row_without_events_has_zeros_or_the_target(case: Case) -> None:
    encoder, inputs = make(case), make_inputs(LENGTHS)
    result = encoder(*inputs)
    for row in (1, 4):
        expected = inputs.target_BK[row] if getattr(encoder, "residual", False) else torch.zeros(encoder.output_dim)
        assert torch.equal(result[row], expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths", [[], [0, 0, 0], [0], [1]])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_batches_without_events_or_rows_go_forward_and_back(
    case: Case, lengths: list[int], precision: torch.dtype
) -> None:
    encoder, inputs = make(case), make_inputs(lengths)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        result = encoder(*inputs)
    assert result.shape == (len(lengths), encoder.output_dim) and result.dtype == torch.float32
    result.pow(2).sum().backward()
    for name, parameter in trained(encoder).items():
        assert parameter.grad is not None, f"{name} takes no part, which replication takes for an error"
        assert parameter.grad.isfinite().all()
    assert inputs.events_NE.grad is not None and inputs.events_NE.grad.isfinite().all()


@pytest.mark.parametrize("case", CASES)
def test_a_row_does_not_depend_on_the_others(case: Case) -> None:
    encoder, inputs = make(case).eval(), make_inputs(LENGTHS)
    together = encoder(*inputs)
    for row, events in enumerate(inputs.events_NE.split(LENGTHS)):
        alone = encoder(inputs.target_BK[row : row + 1], events, inputs.lengths_B[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_only_positions_care_for_the_order_of_events(case: Case) -> None:
    encoder, inputs = make(case).eval(), make_inputs(LENGTHS)
    encoder.length = None if case[0] != "transformer" else encoder.length
    if isinstance(encoder, SDIM) and encoder.short is not None:
        encoder.short.length = None
    turned = torch.cat([row.flip(0) for row in inputs.events_NE.split(LENGTHS)])
    result, other = encoder(*inputs), encoder(inputs.target_BK, turned, inputs.lengths_B)
    assert torch.allclose(result, other, rtol=1e-5, atol=1e-5) == (case[0] != "transformer")


@pytest.mark.parametrize("case", [case for case in CASES if (case[1].length or 99) < max(LENGTHS)])
def test_only_the_newest_events_are_read(case: Case) -> None:
    encoder, inputs = make(case).eval(), make_inputs(LENGTHS)
    cut = [row[: encoder.length] for row in inputs.events_NE.split(LENGTHS)]
    lengths = torch.tensor([len(row) for row in cut])
    assert torch.equal(encoder(inputs.target_BK, torch.cat(cut), lengths), encoder(*inputs))


@pytest.mark.parametrize("case", CASES)
def test_gaps_are_read_by_those_who_say_so(case: Case) -> None:
    encoder, inputs = make(case).eval(), make_inputs(LENGTHS)
    other = inputs.events_NE.detach().clone()
    other[:, K:] += 1
    is_same = torch.equal(encoder(*inputs), encoder(inputs.target_BK, other, inputs.lengths_B))
    assert is_same != encoder.reads_gaps(case[1])


@pytest.mark.parametrize("case", CASES)
def test_the_same_twice_bit_for_bit_and_in_bfloat16_nearly(case: Case) -> None:
    results, inputs = [], make_inputs(LENGTHS)
    for precision in (torch.float32, torch.float32, torch.bfloat16):
        encoder = make(case)
        torch.manual_seed(3)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            result = encoder(*inputs)
        results.append([result, *gradients(encoder, inputs, result).values()])
    assert all(torch.equal(one, two) for one, two in zip(results[0], results[1], strict=True))
    if not any(isinstance(layer, nn.Dropout) and layer.p for layer in encoder.modules()):
        torch.testing.assert_close(results[2][0], results[0][0], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("case", CASES)
def test_lengths_of_32_bits_and_an_outline_without_numbers(case: Case) -> None:
    encoder, inputs = make(case).eval(), make_inputs(LENGTHS)
    short = encoder(inputs.target_BK, inputs.events_NE, inputs.lengths_B.int())
    assert torch.equal(short, encoder(*inputs))
    with torch.device("meta"):
        outline = HISTORY_ENCODERS[case[0]](case[1], K, G, 5)
    assert outline.state_dict().keys() == encoder.state_dict().keys()
    assert all(tensor.is_meta for tensor in outline.state_dict().values())


# ----------------------------------------------------------------------------------------------------------- constants


def close(found: Tensor, *numbers: float) -> None:
    torch.testing.assert_close(found.detach().flatten(), torch.tensor(numbers), rtol=0, atol=2e-6)


def linear_din(**settings: Any) -> DIN:
    din = DIN(DINHistory(hidden_units=(), **settings), 2)
    with torch.no_grad():
        din.first.weight.copy_(torch.arange(1, 9) / 10)
        din.first.bias.zero_()
    return din


T, H = torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 0], [0, 1], [1, 1]])


def test_din() -> None:
    three, two, rows = torch.tensor([3]), torch.tensor([2]), torch.zeros(3, dtype=torch.int64)
    din, softmax = linear_din(), linear_din(softmax=True)
    scores = din.weigh(T, H, rows)
    close(scores, 1.1, 0.4, 0.9)
    close(din(T, H, three), 2.0, 1.3)
    close(din(T, H[:2], two), 1.1, 0.4)
    close(softmax_by(rows, scores, 1), 0.431906, 0.214478, 0.353615)
    close(softmax(T, H, three), 0.785522, 0.568094)
    close(softmax(T, H[:2], two), 0.668188, 0.331812)
    scaled = linear_din(softmax=True, scale=True)
    close(softmax_by(rows, scores * scaled.scale, 1), 0.403599, 0.246028, 0.350373)
    close(scaled(T, H, three), 0.403599 + 0.350373, 0.246028 + 0.350373)


def test_a_softmax_is_of_large_scores_too() -> None:
    scores = torch.tensor([[1e4], [1e4 - 1], [-1e4], [3.0]], requires_grad=True)
    weights = softmax_by(torch.tensor([0, 0, 0, 2]), scores, 3)
    close(weights, 0.731059, 0.268941, 0.0, 1.0)
    (gradient,) = torch.autograd.grad(weights[0], scores)
    close(gradient, 0.196612, -0.196612, 0.0, 0.0)


def test_dice() -> None:
    x = torch.tensor([[1.0], [2], [3], [6]])
    dice = Dice(1)
    close(dice(x), 0.255585, 0.738925, 1.5, 4.995098)
    with torch.no_grad():
        dice.alpha.fill_(0.25)
    close(dice(x), 0.441689, 1.054194, 1.875, 5.246324)
    close(Dice(1).eval()(x), 0.731059, 1.761594, 2.857722, 5.985164)


def test_asta() -> None:
    asta = ASTA(ASTAHistory(attention_dim=2), 2)
    with torch.no_grad():
        for parameter in asta.parameters():
            parameter.copy_(torch.eye(2))
    t, h, three = torch.tensor([[1.0, 2]]), torch.tensor([[1.0, 0], [0, 1], [-1, -1]]), torch.tensor([3])
    out = asta(t, h, three)
    close(out, 1.707107, 3.414214)
    twice = asta(t, h.repeat(2, 1), 2 * three)
    close(twice - t, *(2 * (out - t)).flatten().tolist())


def test_numbers_of_parameters_are_those_of_the_published_models() -> None:
    din = DIN(DINHistory(hidden_units=(512, 256), activation="dice"), 128)
    assert sum(p.numel() for p in din.parameters()) == 395_009  # of BARS's DIN_amazon, 5,403,522 with tables and net
    assert sum(p.numel() for p in ASTA(ASTAHistory(), 384).parameters()) == 1_179_648  # of QIN


# ---------------------------------------------------------------------------------------------------------------- sdim


def plane_sdim(**settings: Any) -> SDIM:
    sdim = SDIM(SDIMHistory(num_hashes=4, bits=2, **settings), 2)
    sdim.R_MK.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]]))
    return sdim


def test_sdim() -> None:
    q, s = torch.tensor([[2.0, 1]]), torch.tensor([[1.0, 0.5], [-1, 2], [0.5, 3]])
    close(plane_sdim()(q, s, torch.tensor([3])), 0.644173, 0.683179)
    close(plane_sdim(normalize=False)(q, s, torch.tensor([3])), 1.25, 2.0)


@pytest.mark.parametrize("config", [SDIMHistory(), SDIMHistory(num_hashes=18, bits=9, normalize=False, length=5)])
def test_a_bucket_table_gives_the_same_to_the_last_bit(config: SDIMHistory) -> None:
    random = torch.Generator().manual_seed(4)
    sdim, lengths = SDIM(config, 24, 0, 3), torch.tensor([200, 0, 1, 33])
    events, targets = torch.randn(234, 24, generator=random), torch.randn(4, 24, generator=random)
    table = sdim.bucket_table(events, lengths)
    assert table.shape == (4, config.num_hashes // config.bits, 2**config.bits, 24)
    assert torch.equal(sdim.from_table(targets, table), sdim(targets, events, lengths))
    # A table is made of one user's events, when they come; a batch has those of many.
    for row, own in enumerate(events.split(lengths.tolist())):
        assert torch.equal(sdim.bucket_table(own, lengths[row : row + 1])[0], table[row])


def test_signatures_do_not_depend_on_what_is_hashed_beside() -> None:
    """A sum near 0 has a sign that rounding decides: one product of matrices may round otherwise than another."""
    random = torch.Generator().manual_seed(5)
    for width in (5, 32, 300):
        sdim = SDIM(SDIMHistory(), width, 0, 1)
        x = torch.randn(3000, width, generator=random)
        x[:, -1] -= (x @ sdim.R_MK[0]) / sdim.R_MK[0, -1]  # on the plane of the first bit, but for rounding
        together = sdim.signatures(x)
        assert torch.equal(together, torch.cat([sdim.signatures(part) for part in x.split(7)]))
        shuffled = torch.randperm(width, generator=random)
        turned = SDIM(SDIMHistory(), width, 0, 1)
        turned.R_MK.copy_(sdim.R_MK[:, shuffled])
        assert torch.equal(turned.signatures(x[:, shuffled]), together)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(sdim.signatures(x), together)


def test_an_event_that_is_the_target_collides_and_size_does_not_matter() -> None:
    random = torch.Generator().manual_seed(6)
    sdim, x = SDIM(SDIMHistory(), 16), torch.randn(50, 16, generator=random)
    one = torch.ones(50, dtype=torch.int64)
    torch.testing.assert_close(sdim(x, x, one), F.normalize(x, dim=1))
    other = torch.randn(50, 16, generator=random)
    assert torch.equal(sdim(4 * other, x, one), sdim(other, x, one))
    torch.testing.assert_close(sdim(3 * other, x, one), sdim(other, x, one))
    assert (sdim.signatures(torch.zeros(2, 16)) == 2**sdim.bits - 1).all()


@pytest.mark.parametrize(("bits", "at_60", "at_90"), [(1, 0.666667, 0.5), (2, 0.444444, 0.25), (3, 0.296296, 0.125)])
def test_collisions_are_as_often_as_angles_say(bits: int, at_60: float, at_90: float) -> None:
    sdim = SDIM(SDIMHistory(num_hashes=300_000, bits=bits), 2, 0, 9)
    q = torch.tensor([[1.0, 0.0]])
    for angle, expected in ((60, at_60), (90, at_90), (180, 0.0)):
        other = torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]])
        share = (sdim.signatures(q) == sdim.signatures(other)).float().mean()
        assert float(share) == pytest.approx(expected, abs=3e-3)


def test_what_is_random_follows_from_the_seed_and_is_kept() -> None:
    config = SDIMHistory()
    one, same, other = (SDIM(config, 8, 0, seed) for seed in (1, 1, 2))
    assert torch.equal(one.R_MK, same.R_MK) and not torch.equal(one.R_MK, other.R_MK)
    assert "R_MK" in one.state_dict() and not list(one.parameters())
    assert one.R_MK.mean().abs() < 0.2 and 0.8 < one.R_MK.std() < 1.2


# ---------------------------------------------------------------------------------------------------------- many ranks


def dice_rank(folder: Path) -> None:
    rank = dist.get_rank()
    part = slice(0, 9) if rank == 0 else slice(9, None)
    results = {}
    for name, rows in (("uneven", part), ("none here", slice(0, 0 if rank else None))):
        dice, x = make_dice()
        x = x[rows].requires_grad_()
        y = dice(x)
        y.pow(2).sum().backward()
        results[name] = [y.detach(), x.grad, dice.alpha.grad, dice.norm.running_mean, dice.norm.running_var]
    torch.save(results, folder / f"{rank}.pt")


def make_dice() -> tuple[Dice, Tensor]:
    random = torch.Generator().manual_seed(8)
    dice = Dice(3)
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.1, -0.4, 0.8]))
    return dice, 2 + torch.randn(13, 3, generator=random)


def test_dice_counts_the_events_of_all_ranks(tmp_path: Path) -> None:
    on_two_ranks(tmp_path, dice_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    dice, x = make_dice()
    y = dice(x.requires_grad_())
    y.pow(2).sum().backward()
    for name in ("uneven", "none here"):
        one, two = first[name], second[name]
        torch.testing.assert_close(torch.cat([one[0], two[0]]), y.detach())
        torch.testing.assert_close(torch.cat([one[1], two[1]]), x.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one[2] + two[2], dice.alpha.grad)
        for own, exact in ((3, dice.norm.running_mean), (4, dice.norm.running_var)):
            assert torch.equal(one[own], two[own])
            torch.testing.assert_close(one[own], exact)


# ------------------------------------------------------------------------------------------------------- whole streams


def test_encoders_of_all_streams_and_sequences() -> None:
    config = ModelConfig(
        sequences={  # pyright: ignore[reportArgumentType]
            "items": {"kind": "sdim", "short": {"kind": "din", "hidden_units": [3], "length": 2}},
            "views": {"kind": "asta"},
        }
    )
    widths: Any = {"easy": 2, "hard": 4}
    encoders = HistoryEncoders(config.sequences, {"items": 2, "views": 1, "buys": 3}, widths, gaps=["items"], seed=1)
    assert encoders.num_fields == 2 * 2 + 1 + 3
    random = torch.Generator().manual_seed(1)

    def vectors(parts: int, width: int, gap: int) -> EventVectors:
        lengths = torch.tensor([2, 0, 3])
        return EventVectors(
            torch.randn(3, parts * width, generator=random),
            torch.randn(5, parts * width + gap, generator=random),
            lengths,
        )

    histories: Any = {
        stream: {"items": vectors(2, width, width), "views": vectors(1, width, 0), "buys": vectors(3, width, 0)}
        for stream, width in widths.items()
    }
    fields: Any = encoders(histories)
    for stream, width in widths.items():
        assert fields[stream].shape == (3, 8, width)
        views = histories[stream]["views"]
        expected = encoders.encoders[f"views__{stream}"](*views)
        assert torch.equal(fields[stream][:, 4], expected)
        buys = histories[stream]["buys"]
        torch.testing.assert_close(fields[stream][0, 5:].flatten(), buys.events_NE[:2].mean(dim=0))
    directions = [t for name, t in encoders.state_dict().items() if name.endswith("R_MK")]
    assert len(directions) == 2 and not torch.equal(directions[0][:, :4], directions[1][:, :4])


def test_a_config_of_no_sequence_is_refused() -> None:
    with pytest.raises(ModelError, match=r"training\.model\.sequences names 'click', which is no sequence of .*clicks"):
        HistoryEncoders({"click": MeanHistory()}, {"clicks": 1}, {"easy": 2, "hard": 4})
