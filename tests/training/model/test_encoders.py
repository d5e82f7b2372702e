"""Encoders against naive ones."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from training.config import (
    AutoIntEncoder,
    CINEncoder,
    CrossNetEncoder,
    FGCNNEncoder,
    FMEncoder,
    GatedCrossNetEncoder,
    LinearEncoder,
    MLPEncoder,
    NoEncoder,
    QNNEncoder,
)
from training.model.embedding import ModelError
from training.model.encoders import (
    ENCODERS,
    FGCNN,
    AutoInt,
    CompressedInteraction,
    Encoder,
    FactorizationMachine,
    GatedCrossNetwork,
    Nothing,
    QuadraticNetwork,
    pairwise_products,
)

CONFIGS: dict[str, list[Any]] = {
    "mlp": [MLPEncoder(hidden_units=(7, 5)), MLPEncoder(hidden_units=(6,), dropout=0.0, batch_norm=False)],
    "cross_net": [CrossNetEncoder(num_layers=2), CrossNetEncoder(num_layers=2, low_rank=3)],
    "gated_cross_net": [GatedCrossNetEncoder(num_layers=2)],
    "qnn": [QNNEncoder(num_layers=2, num_maps=3), QNNEncoder(num_layers=1, dropout=0.0, batch_norm=False)],
    "cin": [CINEncoder(layer_units=(5, 3)), CINEncoder(layer_units=(4,), first_order=True)],
    "autoint": [
        AutoIntEncoder(num_layers=2, attention_dim=6),
        AutoIntEncoder(num_layers=2, attention_dim=4, scale=True, layer_norm=True, always_project_residual=True),
    ],
    "fgcnn": [
        FGCNNEncoder(channels=(2, 3), kernel_height=3, new_channels=2, hidden_units=(6,)),
        FGCNNEncoder(channels=(2,), kernel_height=1, hidden_units=(5,), share_embedding=True, batch_norm=False),
    ],
    "fm": [FMEncoder()],
    "linear": [LinearEncoder()],
}
CASES = [(kind, config) for kind, configs in CONFIGS.items() for config in configs]
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


def test_every_encoder_is_tested_here() -> None:
    assert [*CONFIGS, "none"] == list(ENCODERS)


@pytest.mark.parametrize(("kind", "config"), CASES)
def test_every_encoder(kind: str, config: Any, inputs: tuple[Tensor, Tensor]) -> None:
    encoder, (x_BFD, first_order_BF1) = make(kind, config), inputs
    reads = encoder.reads(config)
    if reads.views == 2:
        x_BFD = torch.cat([x_BFD, x_BFD.flip(0)], dim=2)
    x_BFD.requires_grad_()
    first_order_BF1.requires_grad_()
    output = encoder(x_BFD, first_order_BF1)
    assert output.shape == (B, encoder.output_dim)
    output.square().sum().backward()
    assert (x_BFD.grad is not None and x_BFD.grad.abs().sum() > 0) == bool(reads.views)
    assert (first_order_BF1.grad is not None) == reads.first_order
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    encoder.eval()
    whole = encoder(x_BFD, first_order_BF1)
    assert torch.equal(encoder(x_BFD, first_order_BF1), whole)
    for i in range(3):  # a row's output is its own, whatever stands beside it
        rows = slice(i, i + 1)
        torch.testing.assert_close(encoder(x_BFD[rows], first_order_BF1[rows]), whole[rows], atol=1e-5, rtol=1e-4)
    assert encoder(x_BFD[:0], first_order_BF1[:0]).shape == (0, encoder.output_dim)


def test_mlp_layers_are_in_the_right_order() -> None:
    kinds = [type(m).__name__ for m in make("mlp", CONFIGS["mlp"][0]).layers]  # pyright: ignore
    assert kinds == ["Linear", "GlobalBatchNorm", "ReLUDropout"] * 2


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


def gated_cross(num_layers: int, gate: Any) -> tuple[Encoder, Tensor, Tensor]:
    """GDCN's worked example: two fields of one coordinate, c_0 = (1, 2)."""
    encoder = GatedCrossNetwork(GatedCrossNetEncoder(num_layers=num_layers), 2, 1)
    for cross, gated in zip(encoder.crosses, encoder.gates, strict=True):
        with torch.no_grad():
            cross.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, -1.0]]))  # pyright: ignore
            cross.bias.copy_(torch.tensor([0.5, 0.0]))  # pyright: ignore
            gated.weight.copy_(torch.tensor(gate))  # pyright: ignore
    return encoder, torch.tensor([[[1.0], [2.0]]]), torch.empty(1, 2, 0)


