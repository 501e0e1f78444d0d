# SPDX-License-Identifier: Apache-2.0
"""Strided convolution by spconv 2, and its inverse, which are two readings of the same pairs.

U fine voxels, M coarse ones, C channels. spconv decides in which order coarse voxels come; ours is that of their keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ditr_cache.models.sparse_conv.pairs import padded_keys
from ditr_cache.models.sparse_conv.spconv_backend import Sites, require_spconv, run_layer, spconv_layer

__all__ = ["SpconvStrides"]


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """What spconv found out in a strided convolution."""

    sites: Sites
    """Coarse voxels, in spconv's order."""
    found: dict[str, Any]
    """Its pairs."""
    order_M: Tensor
    """`[M]` int64: the voxels in our order."""
    seat_M: Tensor
    """`[M]` int64: ours in spconv's order."""


class SpconvStrides:
    """Both directions between two levels.

    Args:
        grid_coord_U3: `[U, 3]` integer, distinct within a cloud.
        batch_U: `[U]` int64.
        stride: s.

    Raises:
        ConfigError: If spconv is not installed.
    """

    def __init__(self, grid_coord_U3: Tensor, batch_U: Tensor, stride: int) -> None:
        self.stride = stride
        require_spconv()
        low_3 = grid_coord_U3.amin(0) if len(grid_coord_U3) else grid_coord_U3.new_zeros(3)
        # coarse voxels count from 0, not from the lowest fine one
        low_3 = torch.div(low_3, stride, rounding_mode="floor") * stride
        indices_U4 = torch.cat((batch_U[:, None], grid_coord_U3 - low_3), 1).int().contiguous()
        clouds, *extent = (indices_U4.amax(0) + 1).tolist() if len(batch_U) else (0, 0, 0, 0)
        # it leaves out what does not fill a coarse voxel
        self.sites = Sites(indices_U4, [-(-n // stride) * stride for n in extent], clouds)
        self._pairs: _Pairs | None = None

    def down(self, x_UC: Tensor, weight: Tensor) -> Tensor:
        """`[U, Cin]` with `[Cout, s, s, s, Cin]` to `[M, Cout]`."""
        if not len(x_UC):
            return linear(x_UC, weight[:, 0, 0, 0])
        out = run_layer(self._layer("SparseConv3d", weight, x_UC.is_cuda), x_UC, weight, self.sites, {})
        order_M = padded_keys(out.indices[:, 1:], out.indices[:, 0], 1)[0].argsort()
        coarse = Sites(out.indices, out.spatial_shape, self.sites.clouds)
        self._pairs = _Pairs(coarse, out.indice_dict, order_M, order_M.argsort())
        y_MC: Tensor = out.features.index_select(0, order_M)
        return y_MC.to(x_UC.dtype)

    def up(self, x_MC: Tensor, weight: Tensor) -> Tensor:
        """`[M, Cin]` with `[Cout, s, s, s, Cin]` to `[U, Cout]`."""
        if not len(x_MC):
            return linear(x_MC, weight[:, 0, 0, 0])
        pairs = self._pairs or self._find(x_MC)
        x_MC = x_MC.index_select(0, pairs.seat_M)
        layer = self._layer("SparseInverseConv3d", weight, x_MC.is_cuda)
        out = run_layer(layer, x_MC, weight, pairs.sites, pairs.found)
        y_UC: Tensor = out.features
        return y_UC.to(x_MC.dtype)

    @torch.no_grad()
    def _find(self, like: Tensor) -> _Pairs:
        """The pairs, where nothing has been convolved downwards yet."""
        self.down(like.new_ones(len(self.sites.indices), 1), like.new_ones(1, *[self.stride] * 3, 1))
        assert self._pairs is not None
        return self._pairs

    def _layer(self, kind: str, weight: Tensor, cuda: bool) -> torch.nn.Module:
        options = {"stride": self.stride} if kind == "SparseConv3d" else {}
        return spconv_layer(kind, self.stride, weight.shape[-1], weight.shape[0], cuda, **options)
