# SPDX-License-Identifier: Apache-2.0
"""Augmentations of the official recipes, a small class each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from ditr_cache.training.sample import Sample
from ditr_cache.training.transforms.base import TransformModel
from ditr_cache.training.transforms.color import (
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    NormalizeColor,
)
from ditr_cache.training.transforms.elastic import ElasticDistortion
from ditr_cache.training.transforms.grid_sample import GridSample, fragments
from ditr_cache.training.transforms.position import (
    CenterShift,
    PointClip,
    RandomFlip,
    RandomJitter,
    RandomRotate,
    RandomRotateTargetAngle,
    RandomScale,
)
from ditr_cache.training.transforms.select import RandomDropout, SphereCrop
from ditr_cache.training.transforms.strength import ScaleStrength, TanhStrength

__all__ = [
    "CenterShift",
    "ChromaticAutoContrast",
    "ChromaticJitter",
    "ChromaticTranslation",
    "ElasticDistortion",
    "GridSample",
    "NormalizeColor",
    "PointClip",
    "RandomDropout",
    "RandomFlip",
    "RandomJitter",
    "RandomRotate",
    "RandomRotateTargetAngle",
    "RandomScale",
    "ScaleStrength",
    "SphereCrop",
    "TanhStrength",
    "Transform",
    "TransformModel",
    "apply",
    "fragments",
]

Transform = Annotated[
    CenterShift
    | ChromaticAutoContrast
    | ChromaticJitter
    | ChromaticTranslation
    | ElasticDistortion
    | GridSample
    | NormalizeColor
    | PointClip
    | RandomDropout
    | RandomFlip
    | RandomJitter
    | RandomRotate
    | RandomRotateTargetAngle
    | RandomScale
    | ScaleStrength
    | SphereCrop
    | TanhStrength,
    Field(discriminator="kind"),
]
"""Any transform; in a configuration, `kind` says which."""


def apply(transforms: Sequence[TransformModel], sample: Sample, rng: np.random.Generator) -> Sample:
    """One transform after the other, all from one stream of random numbers."""
    for transform in transforms:
        sample = transform(sample, rng)
    return sample
