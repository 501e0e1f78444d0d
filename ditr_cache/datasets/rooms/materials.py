# SPDX-License-Identifier: Apache-2.0
"""Random textures: plain, two-tone (texture-only classes) and the ones that things typically have."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.rooms.textures import Texture

__all__ = ["material"]

Floats = NDArray[np.floating[Any]]

# hue range, saturation range, value range, contrast range, period range in metres
_RECIPES: Mapping[str, tuple[tuple[float, float], ...]] = {
    "plain": ((0.0, 1.0), (0.1, 0.6), (0.35, 0.8), (0.0, 0.0), (0.1, 0.1)),
    "wood": ((0.05, 0.1), (0.35, 0.65), (0.35, 0.7), (0.12, 0.3), (0.04, 0.09)),
    "planks": ((0.05, 0.11), (0.3, 0.6), (0.35, 0.7), (0.15, 0.35), (0.025, 0.04)),
    "marble": ((0.0, 1.0), (0.02, 0.15), (0.6, 0.85), (0.25, 0.5), (0.08, 0.16)),
    "fabric": ((0.0, 1.0), (0.15, 0.6), (0.3, 0.7), (0.15, 0.35), (0.03, 0.06)),
    "plaid": ((0.0, 1.0), (0.2, 0.6), (0.4, 0.75), (0.25, 0.5), (0.03, 0.05)),
    "tiles": ((0.0, 1.0), (0.02, 0.2), (0.5, 0.85), (0.2, 0.4), (0.025, 0.05)),
    "grain": ((0.0, 1.0), (0.05, 0.35), (0.35, 0.85), (0.08, 0.25), (0.03, 0.1)),
}
# Half a period, the size of a feature, stays below the 2 cm voxel of indoor recipes.
_TWO_TONE_RECIPE = ((0.0, 1.0), (0.1, 0.6), (0.4, 0.7), (0.3, 0.5), (0.031, 0.039))


def material(pattern: str, rng: np.random.Generator) -> Texture:
    """A random instance of a pattern: hue, contrast, scale and angle all vary.

    Two-tone patterns share one recipe whatever their name, and their two colours are swapped at random: nothing but the
    arrangement of the colours depends on the pattern.
    """
    ranges = _RECIPES.get(pattern, _TWO_TONE_RECIPE)
    hue, saturation, value, contrast, period = (float(rng.uniform(*r)) for r in ranges)
    turn, swap, shift = float(rng.uniform(0, 2 * np.pi)), bool(rng.random() < 0.5), rng.uniform(0, 64, 2)
    hue_step = float(rng.normal(0, 0.012 if pattern in _RECIPES else 0.03))
    low = _rgb(hue - hue_step, saturation, value - contrast / 2)
    high = _rgb(hue + hue_step, saturation, value + contrast / 2)
    if pattern not in _RECIPES:
        low, high = (high, low) if swap else (low, high)
    elif pattern in ("wood", "planks", "tiles", "plaid"):
        turn = 0.0 if swap else np.pi / 2
    return Texture(pattern, period, turn, (float(shift[0]), float(shift[1])), low, high)


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, min(max(value, 0.0), 1.0)), np.float32)
