"""Hidden layers: the fast ReLU and dropout against PyTorch's own."""

import pytest
import torch
from torch import nn

from training.model.hidden_layers import ReLUDropout, hidden_layers


def test_without_dropout_and_in_eval_it_is_relu() -> None:
    x = torch.randn(50, 40)
    assert torch.equal(ReLUDropout(0.0)(x), x.relu())
    assert torch.equal(ReLUDropout(0.5).eval()(x), x.relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.9])
def test_an_element_is_dropped_or_scaled(dtype: torch.dtype, rate: float) -> None:
    torch.manual_seed(3)
    x = torch.randn(999, 301).to(dtype).requires_grad_()
    y = ReLUDropout(rate)(x)
    kept = (y > 0) | (x <= 0)
    assert y.dtype == dtype
    scale = 65536 / (65536 - round(rate * 65536))
    assert torch.equal(y, torch.where(kept, x.relu() * scale, 0))
    positive = x > 0
    assert float((~kept)[positive].double().mean()) == pytest.approx(rate, abs=0.005)
    dropped_rows = (~kept & positive).sum(1) / positive.sum(1)
    dropped_columns = (~kept & positive).sum(0) / positive.sum(0)
    assert dropped_rows.std() < 0.05 and dropped_columns.std() < 0.05
    g = torch.randn(999, 301).to(dtype)
    y.backward(g)
    assert torch.equal(x.grad, torch.where(y > 0, g * scale, 0))  # pyright: ignore[reportArgumentType]


def test_the_masks_follow_pytorchs_seed() -> None:
    layer, x = ReLUDropout(0.5), torch.rand(100, 9)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and torch.equal(layer(x), second)
    assert not torch.equal(first, second)


def test_an_empty_batch_passes() -> None:
    x = torch.empty(0, 5, requires_grad=True)
    ReLUDropout(0.5)(x).sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 5)


def test_layers_are_linear_batch_norm_relu_dropout() -> None:
    layers = hidden_layers([4, 6, 5], dropout=0.0, batch_norm=True)
    norms = (nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())
    exact = nn.Sequential(*norms)
    exact.load_state_dict(dict(zip(exact.state_dict(), layers.state_dict().values(), strict=True)))
    x = torch.randn(20, 4)
    torch.testing.assert_close(layers(x), exact(x), rtol=0, atol=0)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_bias_before_a_batch_norm_is_not_trained(batch_norm: bool) -> None:
    """A batch norm takes it out again, so it keeps whatever value it has: 0, or that of an earlier checkpoint."""
    layers = hidden_layers([3, 4, 2], 0.0, batch_norm)
    optimizer = torch.optim.Adam([p for p in layers.parameters() if p.requires_grad])
    biases = [part.bias for part in layers if isinstance(part, nn.Linear)]
    before = [bias.detach().clone() for bias in biases]
    layers(torch.randn(8, 3, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer.step()
    for bias, old in zip(biases, before, strict=True):
        assert torch.equal(bias, old) == batch_norm
        assert not batch_norm or not bias.any()
