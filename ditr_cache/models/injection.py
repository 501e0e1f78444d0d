# SPDX-License-Identifier: Apache-2.0
"""f_l^2D of DITR's section 3.1: linear, batch norm and GELU of the image features, computed once a row.

A linear layer on gathered rows is the gather of the linear layer on rows, and so is GELU; batch norm joins them once
its statistics count each row as often as it is looked up. One gather of the narrow result comes last.

N points, P rows, U rows in use, D image channels, C channels of the network.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ditr_cache.errors import ConfigError
from ditr_cache.models.factored import usage
from ditr_cache.models.narrow import narrow_linear
from ditr_cache.models.norm import ConditionalNorm, PointBatchNorm
from ditr_cache.types import FactoredFeatures

__all__ = ["ImageInjection"]


class ImageInjection(nn.Sequential):
    """One injection. Weights lie under the official names `1.*` (linear) and `2.*` (batch norm).

    Args:
        image_channels: D.
        channels: C.
        conditions: Data sets with norm layers of their own.
    """

    def __init__(self, image_channels: int, channels: int, conditions: tuple[str, ...] = ()) -> None:
        def norm() -> nn.Module:
            return PointBatchNorm(channels)

        super().__init__(
            nn.Identity(),  # upstream's dropout, which none of its recipes uses
            nn.Linear(image_channels, channels),
            ConditionalNorm(norm, conditions) if conditions else norm(),
            nn.GELU(),
        )

    def forward(self, features: FactoredFeatures, condition: str | None = None) -> Tensor:
        """Inject by rows.

        Args:
            features: `rows` `[P, D]` float16 or float32, `index` `[N]`; unseen points have the zero feature. Rows that
                no point refers to are left out.
            condition: Data set, where data sets have norm layers of their own.

        Returns:
            `[N, C]`, equal to `forward_dense` of the gathered features, in outputs, gradients and running statistics.

        Raises:
            ConfigError: If the rows are still quantised.
        """
        linear = cast("nn.Linear", self[1])
        used_U, slot_N, count = usage(features)
        rows_UD = features.rows if len(used_U) == len(features.rows) else features.rows.index_select(0, used_U)
        seen_UC = self._linear(rows_UD)
        # the linear layer of the zero row is its bias: no row of D zeros has to be put in front of the others
        x_UC = torch.cat([linear.bias[None].to(seen_UC.dtype), seen_UC])
        return self._activate(x_UC, condition, count).index_select(0, slot_N)

    def forward_dense(self, image_ND: Tensor, condition: str | None = None) -> Tensor:
        """Inject by points, as upstream does: for comparison.

        Args:
            image_ND: `[N, D]`, zero rows for unseen points.
            condition: As `forward`.

        Returns:
            `[N, C]`.
        """
        return self._activate(self._linear(image_ND), condition, None)

    def _linear(self, rows_PD: Tensor) -> Tensor:
        linear, device = cast("nn.Linear", self[1]), rows_PD.device.type
        if not rows_PD.is_floating_point():
            raise ConfigError("rows are still quantised", hint="Call features.dequantise() first.")
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else linear.weight.dtype
        with torch.autocast(device, enabled=False):
            return narrow_linear(rows_PD, linear.weight, linear.bias, dtype)

    def _activate(self, x_PC: Tensor, condition: str | None, weight_P: Tensor | None) -> Tensor:
        _, _, norm, activation = self
        x_PC = norm(x_PC, condition, weight_P) if isinstance(norm, ConditionalNorm) else norm(x_PC, weight_P)
        out_PC: Tensor = activation(x_PC)
        return out_PC
