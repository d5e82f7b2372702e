"""History encoders: a target's vector and the vectors of a row's events -> one vector of the target's width, or two.

Events lie row by row, newest first, without padding; an encoder says whether it reads the time between event and row.
An event may count more than another, by how long its user stayed (``training.model.dwell_weights``); weights of a row
have the mean 1, so that equal ones change nothing.

Shapes: B rows, N events of all rows, K width of the target and of what an event shares with it, G width of an event's
gap vector, E = K + G width of an event, H hidden width, L events of the longest row.
"""

from collections import ChainMap
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import ASTAHistory, DINHistory, HistoryConfig, MeanHistory, SDIMHistory, TransformerHistory
from training.model.dwell_weights import mean_one
from training.model.embedding import HISTORY_STREAMS, EventVectors, ModelError, StreamName, stable_seed
from training.model.jagged import rows_of, sum_by
from training.model.normalization import GlobalBatchNorm, before_norm
from training.plugins import HISTORY_KINDS

_HASHED_AT_ONCE = 1 << 13
"""Vectors whose hash is made together: what lies between them and their signatures is far larger than both."""


class HistoryEncoder(nn.Module):
    """HistoryEncoder: base class; built from (config, width K of the target, width G of a gap vector, seed).

    A row's result depends on that row alone, and in training on what a batch norm reads.

    Attributes:
        length: newest events of a row that are read; None: all.
        output_dim: width of the result, K or a multiple of it.
    """

    def __init__(self, config: Any, dim: int, gap_dim: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.dim = self.output_dim = dim
        self.gap_dim = gap_dim if self.reads_gaps(config) else 0
        self.length: int | None = getattr(config, "length", None)

    @classmethod
    def reads_gaps(cls, config: Any) -> bool:
        """Tell whether an encoder of this config reads gap vectors; others need no table of them."""
        return False

    def forward(
        self, target_BK: Tensor, events_NE: Tensor, lengths_B: Tensor, weights_N: Tensor | None = None
    ) -> Tensor:
        """Encode to (B, output_dim); gap vectors that the encoder does not read may stand there or not.

        Args:
            target_BK: the rows' own vectors.
            events_NE: those of the events.
            lengths_B: number of each row's events.
            weights_N: how much each event counts, 0: not known, which is as much as its row's mean; None: all count
                as much.
        """
        events_NE, lengths_B, weights_N1 = self._read(events_NE, lengths_B, weights_N)
        events_NE = events_NE[:, : self.dim + self.gap_dim]
        if weights_N1 is None:
            return self.encode(target_BK, events_NE, lengths_B).to(target_BK.dtype)
        return self.encode_weighted(target_BK, events_NE, lengths_B, weights_N1).to(target_BK.dtype)

    def _read(
        self, events_NE: Tensor, lengths_B: Tensor, weights_N: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cut each row to the events that are read: them, the rows' lengths, their weights with a mean of 1, (N, 1)."""
        if self.length is not None:
            if weights_N is not None:
                weights_N = newest_events(weights_N.unsqueeze(1), lengths_B, self.length)[0].squeeze(1)
            events_NE, lengths_B = newest_events(events_NE, lengths_B, self.length)
        return events_NE, lengths_B, None if weights_N is None else mean_one(weights_N, lengths_B)

    def encode(self, target_BK: Tensor, events_NE: Tensor, lengths_B: Tensor) -> Tensor:
        """Encode the events that are read to (B, output_dim); an encoder has this or ``encode_weighted``."""
        return self.encode_weighted(target_BK, events_NE, lengths_B, None)

    def encode_weighted(
        self, target_BK: Tensor, events_NE: Tensor, lengths_B: Tensor, weights_N1: Tensor | None
    ) -> Tensor:
        """Encode events of unequal weights, whose mean is 1 in each row, to (B, output_dim); None: all are 1.

        Here the events' vectors are multiplied by them, which makes a weighted mean of a mean.
        """
        if weights_N1 is None:
            raise NotImplementedError(f"{type(self).__name__} has neither encode nor encode_weighted")
        weighted_NK = weights_N1 * events_NE[:, : self.dim]
        return self.encode(target_BK, torch.cat([weighted_NK, events_NE[:, self.dim :]], dim=1), lengths_B)


def newest_events(events_NE: Tensor, lengths_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cut each row to its newest events; returns the events and the rows' lengths."""
    kept_N = positions(lengths_B, len(events_NE)) < length
    return events_NE.index_select(0, kept_N.nonzero().squeeze(1)), lengths_B.clamp(max=length)


def positions(lengths_B: Tensor, num_events: int) -> Tensor:
    """Number each event in its row from 0, the newest, (N,)."""
    first_B = lengths_B.cumsum(0) - lengths_B
    return torch.arange(num_events, device=lengths_B.device) - first_B[rows_of(lengths_B, num_events)]


class EventMean(HistoryEncoder):
    """u = sum_j h_j / number of events; zeros for a row without events."""

    def encode(self, target_BK: Tensor, events_NE: Tensor, lengths_B: Tensor) -> Tensor:
        """Encode to (B, K)."""
        sums_BK = sum_by(rows_of(lengths_B, len(events_NE)), events_NE, len(lengths_B))
        return sums_BK / lengths_B.clamp(min=1).unsqueeze(1)


class DIN(HistoryEncoder):
    """u = sum_j a_j h_j with a_j = MLP([t; h_j; t - h_j; t * h_j; g_j]), or its softmax over the row's events.

    Zeros for a row without events. The first layer's matrix W = [W_t W_h W_- W_* W_g] is applied part by part::

        W [t; h; t - h; t * h; g] = (W_t + W_-) t + (W_h - W_-) h + W_* (t * h) + W_g g

    so that the target's part is multiplied once a row, and the event's is half as wide.
    """

    def __init__(self, config: DINHistory, dim: int, gap_dim: int = 0, seed: int = 0) -> None:
        super().__init__(config, dim, gap_dim, seed)
        widths = [4 * dim + self.gap_dim, *config.hidden_units, 1]
        self.first = last = nn.Linear(widths[0], widths[1])
        layers: list[nn.Module] = []
        for i, o in pairwise(widths[1:]):
            dropout = [nn.Dropout(config.dropout)] if config.dropout else []
            last = nn.Linear(i, o)
            layers += [_ACTIVATIONS[config.activation](i), *dropout, last]
        self.rest = nn.Sequential(*layers)
        if config.softmax:  # which takes no notice of a constant either
            before_norm(last)
        self.softmax, self.scale = config.softmax, dim**-0.5 if config.scale else 1.0

    @classmethod
    def reads_gaps(cls, config: DINHistory) -> bool:
        """Tell whether the encoder reads gap vectors."""
        return True

    def encode_weighted(
        self, target_BK: Tensor, events_NE: Tensor, lengths_B: Tensor, weights_N1: Tensor | None
    ) -> Tensor:
        """Encode to (B, K), each a_j multiplied by the event's weight, before a softmax divides by their sum."""
        rows_N = rows_of(lengths_B, len(events_NE))
        a_N1 = self.weigh(target_BK, events_NE, rows_N)
        if self.softmax:
            logits_N1 = a_N1 * self.scale
            logits_N1 = logits_N1 if weights_N1 is None else logits_N1 + weights_N1.log()
            a_N1 = softmax_by(rows_N, logits_N1, len(lengths_B))
        elif weights_N1 is not None:
            a_N1 = a_N1 * weights_N1
        return sum_by(rows_N, a_N1 * events_NE[:, : self.dim], len(lengths_B))

    def weigh(self, target_BK: Tensor, events_NE: Tensor, rows_N: Tensor) -> Tensor:
        """Compute the MLP's result of each event with its row's target, (N, 1)."""
        k = self.dim
        of_target, of_event, of_difference, of_product, of_gap = self.first.weight.split([k, k, k, k, self.gap_dim], 1)
        by_target_BH = F.linear(target_BK, of_target + of_difference, self.first.bias)
        products_NK = target_BK.index_select(0, rows_N) * events_NE[:, :k]
        by_event_NH = F.linear(
            torch.cat([events_NE, products_NK], dim=1), torch.cat([of_event - of_difference, of_gap, of_product], dim=1)
        )
        return self.rest(by_target_BH.index_select(0, rows_N) + by_event_NH)


def softmax_by(rows_N: Tensor, scores_NC: Tensor, num_rows: int) -> Tensor:
    """Softmax over the events of each row, channel by channel, (N, C), in float32 or better."""
    scores_NC = scores_NC.to(torch.promote_types(scores_NC.dtype, torch.float32))
    with torch.no_grad():  # the greatest score cancels out
        keys_NC = rows_N.unsqueeze(1).expand_as(scores_NC)
        top_BC = scores_NC.new_full((num_rows, scores_NC.shape[1]), -torch.inf)
        top_BC = top_BC.scatter_reduce(0, keys_NC, scores_NC, "amax")
    powers_NC = (scores_NC - top_BC.index_select(0, rows_N)).exp()
    return powers_NC / sum_by(rows_N, powers_NC, num_rows).index_select(0, rows_N)


class Dice(nn.Module):
    """y = p x + (1 - p) alpha x with p = sigmoid((x - mean) / sqrt(variance + 1e-8)), by channel; alpha starts at 0.

    In training mean and variance are those of the events of all ranks, and of no padding; then running ones.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = GlobalBatchNorm(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x_NH: Tensor) -> Tensor:
        """Apply to (N, H)."""
        normalized_NH = self.norm(x_NH)
        return _Gate.apply(x_NH, normalized_NH, self.alpha.to(normalized_NH.dtype))


class _Gate(torch.autograd.Function):
    """y = x (alpha + (1 - alpha) p) with p = sigmoid(n), by channel; over the events as few times as it can."""

    @staticmethod
    def forward(ctx: Any, x_NH: Tensor, n_NH: Tensor, alpha_H: Tensor) -> Tensor:
        p_NH = torch.sigmoid(n_NH)
        ctx.save_for_backward(x_NH, p_NH, alpha_H)
        return torch.addcmul(alpha_H, p_NH, 1 - alpha_H).mul_(x_NH)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (g_NH,), (x_NH, p_NH, alpha_H) = gradients, ctx.saved_tensors
        x_gradient_NH = torch.addcmul(alpha_H, p_NH, 1 - alpha_H).mul_(g_NH)
        n_gradient_NH = g_NH * x_NH
        n_gradient_NH.addcmul_(n_gradient_NH, p_NH, value=-1)
        alpha_gradient_H = n_gradient_NH.sum(0)
        return x_gradient_NH, n_gradient_NH.mul_(p_NH).mul_(1 - alpha_H), alpha_gradient_H


_ACTIVATIONS: Mapping[str, Any] = {
    "dice": Dice,
    "prelu": nn.PReLU,
    "relu": lambda width: nn.ReLU(),
    "sigmoid": lambda width: nn.Sigmoid(),
}


class ASTA(HistoryEncoder):
    """u = W_o sum_j a_j W_v h_j + t with a_j = ReLU(<W_q t, W_k h_j> / sqrt(H)), without biases.

    The target itself for a row without events, or zeros without ``residual``. W_k and W_v are applied once a row::

        <W_q t, W_k h> = <W_k^T W_q t, h>        sum_j a_j W_v h_j = W_v sum_j a_j h_j
    """

    def __init__(self, config: ASTAHistory, dim: int, gap_dim: int = 0, seed: int = 0) -> None:
        super().__init__(config, dim, gap_dim, seed)
        hidden, event = config.attention_dim or 2 * dim, dim + self.gap_dim
        self.query = nn.Linear(dim, hidden, bias=False)
        self.key, self.value = (nn.Linear(event, hidden, bias=False) for _ in range(2))
        self.output = nn.Linear(hidden, dim, bias=False)
        self.residual, self.divides = config.residual, config.divide_by_root_length

    @classmethod
    def reads_gaps(cls, config: ASTAHistory) -> bool:
        """Tell whether the encoder reads gap vectors."""
        return True

    def encode_weighted(
        self, target_BK: Tensor, events_NE: Tensor, lengths_B: Tensor, weights_N1: Tensor | None
    ) -> Tensor:
        """Encode to (B, K), each a_j multiplied by the event's weight."""
        rows_N = rows_of(lengths_B, len(events_NE))
        query_BE = F.linear(self.query(target_BK), self.key.weight.T) * self.key.out_features**-0.5
        a_N1 = F.relu((query_BE.index_select(0, rows_N) * events_NE).sum(dim=1, keepdim=True))
        a_N1 = a_N1 if weights_N1 is None else a_N1 * weights_N1
        sums_BE = sum_by(rows_N, a_N1 * events_NE, len(lengths_B))
        if self.divides:
            sums_BE = sums_BE / lengths_B.clamp(min=1).sqrt().unsqueeze(1)
        result_BK = self.output(self.value(sums_BE))
        return result_BK + target_BK if self.residual else result_BK


class SDIM(HistoryEncoder):
    """u = mean over signatures s of v_s / |v_s| with v_s = sum of the events whose signature is the target's.

    A signature is some ``bits`` of SimHash's 1[R x >= 0]; R is random and fixed, a function of the seed, and a hash has
    no gradient. A signature that no event shares adds zeros; so a row without events has zeros. What ``short``
    gives stands behind u.

    For serving, ``bucket_table`` adds up a history for every signature that a target may have, and ``from_table`` gives
    u to the last bit from that table, in a time that does not grow with the history. It is a function of the
    embeddings: a table belongs to the version of the model that made it.
    """

    R_MK: Tensor
    """Directions of the hash's M bits: odd multiples of 1/64 below 4, so that no vector along an axis is on a plane."""

    def __init__(self, config: SDIMHistory, dim: int, gap_dim: int = 0, seed: int = 0) -> None:
        super().__init__(config, dim, 0, seed)
        generator = torch.Generator().manual_seed(stable_seed(seed, "sdim"))
        directions_MK = torch.empty(config.num_hashes, dim).normal_(generator=generator)
        self.register_buffer("R_MK", (directions_MK.clamp(-3.9, 3.9) * 32).floor() / 32 + 1 / 64)
        self.bits, self.num_signatures = config.bits, config.num_hashes // config.bits
        self.normalize = config.normalize
        self.short = None
        self.gap_dim = gap_dim if self.reads_gaps(config) else 0
        if config.short is not None:
            short = HISTORY_ENCODERS[config.short.kind]
            self.short = short(config.short, dim, self.gap_dim, stable_seed(seed, "short"))
            self.output_dim += self.short.output_dim

    @classmethod
    def reads_gaps(cls, config: SDIMHistory) -> bool:
        """Tell whether ``short`` reads gap vectors; a hash must not change while a bucket table is kept."""
        return config.short is not None and HISTORY_ENCODERS[config.short.kind].reads_gaps(config.short)

    def encode_weighted(
        self, target_BK: Tensor, events_NE: Tensor, lengths_B: Tensor, weights_N1: Tensor | None
    ) -> Tensor:
        """Encode to (B, K) or (B, K + output_dim of ``short``); signatures are those of vectors without weights."""
        events_NK = events_NE[:, : self.dim]
        rows_N = rows_of(lengths_B, len(events_NE))
        collides_NS = self.signatures(events_NK) == self.signatures(target_BK).index_select(0, rows_N)
        places_C = collides_NS.flatten().nonzero().squeeze(1)
        events_C = places_C // self.num_signatures
        signatures_C = places_C % self.num_signatures
        events_NK = events_NK if weights_N1 is None else weights_N1 * events_NK
        sums_C = rows_N.index_select(0, events_C) * self.num_signatures + signatures_C
        sums = _AddToSums.apply(events_NK, events_C, sums_C, len(target_BK) * self.num_signatures)
        result_BK = self._mean(sums.view(len(target_BK), self.num_signatures, self.dim))
        if self.short is None:
            return result_BK
        weights_N = None if weights_N1 is None else weights_N1.squeeze(1)
        return torch.cat([result_BK, self.short(target_BK, events_NE, lengths_B, weights_N)], dim=1)

    def bucket_table(self, events_NK: Tensor, lengths_B: Tensor, weights_N: Tensor | None = None) -> Tensor:
        """Add up each row's events by signature and its value, (B, S, 2^bits, K); weights as ``forward`` takes them."""
        events_NK, lengths_B, weights_N1 = self._read(events_NK, lengths_B, weights_N)
        shape = (len(lengths_B), self.num_signatures, 2**self.bits, self.dim)
        first_N1 = rows_of(lengths_B, len(events_NK)).unsqueeze(1) * self.num_signatures
        signatures_S = torch.arange(self.num_signatures, device=events_NK.device)
        keys_NS = (first_N1 + signatures_S) * shape[2] + self.signatures(events_NK[:, : self.dim])
        counted_NK = events_NK[:, : self.dim]
        counted_NK = counted_NK if weights_N1 is None else weights_N1 * counted_NK
        values = counted_NK.repeat_interleave(self.num_signatures, dim=0)
        return sum_by(keys_NS.flatten(), values, shape[0] * shape[1] * shape[2]).view(shape)

    def from_table(self, target_BK: Tensor, table_TSVK: Tensor, places_B: Tensor | None = None) -> Tensor:
        """Compute u (B, K) from bucket tables.

        Args:
            target_BK: the rows' own vectors.
            table_TSVK: tables of histories, each of any number of rows.
            places_B: place of each row's table among them; None: a table a row, in their order.
        """
        if places_B is None:
            places_B = torch.arange(len(target_BK), device=target_BK.device)
        signatures_S = torch.arange(self.num_signatures, device=target_BK.device)
        return self._mean(table_TSVK[places_B.unsqueeze(1), signatures_S, self.signatures(target_BK).long()])

    def signatures(self, x_NK: Tensor) -> Tensor:
        """Compute the signatures of some vectors, (N, S), whole numbers below 2^bits.

        A vector is rounded to whole numbers, its largest becoming the same in all, so small that float32 adds up their
        products with R without rounding: a bit does not depend on how a machine multiplies matrices, or how many at
        once.
        """
        with torch.no_grad(), torch.autocast(x_NK.device.type, enabled=False):
            return torch.cat([self._signatures(block) for block in x_NK.split(_HASHED_AT_ONCE)])

    def _signatures(self, x_NK: Tensor) -> Tensor:
        top = 2.0 ** min(11, 16 - (self.dim - 1).bit_length())
        x_NK = x_NK.float()
        scale_N1 = top / x_NK.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
        bits_NSb = ((x_NK * scale_N1).round_() @ self.R_MK.T >= 0).unflatten(1, (self.num_signatures, self.bits))
        signatures_NS, *others = bits_NSb.to(torch.uint8 if self.bits <= 8 else torch.int32).unbind(2)
        for bit_NS in others:
            signatures_NS = torch.add(bit_NS, signatures_NS, alpha=2)
        return signatures_NS

    def _mean(self, sums_BSK: Tensor) -> Tensor:
        return (F.normalize(sums_BSK, dim=2) if self.normalize else sums_BSK).mean(dim=1)


class _AddToSums(torch.autograd.Function):
    """Add event ``events_C[c]`` to sum ``sums_C[c]``, for each c in the order of the events; (num_sums, K).

    An event is in several sums. Its gradient adds up theirs in one pass, where that of plain ``index_add`` and
    ``index_select`` writes a row for each c first, and that is most of a long history's step.
    """

    @staticmethod
    def forward(ctx: Any, events_NK: Tensor, events_C: Tensor, sums_C: Tensor, num_sums: int) -> Tensor:
        ctx.save_for_backward(events_C, sums_C)
        ctx.num_events = len(events_NK)
        return sum_by(sums_C, events_NK.index_select(0, events_C), num_sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        events_C, sums_C = ctx.saved_tensors
        num_sums_N = torch.bincount(events_C, minlength=ctx.num_events)
        first_N = num_sums_N.cumsum(0) - num_sums_N
        return F.embedding_bag(sums_C, gradients[0], first_N, mode="sum"), None, None, None


Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Attention of heads: queries, the events' keys (N, H) and values (N, H), number of heads -> a result a query."""


def attend_by_target(rows_N: Tensor, weights_N1: Tensor | None = None) -> Attend:
    """Attention of one query a row, (B, H), over the row's events; zeros for a row without events.

    Args:
        rows_N: row of each event.
        weights_N1: what each event's exponential is multiplied by; None: 1.
    """

    def attend(q_BH: Tensor, k_NH: Tensor, v_NH: Tensor, num_heads: int) -> Tensor:
        products_NH = q_BH.index_select(0, rows_N) * k_NH
        scores_NC = products_NH.unflatten(1, (num_heads, -1)).sum(dim=2) * (q_BH.shape[1] // num_heads) ** -0.5
        scores_NC = scores_NC if weights_N1 is None else scores_NC + weights_N1.log()
        weights_NC = softmax_by(rows_N, scores_NC, len(q_BH))
        weighted_NCD = weights_NC.unsqueeze(2) * v_NH.unflatten(1, (num_heads, -1))
        return sum_by(rows_N, weighted_NCD.flatten(1), len(q_BH))

    return attend


def attend_among_events(lengths_B: Tensor, num_events: int, weights_N1: Tensor | None = None) -> Attend:
    """Attention of each event, (N, H), over the events of its row; padded to the longest row.

    Args:
        lengths_B: number of each row's events.
        num_events: N.
        weights_N1: what each event's exponential is multiplied by; None: 1.
    """
    longest = int(lengths_B.max()) if num_events else 1
    places_N = rows_of(lengths_B, num_events) * longest + positions(lengths_B, num_events)
    is_event_BL = torch.arange(longest, device=lengths_B.device) < lengths_B.unsqueeze(1)
    # A row without events has one place that counts, so that no softmax is over nothing.
    is_event_BL[:, :1] = True
    mask = is_event_BL
    if weights_N1 is not None:
        logs = weights_N1.new_zeros(is_event_BL.numel()).index_copy(0, places_N, weights_N1.log().squeeze(1))
        mask = logs.view_as(is_event_BL).masked_fill(~is_event_BL, -torch.inf)

    def attend(q_NH: Tensor, k_NH: Tensor, v_NH: Tensor, num_heads: int) -> Tensor:
        def spread(x_NH: Tensor) -> Tensor:
            padded = x_NH.new_zeros(is_event_BL.numel(), x_NH.shape[1]).index_copy(0, places_N, x_NH)
            return padded.view(*is_event_BL.shape, num_heads, x_NH.shape[1] // num_heads).transpose(1, 2)

        own_mask = mask if mask.dtype == torch.bool else mask.to(q_NH.dtype)
        attended = F.scaled_dot_product_attention(spread(q_NH), spread(k_NH), spread(v_NH), own_mask[:, None, None])
        return attended.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, places_N)

    return attend


class EventTransformer(HistoryEncoder):
    """u = W_o x_t + b_o with x_t the target's vector after attention over the events' vectors, layer on layer.

    Event j of a row starts as W_e h_j + p_j, the target as W_t t. All layers but the last change the events' vectors
    among each other, the last one the target's. Zeros for a row without events.
    """

    def __init__(self, config: TransformerHistory, dim: int, gap_dim: int = 0, seed: int = 0) -> None:
        super().__init__(config, dim, gap_dim, seed)
        hidden = config.attention_dim
        self.target, self.event = nn.Linear(dim, hidden), nn.Linear(dim + self.gap_dim, hidden)
        self.position = nn.Parameter(torch.empty(config.length, hidden).normal_(0, 0.02))
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.output = nn.Linear(hidden, dim)

    @classmethod
    def reads_gaps(cls, config: TransformerHistory) -> bool:
        """Tell whether the encoder reads gap vectors."""
        return True

    def encode_weighted(
        self, target_BK: Tensor, events_NE: Tensor, lengths_B: Tensor, weights_N1: Tensor | None
    ) -> Tensor:
        """Encode to (B, K), the logarithm of an event's weight added to every score of it."""
        num_events = len(events_NE)
        x_NH = self.event(events_NE) + self.position.index_select(0, positions(lengths_B, num_events))
        *among_events, of_target = self.layers
        if among_events:
            attend = attend_among_events(lengths_B, num_events, weights_N1)
        for layer in among_events:
            x_NH = layer(x_NH, x_NH, attend)
        attend = attend_by_target(rows_of(lengths_B, num_events), weights_N1)
        x_BH = of_target(self.target(target_BK), x_NH, attend)
        return torch.where(lengths_B.unsqueeze(1) > 0, self.output(x_BH), 0.0)


class TransformerLayer(nn.Module):
    """x + attention(norm(x), norm(events)), then x + MLP(norm(x)) of what that gives."""

    def __init__(self, config: TransformerHistory) -> None:
        super().__init__()
        width = config.attention_dim
        self.num_heads = config.num_heads
        self.query_norm, self.event_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.value, self.output = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)  # the softmax takes no notice of a constant
        self.expand = nn.Linear(width, config.feed_forward_dim)
        self.contract = nn.Linear(config.feed_forward_dim, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, events_NH: Tensor, attend: Attend) -> Tensor:
        """Change the vectors of the events (N, H), or of the rows' targets (B, H), by attention over events."""
        normed_NH = self.event_norm(events_NH)
        query = self.query(self.query_norm(x))
        attended = attend(query, self.key(normed_NH), self.value(normed_NH), self.num_heads)
        x = x + self.dropout(self.output(attended))
        return x + self.dropout(self.contract(F.relu(self.expand(self.mlp_norm(x)))))


class BucketTables(NamedTuple):
    """BucketTables: what stands for one sequence's events in some of a batch's rows.

    Attributes:
        tables: stream -> (T, S, 2^bits, K), as ``SDIM.bucket_table`` makes them.
        rows_R: numbers of the R rows, each once.
        places_R: place of each one's table among the T.
    """

    tables: Mapping[StreamName, Tensor]
    rows_R: Tensor
    places_R: Tensor


class HistoryEncoders(nn.Module):
    """HistoryEncoders: one encoder a stream and sequence; their results are more fields of each stream.

    Args:
        configs: sequence -> its encoder; the others' is ``mean``.
        parts: sequence -> number of its parts, in the schema's order.
        widths: stream that has fields -> width D of a field.
        gaps: sequences with gap vectors, as wide as a field.
        seed: what is random and fixed is a function of it.

    Attributes:
        fields: fields that each stream gains, as (sequence, number from 0): the parts of each sequence, twice for an
            ``sdim`` with a ``short``.
        kinds: sequence -> kind of its encoder.

    Raises:
        ModelError: a config is of no sequence.
    """

    def __init__(
        self,
        configs: Mapping[str, HistoryConfig],
        parts: Mapping[str, int],
        widths: Mapping[StreamName, int],
        *,
        gaps: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(configs) - set(parts)):
            known = ", ".join(parts) or "none"
            raise ModelError(
                f"training.model.sequences names {unknown[0]!r}, which is no sequence of the schema ({known})"
            )
        self.kinds = {name: configs.get(name, MeanHistory()).kind for name in parts}
        self.encoders = nn.ModuleDict()
        self.fields: list[tuple[str, int]] = []
        for stream, width in widths.items():
            self.fields = []
            for name, num_parts in parts.items():
                config = configs.get(name, MeanHistory())
                gap_dim = width if name in gaps else 0
                own_seed = stable_seed(seed, "history", stream, name)
                encoder = HISTORY_ENCODERS[config.kind](config, num_parts * width, gap_dim, own_seed)
                self.encoders[f"{name}__{stream}"] = encoder
                self.fields += [(name, number) for number in range(encoder.output_dim // width)]

    @property
    def num_fields(self) -> int:
        """Return the number of fields that each stream gains."""
        return len(self.fields)

    def forward(
        self, histories: Mapping[StreamName, Mapping[str, EventVectors]], weights: Mapping[str, Tensor] | None = None
    ) -> dict[StreamName, Tensor]:
        """Encode each stream's sequences to more fields of it, (B, num_fields, D).

        Args:
            histories: stream -> sequence -> its vectors.
            weights: sequence -> (N,) how much each event counts, for those whose events do not count all the same.
        """
        weights, fields = weights or {}, dict[StreamName, Tensor]()
        for stream, vectors in histories.items():
            outputs = [self.encoders[f"{name}__{stream}"](*of, weights.get(name)) for name, of in vectors.items()]
            fields[stream] = torch.cat(outputs, dim=1).unflatten(1, (self.num_fields, -1))
        return fields

    def hashed(self, sequence: str) -> dict[StreamName, SDIM]:
        """Map each stream to a sequence's encoder, if that reads bucket tables; else empty."""
        found: dict[StreamName, SDIM] = {}
        for stream in HISTORY_STREAMS:
            name = f"{sequence}__{stream}"
            if name in self.encoders and isinstance(encoder := self.encoders[name], SDIM):
                found[stream] = encoder
        return found

    def bucket_tables(
        self, histories: Mapping[StreamName, Mapping[str, EventVectors]], weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, dict[StreamName, Tensor]]:
        """Add up the events of each sequence that has bucket tables: sequence -> stream -> (B, S, 2^bits, K).

        Args:
            histories: stream -> sequence -> its vectors.
            weights: as ``forward`` takes them.
        """
        weights, found = weights or {}, dict[str, dict[StreamName, Tensor]]()
        for stream, vectors in histories.items():
            for name, of in vectors.items():
                if (encoder := self.hashed(name).get(stream)) is not None:
                    table_BSVK = encoder.bucket_table(of.events_NE, of.lengths_B, weights.get(name))
                    found.setdefault(name, {})[stream] = table_BSVK
        return found

    def with_tables(
        self,
        fields: Mapping[StreamName, Tensor],
        histories: Mapping[StreamName, Mapping[str, EventVectors]],
        tables: Mapping[str, BucketTables],
    ) -> dict[StreamName, Tensor]:
        """Put what bucket tables give in the place of what ``sdim`` makes of these rows' events; ``short``'s stays.

        Args:
            fields: what ``forward`` gives.
            histories: what that was made of.
            tables: sequence -> the tables of some rows.
        """
        found: dict[StreamName, Tensor] = {stream: fields_BFD.clone() for stream, fields_BFD in fields.items()}
        for name, (of_streams, rows_R, places_R) in tables.items():
            first = self.fields.index((name, 0))
            for stream, encoder in self.hashed(name).items():
                targets_RK = histories[stream][name].target_BK.index_select(0, rows_R)
                of_tables_RK = encoder.from_table(targets_RK, of_streams[stream], places_R)
                width = found[stream].shape[2]
                last = first + encoder.dim // width
                found[stream][rows_R, first:last] = of_tables_RK.unflatten(1, (-1, width)).to(found[stream].dtype)
        return found


HISTORY_ENCODERS: Mapping[str, type[HistoryEncoder]] = ChainMap(
    {"mean": EventMean, "din": DIN, "asta": ASTA, "sdim": SDIM, "transformer": EventTransformer},
    HISTORY_KINDS.classes,
)
