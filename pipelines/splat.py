# SPDX-License-Identifier: Apache-2.0
"""Points as pixels: an orthographic view from obliquely above, near points over far ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditr_cache.types import Float32, Float64

__all__ = ["BACKGROUND", "Vantage", "axes", "vantage"]

RGB = NDArray[np.uint8]
BACKGROUND = np.array([250, 250, 250], np.uint8)
_STEEPNESS = 1.1
"""Rise of the line of sight over its horizontal part."""


@dataclass(frozen=True, slots=True, eq=False)
class Vantage:
    """Where a cloud is looked at from, and which of its points land on which pixels: one for all colourings."""

    pixel: Float64
    """`[n, 2]` column and row of the points that are drawn, far ones first."""
    seat: NDArray[np.int64]
    """`[n]` which points these are."""
    size: tuple[int, int]
    """Height and width in pixels."""

    def draw(self, colour_N3: RGB) -> RGB:
        """Draw all points in their colours.

        Args:
            colour_N3: `[N, 3]` of all points.

        Returns:
            `[height, width, 3]`.
        """
        height, width = self.size
        out = np.tile(BACKGROUND, (height, width, 1))
        if len(self.seat) == 0:
            return out
        radius = int(np.clip(round(2 * np.sqrt(width * height / len(self.seat))), 1, 4))
        # all pixels of a point before those of the next nearer one, which then covers them
        splat = np.stack(np.meshgrid(np.arange(radius), np.arange(radius)), axis=-1).reshape(-1, 2)
        column, row = (self.pixel[:, None] + splat).astype(np.int64).reshape(-1, 2).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        out[row[inside], column[inside]] = np.repeat(colour_N3[self.seat], len(splat), axis=0)[inside]
        return out


def vantage(
    coord_N3: Float32,
    up: Float64,
    ahead: Float64,
    size: tuple[int, int],
    normal_N3: Float32 | None = None,
    keep_N: NDArray[np.bool_] | None = None,
) -> Vantage:
    """Look at a cloud from behind and above, so that it fills the picture.

    Args:
        coord_N3: `[N, 3]` points.
        up: `[3]` unit vector.
        ahead: `[3]` horizontal viewing direction.
        size: Height and width in pixels.
        normal_N3: `[N, 3]`; surfaces that face away (the near walls of a room) are left out.
        keep_N: `[N]` points that may be drawn; all by default.
    """
    height, width = size
    towards = up * _STEEPNESS - ahead
    towards /= np.linalg.norm(towards)
    right = np.cross(up, towards)
    right /= np.linalg.norm(right)
    keep = np.ones(len(coord_N3), bool) if keep_N is None else keep_N.copy()
    if normal_N3 is not None:
        keep &= normal_N3 @ towards > -0.1
    seat = np.flatnonzero(keep)
    coord = coord_N3[seat].astype(np.float64)
    if len(coord) == 0:
        return Vantage(np.zeros((0, 2)), seat, size)
    xy = coord @ np.stack([right, np.cross(towards, right)]).T
    low, high = np.percentile(xy, [0.5, 99.5], axis=0)
    scale = 0.94 * min(width / max(high[0] - low[0], 1e-6), height / max(high[1] - low[1], 1e-6))
    pixel = (xy - (low + high) / 2) * scale * [1, -1] + [width / 2, height / 2]
    order = np.argsort(coord @ towards, kind="stable")
    return Vantage(pixel[order], seat[order], size)


def axes(world_to_camera: Sequence[Float64]) -> tuple[Float64, Float64]:
    """Up (the mean of the cameras' -y) and a horizontal viewing direction (the first camera's).

    Args:
        world_to_camera: `[4, 4]` of every camera; without a finite one, up is z.
    """
    poses = [pose for pose in world_to_camera if np.isfinite(pose).all()]
    if not poses:
        return np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    up = -np.mean([pose[1, :3] for pose in poses], axis=0)
    up /= np.linalg.norm(up)
    ahead = poses[0][2, :3] - (poses[0][2, :3] @ up) * up
    return up, ahead / max(np.linalg.norm(ahead), 1e-9)
