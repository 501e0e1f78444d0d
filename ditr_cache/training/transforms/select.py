# SPDX-License-Identifier: Apache-2.0
"""Transforms that drop points: at random, or all but those near a centre."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ditr_cache.training.sample import Sample
from ditr_cache.training.transforms.base import Probability, TransformModel, happens
from ditr_cache.types import Float32

__all__ = ["RandomDropout", "SphereCrop"]


class RandomDropout(TransformModel):
    """Drops a fixed share of the points, any of them alike; listed ones stay."""

    kind: Literal["random_dropout"] = "random_dropout"
    dropout_ratio: float = Field(0.2, ge=0, lt=1)
    """Share of the points that go."""
    dropout_application_ratio: Probability = 0.5
    """How often."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if not happens(self.dropout_application_ratio, rng):
            return sample
        n = len(sample)
        keep_N = np.ones(n, bool)
        keep_N[rng.choice(n, n - int(n * (1 - self.dropout_ratio)), replace=False, shuffle=False)] = False
        if sample.listed is not None:
            keep_N |= sample.listed
        return sample.take(keep_N)


class SphereCrop(TransformModel):
    """Keeps the points nearest to a centre point, where there are more than a limit."""

    kind: Literal["sphere_crop"] = "sphere_crop"
    point_max: int = Field(80_000, ge=1)
    """How many points stay."""
    sample_rate: float | None = Field(None, gt=0, le=1)
    """The share of the points that stays, instead of a number."""
    mode: Literal["random", "center"] = "random"
    """Around a point drawn at random, or around the one in the middle of the list, as the official code does."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        n = len(sample)
        limit = self.point_max if self.sample_rate is None else int(self.sample_rate * n)
        if n <= limit:
            return sample
        center = int(rng.integers(n)) if self.mode == "random" else n // 2
        offset_N3 = sample.coord - sample.coord[center]
        offset_N3 *= offset_N3
        distance_N = offset_N3[:, 0] + offset_N3[:, 1] + offset_N3[:, 2]
        return sample.take(_lowest(distance_N, limit))


def _lowest(x_N: Float32, n: int) -> NDArray[np.bool_]:
    """`[N]` booleans: the n lowest; of equal values, those that come first.

    Not argpartition: which of equal values it takes depends on the processor, and the order of the points would change.
    """
    if n == 0:
        return np.zeros(len(x_N), bool)
    border = np.partition(x_N, n - 1)[n - 1]
    keep_N: NDArray[np.bool_] = x_N < border
    keep_N[np.flatnonzero(x_N == border)[: n - int(keep_N.sum())]] = True
    return keep_N
