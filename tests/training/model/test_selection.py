"""SSEM: what each variant shows the two encoders."""

from typing import Any

import pytest
import torch
from torch import Tensor

from training.config import (
    GateSelection,
    MoESelection,
    SeparateSelection,
    SharedSelection,
    StreamGatesSelection,
)
from training.model.embedding import Streams
from training.model.selection import SELECTIONS, Gate, MixtureOfExperts, Selection, StreamGates

CONFIGS: dict[str, Any] = {
    "separate": SeparateSelection(),
    "gate": GateSelection(),
    "moe": MoESelection(),
    "stream_gates": StreamGatesSelection(easy_context=("user", "item"), hidden_units=(6,)),
    "shared": SharedSelection(),
}
B, F, D = 32, 3, 4
K = F * D


def make(kind: str) -> Selection:
    torch.manual_seed(1)
    return SELECTIONS[kind](CONFIGS[kind], F, D)


@pytest.fixture
def streams() -> Streams:
    random = torch.Generator().manual_seed(2)
    return {
        "easy": torch.randn(B, F, D // 2, generator=random),
        "hard": torch.randn(B, F, D, generator=random),
        "shared": torch.randn(B, F, D, generator=random),
        "context_easy": torch.randn(B, 2, D, generator=random),
        "context_hard": torch.randn(B, F, 0, generator=random),
    }


@pytest.mark.parametrize("kind", SELECTIONS)
def test_every_selection(kind: str, streams: Streams) -> None:
    selection = make(kind)
    for stream in streams.values():
        stream.requires_grad_()
    easy, hard = selection(streams)
    assert hard.shape == (B, F, D)
    assert easy.shape == ((B, F, D // 2) if kind == "separate" else (B, F, D))
    (easy.square().sum() + hard.square().sum()).backward()
    used = {"separate": ("easy", "hard"), "stream_gates": ("shared", "context_easy")}.get(kind, ("shared",))
    for name, stream in streams.items():
        assert (stream.grad is not None and stream.grad.abs().sum() > 0) == (name in used)
    assert all(p.grad is not None for p in selection.parameters() if p.requires_grad)
    selection.eval()
    first, second = selection(streams), selection(streams)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_separate_streams_do_not_touch(streams: Streams) -> None:
    streams["hard"].requires_grad_()
    easy, hard = make("separate")(streams)
    assert easy is streams["easy"] and hard is streams["hard"] and not easy.requires_grad


def test_shared_streams_are_the_same_tensor(streams: Streams) -> None:
    easy, hard = make("shared")(streams)
    assert easy is hard is streams["shared"]


@pytest.mark.parametrize("training", [True, False])
def test_gate_shares_the_embedding_out(training: bool, streams: Streams) -> None:
    selection = make("gate").train(training)
    assert isinstance(selection, Gate)
    x = streams["shared"]
    torch.manual_seed(5)
    easy, hard = selection(streams)
    torch.testing.assert_close(easy + hard, x, atol=1e-6, rtol=1e-5)
    gates = (easy / x).flatten(1)
    assert ((gates > 0) & (gates < 1)).all()
    torch.testing.assert_close(gates, gates[:, :1].expand_as(gates), atol=1e-4, rtol=1e-4)  # one gate a row
    assert gates[:, 0].std() > 1e-3
    torch.manual_seed(5)
    torch.testing.assert_close(gates[:, :1], torch.sigmoid(selection.gate(x.flatten(1))), atol=1e-4, rtol=1e-4)


def test_number_of_gate_parameters() -> None:
    hidden = K // 4
    assert count(make("gate")) == K * hidden + hidden + 2 * hidden + hidden + 1


def test_number_of_mixture_parameters() -> None:
    expert = K * (K // 2) + 3 * (K // 2) + (K // 2) * K + 3 * K
    gate = K * (K // 4) + 3 * (K // 4) + 2 * (K // 4) + 2
    assert count(make("moe")) == 2 * expert + 2 * gate


def test_mixture_is_convex_and_not_negative(streams: Streams) -> None:
    selection = make("moe").eval()
    assert isinstance(selection, MixtureOfExperts)
    x = streams["shared"].flatten(1)
    experts = torch.stack([expert(x) for expert in selection.experts], dim=1)
    gates = [gate(x).softmax(dim=1) for gate in (selection.easy_gate, selection.hard_gate)]
    for stream, gate in zip(selection(streams), gates, strict=True):
        torch.testing.assert_close(gate.sum(1), torch.ones(B))
        mixture: Tensor = stream.flatten(1)
        torch.testing.assert_close(mixture, torch.einsum("be,bek->bk", gate, experts))
        assert (mixture >= 0).all()
        assert (mixture <= experts.max(1).values + 1e-6).all() and (mixture >= experts.min(1).values - 1e-6).all()
    assert not torch.allclose(*gates)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", SELECTIONS)
def test_gates_are_what_the_block_lets_through(kind: str, streams: Streams) -> None:
    """As a reader of the gates takes them: equal parts of a row, named by ``gate_series`` or, without it, fields."""
    selection = make(kind).eval()
    gates, x_BFD = selection.gates(streams), streams["shared"]
    parts = {name: g.unflatten(1, (len(selection.gate_series) or F, -1)) for name, g in gates.items()}
    assert all(((g > 0) & (g < selection.gate_top)).all() and g.std() > 1e-3 for g in gates.values())
    passed = dict(zip(("easy", "hard"), selection(streams), strict=True))
    if isinstance(selection, Gate):
        torch.testing.assert_close(parts["selection"] * x_BFD, passed["easy"])
    elif isinstance(selection, MixtureOfExperts):
        experts_BEK = torch.stack([expert(x_BFD.flatten(1)) for expert in selection.experts], dim=1)
        for side, vectors_BFD in passed.items():
            mixture = (parts[f"selection, {side} stream"] * experts_BEK).sum(dim=1)
            torch.testing.assert_close(mixture, vectors_BFD.flatten(1))
    elif isinstance(selection, StreamGates):
        for side, vectors_BFD in passed.items():
            torch.testing.assert_close(parts[f"selection, {side} stream"] * x_BFD, vectors_BFD)
    else:
        assert not gates


def test_stream_gates_constants() -> None:
    """Zero logits leave x as it is; 2 sigmoid of (1, -1) on (1, -2)."""
    selection = StreamGates(StreamGatesSelection(hidden_units=()), 2, 1)
    x_BFD = torch.tensor([[[1.0], [-2.0]]])
    streams: Streams = {"shared": x_BFD, "context_easy": x_BFD[..., :0], "context_hard": x_BFD[..., :0]}
    with torch.no_grad():
        for parameter in selection.parameters():
            parameter.zero_()
        bias = selection.hard_gate.layers[0].bias
        assert isinstance(bias, Tensor)
        bias.copy_(torch.tensor([1.0, -1.0]))
    easy, hard = selection(streams)
    assert torch.equal(easy, x_BFD)
    torch.testing.assert_close(hard.flatten(), torch.tensor([1.46211716, -1.07576569]))
