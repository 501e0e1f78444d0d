# SPDX-License-Identifier: Apache-2.0
"""Lidar return strength to about 0..1, as each data set's official reader does. SemanticKITTI needs neither."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from ditr_cache.training.sample import Sample
from ditr_cache.training.transforms.base import TransformModel

__all__ = ["ScaleStrength", "TanhStrength"]


class ScaleStrength(TransformModel):
    """Divides by a constant: 255 for nuScenes."""

    kind: Literal["scale_strength"] = "scale_strength"
    divisor: float = Field(255.0, gt=0)
    """What to divide by."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if sample.strength is None:
            return sample
        return sample.replace(strength=sample.strength / np.float32(self.divisor))


class TanhStrength(TransformModel):
    """Hyperbolic tangent: Waymo, whose intensity has no upper end."""

    kind: Literal["tanh_strength"] = "tanh_strength"

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if sample.strength is None:
            return sample
        return sample.replace(strength=np.tanh(sample.strength))
