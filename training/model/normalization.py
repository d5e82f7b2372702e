"""GlobalBatchNorm: batch normalisation over the rows of all ranks, so that training does not depend on their number.

``torch.nn.SyncBatchNorm`` does this for CUDA and refuses CPU tensors; and ranks here may hold few rows or none.

Shapes: B rows of this rank, C channels, R ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class GlobalBatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` on (B, C) inputs whose training statistics are taken over the rows of every rank.

    Alone, or in eval mode, it is exactly ``nn.BatchNorm1d``, with one exception: in training, with fewer than two rows
    over all ranks there is no variance, so the running statistics are used and left as they are.

    Every rank must call it, and run its backward, the same number of times; a rank may bring 0 rows. Its own parameters
    get the gradient of this rank's rows only, as any parameter under DistributedDataParallel.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C) -> (B, C)."""
        if not self.training:
            return super().forward(input)
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input) if len(input) > 1 else self._normalize_by_running(input)
        count, mean_C, variance_C = _global_moments(input.detach())
        assert self.running_mean is not None and self.running_var is not None
        # Tensors, not Python numbers, decide: asking a GPU for the count would stall it at every layer.
        is_enough = count > 1
        mean_C = torch.where(is_enough, mean_C, self.running_mean)
        variance_C = torch.where(is_enough, variance_C, self.running_var)
        inverse_std_C = torch.rsqrt(variance_C + self.eps)
        normalized_BC = _Normalize.apply(input, mean_C, inverse_std_C, is_enough / count.clamp(min=1))
        self._update_running(count, mean_C, variance_C)
        return (normalized_BC * self.weight + self.bias).to(input.dtype)

    def _normalize_by_running(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _update_running(self, count: Tensor, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        is_enough = count > 1
        self.num_batches_tracked.add_(is_enough)
        momentum = self.momentum * is_enough.to(mean_C.dtype)
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(variance_C * count / (count - 1).clamp(min=1), momentum)


def _global_moments(x_BC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, mean and biased variance over all ranks, from each rank's own (Chan et al. 1979), in float32 or better."""
    x_BC = x_BC.to(torch.promote_types(x_BC.dtype, torch.float32))
    mean_C = x_BC.sum(0) / max(1, len(x_BC))
    squares_C = (x_BC - mean_C).square().sum(0)
    mine = torch.cat([x_BC.new_full((1,), len(x_BC)), mean_C, squares_C])
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    counts_R1, means_RC, squares_RC = torch.stack(gathered).split([1, len(mean_C), len(mean_C)], dim=1)
    count = counts_R1.sum()
    global_mean_C = (counts_R1 * means_RC).sum(0) / count.clamp(min=1)
    squares_RC = squares_RC + counts_R1 * (means_RC - global_mean_C).square()
    return count, global_mean_C, squares_RC.sum(0) / count.clamp(min=1)


class _Normalize(torch.autograd.Function):
    """n = (x - mean) / std, with the mean and std of all ranks' x: every x_i has a part in every rank's n.

    With g = dL/dn of the loss L summed over the ranks, and sums over the rows j of all ranks::

        dL/dx_i = (g_i - share * sum_j g_j - n_i * share * sum_j g_j n_j) / std

    where ``share`` is 1 / rows of all ranks, or 0 when mean and std are not those of x. Each rank knows g of its own
    rows only (its part of L reaches no other rank's n), so the two sums are all-reduced.
    """

    @staticmethod
    def forward(ctx: Any, x_BC: Tensor, mean_C: Tensor, inverse_std_C: Tensor, share: Tensor) -> Tensor:
        normalized_BC = (x_BC - mean_C) * inverse_std_C
        ctx.save_for_backward(normalized_BC, inverse_std_C, share)
        ctx.dtype = x_BC.dtype
        return normalized_BC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (g_BC,) = gradients
        normalized_BC, inverse_std_C, share = ctx.saved_tensors
        sums_2C = torch.stack([g_BC.sum(0), (g_BC * normalized_BC).sum(0)])
        dist.all_reduce(sums_2C)
        g_mean_C, gn_mean_C = sums_2C * share
        return ((g_BC - g_mean_C - normalized_BC * gn_mean_C) * inverse_std_C).to(ctx.dtype), None, None, None
