"""DFM: constants, gradients and parameter counts of every fusion."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.config import (
    BCEObjective,
    BilinearFusion,
    ConcatFusion,
    MoEFusion,
    SingleFusion,
    SumFusion,
    VotingFusion,
    WeightedSumFusion,
)
from training.model.embedding import ModelError
from training.model.fusion import (
    FUSIONS,
    Bilinear,
    Concat,
    MixtureOfHeads,
    Single,
    Sum,
    TwinFusion,
    TwinLogits,
    Voting,
    WeightedSum,
    to_gumbel,
)
from training.model.objective import BCE

CONFIGS: dict[str, Any] = {
    "weighted_sum": WeightedSumFusion(),
    "voting": VotingFusion(),
    "concat": ConcatFusion(),
    "moe": MoEFusion(),
    "sum": SumFusion(),
    "bilinear": BilinearFusion(),
}
EASY_DIM, HARD_DIM, NUM_ROWS = 5, 3, 6


def make(kind: str) -> TwinFusion:
    torch.manual_seed(1)
    fusion = FUSIONS[kind](CONFIGS[kind], EASY_DIM, HARD_DIM)
    assert isinstance(fusion, TwinFusion)
    return fusion


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    return torch.randn(NUM_ROWS, EASY_DIM, generator=random), torch.randn(NUM_ROWS, HARD_DIM, generator=random)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_fusion(kind: str, inputs: tuple[Tensor, Tensor]) -> None:
    fusion, (easy_BH, hard_BH) = make(kind), inputs
    easy_BH.requires_grad_()
    hard_BH.requires_grad_()
    logits = fusion(easy_BH, hard_BH)
    assert [z.shape for z in logits] == [(NUM_ROWS,)] * 3
    gradients = torch.autograd.grad(logits.fused.square().sum(), (easy_BH, hard_BH), retain_graph=True)
    assert all((g != 0).all() for g in gradients)
    torch.testing.assert_close(logits.easy, easy_BH @ fusion.easy_head.weight[0] + fusion.easy_head.bias)
    torch.testing.assert_close(logits.hard, hard_BH @ fusion.hard_head.weight[0] + fusion.hard_head.bias)
    fusion.eval()
    whole = fusion(easy_BH, hard_BH)
    assert all(torch.equal(a, b) for a, b in zip(whole, fusion(easy_BH, hard_BH), strict=True))
    for i in range(NUM_ROWS):
        torch.testing.assert_close(fusion(easy_BH[i : i + 1], hard_BH[i : i + 1]).fused, whole.fused[i : i + 1])
    assert [z.shape for z in fusion(easy_BH[:0], hard_BH[:0])] == [(0,)] * 3


@pytest.mark.parametrize("kind", CONFIGS)
def test_number_of_parameters(kind: str) -> None:
    e, h = EASY_DIM, HARD_DIM
    expected = {
        "weighted_sum": e + h + 4,
        "voting": 2 * (e + 1) + 2 * (h + 1),
        "concat": (e + h + 1) + (e + 1) + (h + 1),
        "moe": 2 * (2 * (e + h) + 2) + (e + 1) + (h + 1),
        "sum": e + h + 2,
        "bilinear": e + h + 2 + e * h,
    }
    assert sum(p.numel() for p in make(kind).parameters()) == expected[kind]


def test_weighted_sum_starts_as_the_mean_and_is_free(inputs: tuple[Tensor, Tensor]) -> None:
    fusion = make("weighted_sum")
    assert isinstance(fusion, WeightedSum)
    logits = fusion(*inputs)
    torch.testing.assert_close(logits.fused, (logits.easy + logits.hard) / 2)
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([-3.0, 2.0]))
    torch.testing.assert_close(fusion(*inputs).fused, -3 * logits.easy + 2 * logits.hard)


def test_gumbel_noise() -> None:
    noise = to_gumbel(torch.tensor([0.3, 0.6], dtype=torch.float64))
    assert noise.tolist() == pytest.approx([-0.185626759, 0.671726992], abs=1e-9)
    assert torch.isfinite(to_gumbel(torch.tensor([0.0, 1 - 2**-24]))).all()


def voting_on_constants() -> tuple[Voting, Tensor, Tensor]:
    """Votes (0.2, -0.1) and branch logits (2, 1), whatever the input."""
    voting = Voting(VotingFusion(temperature=0.8), 2, 3).double()
    with torch.no_grad():
        for parameter in voting.parameters():
            parameter.zero_()
        for layer, value in (
            (voting.easy_vote, 0.2),
            (voting.hard_vote, -0.1),
            (voting.easy_head, 2.0),
            (voting.hard_head, 1.0),
        ):
            layer.bias.fill_(value)
    return voting, torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)


def test_voting_is_noise_free_in_evaluation() -> None:
    voting, easy_BH, hard_BH = voting_on_constants()
    voting.eval()
    assert voting(easy_BH, hard_BH).fused.item() == pytest.approx(1.592666600, abs=1e-9)
    assert voting(easy_BH, hard_BH).fused.item() == voting(easy_BH, hard_BH).fused.item()


def test_voting_draws_gumbel_noise_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    voting, easy_BH, hard_BH = voting_on_constants()
    uniforms = torch.tensor([[0.3, 0.6]], dtype=torch.float64)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand_like", lambda tensor: uniforms)
        assert voting(easy_BH, hard_BH).fused.item() == pytest.approx(1.332546020, abs=1e-9)
    many = voting(easy_BH.expand(4000, -1), hard_BH.expand(4000, -1)).fused
    assert many.std() > 0.1 and ((many > 1) & (many < 2)).all()  # shares in (0, 1) that sum to 1


@pytest.mark.parametrize("kind", ["concat", "moe"])
def test_branch_heads_get_nothing_from_the_fused_loss(kind: str, inputs: tuple[Tensor, Tensor]) -> None:
    fusion = make(kind)
    assert isinstance(fusion, Concat | MixtureOfHeads)
    labels = torch.tensor([0.0, 1, 1, 0, 1, 0])
    BCE(BCEObjective())(fusion(*inputs), labels, torch.ones(6), 6.0).backward()
    heads = {"easy_head", "hard_head"}
    for name, parameter in fusion.named_parameters():
        is_head = name.split(".")[0] in heads
        assert (parameter.grad is None) == is_head, name


def test_mixture_of_heads_is_a_convex_mixture(inputs: tuple[Tensor, Tensor]) -> None:
    fusion = make("moe")
    assert isinstance(fusion, MixtureOfHeads)
    both = torch.cat(inputs, dim=1)
    heads, shares = fusion.heads(both), F.softmax(fusion.gate(both), dim=1)
    torch.testing.assert_close(shares.sum(1), torch.ones(NUM_ROWS))
    fused = fusion(*inputs).fused
    torch.testing.assert_close(fused, shares[:, 0] * heads[:, 0] + shares[:, 1] * heads[:, 1])
    assert (fused <= heads.max(1).values + 1e-6).all() and (fused >= heads.min(1).values - 1e-6).all()


@pytest.mark.parametrize("kind", ["voting", "moe"])
def test_gates_are_what_the_block_mixes_with(kind: str, inputs: tuple[Tensor, Tensor]) -> None:
    fusion = make(kind).eval()
    [(name, shares_B2)] = fusion.gates(*inputs).items()
    fused, *mixed = fusion(*inputs)
    if isinstance(fusion, MixtureOfHeads):
        mixed = fusion.heads(torch.cat(inputs, dim=1)).unbind(dim=1)
    torch.testing.assert_close((shares_B2 * torch.stack(list(mixed), dim=1)).sum(1), fused)
    torch.testing.assert_close(shares_B2.sum(1), torch.ones(NUM_ROWS))
    assert name == "fusion" and len(fusion.gate_series) == 2 and shares_B2[:, 0].std() > 0


@pytest.mark.parametrize("kind", FUSIONS)
def test_additive_is_what_has_no_joint_part(kind: str, inputs: tuple[Tensor, Tensor]) -> None:
    """f(a, b) - f(a, b') - f(a', b) + f(a', b') is 0 for a sum of two functions, and for no other fusion here."""
    torch.manual_seed(1)
    fusion = FUSIONS[kind](CONFIGS.get(kind, SingleFusion()), EASY_DIM, HARD_DIM).eval()
    (a, b), (c, d) = inputs, (x.flip(0) for x in inputs)
    joint = fusion(a, b).fused - fusion(a, d).fused - fusion(c, b).fused + fusion(c, d).fused
    assert (joint.abs().max() < 1e-5) == fusion.is_additive
    moved = {"easy": fusion(c, b).fused, "hard": fusion(a, d).fused}
    assert fusion.branches == tuple(name for name, z in moved.items() if not torch.equal(z, fusion(a, b).fused))


def test_sum_gives_every_logit_the_same_gradient(inputs: tuple[Tensor, Tensor]) -> None:
    fusion = make("sum")
    assert isinstance(fusion, Sum)
    logits = fusion(*inputs)
    labels = torch.tensor([0.0, 1, 1, 0, 1, 0])
    loss = BCE(BCEObjective())(TwinLogits(*logits), labels, torch.ones(6), 6.0)
    fused, easy, hard = torch.autograd.grad(loss, list(logits))
    torch.testing.assert_close(easy, fused)
    torch.testing.assert_close(hard, fused)
    assert (fused != 0).all()


@pytest.mark.parametrize(
    ("num_heads", "weight", "expected"),
    [
        (1, [[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]]], 0.2),
        (2, [[[0.1], [0.2]], [[0.3], [0.4]]], -0.8),
        (1, [[[0.1, 0.0], [0.2, 0.0], [0.0, 0.3], [0.0, 0.4]]], -0.8),  # two heads are a block-diagonal matrix
    ],
)
def test_bilinear_constants(num_heads: int, weight: Any, expected: float) -> None:
    fusion = Bilinear(BilinearFusion(num_heads=num_heads), 4, 2)
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor(weight))
        for head, value, bias in ((fusion.easy_head, 0.1, 0.2), (fusion.hard_head, 0.5, 0.0)):
            head.weight.fill_(value)
            head.bias.fill_(bias)
    logits = fusion(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, -1.0]]))
    torch.testing.assert_close(logits.fused, torch.tensor([expected]))
    torch.testing.assert_close(logits.easy, torch.tensor([1.2]))


@pytest.mark.parametrize(("num_heads", "expected"), [(1, 500_000), (10, 50_000), (50, 10_000)])
def test_bilinear_size(num_heads: int, expected: int) -> None:
    assert Bilinear(BilinearFusion(num_heads=num_heads), 1000, 500).weight.numel() == expected


def test_bilinear_heads_divide_both_widths() -> None:
    for widths in ((4, 3), (3, 4)):
        with pytest.raises(ModelError, match=r"num_heads \(2\) must divide both"):
            Bilinear(BilinearFusion(num_heads=2), *widths)


def test_single_is_the_hard_branch(inputs: tuple[Tensor, Tensor]) -> None:
    fusion = Single(SingleFusion(), 0, HARD_DIM)
    logits = fusion(inputs[0][:, :0], inputs[1])
    assert all(torch.equal(z, fusion.hard_head(inputs[1])[:, 0]) for z in logits)
    assert sum(p.numel() for p in fusion.parameters()) == HARD_DIM + 1
