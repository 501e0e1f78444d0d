# SPDX-License-Identifier: Apache-2.0
"""One cloud on its way from the store to a batch.

N points at this stage, M points that the first `GridSample` with `keep="first"` was given.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.types import Float32, Int32

__all__ = ["Sample"]

_PER_POINT = ("coord", "point", "index", "color", "normal", "strength", "segment", "listed", "grid_coord")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """N points with everything that belongs to a point, in one order.

    Image features are not here: their rows travel beside the sample, and `index` says which row is whose. So every
    transform carries four bytes a point where the official code carries pixels and masks of all views.
    """

    coord: Float32
    """`[N, 3]` metres."""
    point: NDArray[np.int64]
    """`[N]` position of each point in the stored sample."""
    index: Int32
    """`[N]` the point's row of image features; -1 where no drawn view sees it."""
    color: Float32 | None = None
    """`[N, 3]` RGB, 0 to 255 until `NormalizeColor`."""
    normal: Float32 | None = None
    """`[N, 3]` unit vectors; they turn with the points."""
    strength: Float32 | None = None
    """`[N]` lidar return strength."""
    segment: Int32 | None = None
    """`[N]` labels; -1 is ignored."""
    listed: NDArray[np.bool_] | None = None
    """`[N]` the only points with labels, where these are scarce: `RandomDropout` and `GridSample` leave them in."""
    grid_coord: Int32 | None = None
    """`[N, 3]` voxel of each point, counted from 0; None before `GridSample`."""
    inverse: NDArray[np.int64] | None = None
    """`[M]` which of the N points stands for each point before voxelisation; -1 where that one was dropped later."""
    full_segment: Int32 | None = None
    """`[M]` labels of the points before voxelisation: what the official evaluation compares with."""

    def __len__(self) -> int:
        return len(self.coord)

    def take(self, keep: NDArray[Any]) -> Sample:
        """The points that `keep` names, in its order.

        Args:
            keep: `[n]` positions, no point twice, or `[N]` booleans.
        """
        seat_n = np.flatnonzero(keep) if keep.dtype == bool else keep
        # take and not brackets, which are four times slower on rows of three
        columns = {name: value.take(seat_n, 0) for name in _PER_POINT if (value := getattr(self, name)) is not None}
        if self.inverse is not None:
            # one entry more, so that a point that has gone already (-1) stays gone
            moved_N = np.full(len(self) + 1, -1, np.int64)
            moved_N[seat_n] = np.arange(len(seat_n))
            columns["inverse"] = moved_N[self.inverse]
        return self.replace(**columns)

    def replace(self, **columns: Any) -> Sample:
        """The same with other values of the named fields."""
        return dataclasses.replace(self, **columns)
