# SPDX-License-Identifier: Apache-2.0
"""Transforms that move points: shifts, rotations, scales, mirrors, noise. Normals turn and flip with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ditr_cache.training.sample import Sample
from ditr_cache.training.transforms.base import Probability, TransformModel, bounds, happens
from ditr_cache.types import Float32

__all__ = [
    "CenterShift",
    "PointClip",
    "RandomFlip",
    "RandomJitter",
    "RandomRotate",
    "RandomRotateTargetAngle",
    "RandomScale",
]

# the plane that an axis turns, so that a positive angle turns the first towards the second
_PLANE = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}


class CenterShift(TransformModel):
    """Puts the centre of the bounding box over the origin; with `apply_z`, its floor at z = 0."""

    kind: Literal["center_shift"] = "center_shift"
    apply_z: bool = True
    """Move vertically, too."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if len(sample) == 0:
            return sample
        low_3, high_3 = bounds(sample.coord)
        shift_3 = (low_3 + high_3) / 2
        shift_3[2] = low_3[2] if self.apply_z else 0
        return sample.replace(coord=sample.coord - shift_3)


class RandomRotate(TransformModel):
    """Turns by an angle that is uniform between two bounds."""

    kind: Literal["random_rotate"] = "random_rotate"
    angle: tuple[float, float] = (-1.0, 1.0)
    """Lowest and highest angle in half turns (multiples of pi radians)."""
    axis: Literal["x", "y", "z"] = "z"
    """Axis of rotation; positive angles turn x to y, y to z and z to x."""
    center: tuple[float, float, float] | None = None
    """Fixed point in metres; None: centre of the bounding box."""
    p: Probability = 0.5
    """How often."""

    @model_validator(mode="after")
    def _ordered(self) -> RandomRotate:
        if self.angle[0] > self.angle[1]:
            raise ValueError("angle is (lowest, highest)")
        return self

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if not happens(self.p, rng):
            return sample
        return rotated(sample, self.axis, rng.uniform(*self.angle) * math.pi, self.center)


class RandomRotateTargetAngle(TransformModel):
    """Turns by one of some angles: with a single one and p = 1, a fixed rotation of the official test protocol."""

    kind: Literal["random_rotate_target_angle"] = "random_rotate_target_angle"
    angle: tuple[float, ...] = Field((0.5, 1.0, 1.5), min_length=1)
    """Angles to choose from, in half turns (multiples of pi radians)."""
    axis: Literal["x", "y", "z"] = "z"
    """Axis of rotation; positive angles turn x to y, y to z and z to x."""
    center: tuple[float, float, float] | None = None
    """Fixed point in metres; None: centre of the bounding box."""
    p: Probability = 0.75
    """How often."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if not happens(self.p, rng):
            return sample
        angle = self.angle[int(rng.integers(len(self.angle)))]
        return rotated(sample, self.axis, angle * math.pi, self.center)


class RandomScale(TransformModel):
    """Stretches about the origin by a uniform factor."""

    kind: Literal["random_scale"] = "random_scale"
    scale: tuple[float, float] = (0.9, 1.1)
    """Lowest and highest factor."""
    anisotropic: bool = False
    """A factor for each axis instead of one for all."""

    @model_validator(mode="after")
    def _ordered(self) -> RandomScale:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale is (lowest, highest), both above 0")
        return self

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        factor = rng.uniform(*self.scale, 3 if self.anisotropic else 1).astype(np.float32)
        return sample.replace(coord=sample.coord * factor)


class RandomFlip(TransformModel):
    """Mirrors x and, drawn apart, y."""

    kind: Literal["random_flip"] = "random_flip"
    p: Probability = 0.5
    """How often, for each of the two."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        sign_3 = np.array([-1 if happens(self.p, rng) else 1 for _ in "xy"] + [1], np.float32)
        if (sign_3 > 0).all():
            return sample
        return sample.replace(coord=sample.coord * sign_3, normal=_each(sample.normal, lambda x: x * sign_3))


class RandomJitter(TransformModel):
    """Adds clipped Gaussian noise to every coordinate."""

    kind: Literal["random_jitter"] = "random_jitter"
    sigma: float = Field(0.005, ge=0)
    """Standard deviation before clipping, metres."""
    clip: float = Field(0.02, gt=0)
    """Largest shift along an axis, metres."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        noise_N3 = rng.standard_normal(sample.coord.shape, np.float32)
        noise_N3 *= np.float32(self.sigma)
        np.clip(noise_N3, -self.clip, self.clip, out=noise_N3)
        noise_N3 += sample.coord
        return sample.replace(coord=noise_N3)


class PointClip(TransformModel):
    """Moves points outside a box onto its surface. Official name and behaviour: it drops none (Pointcept#186)."""

    kind: Literal["point_clip"] = "point_clip"
    point_cloud_range: tuple[float, float, float, float, float, float] = (-80.0, -80.0, -3.0, 80.0, 80.0, 1.0)
    """Lowest x, y, z, then highest, metres."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        low_3, high_3 = np.array(self.point_cloud_range, np.float32).reshape(2, 3)
        return sample.replace(coord=np.clip(sample.coord, low_3, high_3))


def rotated(sample: Sample, axis: str, angle: float, center: tuple[float, float, float] | None) -> Sample:
    """Points about a fixed point, and normals, turned by `angle` radians about `axis`."""
    if len(sample) == 0:
        return sample
    coord_N3 = sample.coord
    fixed_3 = _middle(coord_N3) if center is None else np.array(center, np.float32)
    turned_N3 = _turn(coord_N3 - fixed_3 if fixed_3.any() else coord_N3, axis, angle)
    turned_N3 += fixed_3
    return sample.replace(coord=turned_N3, normal=_each(sample.normal, lambda x: _turn(x, axis, angle)))


def _middle(coord_N3: Float32) -> Float32:
    low_3, high_3 = bounds(coord_N3)
    return (low_3 + high_3) * np.float32(0.5)


def _turn(x_N3: Float32, axis: str, angle: float) -> Float32:
    # by elements and not as a matrix product: BLAS may round otherwise on another number of threads
    a, b = _PLANE[axis]
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    out_N3 = x_N3.copy()
    out_N3[:, a] = cos * x_N3[:, a] - sin * x_N3[:, b]
    out_N3[:, b] = sin * x_N3[:, a] + cos * x_N3[:, b]
    return out_N3


def _each(x: Float32 | None, function: Callable[[Float32], Float32]) -> Float32 | None:
    return None if x is None else function(x)
