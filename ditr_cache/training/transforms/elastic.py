# SPDX-License-Identifier: Apache-2.0
"""Elastic distortion: points follow a smooth random flow.

N points, n of one slice of them, X Y Z nodes of the noise grid.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ditr_cache.errors import SampleError
from ditr_cache.training.sample import Sample
from ditr_cache.training.transforms.base import Probability, TransformModel, bounds, happens
from ditr_cache.types import Float32

__all__ = ["ElasticDistortion"]

_SLICE = 4096
"""Points at a time: their corners stay in the processor's cache."""
_MAX_NODES = 1 << 27
"""Nodes of the noise grid, 1.5 GB: a stray point far away must not take all memory."""

Positive = Annotated[float, Field(gt=0)]


class ElasticDistortion(TransformModel):
    """Adds `magnitude` times smoothed white noise of one node every `granularity` metres, pair after pair.

    The noise is Gaussian, blurred twice by a 3 x 3 x 3 box with zeros outside, and interpolated trilinearly. In the
    official loader this took 65 % of the data time (Pointcept#103); without SciPy's generic interpolator it takes
    between a fourth and a fifth of that, and equals it to 5e-7.
    """

    kind: Literal["elastic_distortion"] = "elastic_distortion"
    distortion_params: tuple[tuple[Positive, Positive], ...] = ((0.2, 0.4), (0.8, 1.6))
    """Granularity and magnitude of each pass, metres."""
    p: Probability = 0.95
    """How often."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if len(sample) == 0 or not happens(self.p, rng):
            return sample
        coord_N3 = sample.coord
        for granularity, magnitude in self.distortion_params:
            low_3, high_3 = bounds(coord_N3)
            # one node before the first point, and one behind the last
            cells_3 = np.floor((high_3 - low_3).astype(np.float64) / granularity)
            if not np.prod(cells_3 + 3) <= _MAX_NODES:
                raise SampleError("the points span too much for elastic distortion: look for strays far away")
            noise_XYZ3 = smooth(rng.standard_normal((*(cells_3.astype(int) + 3), 3), np.float32))
            node_N3 = (coord_N3 - low_3) / np.float32(granularity) + 1
            coord_N3 = coord_N3 + interpolate(noise_XYZ3, node_N3) * np.float32(magnitude)
        return sample.replace(coord=coord_N3)


def smooth(noise_XYZ3: Float32) -> Float32:
    """Blurred twice by a 3 x 3 x 3 box, zeros outside; one axis at a time."""
    for axis in (0, 1, 2, 0, 1, 2):
        upper = (slice(None),) * axis + (slice(1, None),)
        lower = (slice(None),) * axis + (slice(None, -1),)
        blurred = noise_XYZ3.copy()
        blurred[upper] += noise_XYZ3[lower]
        blurred[lower] += noise_XYZ3[upper]
        blurred /= 3
        noise_XYZ3 = blurred
    return noise_XYZ3


def interpolate(grid_XYZ3: Float32, node_N3: Float32) -> Float32:
    """Trilinear interpolation.

    Args:
        grid_XYZ3: `[X, Y, Z, 3]` values at the nodes.
        node_N3: `[N, 3]` positions in nodes, from 0 to X - 1, Y - 1, Z - 1.

    Returns:
        `[N, 3]`.
    """
    _, ny, nz, _ = grid_XYZ3.shape
    value_3G = np.ascontiguousarray(grid_XYZ3.reshape(-1, 3).T)
    corners = [(i * ny + j) * nz + k for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    # a position that rounding has moved onto the last node is at the end of the last cell
    last_3 = np.array(grid_XYZ3.shape[:3], np.float32) - 2
    out_N3 = np.empty_like(node_N3)
    for start in range(0, len(node_N3), _SLICE):
        within_n3 = node_N3[start : start + _SLICE]
        cell_n3 = np.minimum(np.floor(within_n3), last_3)
        # by axis, one after the other: operations on columns took twice as long
        x_n, y_n, z_n = np.ascontiguousarray((within_n3 - cell_n3).T)
        cell_n3 = cell_n3.astype(np.intp)
        first_n = (cell_n3[:, 0] * ny + cell_n3[:, 1]) * nz + cell_n3[:, 2]
        at = np.stack([value_3G.take(first_n + corner, axis=1) for corner in corners]).reshape(2, 2, 2, 3, -1)
        at = at[0] + x_n * (at[1] - at[0])
        at = at[0] + y_n * (at[1] - at[0])
        out_N3[start : start + _SLICE] = (at[0] + z_n * (at[1] - at[0])).T
    return out_N3
