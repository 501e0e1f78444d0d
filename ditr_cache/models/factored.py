# SPDX-License-Identifier: Apache-2.0
"""Max-pooling and compaction of factored features: never a tensor of points x D.

N points, P rows, D channels, M clusters, S distinct sets of rows, K ranks (the most distinct rows of a cluster).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ditr_cache.errors import ConfigError
from ditr_cache.types import FactoredFeatures

__all__ = ["Compatibility", "compact", "pool", "usage"]

Compatibility = Literal["official", "fixed"]


def usage(features: FactoredFeatures) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are looked up, and how often. After grid sampling and cropping most of a scene's rows are not.

    Args:
        features: Torch tensors.

    Returns:
        `used` `[U]` int64, the rows that some point refers to; `slot` `[N]` int64, 0 for unseen points and 1 + u for
        those that refer to used row u; `count` `[1 + U]` int64, points by slot.
    """
    rows = len(features.rows)
    index_N = features.index.long() + 1
    count = torch.bincount(index_N, minlength=rows + 1)
    used_U = count[1:].nonzero()[:, 0]
    if len(used_U) == rows:
        return used_U, index_N, count
    slot = torch.zeros_like(count)
    slot[used_U + 1] = torch.arange(1, len(used_U) + 1, device=slot.device)
    return used_U, slot[index_N], torch.cat([count[:1], count[1:][used_U]])


def compact(features: FactoredFeatures) -> FactoredFeatures:
    """The same features without rows that no point refers to; itself if there are none.

    Args:
        features: Torch tensors, floating or int8.
    """
    used_U, slot_N, _ = usage(features)
    if len(used_U) == len(features.rows):
        return features
    row_view = None if features.row_view is None else features.row_view.index_select(0, used_U)
    return FactoredFeatures(features.rows.index_select(0, used_U), slot_N - 1, features.affine, row_view)


@torch.no_grad()
def pool(
    features: FactoredFeatures, cluster: Tensor, size: int, compatibility: Compatibility = "official"
) -> FactoredFeatures:
    """X_{l+1}^2D of X_l^2D: the maximum over each cluster of points, in factored form (DITR, section 3.1).

    Clusters that look up the same set of rows have the same maximum, and share one row. Indoors most clusters lie
    within one patch and keep its row; along the border of two patches hundreds share their maximum.

    Args:
        features: `rows` `[P, D]` floating, `index` `[N]`.
        cluster: `[N]` int64 in 0..M - 1.
        size: M.
        compatibility: `official`: the zeros of unseen points take part in the maximum. `fixed`: they do not, and a
            cluster is unseen if all of its points are.

    Returns:
        One row for each distinct set of rows that a cluster holds; `index` `[M]` int64, -1 where the feature is zero
        because no point is seen. No gradient: rows are inputs of the network.

    Raises:
        ConfigError: If the rows are still quantised.
    """
    rows_PD = features.rows
    if not rows_PD.is_floating_point():
        raise ConfigError("rows are still quantised", hint="Call features.dequantise() first.")
    slots = len(rows_PD) + 1
    slot_N, cluster_N = features.index.long() + 1, cluster.long()
    if compatibility == "fixed":
        seen = (slot_N > 0).nonzero()[:, 0]
        slot_N, cluster_N = slot_N[seen], cluster_N[seen]
    pair = torch.unique(cluster_N * slots + slot_N)
    pair_slot = pair % slots
    count_M = torch.bincount(pair // slots, minlength=size)
    start_M = count_M.cumsum(0) - count_M
    set_M, member_S = _distinct_sets(pair_slot, start_M, count_M, slots)
    rows_SD = _maxima(rows_PD, pair_slot, start_M[member_S], count_M[member_S])
    return FactoredFeatures(rows_SD, set_M)


def _distinct_sets(pair_slot: Tensor, start_M: Tensor, count_M: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Number the sets of rows that clusters hold, larger sets first.

    Sets are compared rank by rank: two clusters share a node if they share the node before and the next row.

    Args:
        pair_slot: Rows of all clusters, one cluster after the other, ascending within each; slot 0 is the zero row.
        start_M: `[M]` where each cluster starts.
        count_M: `[M]` how many it holds.
        slots: Rows and one.

    Returns:
        `[M]` set of each cluster, -1 where it holds nothing but zero; `[S]` a cluster of each set.
    """
    node_M = torch.full_like(count_M, -1)
    nodes = 0
    for rank in range(int(count_M.max()) if len(count_M) else 0):
        member = (count_M > rank).nonzero()[:, 0]
        slot = pair_slot[start_M[member] + rank]
        if rank == 0:
            node_M[member] = slot
            nodes = slots
        else:
            distinct, inverse = torch.unique(node_M[member] * slots + slot, return_inverse=True)
            node_M[member] = nodes + inverse
            nodes += len(distinct)
    # nodes of later ranks have larger numbers, so that the negative ones sort large sets first; the zero row alone is 0
    held = (node_M > 0).nonzero()[:, 0]
    distinct, set_of_held = torch.unique(-node_M[held], return_inverse=True)
    set_M = torch.full_like(count_M, -1)
    set_M[held] = set_of_held
    # of several clusters that hold a set the last one speaks for it: a fixed choice, where a plain scatter has none
    member_S = torch.zeros_like(distinct).scatter_reduce_(0, set_of_held, held, "amax", include_self=False)
    return set_M, member_S


def _maxima(rows_PD: Tensor, pair_slot: Tensor, start_S: Tensor, count_S: Tensor) -> Tensor:
    """`[S, D]` maximum of each set, rank by rank; sets are sorted from large to small."""
    first_S = pair_slot[start_S]
    # if the zero row is part of a set it is its first, and a set of that alone is no set
    holds_zero_S = first_S == 0
    last_S = pair_slot[start_S + count_S - 1]
    out_SD = rows_PD.index_select(0, last_S - 1)
    for rank in range(int(count_S[0]) - 1 if len(count_S) else 0):
        held = int((count_S > rank + 1).sum())
        slot_s = pair_slot[start_S[:held] + rank]
        # where this is the zero row, the last row stands in, which is part of the maximum already
        slot_s = torch.where(slot_s == 0, last_S[:held], slot_s)
        torch.maximum(out_SD[:held], rows_PD.index_select(0, slot_s - 1), out=out_SD[:held])
    floor_S = torch.where(holds_zero_S, 0, -torch.inf).to(out_SD.dtype)
    return torch.maximum(out_SD, floor_S[:, None], out=out_SD)
