"""Twin focus loss against a worked batch, closed forms and special cases."""

import itertools
import math
import warnings

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from training.config import BCEObjective, TwinFocusObjective
from training.model.fusion import TwinLogits
from training.model.objective import BCE, OBJECTIVES, TwinFocus, least_monotone_c, twin_focus_losses

LABELS = torch.tensor([1, 0, 1, 0], dtype=torch.float64)
EASY = torch.tensor([2, -1, -0.5, 1.5], dtype=torch.float64)
HARD = torch.tensor([1, -2, 0.25, -0.75], dtype=torch.float64)
ONES = torch.ones(4, dtype=torch.float64)


def twin_focus(c: float, gamma: float, alpha: float = 0.25, detach_focus: bool = False) -> TwinFocus:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TwinFocus(TwinFocusObjective(c=c, gamma=gamma, alpha=alpha, detach_focus=detach_focus))


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def branch_part(objective: TwinFocus, easy: Tensor, hard: Tensor, labels: Tensor) -> Tensor:
    """L_TF: the objective less the fused logit's BCE."""
    fused = torch.zeros_like(easy)
    ones = torch.ones_like(easy)
    total = objective(TwinLogits(fused, easy, hard), labels, ones, float(len(easy)))
    return total - bce(fused, labels).mean()


@pytest.mark.parametrize(
    ("c", "gamma", "alpha", "easy", "hard", "both"),
    [
        (0.7, 1, 0.25, 0.799980331, 0.224138886, 0.368099247),
        (0.9, 1, 0.35, 0.955764329, 0.153988879, 0.434610287),
        (0.8, 2, 0.25, 1.021426003, 0.105266131, 0.334306099),
        (0.9, 2, 0.25, 1.204789668, 0.070960854, 0.354418058),
        (1.0, 2, 0.25, 1.403731734, 0.043670579, 0.383685868),
        (0.7, 0, 0.25, 0.778919990, 0.350750031, 0.457792521),
    ],
)
def test_values_on_the_worked_batch(
    c: float, gamma: float, alpha: float, easy: float, hard: float, both: float
) -> None:
    easy_B, hard_B = twin_focus_losses(EASY, HARD, LABELS, c, gamma)
    assert easy_B.mean().item() == pytest.approx(easy, abs=1e-9)
    assert hard_B.mean().item() == pytest.approx(hard, abs=1e-9)
    assert branch_part(twin_focus(c, gamma, alpha), EASY, HARD, LABELS).item() == pytest.approx(both, abs=1e-9)


def test_values_row_by_row() -> None:
    easy_B, hard_B = twin_focus_losses(EASY, HARD, LABELS, 0.7, 1)
    assert easy_B.tolist() == pytest.approx([0.200647429, 0.448295825, 1.049607565, 1.501370503], abs=1e-9)
    assert hard_B.tolist() == pytest.approx([0.178227550, 0.053208593, 0.424941638, 0.240177761], abs=1e-9)


@pytest.mark.parametrize(
    ("detach", "easy", "hard", "weight"),
    [
        (
            False,
            [-0.033747503, 0.043008187, -0.094014518, 0.103313877],
            [-0.063041234, 0.034671348, -0.153550194, 0.127233941],
            [0.151832004, -0.281144716],
        ),
        (
            True,
            [-0.034580417, 0.046857623, -0.108321499, 0.119173862],
            [-0.051492924, 0.032172605, -0.126970509, 0.111428206],
            [0.151832004, -0.281144716],
        ),
    ],
)
def test_whole_objective_and_its_gradients(
    detach: bool, easy: list[float], hard: list[float], weight: list[float]
) -> None:
    z_easy, z_hard = EASY.clone().requires_grad_(), HARD.clone().requires_grad_()
    w = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    fused = w[0] * z_easy + w[1] * z_hard
    assert bce(fused, LABELS).mean().item() == pytest.approx(0.514637214, abs=1e-9)
    loss = twin_focus(0.7, 1, 0.25, detach)(TwinLogits(fused, z_easy, z_hard), LABELS, ONES, 4.0)
    assert loss.item() == pytest.approx(0.882736461, abs=1e-9)
    loss.backward()
    for tensor, expected in ((z_easy, easy), (z_hard, hard), (w, weight)):
        assert tensor.grad is not None
        assert tensor.grad.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("detach", "easy", "hard"),
    [
        (
            False,
            [-0.018247434, 0.027614852, -0.020249855, 0.018155624],
            [-0.021920058, 0.003872520, -0.067302828, 0.032780989],
        ),
        (
            True,
            [-0.021047353, 0.039402278, -0.053943961, 0.049318132],
            [-0.011089096, 0.002277309, -0.033396532, 0.016317061],
        ),
    ],
)
def test_branch_gradients_for_gamma_2(detach: bool, easy: list[float], hard: list[float]) -> None:
    z_easy, z_hard = EASY.clone().requires_grad_(), HARD.clone().requires_grad_()
    branch_part(twin_focus(0.8, 2, 0.25, detach), z_easy, z_hard, LABELS).backward()
    assert z_easy.grad is not None and z_hard.grad is not None
    assert z_easy.grad.tolist() == pytest.approx(easy, abs=1e-9)
    assert z_hard.grad.tolist() == pytest.approx(hard, abs=1e-9)


