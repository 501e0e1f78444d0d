# SPDX-License-Identifier: Apache-2.0
"""The layer: weights in spconv's layout, so that official checkpoints fit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ditr_cache.models.sparse_conv.neighbours import Backend, NeighbourTable

__all__ = ["SubmanifoldConv3d", "autocasted"]


class SubmanifoldConv3d(nn.Module):
    """Submanifold convolution: cross-correlation over the points that exist, at the points that exist.

    Parameters: `weight [out, kx, ky, kz, in]` with the centre at k // 2, as spconv 2 keeps it, and `bias [out]` or
    None.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        kernel_size: k, odd.
        bias: Whether to add one.
        backend: What tables this layer takes; `auto` takes any.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(out_channels, kernel_size, kernel_size, kernel_size, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights and bias uniformly within 1 / sqrt(fan-in), as `nn.Linear` and spconv do."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size**3)
        nn.init.uniform_(self.weight, -bound, bound, generator)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound, generator)

    def forward(self, x: Tensor, table: NeighbourTable) -> Tensor:
        """Convolve.

        Args:
            x: `[N, in]` floating. Under autocast it and the weights take part in the autocast dtype, as in `nn.Linear`.
            table: Of the same N points and kernel size.

        Returns:
            `[N, out]`.

        Raises:
            ValueError: If the table is of other points, another kernel size or another back end.
        """
        if table.kernel_size != self.kernel_size or table.points != len(x):
            raise ValueError(
                f"a table of {table.points} points and kernel size {table.kernel_size} does not fit "
                f"{len(x)} points and kernel size {self.kernel_size}"
            )
        if self.backend not in ("auto", table.backend):
            raise ValueError(f"this layer runs with {self.backend}, the table was built for {table.backend}")
        y = table.convolve(autocasted(x), autocasted(self.weight))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Shapes, for `print(model)`."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"


def autocasted(x: Tensor) -> Tensor:
    """In the dtype that autocast asks of a matrix product; double precision it leaves alone."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x
