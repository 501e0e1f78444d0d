# SPDX-License-Identifier: Apache-2.0
"""Strength scalings."""

import numpy as np
from clouds import cloud, rng

from ditr_cache.training.transforms import ScaleStrength, TanhStrength


def test_strength_is_divided_or_squashed():
    sample = cloud()
    sample = sample.replace(strength=sample.strength * 255)
    np.testing.assert_array_equal(ScaleStrength()(sample, rng()).strength, sample.strength / np.float32(255))
    np.testing.assert_allclose(ScaleStrength(divisor=10)(sample, rng()).strength, sample.strength / 10, rtol=1e-6)
    np.testing.assert_array_equal(TanhStrength()(sample, rng()).strength, np.tanh(sample.strength))
    bare = sample.replace(strength=None)
    assert ScaleStrength()(bare, rng()) is bare
    assert TanhStrength()(bare, rng()) is bare
