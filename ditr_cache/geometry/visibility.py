# SPDX-License-Identifier: Apache-2.0
"""Which points a view sees, and in which patch (paper section 3.1; official depth rules).

N points, B points of one batch, S points still in question, H hits of one view. `uvz` is (column, row, depth): pixels
and metres.

float32 projects all points; those within 1/64 pixel of an integer pixel are projected again in float64. Points fused
from depth maps lie on integer pixels of those maps, which is where patches begin, and float32 alone put 0.1 % of
RedKitchen's points into the neighbouring patch. Both borders of the image are integer pixels too.

Threads of a pipeline call this side by side, so it is few NumPy calls over many points each: every call hands the
interpreter lock over and back, which at 140 calls a view cost all that a second thread brought; these are about 50. All
of them run on the calling thread. torch took over twice as long on one thread, most of it in gathers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditr_cache.config import VisibilityConfig
from ditr_cache.errors import FrameError
from ditr_cache.geometry.camera import Projector, gather
from ditr_cache.types import Camera, Float32, Float64, Int32

__all__ = ["Hits", "find_hits"]

BATCH = 262_144
"""Points a batch; bounds the memory for points that no view sees, and an indoor scene is usually one batch."""

Mask = NDArray[np.bool_]

# Pixels; float32 is off by some 1e-4.
_DOUBT = 1 / 64


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """What one view sees."""

    point: Int32
    """`[H]` point indices, ascending."""
    patch: Int32
    """`[H]` raster index of the patch that each falls into."""


@dataclass(frozen=True, slots=True, eq=False)
class _Pixels:
    """Points in the image of one view, and a few beside it."""

    point_S: NDArray[np.intp]
    uvz_3S: Float32
    """For those beside it, anything less than a pixel out of the image."""
    inside_S: Mask


def find_hits(
    coord_N3: Float32,
    origin_3: Float64,
    cameras: Sequence[Camera],
    depths: Sequence[Float32 | None],
    grids: Sequence[tuple[int, int]],
    rule: VisibilityConfig,
) -> list[Hits]:
    """Project points into views and keep those that each view sees.

    A point is seen if z > 0, 0 <= u < W, 0 <= v < H, min < z < max and, where the view has a depth map, the map's value
    at its pixel is valid and within the margin of z. It belongs to patch (floor(v * rows / H), floor(u * columns / W)).

    Args:
        coord_N3: Points `[N, 3]` in metres, relative to `origin_3`. Fortran order saves a copy a call.
        origin_3: `[3]` metres.
        cameras: One a view, for which `check_camera` finds nothing; a pose that is not finite sees nothing.
        depths: One a view: `[h, w]` metres along z at any resolution, 0 or not finite where there is none; or None.
        grids: One a view: rows and columns of patches.
        rule: Depth range, margin and z-buffer. The z-buffer applies to views whose depth is not tested.

    Returns:
        One `Hits` a view.

    Raises:
        FrameError: If a depth map is empty or not two-dimensional.
        ValueError: If there are not as many depths and grids as cameras.
    """
    xyz_3N = np.ascontiguousarray(np.asarray(coord_N3, np.float32).T)
    hits = []
    # points in the camera's plane divide by zero, those of a pose that is not finite are NaN: neither compares as seen
    with np.errstate(all="ignore"):
        for camera, depth, (rows, columns) in zip(cameras, depths, grids, strict=True):
            tests_depth = depth is not None and rule.depth_margin is not None
            # what is too near to be seen still hides what is behind it
            near = 0.0 if rule.zbuffer and not tests_depth else rule.min_depth
            far = np.inf if rule.max_depth is None else rule.max_depth
            pixels = _find_inside(xyz_3N, Projector.build(camera, origin_3, near, far))
            seen_S = pixels.inside_S
            if depth is not None and rule.depth_margin is not None:
                seen_S &= _agrees_with_depth(pixels, camera, depth, rule.depth_margin)
            elif rule.zbuffer:
                seen_S &= _is_in_front(pixels, camera, rule)
            seen = np.flatnonzero(seen_S)
            patch_H = _cell(gather(pixels.uvz_3S[:2], seen), camera, rows, columns)
            hits.append(Hits(gather(pixels.point_S, seen).astype(np.int32), patch_H))
    return hits


def _find_inside(xyz_3N: Float32, projector: Projector) -> _Pixels:
    batches = []
    for start in range(0, max(1, xyz_3N.shape[1]), BATCH):
        xyz_3B = xyz_3N[:, start : start + BATCH]
        near, uvz_3S = projector.find(xyz_3B, slack=_DOUBT)
        inside_S = _decide_doubtful(xyz_3B, projector, near, uvz_3S)
        batches.append(_Pixels(near + start if start else near, uvz_3S, inside_S))
    if len(batches) == 1:
        return batches[0]
    return _Pixels(
        np.concatenate([b.point_S for b in batches]),
        np.concatenate([b.uvz_3S for b in batches], axis=1),
        np.concatenate([b.inside_S for b in batches]),
    )


def _decide_doubtful(xyz_3B: Float32, projector: Projector, near: NDArray[np.intp], uvz_3S: Float32) -> Mask:
    """Put doubtful points of `uvz_3S` on the right pixel; tell which of all points are in the image."""
    offset_2S = np.rint(uvz_3S[:2])
    offset_2S -= uvz_3S[:2]
    np.abs(offset_2S, out=offset_2S)
    doubtful = np.flatnonzero(np.minimum(offset_2S[0], offset_2S[1]) < _DOUBT)
    exact_3D, inside_D = projector.place(gather(xyz_3B, gather(near, doubtful)).astype(np.float64))
    # 15.99999999 must not become 16 in float32, which has eight binary places up to 65,536 pixels
    pixel_2D = np.floor(exact_3D[:2])
    pixel_2D += 255 / 256
    np.minimum(exact_3D[:2], pixel_2D, out=exact_3D[:2])
    for row_S, row_D in zip(uvz_3S, exact_3D.astype(np.float32), strict=True):
        row_S[doubtful] = row_D
    inside_S = np.ones(len(near), np.bool_)
    inside_S[doubtful] = inside_D
    return inside_S


def _cell(uv_2S: Float32, camera: Camera, rows: int, columns: int) -> Int32:
    """Raster index of the cell of a `rows` x `columns` grid over the image that each pixel falls into."""
    if (rows, columns) == (camera.height, camera.width):
        cell_2S = uv_2S.astype(np.int32)
    else:
        # In float64, or 15.996 pixels times 40 / 640 could round up to the next patch. The factor is rounded up: what
        # lies on a border must not fall short of it, and the last float32 before one is much farther from it than that.
        scaled_2S = uv_2S.astype(np.float64)
        scaled_2S *= np.nextafter([[columns / camera.width], [rows / camera.height]], np.inf)
        cell_2S = scaled_2S.astype(np.int32)
    raster_S: Int32 = cell_2S[1]
    raster_S *= columns
    raster_S += cell_2S[0]
    return raster_S


def _agrees_with_depth(pixels: _Pixels, camera: Camera, depth: Float32, margin: float) -> Mask:
    if depth.ndim != 2 or depth.size == 0:
        raise FrameError(f"a depth map has height and width, not shape {depth.shape}")
    depth_S = gather(np.asarray(depth, np.float32).ravel(), _cell(pixels.uvz_3S[:2], camera, *depth.shape))
    agrees_S: Mask = depth_S > 0
    depth_S -= pixels.uvz_3S[2]
    agrees_S &= np.abs(depth_S, out=depth_S) <= np.float32(margin)
    return agrees_S


def _is_in_front(pixels: _Pixels, camera: Camera, rule: VisibilityConfig) -> Mask:
    rows, columns = -(-camera.height // rule.zbuffer_cell), -(-camera.width // rule.zbuffer_cell)
    column_S, row_S = pixels.uvz_3S[:2].astype(np.intp) // rule.zbuffer_cell
    cell_S, z_S = row_S * columns + column_S, np.where(pixels.inside_S, pixels.uvz_3S[2], np.float32(np.inf))
    # a row and a cell more, for points beside the image; they hide nothing
    nearest = np.full((rows + 1) * columns + 1, np.inf, np.float32)
    np.minimum.at(nearest, cell_S, z_S)
    in_front_S: Mask = z_S - nearest.take(cell_S) <= np.float32(rule.zbuffer_margin)
    in_front_S &= z_S > np.float32(rule.min_depth)
    return in_front_S
