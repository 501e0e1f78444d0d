# SPDX-License-Identifier: Apache-2.0
"""Which views are read, and which of them serves a point.

A seed gives the same draw in every version: draws use the raw output of PCG64, which NumPy promises never to change
(NEP 19), and not its distributions, which it does not.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import ConfigError
from ditr_cache.store.kernels import keep_highest

__all__ = ["Draw", "draw_views", "serve"]


class Draw:
    """A stream of random numbers. `None` seeds from the system."""

    def __init__(self, seed: int | None) -> None:
        if seed is None:
            seed = secrets.randbits(64)
        digest = hashlib.sha256(str(int(seed)).encode()).digest()
        # PCG64's own state, set directly: 128 bits of state, and an odd increment
        self._bits = np.random.PCG64()
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": {
                "state": int.from_bytes(digest[:16], "little"),
                "inc": int.from_bytes(digest[16:], "little") | 1,
            },
            "has_uint32": 0,
            "uinteger": 0,
        }

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A uniform permutation of 0..n-1."""
        return np.argsort(self._bits.random_raw(n), kind="stable")

    def below(self, n: int) -> int:
        """A uniform integer in [0, n); n is small against 2^64, so the modulo's bias is below 1e-15."""
        return int(self._bits.random_raw() % n)

    def uint16(self, n: int) -> NDArray[np.uint16]:
        """`[n]` uniform 16-bit integers."""
        return self._bits.random_raw(-(-n // 4)).astype("<u8", copy=False).view("<u2")[:n]


def draw_views(views: Sequence[int], count: int | None, pick: str, draw: Draw) -> list[int]:
    """The views to read, in the order in which the rule applies them.

    `strided` is the official choice for evaluation: with step = len // count, views 0, step, 2 step, ...
    `random` is the one for training: `count` of them without replacement, in random order.

    Raises:
        ConfigError: If `pick` or `count` is not valid.
    """
    if pick not in ("random", "strided"):
        raise ConfigError(f"pick is {pick!r}, it must be 'random' or 'strided'")
    if count is None:
        return list(views)
    if count < 1:
        raise ConfigError(f"count is {count}, it must be at least 1")
    if pick == "strided":
        step = max(1, len(views) // count)
        return list(views[::step][:count])
    return [views[i] for i in draw.permutation(len(views))[:count]]


def serve(
    n: int, hits: Sequence[tuple[NDArray[np.int64], NDArray[np.int32]]], rule: str, draw: Draw
) -> NDArray[np.int32]:
    """One row a point out of the views that see it (paper section 3.1: a random one).

    Args:
        n: N.
        hits: A view each, in the order of the draw: points `[H]` ascending, and the row that serves them `[H]`.
        rule: `last` lets later views overwrite earlier ones, as the official code does; `first` the reverse; `random`
            draws one of a point's views uniformly, for every point alone.
        draw: Where `random` takes its numbers from.

    Returns:
        `[N]` row, -1 for unseen points.

    Raises:
        ConfigError: If there is no such rule.
    """
    if rule in ("last", "first"):
        index_N = np.full(n, -1, np.int32)
        for point_H, row_H in hits if rule == "last" else reversed(hits):
            index_N[point_H] = row_H
        return index_N
    if rule != "random":
        raise ConfigError(f"rule is {rule!r}, it must be 'random', 'last' or 'first'")
    return _serve_random(n, hits, draw)


def _serve_random(n: int, hits: Sequence[tuple[NDArray[np.int64], NDArray[np.int32]]], draw: Draw) -> NDArray[np.int32]:
    """Every hit draws a key, a signed integer of 16 bits, and a point keeps the hit with the highest.

    Key and row are one number, row + 1 in the lower half, so a tie (1 of 65,536) goes to the higher row. Reservoir
    sampling took 3 times as long, for its random masks are mispredicted branches.
    """
    highest = max((int(row_H.max(initial=-1)) for _, row_H in hits), default=-1)
    word, half = (np.dtype(np.int32), 16) if highest < 0xFFFF else (np.dtype(np.int64), 32)
    # the lowest key with row -1, which no hit has
    best_N: NDArray[Any] = np.full(n, np.iinfo(word).min, word)
    for point_H, row_H in hits:
        entry_H: NDArray[Any] = draw.uint16(len(point_H)).view(np.int16).astype(word)
        entry_H <<= half
        entry_H |= row_H
        entry_H += 1
        keep_highest(best_N, point_H, entry_H)
    best_N &= (1 << half) - 1
    best_N -= 1
    return best_N.astype(np.int32, copy=False)
