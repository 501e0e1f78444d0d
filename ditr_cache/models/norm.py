# SPDX-License-Identifier: Apache-2.0
"""Batch norm over points whose features come as rows, over several processes, and one a data set.

P rows, C channels. A row serves `weight` points; statistics are those of the points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ditr_cache.errors import ConfigError

__all__ = ["ConditionalNorm", "PointBatchNorm", "synchronise_batch_norm"]

Module = TypeVar("Module", bound=nn.Module)


class PointBatchNorm(nn.BatchNorm1d):
    """`BatchNorm1d` whose rows may serve any number of points each, and whose statistics may span processes.

    Args:
        num_features: C.
        eps: Added to the variance; upstream's value.
        momentum: Share of a batch in the running statistics; upstream's value.
    """

    group: dist.ProcessGroup | None = None
    """Processes whose points make one batch; None: this one alone."""

    def __init__(self, num_features: int, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__(num_features, eps, momentum)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            x: `[P, C]`.
            weight: `[P]` points that each row serves; None: one each. A row of weight 0 takes no part in the
                statistics. Only training uses it.

        Returns:
            `[P, C]` in the dtype of `x`. Statistics are computed in float32 at least. The running variance is the
            unbiased one over points, M / (M - 1); a batch of a single point, which has none, becomes `bias` and
            leaves the running statistics alone (`BatchNorm1d` refuses it).
        """
        if not self.training or (weight is None and self.group is None and len(x) > 1):
            normalised: Tensor = super().forward(x)
            return normalised
        # autocast would narrow the matrix products that the statistics are made of
        with torch.autocast(x.device.type, enabled=False):
            out_PC, mean_C, variance_C, points = _NormaliseRows.apply(  # type: ignore[no-untyped-call]
                x, weight, self.weight, self.bias, self.eps, self.group
            )
        self._track(mean_C, variance_C, points)
        result: Tensor = out_PC
        return result

    @torch.no_grad()
    def _track(self, mean_C: Tensor, variance_C: Tensor, points: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        # on the device: asking how many points there are would wait for it
        share = self.momentum * (points > 1).double()
        unbiased_C = variance_C * (points / (points - 1).clamp(min=1))
        for running_C, batch_C in ((self.running_mean, mean_C), (self.running_var, unbiased_C)):
            running_C.copy_(torch.lerp(running_C.double(), batch_C, share))


class _NormaliseRows(torch.autograd.Function):
    """Weighted batch norm with one all-reduce of (sum, square sum, count) forward and one of two sums backward.

    The float32 part works on differences to the mean of this process, so that nothing cancels where the mean is much
    larger than the deviation; sums of C numbers are combined in float64.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        scale: Tensor,
        bias: Tensor,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x_PC = x.to(torch.promote_types(x.dtype, torch.float32))
        weight_P = x_PC.new_ones(len(x)) if weight is None else weight.to(x_PC.dtype)
        # counts are summed as they come: float32 holds integers up to 2^24 only
        here = weight_P.sum(dtype=torch.float64)
        shift_C = ((weight_P @ x_PC).double() / here.clamp(min=1)).to(x_PC.dtype)
        apart_PC = x_PC - shift_C
        sum_C = (weight_P @ apart_PC).double()
        square_C = (weight_P @ apart_PC.square()).double()
        far_C = shift_C.double()
        totals = torch.cat(
            [sum_C + here * far_C, square_C + 2 * far_C * sum_C + here * far_C.square(), here[None]],
        )
        _all_reduce(totals, group)
        points = totals[-1].clamp(min=1)
        mean_C, mean_square_C = (totals[:-1] / points).view(2, -1)
        variance_C = (mean_square_C - mean_C.square()).clamp(min=0)
        slope_C = (variance_C + eps).rsqrt().to(x_PC.dtype)
        unit_PC = apart_PC.sub_((mean_C - far_C).to(x_PC.dtype)).mul_(slope_C)
        ctx.save_for_backward(unit_PC, weight_P, scale, slope_C, points)
        ctx.group = group
        ctx.mark_non_differentiable(mean_C, variance_C, totals[-1])
        out_PC = torch.addcmul(bias.to(x_PC.dtype), unit_PC, scale.to(x_PC.dtype))
        return out_PC.to(x.dtype), mean_C, variance_C, totals[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None, None]:
        unit_PC, weight_P, scale_C, slope_C, points = ctx.saved_tensors
        grad_PC = grads[0].to(unit_PC.dtype)
        grad_bias_C = grad_PC.sum(0)
        grad_scale_C = (grad_PC * unit_PC).sum(0)
        grad_x_PC = None
        if ctx.needs_input_grad[0]:
            totals = torch.cat([grad_bias_C, grad_scale_C]).double()
            _all_reduce(totals, ctx.group)
            mean_C, slant_C = (totals / points).to(unit_PC.dtype).view(2, -1)
            # a batch's mean and deviation depend on each row as often as the row serves a point
            shared_PC = torch.addcmul(mean_C, unit_PC, slant_C).mul_(weight_P[:, None])
            grad_x_PC = (grad_PC - shared_PC).mul_(slope_C * scale_C.to(slope_C.dtype)).to(grads[0].dtype)
        return grad_x_PC, None, grad_scale_C.to(scale_C.dtype), grad_bias_C.to(scale_C.dtype), None, None


def _all_reduce(totals: Tensor, group: dist.ProcessGroup | None) -> None:
    if group is not None:
        dist.all_reduce(totals, group=group)


def synchronise_batch_norm(module: Module, group: dist.ProcessGroup | None) -> Module:
    """Let all batch norms of a network take their statistics over several processes.

    All of them must run the same layers in the same order. As with `torch.nn.SyncBatchNorm` the gradient of the
    inputs is that of the sum of all processes' losses. Runs on gloo and nccl.

    Args:
        module: Changed in place.
        group: E.g. `torch.distributed.group.WORLD`; None: each process for itself.

    Returns:
        `module`.
    """
    for child in module.modules():
        if isinstance(child, PointBatchNorm):
            child.group = group
    return module


class ConditionalNorm(nn.Module):
    """One norm layer a data set (decoupled norms of Point Prompt Training, and of DITR's section 3.2).

    Args:
        make: Makes one of them.
        conditions: Names of the data sets, in the order of the layers.
    """

    def __init__(self, make: Callable[[], nn.Module], conditions: tuple[str, ...]) -> None:
        super().__init__()
        self.conditions = conditions
        self.norm = nn.ModuleList(make() for _ in conditions)

    def forward(self, x: Tensor, condition: str | None, weight: Tensor | None = None) -> Tensor:
        """Apply the layer of one data set.

        Args:
            x: `[P, C]`.
            condition: Its name.
            weight: As `PointBatchNorm`, for layers that take it.

        Raises:
            ConfigError: If no layer has that name.
        """
        if condition not in self.conditions:
            raise ConfigError(
                f"there is no norm layer for the data set {condition!r}",
                hint=f"PointBatch.condition must be one of model.norm_conditions: {', '.join(self.conditions)}",
            )
        norm = self.norm[self.conditions.index(condition)]
        out_PC: Tensor = norm(x) if weight is None else norm(x, weight)
        return out_PC
