# SPDX-License-Identifier: Apache-2.0
"""Submanifold convolution in plain torch, forward and backward, on any device.

U voxels, K = k^3 kernel offsets, I input and O output channels. The weight is `[O, K, I]`.

y(u) = sum over offsets o of W_o x(u + o). Two ways to compute it, of which each layer takes the faster one:

* `_ByTable` gathers the neighbours of a run of voxels into `[run, K I]`, zero where there is none, and multiplies once;
  the run is short enough to stay in the cache. Best where most neighbours exist and channels are few.
* `_ByPairs` multiplies the pairs of one offset at a time, and adds the products up. It never touches a neighbour that
  does not exist, which in a lidar scan are nine in ten, and takes every matrix of a wide weight as it lies.

The gradient of x is the same sum over opposite offsets with the matrices transposed. Products in half precision are
added up in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ditr_cache.models.sparse_conv.pairs import Pairs

__all__ = ["PairConvolution", "wide"]

# Where gathering by table is worth it. One core, forward and backward, pairs against table: PTv3's stem on an indoor
# scan (fill 0.44) 133 and 36 ms, on a lidar scan (fill 0.03) 13 and 46 ms; 32 channels at fill 0.62 52 and 42 ms;
# 64 channels there 142 and 145 ms, and from then on pairs are ahead.
_MIN_FILL = 0.3
_MAX_MATRIX = 32 * 32

# What a run of gathered neighbours may take: a share of the cache on a CPU, enough for full occupancy on a GPU.
_RUN_BYTES = {"cpu": 2 << 20}
_RUN_BYTES_ELSEWHERE = 128 << 20
_MIN_RUN = 256


class PairConvolution:
    """Convolutions of one kernel size over one set of voxels."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __call__(self, x_UI: Tensor, weight: Tensor) -> Tensor:
        """Convolve `[U, I]` with `[O, k, k, k, I]` to `[U, O]`; differentiable in both."""
        out_channels, in_channels = weight.shape[0], weight.shape[-1]
        by_table = self.pairs.fill >= _MIN_FILL and in_channels * out_channels <= _MAX_MATRIX
        function = _ByTable if by_table else _ByPairs
        y_UO: Tensor = function.apply(x_UI, weight.flatten(1, 3), self.pairs)  # type: ignore[no-untyped-call]
        return y_UO


class _ByPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_UI: Tensor, weight_OKI: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(x_UI, weight_OKI)
        ctx.pairs = pairs
        matrices = weight_OKI.unbind(1)
        y_UO = wide(x_UI @ matrices[pairs.offsets // 2].T)
        for offset, here, there in pairs.by_offset():
            y_UO.index_add_(0, here, wide(x_UI.index_select(0, there) @ matrices[offset].T))
            y_UO.index_add_(0, there, wide(x_UI.index_select(0, here) @ matrices[-1 - offset].T))
        return y_UO.to(x_UI.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad_UO,) = grads
        x_UI, weight_OKI = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        for_x, for_weight = ctx.needs_input_grad[:2]
        matrices, centre = weight_OKI.unbind(1), pairs.offsets // 2
        grad_x_UI = wide(grad_UO @ matrices[centre]) if for_x else None
        grad_weight_OKI = torch.zeros_like(weight_OKI) if for_weight else None
        if grad_weight_OKI is not None:
            torch.mm(grad_UO.T, x_UI, out=grad_weight_OKI[:, centre])
        for offset, here, there in pairs.by_offset():
            for o, out, into in ((offset, here, there), (pairs.offsets - 1 - offset, there, here)):
                grad_PO = grad_UO.index_select(0, out)
                if grad_x_UI is not None:
                    grad_x_UI.index_add_(0, into, wide(grad_PO @ matrices[o]))
                if grad_weight_OKI is not None:
                    torch.mm(grad_PO.T, x_UI.index_select(0, into), out=grad_weight_OKI[:, o])
        return (None if grad_x_UI is None else grad_x_UI.to(x_UI.dtype)), grad_weight_OKI, None


class _ByTable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_UI: Tensor, weight_OKI: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(x_UI, weight_OKI)
        ctx.pairs = pairs
        y_UO = x_UI.new_empty(len(x_UI), len(weight_OKI))
        weight = weight_OKI.flatten(1).T
        for run, around in _runs(x_UI, pairs):
            torch.mm(around, weight, out=y_UO[run])
        return y_UO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad_UO,) = grads
        x_UI, weight_OKI = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        for_x, for_weight = ctx.needs_input_grad[:2]
        if not for_x:
            # the stem: its input is narrower than its output, so gather that
            total = wide(weight_OKI.new_zeros(len(weight_OKI), pairs.offsets * x_UI.shape[1]))
            for run, around in _runs(x_UI, pairs):
                _accumulate(total, grad_UO[run].T, around)
            return None, total.view(weight_OKI.shape).to(weight_OKI.dtype), None
        # at offset o of an input lies an output that saw it at the opposite offset: one gather serves both gradients
        opposite = weight_OKI.flip(1).transpose(0, 1).flatten(0, 1)
        grad_x_UI = torch.empty_like(x_UI)
        total = wide(torch.zeros_like(opposite))
        for run, around in _runs(grad_UO, pairs):
            torch.mm(around, opposite, out=grad_x_UI[run])
            if for_weight:
                _accumulate(total, around.T, x_UI[run])
        if not for_weight:
            return grad_x_UI, None, None
        grad_KOI = total.view(pairs.offsets, *weight_OKI.shape[::2]).flip(0)
        return grad_x_UI, grad_KOI.transpose(0, 1).to(weight_OKI.dtype), None


def _runs(x_UC: Tensor, pairs: Pairs) -> Iterator[tuple[slice, Tensor]]:
    """Runs of voxels with what lies around them, `[run, K C]`."""
    padded = torch.cat((x_UC, x_UC.new_zeros(1, x_UC.shape[1])))
    row_bytes = pairs.offsets * x_UC.shape[1] * x_UC.element_size()
    length = max(_MIN_RUN, _RUN_BYTES.get(x_UC.device.type, _RUN_BYTES_ELSEWHERE) // row_bytes)
    for start in range(0, pairs.voxels, length):
        run = slice(start, min(start + length, pairs.voxels))
        yield run, padded.index_select(0, pairs.table_UK[run].flatten()).view(run.stop - run.start, -1)


def wide(x: Tensor) -> Tensor:
    """What products of that type are added up in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
