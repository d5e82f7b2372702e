"""DFM, dynamic fusion module: the two encoders' outputs -> the fused logit, beside each branch's own.

Only the fused logit predicts; the branch logits are what the twin focus loss supervises (TF4CTR, arXiv 2405.03167).

Shapes: B rows, H width of an encoder's output.
"""

from collections import ChainMap
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from training.config import BilinearFusion, ConcatFusion, MoEFusion, VotingFusion, WeightedSumFusion
from training.model.embedding import ModelError
from training.model.field_axes import FieldAxes
from training.plugins import FUSION_KINDS


class TwinLogits(NamedTuple):
    """Logits of the same rows, each (B,)."""

    fused: Tensor
    easy: Tensor
    hard: Tensor


class Fusion(FieldAxes):
    """Fusion: base class; built from (config, easy width, hard width)."""

    branches: tuple[str, ...] = ("easy", "hard")
    """Encoders whose outputs are fused."""
    reads_branch_logits = True
    """False: the fused logit is made from the encoders' outputs alone."""
    is_additive = False
    """True: the fused logit is a function of one output plus a function of the other."""
    gate_series: tuple[str, ...] = ()
    """Names of the equal parts of each gate's row."""
    gate_top = 1
    """Largest value of a gate."""

    def __init__(self, config: Any, easy_dim: int, hard_dim: int) -> None:
        super().__init__()

    def forward(self, easy_BH: Tensor, hard_BH: Tensor) -> TwinLogits:
        """Fuse; a row's logits depend on that row alone."""
        raise NotImplementedError

    def gates(self, easy_BH: Tensor, hard_BH: Tensor) -> dict[str, Tensor]:
        """Compute each gate's shares of every row (B, 2); empty where the mixture is equal for all rows."""
        return {}


class TwinFusion(Fusion):
    """TwinFusion: base class of fusions with a linear head for each branch."""

    def __init__(self, config: Any, easy_dim: int, hard_dim: int) -> None:
        super().__init__(config, easy_dim, hard_dim)
        self.easy_head = nn.Linear(easy_dim, 1)
        self.hard_head = nn.Linear(hard_dim, 1)

    def forward(self, easy_BH: Tensor, hard_BH: Tensor) -> TwinLogits:
        """Fuse; both branch logits come from their heads."""
        easy_B, hard_B = self.easy_head(easy_BH).squeeze(1), self.hard_head(hard_BH).squeeze(1)
        return TwinLogits(self.fuse(easy_BH, hard_BH, easy_B, hard_B), easy_B, hard_B)

    def fuse(self, easy_BH: Tensor, hard_BH: Tensor, easy_B: Tensor, hard_B: Tensor) -> Tensor:
        """Compute the fused logit (B,) from the encoders' outputs and the branch logits."""
        raise NotImplementedError


class WeightedSum(TwinFusion):
    """ "WSF": z = w_1 z_easy + w_2 z_hard, with w free and started at one half each."""

    is_additive = True

    def __init__(self, config: WeightedSumFusion, easy_dim: int, hard_dim: int) -> None:
        super().__init__(config, easy_dim, hard_dim)
        self.weight = nn.Parameter(torch.full((2,), 0.5))

    def fuse(self, easy_BH: Tensor, hard_BH: Tensor, easy_B: Tensor, hard_B: Tensor) -> Tensor:
        """Compute the fused logit (B,)."""
        return self.weight[0] * easy_B + self.weight[1] * hard_B


class Voting(TwinFusion):
    """ "VF": z = q_1 z_easy + q_2 z_hard with q = softmax((votes + Gumbel noise) / temperature).

    The noise is drawn in training only, so that a prediction is a function of its row.
    """

    gate_series = ("easy", "hard")

    def __init__(self, config: VotingFusion, easy_dim: int, hard_dim: int) -> None:
        super().__init__(config, easy_dim, hard_dim)
        self.easy_vote = nn.Linear(easy_dim, 1)
        self.hard_vote = nn.Linear(hard_dim, 1)
        self.temperature = config.temperature

    def fuse(self, easy_BH: Tensor, hard_BH: Tensor, easy_B: Tensor, hard_B: Tensor) -> Tensor:
        """Compute the fused logit (B,)."""
        shares_B2 = self.gates(easy_BH, hard_BH)["fusion"]
        return shares_B2[:, 0] * easy_B + shares_B2[:, 1] * hard_B

    def gates(self, easy_BH: Tensor, hard_BH: Tensor) -> dict[str, Tensor]:
        """Compute each branch's share (B, 2)."""
        votes_B2 = torch.cat([self.easy_vote(easy_BH), self.hard_vote(hard_BH)], dim=1)
        if self.training:
            votes_B2 = votes_B2 + to_gumbel(torch.rand_like(votes_B2))
        return {"fusion": (votes_B2 / self.temperature).softmax(dim=1)}


