# SPDX-License-Identifier: Apache-2.0
"""Colour transforms against their stated maths."""

import math

import numpy as np
import pytest
from clouds import cloud, rng

from ditr_cache.training.transforms import (
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    NormalizeColor,
)

MANY = 2000


def narrow():
    sample = cloud(100)
    return sample.replace(color=(sample.color / 4 + 50).astype(np.float32))


def test_auto_contrast_stretches_to_the_full_range():
    before = narrow()
    after = ChromaticAutoContrast(p=1, blend_factor=1)(before, rng()).color
    low, high = before.color.min(0), before.color.max(0)
    np.testing.assert_allclose(after, (before.color - low) * 255 / (high - low), atol=1e-3)
    np.testing.assert_allclose(ChromaticAutoContrast(p=1, blend_factor=0)(before, rng()).color, before.color, atol=1e-4)


def test_auto_contrast_blends_by_a_uniform_share_with_its_probability():
    before = narrow()
    stretched = ChromaticAutoContrast(p=1, blend_factor=1)(before, rng()).color
    transform, shares = ChromaticAutoContrast(p=0.2), []
    for i in range(MANY):
        after = transform(before, rng(i))
        if after is not before:
            shares.append(((after.color - before.color) / (stretched - before.color))[0, 0])
            expected = before.color * (1 - shares[-1]) + stretched * shares[-1]
            np.testing.assert_allclose(after.color, expected, atol=2e-2)
    assert abs(len(shares) / MANY - 0.2) < 6 * math.sqrt(0.16 / MANY)
    assert 0 <= min(shares) < 0.1
    assert 0.9 < max(shares) <= 1
    assert abs(np.mean(shares) - 0.5) < 6 / math.sqrt(12 * len(shares))


def test_a_channel_of_one_value_stays():
    sample = cloud(10)
    sample.color[:, 1] = 77
    after = ChromaticAutoContrast(p=1, blend_factor=1)(sample, rng())
    np.testing.assert_allclose(after.color[:, 1], 77, atol=1e-4)


def test_translation_shifts_every_channel_by_one_uniform_amount():
    sample = cloud(20).replace(color=np.full((20, 3), 128, np.float32))
    transform, shifts = ChromaticTranslation(p=0.95, ratio=0.05), []
    for i in range(MANY):
        delta = transform(sample, rng(i)).color - 128
        assert (np.ptp(delta, axis=0) == 0).all()
        if delta.any():
            shifts.append(delta[0])
    shifts = np.array(shifts)
    assert abs(len(shifts) / MANY - 0.95) < 6 * math.sqrt(0.0475 / MANY)
    limit = 255 * 0.05
    assert np.abs(shifts).max() <= limit + 1e-4
    np.testing.assert_allclose(shifts.mean(0), 0, atol=6 * limit / math.sqrt(3 * len(shifts)))
    np.testing.assert_allclose(shifts.var(0), limit**2 / 3, rtol=0.15)
    assert np.abs(np.corrcoef(shifts.T)[np.triu_indices(3, 1)]).max() < 0.15


def test_jitter_is_gaussian_for_every_channel_of_every_point():
    sample = cloud(40_000).replace(color=np.full((40_000, 3), 128, np.float32))
    delta = ChromaticJitter(p=1, std=0.05)(sample, rng()).color - 128
    sigma = 255 * 0.05
    assert abs(delta.mean()) < 6 * sigma / math.sqrt(120_000)
    assert abs(delta.std() / sigma - 1) < 0.02
    assert abs((np.abs(delta) > 2 * sigma).mean() - 0.0455) < 0.005


@pytest.mark.parametrize("transform", [ChromaticTranslation(p=1, ratio=2), ChromaticJitter(p=1, std=2)])
def test_colours_stay_between_0_and_255(transform):
    for i in range(20):
        color = transform(cloud(), rng(i)).color
        assert 0 <= color.min() <= color.max() <= 255
        assert color.dtype == np.float32


def test_normalize_divides_by_255():
    before = cloud()
    np.testing.assert_array_equal(NormalizeColor()(before, rng()).color, before.color / np.float32(255))


@pytest.mark.parametrize(
    "transform", [ChromaticAutoContrast(p=1), ChromaticTranslation(p=1), ChromaticJitter(p=1), NormalizeColor()]
)
def test_samples_without_colour_pass(transform):
    sample = cloud().replace(color=None)
    assert transform(sample, rng()) is sample
