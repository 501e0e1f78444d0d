# SPDX-License-Identifier: Apache-2.0
"""Which points attend to each other: patches of K consecutive points along a curve.

N points of B clouds, K points a patch, P full patches, R rows after borrowing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Patches", "cut", "reorder"]


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """Points cut into patches, as gathers there and back; nothing is padded with zeros and nothing is masked."""

    gather_R: Tensor
    """`[R]` int64, the points of all patches one after the other: full patches first, then the small clouds."""
    own_N: Tensor
    """`[N]` int64, the row of each point in its own patch; rows that were borrowed are read by nobody."""
    groups: tuple[tuple[int, int], ...]
    """(patches, points of each) in the order of `gather_R`: one call of the attention kernel a group."""


def cut(ends: tuple[int, ...], length: int, device: torch.device) -> Patches:
    """Cut clouds, whose points lie along a curve already, into patches.

    A cloud of n > K points has ceil(n / K) patches; the last one is its last K points, so it borrows from the one
    before. A cloud of n <= K points is one patch of n. This is what the official code does for flash attention.

    Args:
        ends: Where each of the B clouds ends.
        length: K.
        device: Where the indices shall live.

    Returns:
        Patches of positions along the curve; `reorder` makes them patches of points.
    """
    full: list[Tensor] = []
    small: list[Tensor] = []
    own: list[Tensor] = []
    starts = (0, *ends[:-1])
    small_base = sum(
        -(-(end - start) // length) * length for start, end in zip(starts, ends, strict=True) if end - start >= length
    )
    full_base = 0
    for start, end in zip(starts, ends, strict=True):
        n = end - start
        if n == 0:
            continue
        local_n = torch.arange(n)
        if n < length:
            small.append(start + local_n)
            own.append(small_base + local_n)
            small_base += n
            continue
        rows = -(-n // length) * length
        borrowed = rows - n
        # rows of the last patch count from its end, so that they are the last K points
        last = torch.arange(rows) >= rows - length
        full.append(start + torch.arange(rows) - borrowed * last)
        own.append(full_base + local_n + borrowed * (local_n >= rows - length))
        full_base += rows
    groups = [(full_base // length, length)] if full else []
    groups += [(1, len(s)) for s in small]
    empty = [torch.empty(0, dtype=torch.int64)]
    return Patches(
        torch.cat(full + small + empty).to(device, non_blocking=True),
        torch.cat(own + empty).to(device, non_blocking=True),
        tuple(groups),
    )


def reorder(patches: Patches, order_N: Tensor) -> Patches:
    """Patches of positions to patches of points.

    Args:
        patches: As `cut` made them.
        order_N: `[N]` the point at each position along the curve.
    """
    position_N = torch.empty_like(order_N)
    position_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    return Patches(order_N.index_select(0, patches.gather_R), patches.own_N.index_select(0, position_N), patches.groups)
