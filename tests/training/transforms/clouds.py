# SPDX-License-Identifier: Apache-2.0
"""Random clouds whose every array tells which point it belongs to."""

import numpy as np

from ditr_cache.training.sample import Sample
from ditr_cache.training.seeding import rng_for


def cloud(n=500, seed=0, size=(4.0, 3.0, 2.5)):
    """`n` points in a box away from the origin."""
    rng = np.random.default_rng([seed, n])
    normal = rng.normal(size=(n, 3))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return Sample(
        coord=(rng.random((n, 3)) * size - 1).astype(np.float32),
        point=np.arange(n),
        index=np.arange(n, dtype=np.int32) - n // 4,
        color=rng.integers(0, 256, (n, 3)).astype(np.float32),
        normal=normal.astype(np.float32),
        strength=rng.random(n).astype(np.float32),
        segment=(np.arange(n) * 7).astype(np.int32),
    )


def rng(*keys):
    return rng_for(0, *keys)
