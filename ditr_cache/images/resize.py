# SPDX-License-Identifier: Apache-2.0
"""Which size the ViT sees, and bringing an image to it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ditr_cache.config import ImagesConfig
from ditr_cache.errors import ConfigError

__all__ = ["MAX_PATCHES", "resize", "target_size"]

MAX_PATCHES = 65_536
"""Patches of one image that the store's u16 patch index can tell apart."""

_PRESET_PATCH = 14
_MODES = {
    "bilinear": ("bilinear", False),
    "bilinear-antialias": ("bilinear", True),
    "bicubic-antialias": ("bicubic", True),
}


def target_size(height: int, width: int, patch: int, images: ImagesConfig) -> tuple[int, int]:
    """Size of the image that the ViT sees.

    With `images.size`, that size if it consists of whole patches. Otherwise, if it consists of whole patches of 14 (as
    the sizes of all presets do, made for DINOv2), its patch grid is kept: 420x560 becomes 480x640 for patch 16.
    Without `images.size`, the largest grid of at most `images.budget` patches that keeps the aspect ratio to half a
    patch of the longer side.

    Args:
        height: H of the source image, pixels.
        width: W of the source image, pixels.
        patch: Side of the backbone's patches, pixels.
        images: The image settings.

    Returns:
        Height and width, multiples of `patch`.

    Raises:
        ConfigError: If the size is no whole number of patches, or the grid has more than 65,536 of them.
    """
    if images.size is None:
        rows, columns = _budget_grid(height, width, images.budget)
    elif not any(side % patch for side in images.size):
        rows, columns = images.size[0] // patch, images.size[1] // patch
    elif not any(side % _PRESET_PATCH for side in images.size):
        rows, columns = images.size[0] // _PRESET_PATCH, images.size[1] // _PRESET_PATCH
    else:
        h, w = (max(round(side / patch), 1) * patch for side in images.size)
        raise ConfigError(
            f"images.size {list(images.size)} is not a whole number of patches of {patch}",
            hint=f"The nearest size that is: -s images.size=[{h},{w}]",
        )
    if rows * columns > MAX_PATCHES:
        raise ConfigError(
            f"a grid of {rows}x{columns} patches has more than {MAX_PATCHES:,} of them",
            hint="Choose a smaller images.size.",
        )
    return rows * patch, columns * patch


def _budget_grid(height: int, width: int, budget: int) -> tuple[int, int]:
    short, long = sorted((height, width))
    best = (1, min(_divide(long, short), budget))
    for n in range(2, math.isqrt(budget) + 1):
        m = _divide(n * long, short)
        if n * m <= budget:
            best = (n, m)
    return best if height <= width else best[::-1]


def _divide(a: int, b: int) -> int:
    """Quotient to the nearest integer, without floating point; halves up."""
    return (2 * a + b) // (2 * b)


def resize(image_HW3: NDArray[np.uint8], size: tuple[int, int], filter: str = "bilinear") -> torch.Tensor:
    """Resize on 8 bits: a third of the time of float32, and at most one grey level off.

    Args:
        image_HW3: `[H, W, 3]` RGB.
        size: Height and width to resize to, pixels.
        filter: `bilinear` (the official choice: no antialiasing), `bilinear-antialias` or `bicubic-antialias`.

    Returns:
        uint8 `[3, h, w]`, contiguous.

    Raises:
        ConfigError: If the filter is unknown.
    """
    if filter not in _MODES:
        raise ConfigError(f"images.filter {filter!r} is not one of {', '.join(_MODES)}")
    # A view, not a copy: torch has a vectorised kernel for interleaved 8-bit RGB that writes planes. 968x1296 ->
    # 420x560 takes 1.3 ms so, 2.3 ms from planes, 3.9 ms with the packing of planes.
    image_13HW = torch.from_numpy(image_HW3).permute(2, 0, 1)[None]
    if tuple(image_HW3.shape[:2]) != tuple(size):
        mode, antialias = _MODES[filter]
        image_13HW = functional.interpolate(
            image_13HW, tuple(size), mode=mode, align_corners=False, antialias=antialias
        )
    return image_13HW[0].contiguous()