@pytest.mark.parametrize(
    ("num_layers", "gate", "expected"),
    [
        (1, [[0.0, 0.0], [1.0, 0.0]], [1.75, 0.53788284]),
        (2, [[0.0, 0.0], [1.0, 0.0]], [2.875, 2.60321606]),
        (1, [[0.0, 0.0], [0.0, 0.0]], [1.75, 1.0]),
        (1, [[99.0, 99.0], [99.0, 99.0]], [2.5, 0.0]),  # an open gate is DCN-V2
    ],
)
def test_gated_cross_network_constants(num_layers: int, gate: Any, expected: list[float]) -> None:
    encoder, *inputs = gated_cross(num_layers, gate)
    torch.testing.assert_close(encoder(*inputs)[0], torch.tensor(expected), atol=1e-6, rtol=0)


def quadratic(dropout: float, batch_norm: bool = False) -> tuple[QuadraticNetwork, Tensor, Tensor]:
    """QIN's worked example: one layer of two maps on x = (1, 2, -1)."""
    encoder = QuadraticNetwork(QNNEncoder(num_layers=1, num_maps=2, dropout=dropout, batch_norm=batch_norm), 3, 1)
    turn = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    (maps,) = encoder.maps
    with torch.no_grad():
        maps.weight.copy_(torch.cat([torch.eye(3), turn]))  # pyright: ignore
        maps.bias.copy_(torch.tensor([0.1, 0.1, 0.1, 0.0, 0.0, 0.5]))  # pyright: ignore
    return encoder, torch.tensor([[[1.0], [2.0], [-1.0]]]), torch.empty(1, 3, 0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_quadratic_network_constants(dropout: float) -> None:
    encoder, *inputs = quadratic(dropout)
    torch.testing.assert_close(encoder.eval()(*inputs)[0], torch.tensor([4.1, 4.2, -1.15]), atol=1e-6, rtol=0)
    # Without dropout training is the same; with it a map's result is 0 or twice itself: y = x * (1.1 or 0, ...).
    outputs = {tuple(encoder.train()(*inputs)[0].tolist()) for _ in range(30)}
    assert (len(outputs) > 10) == bool(dropout)


def test_quadratic_network_has_the_published_size() -> None:
    for num_maps, expected in ((4, 16_793_600), (3, 12_595_200)):
        encoder = QuadraticNetwork(QNNEncoder(num_maps=num_maps), 8, 128)
        assert sum(p.numel() for p in encoder.parameters()) == expected + 8_192 + 4


def test_quadratic_network_labels_its_maps_field_by_field() -> None:
    encoder = QuadraticNetwork(QNNEncoder(num_layers=1, num_maps=2), 2, 2)
    labels = encoder.axis_labels("maps.0.weight", 0, 8, ["a", "b"])
    assert labels == [(r, field, place) for r in (0, 1) for field in ("a", "b") for place in (0, 1)]
    assert encoder.axis_labels("maps.0.weight", 1, 4, ["a", "b"]) == [(f, p) for f in ("a", "b") for p in (0, 1)]


def test_cross_networks_have_the_published_sizes() -> None:
    for kind, config, expected in (
        ("gated_cross_net", GatedCrossNetEncoder(num_layers=3), 2_338_128),
        ("cross_net", CrossNetEncoder(num_layers=3), 1_170_000),
    ):
        encoder = ENCODERS[kind](config, 39, 16)
        assert encoder.output_dim == 624
        assert sum(p.numel() for p in encoder.parameters()) == expected


def test_cin_is_its_equation(inputs: tuple[Tensor, Tensor]) -> None:
    encoder, (x_BFD, first_order_BF1) = make("cin", CINEncoder(layer_units=(5, 3), first_order=True)), inputs
    assert isinstance(encoder, CompressedInteraction)
    sums, maps = [first_order_BF1.sum(1)], x_BFD
    for layer in encoder.layers:
        weight_HGF = layer.weight.unflatten(1, (maps.shape[1], F))  # pyright: ignore
        naive = torch.zeros(B, len(weight_HGF), D)
        for h, g, f in itertools.product(range(len(weight_HGF)), range(maps.shape[1]), range(F)):
            naive[:, h] += weight_HGF[h, g, f] * maps[:, g] * x_BFD[:, f]
        maps = naive + layer.bias[:, None]  # pyright: ignore
        sums.append(maps.sum(2))
    torch.testing.assert_close(encoder(*inputs), torch.cat(sums, 1), atol=1e-5, rtol=1e-4)


IDENTITY_OUTPUT = [1.844638, 0.577681, 0.577681, 1.844638, 1.788058, 1.788058]


@pytest.mark.parametrize(
    ("heads", "scale", "sign", "expected"),
    [
        (1, False, 1.0, IDENTITY_OUTPUT),
        (1, True, 1.0, [1.802224, 0.598888, 0.598888, 1.802224, 1.751745, 1.751745]),
        (2, False, 1.0, [1.844638, 0.666667, 0.666667, 1.844638, 1.844638, 1.844638]),
        (1, False, -1.0, [0.0] * 6),  # values and residual of -1: nothing is left after ReLU
    ],
)
def test_autoint_constants(heads: int, scale: bool, sign: float, expected: list[float]) -> None:
    config = AutoIntEncoder(num_layers=1, num_heads=heads, attention_dim=2, scale=scale, always_project_residual=True)
    encoder = AutoInt(config, 3, 2)
    for name, parameter in encoder.named_parameters():
        with torch.no_grad():
            parameter.copy_(torch.eye(2) * (sign if "value" in name or "residual" in name else 1.0))
    x_BFD = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    torch.testing.assert_close(encoder(x_BFD, x_BFD[..., :0])[0], torch.tensor(expected), atol=1e-6, rtol=0)


def test_autoint_moves_with_its_fields(inputs: tuple[Tensor, Tensor]) -> None:
    encoder, order = make("autoint", AutoIntEncoder(num_layers=2, attention_dim=6)), [2, 0, 1]
    fields = encoder(*inputs).unflatten(1, (F, -1))
    moved = encoder(inputs[0][:, order], inputs[1]).unflatten(1, (F, -1))
    torch.testing.assert_close(moved, fields[:, order])


def test_autoint_has_the_published_size() -> None:
    for config, expected in (
        (AutoIntEncoder(num_layers=6, num_heads=4, attention_dim=128), 252_161),
        (AutoIntEncoder(num_layers=5, num_heads=4, attention_dim=128, layer_norm=True), 568_290 - 364_001),
    ):
        encoder = AutoInt(config, 10, 10)
        assert sum(p.numel() for p in encoder.parameters()) + encoder.output_dim + 1 == expected


@pytest.mark.parametrize(
    ("num_fields", "dim", "total", "width", "kernel_height"),
    [(39, 16, 153, 14_076, 9), (24, 16, 93, 5_766, 9), (3, 4, 18, 225, 7)],
)
def test_fgcnn_has_the_published_shapes(num_fields: int, dim: int, total: int, width: int, kernel_height: int) -> None:
    config = FGCNNEncoder(channels=(38, 40, 42, 44), kernel_height=kernel_height, hidden_units=(1,))
    with torch.device("meta"):
        encoder = FGCNN(config, num_fields, dim)
    assert encoder.num_fields == total
    assert encoder.layers[0].in_features == width
    if num_fields == 39:
        assert sum(p.numel() for p in encoder.convolutions.parameters()) == 45_938
        assert sum(p.numel() for p in encoder.recombinations.parameters()) == 15_857_952


def test_fgcnn_convolves_and_pools_along_the_fields() -> None:
    """A kernel of ones, "same" padding; five fields pool as (1, 2)(3, 4)(5)."""
    encoder = FGCNN(FGCNNEncoder(channels=(1,), kernel_height=3, new_channels=1, hidden_units=(2,)), 4, 2).eval()
    convolution, image = encoder.convolutions[0], torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 2.0]])
    with torch.no_grad():
        for parameter, value in zip(convolution.parameters(), (1.0, 0.0), strict=True):
            parameter.fill_(value)
    convolved = convolution(image[None, None])
    assert convolved[0, 0].tolist() == [[1, 1], [2, 2], [0, 4], [0, 3]]
    pooled = encoder.pool(torch.tanh(convolved))[0, 0]
    torch.testing.assert_close(pooled, torch.tensor([[0.9640276, 0.9640276], [0.0, 0.9993293]]))
    assert encoder.pool(torch.arange(1.0, 6.0).view(1, 1, 5, 1)).flatten().tolist() == [2, 4, 5]


def test_fgcnn_pairs_are_all_pairs(inputs: tuple[Tensor, Tensor]) -> None:
    config = CONFIGS["fgcnn"][1]
    encoder, x_BFD = make("fgcnn", config).eval(), inputs[0]
    assert isinstance(encoder, FGCNN)
    fields = torch.cat([x_BFD, *encoder.generate(x_BFD)], dim=1)
    pairs = [(fields[:, i] * fields[:, j]).sum(1) for i, j in itertools.combinations(range(encoder.num_fields), 2)]
    expected = encoder.layers(torch.cat([fields.flatten(1), torch.stack(pairs, 1)], 1))
    torch.testing.assert_close(encoder(*inputs), expected)


def test_nothing_has_no_columns(inputs: tuple[Tensor, Tensor]) -> None:
    assert Nothing(NoEncoder(), F, D)(*inputs).shape == (B, 0)


@pytest.mark.parametrize(
    ("make_config", "words"),
    [
        (lambda: AutoIntEncoder(num_heads=3, attention_dim=64), "must be a multiple of num_heads"),
        (lambda: FGCNNEncoder(kernel_height=4), "must be odd"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make_config: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_config()
