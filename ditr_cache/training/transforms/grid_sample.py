# SPDX-License-Identifier: Apache-2.0
"""Voxelisation: one point a voxel for training and validation, fragments for the official test protocol.

N points, K voxels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ditr_cache.errors import SampleError
from ditr_cache.geometry.voxel import voxel_keys
from ditr_cache.training.sample import Sample
from ditr_cache.training.transforms.base import TransformModel
from ditr_cache.types import Int32

__all__ = ["GridSample", "fragments"]

_MAX_CELLS = 1 << 24
"""Along an axis; up to there float32 counts exactly. 335 km of 2 cm."""


class GridSample(TransformModel):
    """Gives every point its voxel, counted from the lowest of the cloud, and keeps one point of each.

    The official code finds equal voxels by an FNV hash; here keys are collision-free, which differs only where two
    voxels of a cloud share a hash.
    """

    kind: Literal["grid_sample"] = "grid_sample"
    grid_size: float = Field(0.02, gt=0)
    """Edge of a voxel, metres."""
    keep: Literal["random", "first", "all"] = "random"
    """`random`: any point of a voxel alike, or of its listed ones (training). `first`: the first, and it stands for the
    others (validation: independent of any seed). `all`: every point, for `fragments` to divide (test)."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if len(sample) == 0:
            raise SampleError("there are no points to voxelise")
        # by axis, one after the other: operations on columns of [N, 3] took several times as long
        cell_3N = np.floor(np.ascontiguousarray(sample.coord.T) / np.float32(self.grid_size))
        low_31, high_31 = cell_3N.min(1, keepdims=True), cell_3N.max(1, keepdims=True)
        with np.errstate(invalid="ignore", over="ignore"):
            fits = high_31 - low_31 < _MAX_CELLS  # false for NaN
        if not fits.all():
            raise SampleError(
                "a coordinate is not finite, or some are too far apart to be voxelised",
                hint="Look for stray points far from the scene, or take a larger grid_size.",
            )
        # exact in float32: no cell is farther than 2^24 from the lowest
        cell_N3 = (cell_3N - low_31).astype(np.int32).T
        sample = sample.replace(grid_coord=np.ascontiguousarray(cell_N3))
        if self.keep == "all":
            return sample
        order_N, start_K, count_K = _voxels(cell_N3)
        if self.keep == "random":
            chosen_K = order_N[start_K + (rng.random(len(count_K)) * count_K).astype(np.int64)]
            if sample.listed is not None:
                _prefer(sample.listed, chosen_K, order_N, start_K, rng)
            return sample.take(chosen_K)
        return _stand_for_all(sample, order_N, start_K, count_K)


def fragments(sample: Sample) -> list[NDArray[np.int64]]:
    """Positions of the points of each fragment: the i-th has the (i mod count)-th point of every voxel.

    As many fragments as the fullest voxel has points; every fragment has each voxel once, and all of them together have
    every point (Pointcept's test mode of GridSample).

    Args:
        sample: With `grid_coord`, from `GridSample(keep="all")`.
    """
    assert sample.grid_coord is not None
    order_N, start_K, count_K = _voxels(sample.grid_coord)
    return [order_N[start_K + i % count_K] for i in range(int(count_K.max(initial=0)))]


def _prefer(
    listed_N: NDArray[np.bool_],
    chosen_K: NDArray[np.int64],
    order_N: NDArray[np.int64],
    start_K: NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    """Let a listed point, any of them alike, stand for every voxel that has one; changes `chosen_K`."""
    place_L = rng.permutation(np.flatnonzero(listed_N[order_N]))
    voxel_L = np.searchsorted(start_K, place_L, side="right") - 1
    # of several in a voxel the last one stays
    chosen_K[voxel_L] = order_N[place_L]


def _stand_for_all(
    sample: Sample, order_N: NDArray[np.int64], start_K: NDArray[np.int64], count_K: NDArray[np.int64]
) -> Sample:
    stands_N = np.empty(len(sample), np.int64)
    stands_N[order_N] = np.repeat(np.arange(len(count_K)), count_K)
    if sample.inverse is None:
        chosen = sample.replace(full_segment=sample.segment)
        return chosen.take(order_N[start_K]).replace(inverse=stands_N)
    # voxelised before, more finely: through that to the points of the beginning; -1 stays
    through_M = np.append(stands_N, -1)[sample.inverse]
    return sample.take(order_N[start_K]).replace(inverse=through_M)


def _voxels(cell_N3: Int32) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Points by voxel, those of one in their own order `[N]`; where each voxel starts there, and its count `[K]`."""
    if len(cell_N3) == 0:
        return (np.zeros(0, np.int64),) * 3
    key_N = voxel_keys(cell_N3)
    order_N, sorted_N = _sort(key_N)
    start_K = np.flatnonzero(np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]]))
    count_K = np.diff(start_K, append=len(key_N))
    return order_N, start_K, count_K


def _sort(key_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stable order of keys, none below 0, and the sorted keys.

    Key and position in one number where both fit: sorting numbers is several times faster than sorting positions.
    """
    bits = max(1, (len(key_N) - 1).bit_length())
    if int(key_N.max()).bit_length() + bits > 63:
        order_N = np.argsort(key_N, kind="stable")
        return order_N, key_N[order_N]
    packed_N = key_N << bits
    packed_N |= np.arange(len(key_N))
    packed_N.sort()
    return packed_N & ((1 << bits) - 1), packed_N >> bits
