"""GlobalBatchNorm on two real gloo ranks against nn.BatchNorm1d on all the rows."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.ranks import on_two_ranks
from training.model.normalization import GlobalBatchNorm

C, STEPS = 4, 2
ROWS_PER_RANK = {"even": (6, 6), "uneven": (9, 3), "one each": (1, 1), "none here": (7, 0), "none there": (0, 5)}


def make_norm() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return 1 + torch.rand(C, generator=random), torch.randn(C, generator=random)


def make_rows(case: str, step: int) -> tuple[Tensor, Tensor]:
    """All ranks' inputs, far from centred, and the targets of a loss that is not linear in the output; float64."""
    random = torch.Generator().manual_seed(10 * list(ROWS_PER_RANK).index(case) + step)
    n = sum(ROWS_PER_RANK[case])
    x, target = torch.randn(2, n, C, generator=random, dtype=torch.float64)
    return 50 + 3 * x, target


def train(norm: nn.BatchNorm1d, case: str, rows: slice) -> dict[str, Tensor]:
    """Two steps without an update: outputs, input gradients, summed affine gradients, running statistics."""
    weight, bias = make_norm()
    norm.load_state_dict({**norm.state_dict(), "weight": weight, "bias": bias})
    outputs, gradients = [], []
    for step in range(STEPS):
        x, target = (t[rows] for t in make_rows(case, step))
        x.requires_grad_()
        y = norm(x)
        (y - target).pow(3).sum().backward()
        assert x.grad is not None
        outputs.append(y.detach())
        gradients.append(x.grad)
    return {
        "output": torch.cat(outputs),
        "gradient": torch.cat(gradients),
        "weight": norm.weight.grad if norm.weight.grad is not None else torch.zeros(C).double(),
        "bias": norm.bias.grad if norm.bias.grad is not None else torch.zeros(C).double(),
        **{f"buffer {name}": buffer for name, buffer in norm.named_buffers()},
    }


def train_rank(folder: Path) -> None:
    rank, results = dist.get_rank(), {}
    for case, (first, _) in ROWS_PER_RANK.items():
        results[case] = train(GlobalBatchNorm(C).double(), case, slice(0, first) if rank == 0 else slice(first, None))
    lonely = GlobalBatchNorm(C)
    lonely.running_mean.fill_(2.0)  # pyright: ignore[reportOptionalMemberAccess]
    x = torch.full((1 - rank, C), 5.0, requires_grad=True)
    lonely(x).sum().backward()
    results["single row"] = {
        "output": lonely(x).detach(),
        "gradient": x.grad,
        **{f"buffer {name}": buffer for name, buffer in lonely.named_buffers()},
    }
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    on_two_ranks(folder, train_rank, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", ROWS_PER_RANK)
def test_two_ranks_equal_one(case: str, two_ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    first, second = (results[case] for results in two_ranks)
    exact = train(nn.BatchNorm1d(C).double(), case, slice(None))
    sizes = [[n] * STEPS for n in ROWS_PER_RANK[case]]
    for name in ("output", "gradient"):
        parts = [part[name].split(size) for part, size in zip((first, second), sizes, strict=True)]
        together = torch.cat([part[step] for step in range(STEPS) for part in parts])
        torch.testing.assert_close(together, exact[name], atol=1e-10, rtol=1e-10)
    for name in ("weight", "bias"):
        torch.testing.assert_close(first[name] + second[name], exact[name], atol=1e-10, rtol=1e-10)
    for name in (name for name in exact if name.startswith("buffer")):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], exact[name], atol=1e-10, rtol=1e-10)


def test_a_single_row_over_all_ranks_uses_the_running_statistics(two_ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    first, second = (results["single row"] for results in two_ranks)
    scale = (1 + 1e-5) ** -0.5
    torch.testing.assert_close(first["output"], torch.full((1, C), 3 * scale))
    torch.testing.assert_close(first["gradient"], torch.full((1, C), scale))
    assert second["output"].shape == second["gradient"].shape == (0, C)
    for result in (first, second):
        assert result["buffer num_batches_tracked"] == 0
        assert (result["buffer running_mean"] == 2).all() and (result["buffer running_var"] == 1).all()


def test_alone_it_is_batch_norm_bit_for_bit() -> None:
    norms = [nn.BatchNorm1d(C).double(), GlobalBatchNorm(C).double()]
    expected, actual = (train(norm, "uneven", slice(None)) for norm in norms)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    x = make_rows("uneven", 0)[0]
    expected, actual = (norm.eval()(x) for norm in norms)
    assert torch.equal(expected, actual)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_alone_with_fewer_than_two_rows_it_uses_the_running_statistics(num_rows: int) -> None:
    norm = GlobalBatchNorm(C).double()
    train(norm, "even", slice(None))
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    x = make_rows("even", 0)[0][:num_rows]
    training = norm(x)
    assert torch.equal(training, norm.eval()(x)) and training.shape == (num_rows, C)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