def closed_form_gradients(u: Tensor, c: float, gamma: float, detach: bool) -> tuple[Tensor, Tensor]:
    """dL_easy/du and dL_hard/du of the signed logit u."""
    p, a = torch.sigmoid(u), 2 - c
    through = 0 if detach else gamma * p * -p.log()
    easy = -(1 - p) * (c + p) ** (gamma - 1) * ((c + p) - through)
    hard = -(1 - p) * (a - p) ** (gamma - 1) * ((a - p) + through)
    return easy, hard


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 1.7, 2, 3, 4])
def test_autograd_equals_closed_form(gamma: float, detach: bool) -> None:
    random = torch.Generator().manual_seed(3)
    for c in torch.rand(8, generator=random, dtype=torch.float64).tolist():
        z = 4 * torch.randn(200, generator=random, dtype=torch.float64)
        labels = (torch.rand(200, generator=random) < 0.5).double()
        sign = 2 * labels - 1
        easy, hard = z.clone().requires_grad_(), z.clone().requires_grad_()
        losses = twin_focus_losses(easy, hard, labels, c, gamma, detach)
        (losses[0].sum() + losses[1].sum()).backward()
        expected_easy, expected_hard = closed_form_gradients(sign * z, c, gamma, detach)
        torch.testing.assert_close(easy.grad, sign * expected_easy, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(hard.grad, sign * expected_hard, atol=1e-9, rtol=1e-9)


def test_gamma_0_is_deep_supervision() -> None:
    expected = 0.3 * bce(EASY, LABELS).mean() + 0.7 * bce(HARD, LABELS).mean()
    torch.testing.assert_close(branch_part(twin_focus(0.4, 0, 0.3), EASY, HARD, LABELS), expected)


def test_c_1_makes_the_hard_loss_focal() -> None:
    p = torch.exp(-bce(HARD, LABELS))
    torch.testing.assert_close(twin_focus_losses(EASY, HARD, LABELS, 1.0, 2)[1], (1 - p) ** 2 * bce(HARD, LABELS))


def test_gamma_1_and_alpha_half_of_equal_logits_is_bce() -> None:
    for c in (0.0, 0.3, 1.0):
        torch.testing.assert_close(branch_part(twin_focus(c, 1, 0.5), EASY, EASY, LABELS), bce(EASY, LABELS).mean())


def factors(p: Tensor, c: float, gamma: float) -> tuple[Tensor, Tensor]:
    """What multiplies -ln p in the two losses."""
    z = torch.logit(p)
    easy, hard = twin_focus_losses(z, z, torch.ones_like(z), c, gamma)
    return easy / -p.log(), hard / -p.log()


@pytest.mark.parametrize("c", [0.2, 0.7, 0.9])
@pytest.mark.parametrize("gamma", [0.5, 1, 2, 3])
def test_focus_factors(c: float, gamma: float) -> None:
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    easy, hard = factors(p, c, gamma)
    assert (easy.diff() > 0).all() and (hard.diff() < 0).all()
    same_easy, same_hard = factors(torch.tensor([1 - c], dtype=torch.float64), c, gamma)
    torch.testing.assert_close(same_easy, same_hard)
    if gamma == 1:
        torch.testing.assert_close(easy + hard, torch.full_like(p, 2.0))


@pytest.mark.parametrize("objective", [twin_focus(0.7, 1), twin_focus(0.8, 2.5), BCE(BCEObjective())])
def test_swapping_the_labels_and_the_signs_changes_nothing(objective: TwinFocus | BCE) -> None:
    logits = TwinLogits(EASY + HARD, EASY, HARD)
    flipped = TwinLogits(*(-z for z in logits))
    torch.testing.assert_close(objective(flipped, 1 - LABELS, ONES, 4.0), objective(logits, LABELS, ONES, 4.0))


def test_losses_fall_as_the_right_class_becomes_likelier() -> None:
    u = torch.linspace(-30, 30, 2001, dtype=torch.float64)
    for c, gamma in itertools.product((0.0, 0.15, 0.5, 0.8, 1.0), (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)):
        x = u.clone().requires_grad_()
        easy, hard = twin_focus_losses(x, x, torch.ones_like(u), c, gamma)
        (hard_slope,) = torch.autograd.grad(hard.sum(), x, retain_graph=True)
        (easy_slope,) = torch.autograd.grad(easy.sum(), x)
        assert (hard_slope <= 0).all()
        assert bool((easy_slope <= 1e-15).all()) == (c >= least_monotone_c(gamma))


@pytest.mark.parametrize(
    ("gamma", "least"), [(0, 0.0), (0.5, 0.0249), (1, 0.1353), (2, 0.4463), (3, 0.7908), (4, 1.1460)]
)
def test_least_c(gamma: float, least: float) -> None:
    assert least_monotone_c(gamma) == pytest.approx(least, abs=5e-5)


@pytest.mark.parametrize(("c", "gamma"), [(0.6, 3), (0.7, 3), (0.44, 2), (0.13, 1), (1.0, 4)])
def test_warns_where_the_easy_branch_would_learn_to_be_wrong(c: float, gamma: float) -> None:
    with pytest.warns(UserWarning, match=f"c of {least_monotone_c(gamma):.4f} or more"):
        TwinFocus(TwinFocusObjective(c=c, gamma=gamma))


@pytest.mark.parametrize(("c", "gamma"), [(0.8, 3), (0.5, 2), (0.14, 1), (0.0, 0)])
def test_does_not_warn_elsewhere(c: float, gamma: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TwinFocus(TwinFocusObjective(c=c, gamma=gamma))


@pytest.mark.parametrize("setting", [{"c": 1.2}, {"c": -0.1}, {"gamma": -1}, {"alpha": 1.1}, {"alpha": -0.1}])
def test_refuses_parameters_out_of_range(setting: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        TwinFocusObjective(**setting)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("c", "gamma", "alpha", "total"),
    [(0.7, 1, 0.25, 1.3169796), (0.9, 1, 0.35, 1.3031167), (0.9, 2, 0.25, 1.2199390), (0.8, 2, 0.25, 1.2407335)],
)
def test_total_of_zero_logits(c: float, gamma: float, alpha: float, total: float) -> None:
    zeros = torch.zeros(4, dtype=torch.float64)
    loss = twin_focus(c, gamma, alpha)(TwinLogits(zeros, zeros, zeros), LABELS, ONES, 4.0)
    assert loss.item() == pytest.approx(total, abs=5e-8)
    formula = math.log(2) * (1 + alpha * (c + 0.5) ** gamma + (1 - alpha) * (1.5 - c) ** gamma)
    assert loss.item() == pytest.approx(formula, abs=1e-12)


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 2.5, 3])
@pytest.mark.parametrize("c", [0.0, 0.7, 1.0])
def test_stays_finite_in_float32(c: float, gamma: float) -> None:
    for u in (-500.0, -50.0, 0.0, 50.0, 500.0):
        x = torch.tensor([u], requires_grad=True)
        losses = twin_focus_losses(x, x, torch.ones(1), c, gamma)
        slopes = [torch.autograd.grad(loss.sum(), x, retain_graph=True)[0] for loss in losses]
        assert all(torch.isfinite(t).all() for t in (*losses, *slopes))
        if u == -50 and (c > 0 or gamma == 0):
            assert -slopes[0].item() == pytest.approx(c**gamma, abs=1e-5)
            assert -slopes[1].item() == pytest.approx((2 - c) ** gamma, abs=1e-5)


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_shares_of_the_ranks_add_up(kind: str) -> None:
    config = {"twin_focus": TwinFocusObjective(), "bce": BCEObjective()}[kind]
    objective = OBJECTIVES[kind](config)
    weights = torch.tensor([0.5, 2, 0, 1], dtype=torch.float64)
    logits = TwinLogits(EASY - HARD, EASY, HARD)
    whole = objective(logits, LABELS, weights, weights.sum())
    shares = [
        objective(TwinLogits(*(z[rows] for z in logits)), LABELS[rows], weights[rows], weights.sum())
        for rows in (slice(0, 3), slice(3, 4), slice(4, 4))
    ]
    torch.testing.assert_close(sum(shares), whole)
    rows = [objective(TwinLogits(*(z[i : i + 1] for z in logits)), LABELS[i : i + 1], ONES[:1], 1.0) for i in range(4)]
    torch.testing.assert_close(whole, (weights * torch.stack(rows)).sum() / weights.sum())


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_a_batch_without_weight_has_no_loss_and_no_gradient(kind: str) -> None:
    objective = OBJECTIVES[kind]({"twin_focus": TwinFocusObjective(), "bce": BCEObjective()}[kind])
    z = EASY.float().requires_grad_()
    loss = objective(TwinLogits(z, z, z), LABELS, torch.zeros(4), torch.zeros(()))
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == 0 and gradient.tolist() == [0, 0, 0, 0]


def test_autocast_does_not_round_the_loss() -> None:
    objective = twin_focus(0.7, 1)
    logits = TwinLogits(*(z.bfloat16() for z in (EASY + HARD, EASY, HARD)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(logits, LABELS.float(), torch.ones(4), 4.0)
    exact = objective(TwinLogits(EASY + HARD, EASY, HARD), LABELS, ONES, 4.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=1e-6)


def test_bce_is_the_fused_logits_alone() -> None:
    easy = EASY.clone().requires_grad_()
    fused = (EASY + HARD).requires_grad_()
    loss = BCE(BCEObjective())(TwinLogits(fused, easy, HARD), LABELS, ONES, 4.0)
    torch.testing.assert_close(loss, bce(fused, LABELS).mean())
    loss.backward()
    assert easy.grad is None and fused.grad is not None
