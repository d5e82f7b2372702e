"""GlobalBatchNorm: batch normalisation over the rows of all ranks, so that training does not depend on their number.

``torch.nn.SyncBatchNorm`` does this for CUDA and refuses CPU tensors; and ranks here may hold few rows or none.

Shapes: B rows of this rank, C channels, R ranks.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

OnWait = Callable[[Literal["forward", "backward"] | None], None]

L = TypeVar("L", nn.Linear, nn.Conv2d)


def before_norm(layer: L) -> L:
    """Hold the bias of a layer that feeds a batch norm at 0, and return the layer.

    The norm subtracts the mean and the bias with it, so the bias has no effect, and its gradient is 0 but for rounding.
    Adam makes full steps of whatever is not 0: a trained bias would wander by the machine's rounding, and move
    predictions, because running means follow it late. The bias itself stays: papers count it among the parameters, and
    earlier checkpoints hold one.
    """
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    layer.bias.requires_grad_(False)
    return layer


class GlobalBatchNorm(nn.BatchNorm1d):
    """GlobalBatchNorm: ``nn.BatchNorm1d`` on (B, C) inputs with training statistics over the rows of every rank.

    Alone, or in eval mode, it is exactly ``nn.BatchNorm1d``, with one exception: in training, with fewer than two rows
    over all ranks there is no variance, so the running statistics are used and left as they are.

    Every rank must call it, and run its backward, the same number of times; a rank may bring 0 rows. Its own parameters
    get the gradient of this rank's rows only, as any parameter under DistributedDataParallel.

    Attributes:
        on_wait: called right before (with the pass, forward or backward, that the work so far was of) and right after
            (with None) each wait for other ranks, if it is there.
    """

    on_wait: OnWait | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C) -> (B, C)."""
        if not self.training:
            return super().forward(input)
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input) if len(input) > 1 else self._normalize_by_running(input)
        centred_BC, shift_C, count, mean_C, variance_C = self._moments(input.detach())
        assert self.running_mean is not None and self.running_var is not None
        # Tensors, not Python numbers, decide: asking a GPU for the count would stall it at every layer.
        is_enough = count > 1
        shift_C = torch.where(is_enough, shift_C, shift_C + mean_C - self.running_mean)
        mean_C = torch.where(is_enough, mean_C, self.running_mean)
        variance_C = torch.where(is_enough, variance_C, self.running_var)
        inverse_std_C = torch.rsqrt(variance_C + self.eps)
        normalized_BC = torch.addcmul(shift_C * inverse_std_C, centred_BC, inverse_std_C, out=centred_BC)
        self._update_running(count, mean_C, variance_C)
        share = is_enough / count.clamp(min=1)
        weight_C, bias_C = (
            (self.weight, self.bias) if self.affine else (torch.ones_like(mean_C), torch.zeros_like(mean_C))
        )
        return _Normalize.apply(input, weight_C, bias_C, normalized_BC, inverse_std_C, share, self._told)

    def _normalize_by_running(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _moments(self, x_BC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Compute mean and variance over all ranks from each rank's own (Chan et al. 1979), in float32 or better.

        Returns:
            This rank's x - m with m the mean of its own rows, m - mean, and of all ranks their rows, mean and biased
            variance.
        """
        x_BC = x_BC.to(torch.promote_types(x_BC.dtype, torch.float32))
        own_mean_C = x_BC.sum(0) / max(1, len(x_BC))
        centred_BC = x_BC - own_mean_C
        mine = torch.cat([x_BC.new_full((1,), len(x_BC)), own_mean_C, centred_BC.square().sum(0)])
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        self._told("forward")
        dist.all_gather(gathered, mine)
        self._told(None)
        counts_R1, means_RC, squares_RC = torch.stack(gathered).split([1, len(own_mean_C), len(own_mean_C)], dim=1)
        count = counts_R1.sum()
        mean_C = (counts_R1 * means_RC).sum(0) / count.clamp(min=1)
        squares_RC = squares_RC + counts_R1 * (means_RC - mean_C).square()
        return centred_BC, own_mean_C - mean_C, count, mean_C, squares_RC.sum(0) / count.clamp(min=1)

    def _told(self, work: Literal["forward", "backward"] | None) -> None:
        if self.on_wait is not None:
            self.on_wait(work)

    def _update_running(self, count: Tensor, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        is_enough = count > 1
        self.num_batches_tracked.add_(is_enough)
        momentum = self.momentum * is_enough.to(mean_C.dtype)
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(variance_C * count / (count - 1).clamp(min=1), momentum)


class _Normalize(torch.autograd.Function):
    """y = weight * n + bias, n = (x - mean) / std, with all ranks' mean and std: an x_i has a part in every rank's n.

    With g = dL/dy of the loss L summed over the ranks, and sums over the rows j of all ranks::

        dL/dx_i = weight * (g_i - share * sum_j g_j - n_i * share * sum_j g_j n_j) / std

    where ``share`` is 1 / rows of all ranks, or 0 when mean and std are not those of x. Each rank knows g of its own
    rows only (its part of L reaches no other rank's y), so the two sums are all-reduced. Its own sums are its gradients
    of bias and weight. Written to go over the rows as few times as it can: on a CPU that is what a layer costs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BC: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        normalized_BC: Tensor,
        inverse_std_C: Tensor,
        share: Tensor,
        told: OnWait,
    ) -> Tensor:
        ctx.save_for_backward(normalized_BC, weight_C * inverse_std_C, share)
        ctx.dtype, ctx.told = x_BC.dtype, told
        return torch.addcmul(bias_C, normalized_BC, weight_C).to(x_BC.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normalized_BC, scale_C, share = ctx.saved_tensors
        g_BC = gradients[0].to(normalized_BC.dtype)
        own_2C = torch.stack([g_BC.sum(0), (g_BC * normalized_BC).sum(0)])
        all_2C = own_2C.clone()
        ctx.told("backward")
        dist.all_reduce(all_2C)
        ctx.told(None)
        g_mean_C, gn_mean_C = all_2C * share
        x_gradient_BC = torch.addcmul(g_BC, normalized_BC, -gn_mean_C).sub_(g_mean_C).mul_(scale_C)
        return x_gradient_BC.to(ctx.dtype), own_2C[1], own_2C[0], None, None, None, None