def to_gumbel(uniform: Tensor) -> Tensor:
    """Transform uniform numbers in [0, 1) to standard Gumbel, -ln(-ln u); finite at 0 too."""
    return -torch.log(-torch.log(uniform.clamp(min=torch.finfo(uniform.dtype).tiny)))


class Concat(TwinFusion):
    """ "CF": z = a third head on both encoders' outputs."""

    reads_branch_logits = False
    is_additive = True

    def __init__(self, config: ConcatFusion, easy_dim: int, hard_dim: int) -> None:
        super().__init__(config, easy_dim, hard_dim)
        self.fused_head = nn.Linear(easy_dim + hard_dim, 1)

    def fuse(self, easy_BH: Tensor, hard_BH: Tensor, easy_B: Tensor, hard_B: Tensor) -> Tensor:
        """Compute the fused logit (B,)."""
        return self.fused_head(torch.cat([easy_BH, hard_BH], dim=1)).squeeze(1)


class MixtureOfHeads(TwinFusion):
    """ "MoEF": z = sum of two heads on both encoders' outputs, each times its share of a softmax gate."""

    reads_branch_logits = False
    gate_series = ("head 1", "head 2")

    def __init__(self, config: MoEFusion, easy_dim: int, hard_dim: int) -> None:
        super().__init__(config, easy_dim, hard_dim)
        self.heads = nn.Linear(easy_dim + hard_dim, 2)
        self.gate = nn.Linear(easy_dim + hard_dim, 2)

    def fuse(self, easy_BH: Tensor, hard_BH: Tensor, easy_B: Tensor, hard_B: Tensor) -> Tensor:
        """Compute the fused logit (B,)."""
        both_BH = torch.cat([easy_BH, hard_BH], dim=1)
        return (self._shares(both_BH) * self.heads(both_BH)).sum(dim=1)

    def gates(self, easy_BH: Tensor, hard_BH: Tensor) -> dict[str, Tensor]:
        """Compute each head's share (B, 2)."""
        return {"fusion": self._shares(torch.cat([easy_BH, hard_BH], dim=1))}

    def _shares(self, both_BH: Tensor) -> Tensor:
        return self.gate(both_BH).softmax(dim=1)


class Sum(TwinFusion):
    """z = z_easy + z_hard."""

    is_additive = True

    def fuse(self, easy_BH: Tensor, hard_BH: Tensor, easy_B: Tensor, hard_B: Tensor) -> Tensor:
        """Compute the fused logit (B,)."""
        return easy_B + hard_B


class Bilinear(TwinFusion):
    """z = z_easy + z_hard + sum_j h_easy_j W_j h_hard_j, j one head's part of the outputs (arXiv 2304.00902)."""

    def __init__(self, config: BilinearFusion, easy_dim: int, hard_dim: int) -> None:
        super().__init__(config, easy_dim, hard_dim)
        k = config.num_heads
        if easy_dim % k or hard_dim % k:
            raise ModelError(
                f"fusion bilinear: num_heads ({k}) must divide both output widths: easy {easy_dim}, hard {hard_dim}"
            )
        self.num_heads = k
        self.weight = nn.Parameter(torch.empty(k, easy_dim // k, hard_dim // k))
        nn.init.normal_(self.weight, std=(2 / (self.weight.numel() + 1)) ** 0.5)  # as Xavier-normal of (all, 1)

    def axis_labels(self, parameter: str, axis: int, size: int, fields: Sequence[Hashable]) -> list[Hashable]:
        """Take nothing of the heads over that cut an output's fields at other places."""
        return (
            [] if parameter == "weight" and self.num_heads > 1 else super().axis_labels(parameter, axis, size, fields)
        )

    def fuse(self, easy_BH: Tensor, hard_BH: Tensor, easy_B: Tensor, hard_B: Tensor) -> Tensor:
        """Compute the fused logit (B,)."""
        easy_BKI, hard_BKJ = (x_BH.unflatten(1, (self.num_heads, -1)) for x_BH in (easy_BH, hard_BH))
        return easy_B + hard_B + torch.einsum("bki,kij,bkj->b", easy_BKI, self.weight, hard_BKJ)


class Single(Fusion):
    """z = z_hard, for a model of one stream; there is no easy branch, so all three logits are this one."""

    branches = ("hard",)
    is_additive = True

    def __init__(self, config: Any, easy_dim: int, hard_dim: int) -> None:
        super().__init__(config, easy_dim, hard_dim)
        self.hard_head = nn.Linear(hard_dim, 1)

    def forward(self, easy_BH: Tensor, hard_BH: Tensor) -> TwinLogits:
        """Return the hard branch's logit three times."""
        hard_B = self.hard_head(hard_BH).squeeze(1)
        return TwinLogits(hard_B, hard_B, hard_B)


FUSIONS: Mapping[str, type[Fusion]] = ChainMap(
    {
        "weighted_sum": WeightedSum,
        "voting": Voting,
        "concat": Concat,
        "moe": MixtureOfHeads,
        "sum": Sum,
        "bilinear": Bilinear,
        "single": Single,
    },
    FUSION_KINDS.classes,
)
