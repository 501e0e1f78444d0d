# SPDX-License-Identifier: Apache-2.0
"""Strided and transposed convolution in plain torch, forward and backward, on any device.

U fine voxels, M coarse ones, K = stride^3 kernel offsets, I input and O output channels. Every fine voxel has one
offset, so a level change is K products of matrices that share out the fine voxels among them: never more
multiplications than fine voxels ask for. Gradients are torch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditr_cache.models.sparse_conv.torch_backend import wide

__all__ = ["OffsetStrides"]


class OffsetStrides:
    """Fine voxels by their kernel offset.

    Args:
        coarse_U: `[U]` int64, the coarse voxel that each fine one is part of.
        offset_U: `[U]` int64, where in it: raster order, x slowest. No two of a coarse voxel have the same.
        coarse_voxels: M.
        stride: s.
    """

    def __init__(self, coarse_U: Tensor, offset_U: Tensor, coarse_voxels: int, stride: int) -> None:
        self.coarse_voxels = coarse_voxels
        self.order_U = offset_U.argsort(stable=True)
        self.seat_U = torch.empty_like(self.order_U)
        self.seat_U[self.order_U] = torch.arange(len(offset_U), device=offset_U.device)
        self.counts: list[int] = torch.bincount(offset_U, minlength=stride**3).tolist()
        self.coarse_K = torch.split(coarse_U.index_select(0, self.order_U), self.counts)

    def down(self, x_UI: Tensor, weight: Tensor) -> Tensor:
        """`[U, I]` with `[O, s, s, s, I]` to `[M, O]`: products of one offset at a time, added up."""
        y_MO = wide(x_UI.new_zeros(self.coarse_voxels, len(weight)))
        parts = torch.split(x_UI.index_select(0, self.order_U), self.counts)
        for x_uI, coarse_u, matrix in zip(parts, self.coarse_K, weight.flatten(1, 3).unbind(1), strict=True):
            y_MO.index_add_(0, coarse_u, wide(x_uI @ matrix.T))
        return y_MO.to(x_UI.dtype)

    def up(self, x_MI: Tensor, weight: Tensor) -> Tensor:
        """`[M, I]` with `[O, s, s, s, I]` to `[U, O]`: each fine voxel's own offset."""
        matrices = weight.flatten(1, 3).unbind(1)
        parts = [x_MI.index_select(0, c) @ matrix.T for c, matrix in zip(self.coarse_K, matrices, strict=True)]
        return torch.cat(parts).index_select(0, self.seat_U)
