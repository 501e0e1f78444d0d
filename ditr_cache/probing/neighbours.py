# SPDX-License-Identifier: Apache-2.0
"""Classes by the k nearest training points.

M points of the bank, Q points to classify, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ditr_cache.errors import ConfigError

__all__ = ["vote"]

_CHUNK = 1 << 24
"""Similarities in memory at once: 64 MB."""


def vote(
    bank_MD: Tensor,
    label_M: Tensor,
    query_QD: Tensor,
    k: int,
    *,
    metric: Literal["cosine", "euclidean"] = "cosine",
    chunk: int = _CHUNK,
    tick: Callable[[int], None] = lambda queries: None,
) -> Tensor:
    """The class that most of the k nearest points of the bank have.

    Among classes with as many neighbours the one whose neighbours are nearer (by the sum of their ranks) wins, then the
    lower number. No more than `chunk` similarities are in memory at once.

    Args:
        bank_MD: Training points, float32.
        label_M: Their classes, int64.
        query_QD: Points to classify.
        k: Neighbours; all where the bank has fewer.
        metric: `cosine` of the vectors as they are, or `euclidean` distance.
        chunk: Similarities at once.
        tick: Called with the number of queries that are done, piece by piece.

    Returns:
        `[Q]` int64.

    Raises:
        ConfigError: If the bank is empty, or k is below 1.
    """
    if not len(bank_MD) or k < 1:
        raise ConfigError(f"{k} neighbours of {len(bank_MD)} points: at least one of each is needed")
    k = min(k, len(bank_MD))
    if metric == "cosine":
        bank_MD, query_QD, square_M = functional.normalize(bank_MD), functional.normalize(query_QD), None
    else:
        # less the query's own square, which orders nothing: |q - b|^2 = |q|^2 - 2 q.b + |b|^2
        square_M = bank_MD.square().sum(1) / 2
    classes = int(label_M.max()) + 1
    # a neighbour is worth k (k + 1), and its nearness 0 to k - 1, which all together are less than one neighbour more
    worth_k = k * (k + 1) + torch.arange(k - 1, -1, -1, device=bank_MD.device)
    found = []
    for piece_qD in torch.split(query_QD, max(1, chunk // len(bank_MD))):
        near_qM = piece_qD @ bank_MD.T
        if square_M is not None:
            near_qM -= square_M
        label_qk = label_M[near_qM.topk(k, dim=1).indices]
        votes_qK = worth_k.new_zeros(len(piece_qD), classes)
        votes_qK.scatter_add_(1, label_qk, worth_k.expand(len(piece_qD), k))
        found.append(votes_qK.argmax(1))
        tick(len(piece_qD))
    return torch.cat(found) if found else label_M[:0]
