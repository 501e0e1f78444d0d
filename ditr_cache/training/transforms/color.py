# SPDX-License-Identifier: Apache-2.0
"""Transforms of colour (0 to 255 as float32 until `NormalizeColor`). Samples without colour pass unchanged."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from ditr_cache.training.sample import Sample
from ditr_cache.training.transforms.base import Probability, TransformModel, bounds, happens

__all__ = ["ChromaticAutoContrast", "ChromaticJitter", "ChromaticTranslation", "NormalizeColor"]


class ChromaticAutoContrast(TransformModel):
    """Blends colours with themselves stretched, channel by channel, to the full range."""

    kind: Literal["chromatic_auto_contrast"] = "chromatic_auto_contrast"
    p: Probability = 0.2
    """How often."""
    blend_factor: Probability | None = None
    """Share of the stretched colours; None: uniform."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if sample.color is None or len(sample) == 0 or not happens(self.p, rng):
            return sample
        blend = rng.random() if self.blend_factor is None else self.blend_factor
        low_3, high_3 = bounds(sample.color)
        # a channel of one value has nothing to stretch; the official code divides by zero
        range_3 = np.where(high_3 > low_3, high_3 - low_3, np.float32(255))
        low_3 = np.where(high_3 > low_3, low_3, np.float32(0))
        # (1 - b) x + b (x - low) * 255 / range, multiplied out
        gain_3 = (1 - blend + blend * 255 / range_3).astype(np.float32)
        return sample.replace(color=sample.color * gain_3 - (blend * low_3 * 255 / range_3).astype(np.float32))


class ChromaticTranslation(TransformModel):
    """Shifts all colours alike, by an amount that is uniform for each channel."""

    kind: Literal["chromatic_translation"] = "chromatic_translation"
    p: Probability = 0.95
    """How often."""
    ratio: float = Field(0.05, ge=0)
    """Largest shift as a share of 255."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if sample.color is None or not happens(self.p, rng):
            return sample
        shift_3 = rng.uniform(-255 * self.ratio, 255 * self.ratio, 3).astype(np.float32)
        return sample.replace(color=np.clip(sample.color + shift_3, 0, 255))


class ChromaticJitter(TransformModel):
    """Adds Gaussian noise to every channel of every point."""

    kind: Literal["chromatic_jitter"] = "chromatic_jitter"
    p: Probability = 0.95
    """How often."""
    std: float = Field(0.05, ge=0)
    """Standard deviation as a share of 255."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if sample.color is None or not happens(self.p, rng):
            return sample
        noise_N3 = rng.standard_normal(sample.color.shape, np.float32)
        noise_N3 *= np.float32(255 * self.std)
        noise_N3 += sample.color
        return sample.replace(color=np.clip(noise_N3, 0, 255, out=noise_N3))


class NormalizeColor(TransformModel):
    """Colours from 0..255 to 0..1."""

    kind: Literal["normalize_color"] = "normalize_color"

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: D102
        if sample.color is None:
            return sample
        return sample.replace(color=sample.color / np.float32(255))
