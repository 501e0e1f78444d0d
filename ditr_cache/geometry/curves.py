# SPDX-License-Identifier: Apache-2.0
"""Space-filling curves: where a voxel lies along z-order and along Hilbert's curve (Point Transformer V3, section 3).

N points. Codes are int64 with x as the most significant axis. A `trans` curve is the plain one with x and y exchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditr_cache.config.model import Order
from ditr_cache.errors import ConfigError

__all__ = ["MAX_DEPTH", "encode", "serialisation_depth"]

MAX_DEPTH = 16
"""Bits per axis; three times as many in a code, and the rest of 63 for the number of the cloud."""

_CODE_BITS = 63

# Shifts and masks that move bit b of a 16-bit number to bit 3 b, in halves, quarters, ...
_SPREAD = (
    (32, 0x001F00000000FFFF),
    (16, 0x001F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def serialisation_depth(grid_coord_N3: Tensor) -> int:
    """Bits that the largest coordinate of a batch needs: the official depth.

    Args:
        grid_coord_N3: Voxel coordinates `[N, 3]`, from 0.

    Returns:
        The depth; at least 1, since an empty code would make every cloud's points equal.
    """
    return max(1, int(grid_coord_N3.max()).bit_length()) if grid_coord_N3.numel() else 1


def encode(grid_coord: Tensor, batch: Tensor, order: Order, depth: int) -> Tensor:
    """Serialise voxels: `batch << 3 * depth | code of the voxel along the curve`.

    Args:
        grid_coord: `[N, 3]` integer voxel coordinates, 0 <= g < 2^depth.
        batch: `[N]` int64, number of the cloud that a point belongs to.
        order: `z`, `hilbert`, or either with `-trans`.
        depth: Bits per axis. Hilbert's curve of a voxel depends on it.

    Returns:
        `[N]` int64, distinct for distinct voxels.

    Raises:
        ConfigError: If the depth is not in 1..16, codes would not fit 63 bits, or a coordinate does not fit the depth.
    """
    _check(grid_coord, batch, depth)
    x_N, y_N, z_N = grid_coord.to(torch.int32).unbind(1)
    if order.endswith("-trans"):
        x_N, y_N = y_N, x_N
    if order.startswith("hilbert"):
        x_N, y_N, z_N = _hilbert_transpose(x_N, y_N, z_N, depth)
    return batch.long() << (3 * depth) | _spread(x_N) << 2 | _spread(y_N) << 1 | _spread(z_N)


def _check(grid_coord_N3: Tensor, batch_N: Tensor, depth: int) -> None:
    if not 1 <= depth <= MAX_DEPTH:
        raise ConfigError(
            f"serialisation depth {depth} is not in 1..{MAX_DEPTH}",
            hint=f"a cloud may span at most {2**MAX_DEPTH} voxels per axis: crop it or take a larger voxel size",
        )
    if not len(batch_N):
        return
    # one trip to the host for all three
    low, high, clouds = torch.stack((grid_coord_N3.min().long(), grid_coord_N3.max().long(), batch_N.max())).tolist()
    if low < 0 or high >> depth:
        raise ConfigError(
            f"voxel coordinates {low}..{high} do not fit {depth} bits per axis",
            hint="coordinates count from 0 in every cloud; serialisation_depth() gives the depth that fits",
        )
    if 3 * depth + clouds.bit_length() > _CODE_BITS:
        raise ConfigError(
            f"{clouds + 1} clouds at serialisation depth {depth} do not fit {_CODE_BITS} bits",
            hint="put fewer clouds in a batch or take a larger voxel size",
        )


def _spread(axis_N: Tensor) -> Tensor:
    """Two zero bits after every bit of 16-bit numbers."""
    spread_N = axis_N.long()
    for shift, mask in _SPREAD:
        spread_N = (spread_N | spread_N << shift) & mask
    return spread_N


def _hilbert_transpose(x_N: Tensor, y_N: Tensor, z_N: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Axes whose interleaved bits are the Hilbert index (Skilling, "Programming the Hilbert curve", 2004).

    From the coarsest bit down, each axis either mirrors what lies below in x, or exchanges it with x: the turns that
    the curve has taken by then. A Gray code of what is left is the path through the eight octants.
    """
    for bit in range(depth - 1, 0, -1):
        below = (1 << bit) - 1
        x_N = x_N ^ (_filled(x_N, bit) & below)
        x_N, y_N = _turn(x_N, y_N, bit, below)
        x_N, z_N = _turn(x_N, z_N, bit, below)
    y_N = y_N ^ x_N
    z_N = z_N ^ y_N
    # bit b of the correction is the parity of z's bits above b
    turned_N = z_N >> 1
    for shift in (1, 2, 4, 8):
        turned_N = turned_N ^ turned_N >> shift
    return x_N ^ turned_N, y_N ^ turned_N, z_N ^ turned_N


def _turn(x_N: Tensor, other_N: Tensor, bit: int, below: int) -> tuple[Tensor, Tensor]:
    """Where `other` has the bit, mirror x below it; where not, exchange x and `other` below it."""
    mirror_N = _filled(other_N, bit)
    exchange_N = (x_N ^ other_N) & ~mirror_N & below
    return x_N ^ exchange_N ^ (mirror_N & below), other_N ^ exchange_N


def _filled(axis_N: Tensor, bit: int) -> Tensor:
    """-1 (all ones) where `bit` is set, else 0."""
    return -(axis_N >> bit & 1)
