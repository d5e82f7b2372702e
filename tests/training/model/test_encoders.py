"""Encoders against naive ones."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from training.config import CrossNetEncoder, FMEncoder, LinearEncoder, MLPEncoder
from training.model.embedding import ModelError
from training.model.encoders import ENCODERS, Encoder, FactorizationMachine, pairwise_products

CONFIGS: dict[str, list[Any]] = {
    "mlp": [MLPEncoder(hidden_units=(7, 5)), MLPEncoder(hidden_units=(6,), dropout=0.0, batch_norm=False)],
    "cross_net": [CrossNetEncoder(num_layers=2), CrossNetEncoder(num_layers=2, low_rank=3)],
    "fm": [FMEncoder()],
    "linear": [LinearEncoder()],
}
CASES = [(kind, config) for kind in ENCODERS for config in CONFIGS[kind]]
B, F, D = 16, 3, 4


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    return torch.randn(B, F, D, generator=random), torch.randn(B, F, 1, generator=random)


def make(kind: str, config: Any) -> Encoder:
    torch.manual_seed(1)
    encoder = ENCODERS[kind](config, F, D)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return encoder


@pytest.mark.parametrize(("kind", "config"), CASES)
def test_every_encoder(kind: str, config: Any, inputs: tuple[Tensor, Tensor]) -> None:
    encoder, (x_BFD, first_order_BF1) = make(kind, config), inputs
    x_BFD.requires_grad_()
    first_order_BF1.requires_grad_()
    output = encoder(x_BFD, first_order_BF1)
    assert output.shape == (B, encoder.output_dim)
    output.square().sum().backward()
    assert (x_BFD.grad is not None and x_BFD.grad.abs().sum() > 0) == encoder.reads_embeddings
    assert (first_order_BF1.grad is not None) == encoder.reads_first_order
    assert all(p.grad is not None for p in encoder.parameters())
    encoder.eval()
    whole = encoder(x_BFD, first_order_BF1)
    assert torch.equal(encoder(x_BFD, first_order_BF1), whole)
    for i in range(3):  # a row's output is its own, whatever stands beside it
        rows = slice(i, i + 1)
        torch.testing.assert_close(encoder(x_BFD[rows], first_order_BF1[rows]), whole[rows], atol=1e-5, rtol=1e-4)
    assert encoder(x_BFD[:0], first_order_BF1[:0]).shape == (0, encoder.output_dim)


def test_mlp_layers_are_in_the_right_order() -> None:
    kinds = [type(m).__name__ for m in make("mlp", CONFIGS["mlp"][0]).layers]  # pyright: ignore
    assert kinds == ["Linear", "GlobalBatchNorm", "ReLU", "Dropout"] * 2


@pytest.mark.parametrize("low_rank", [None, 3])
def test_cross_network_is_its_equation(low_rank: int | None, inputs: tuple[Tensor, Tensor]) -> None:
    encoder = make("cross_net", CrossNetEncoder(num_layers=2, low_rank=low_rank))
    parameters = dict(encoder.named_parameters())
    x_0 = x = inputs[0].flatten(1)
    for i in range(2):
        if low_rank is None:
            w = parameters[f"layers.kernels.{i}"]
        else:
            w = parameters[f"layers.W_kernels.{i}"] @ parameters[f"layers.V_kernels.{i}"]
        x = x_0 * (x @ w.T + parameters[f"layers.bias.{i}"].flatten()) + x
    torch.testing.assert_close(encoder(*inputs), x, atol=1e-5, rtol=1e-4)


def test_pairwise_products_are_the_sum_over_pairs(inputs: tuple[Tensor, Tensor]) -> None:
    x_BFD = inputs[0].double()
    naive = sum((x_BFD[:, i] * x_BFD[:, j]).sum(1) for i, j in itertools.combinations(range(F), 2))
    assert isinstance(naive, Tensor)
    torch.testing.assert_close(pairwise_products(x_BFD), naive[:, None])
    assert pairwise_products(x_BFD).shape == (B, 1)


def test_factorization_machine(inputs: tuple[Tensor, Tensor]) -> None:
    encoder, (x_BFD, first_order_BF1) = make("fm", FMEncoder()), inputs
    assert isinstance(encoder, FactorizationMachine)
    expected = first_order_BF1.sum((1, 2)) + encoder.bias + pairwise_products(x_BFD)[:, 0]
    torch.testing.assert_close(encoder(x_BFD, first_order_BF1)[:, 0], expected)


def test_linear_has_no_bias(inputs: tuple[Tensor, Tensor]) -> None:
    encoder = make("linear", LinearEncoder())
    assert not list(encoder.parameters())
    torch.testing.assert_close(encoder(*inputs)[:, 0], inputs[1].sum((1, 2)))


def test_factorization_machine_needs_a_pair() -> None:
    with pytest.raises(ModelError, match="at least two features"):
        FactorizationMachine(FMEncoder(), 1, D)
