# SPDX-License-Identifier: Apache-2.0
"""Augmented copies of an image, which a store keeps as further views.

The official training flips and colour-jitters images before the ViT (albumentations: brightness and contrast 0.4,
saturation 0.2, hue 0.1, in random order, then a mirror image half of the time). A store holds a finite number of draws
of it. `view_variant` names one: bit 0 is the flip, `value >> 1` the colour draw, where draw 0 leaves colours alone.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from ditr_cache.config import VariantsConfig

__all__ = ["augment", "variants"]

_HALF_RANGE = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
_LUMA = (0.299, 0.587, 0.114)


def variants(config: VariantsConfig) -> tuple[int, ...]:
    """Every `view_variant` that the settings ask for, ascending: 0, [1,] 2, [3,] 4, [5,] ...; all below 2^15."""
    return tuple(draw << 1 | flipped for draw in range(config.jitter + 1) for flipped in range(config.flip + 1))


def augment(image_3hw: torch.Tensor, variant: int, sample_id: str, view_name: str) -> torch.Tensor:
    """One variant of an image: colour jitter first, then the mirror image.

    The jitter depends on sample, view and draw alone, so that it is the same for the flipped and the unflipped copy and
    on every machine. The four steps are those of albumentations in float32, each clamped to the range of a pixel and
    rounded once at the end:
    brightness x f; contrast f x + (1 - f) mean luma; saturation f x + (1 - f) luma; hue + f (in turns), f uniform in
    [1 - a, 1 + a] and, for the hue, in [-a, a].

    Args:
        image_3hw: uint8 `[3, h, w]` RGB, at the size that the ViT sees.
        variant: A `view_variant`.
        sample_id: The sample's id.
        view_name: The view's name.

    Returns:
        uint8 `[3, h, w]`; the image itself for variant 0.
    """
    if variant >> 1:
        image_3hw = _jitter(image_3hw, *_draw(sample_id, view_name, variant >> 1))
    return image_3hw.flip(2) if variant & 1 else image_3hw


def _draw(sample_id: str, view_name: str, draw: int) -> tuple[dict[str, float], list[str]]:
    """Factors and order of the steps, straight from a digest: no generator whose stream a release could change."""
    digest = hashlib.sha256(f"{sample_id}\0{view_name}\0{draw}".encode()).digest()
    words_8 = np.frombuffer(digest, ">u4").astype(np.float64)
    factors = {
        step: float((step != "hue") + half * (2 * u / 2**32 - 1))
        for (step, half), u in zip(_HALF_RANGE.items(), words_8[:4], strict=True)
    }
    order = [list(_HALF_RANGE)[i] for i in np.argsort(words_8[4:], kind="stable")]
    return factors, order


def _jitter(image_3hw: torch.Tensor, factors: dict[str, float], order: list[str]) -> torch.Tensor:
    x_3hw = image_3hw.float()
    for step in order:
        f = factors[step]
        if step == "brightness":
            x_3hw = x_3hw * f
        elif step == "contrast":
            x_3hw = x_3hw * f + _luma(x_3hw).mean() * (1 - f)
        elif step == "saturation":
            x_3hw = x_3hw * f + _luma(x_3hw) * (1 - f)
        else:
            x_3hw = _turn_hue(x_3hw, f)
        x_3hw = x_3hw.clamp_(0, 255)
    return x_3hw.round_().to(torch.uint8)


def _luma(x_3hw: torch.Tensor) -> torch.Tensor:
    return torch.einsum("chw,c->hw", x_3hw, x_3hw.new_tensor(_LUMA))


def _turn_hue(x_3hw: torch.Tensor, turns: float) -> torch.Tensor:
    """Rotate the HSV hue; value and chroma stay."""
    r, g, b = x_3hw
    value_hw = x_3hw.amax(0)
    chroma_hw = value_hw - x_3hw.amin(0)
    safe_hw = chroma_hw.clamp_min(1e-6)
    hue_hw = torch.where(
        value_hw == r,
        (g - b) / safe_hw,
        torch.where(value_hw == g, 2 + (b - r) / safe_hw, 4 + (r - g) / safe_hw),
    )
    hue_hw = hue_hw + 6 * turns
    channels = []
    for n in (5, 3, 1):  # HSV to RGB: channel = v - c max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6
        k_hw = (hue_hw + n) % 6
        channels.append(value_hw - chroma_hw * torch.minimum(k_hw, 4 - k_hw).clamp(0, 1))
    return torch.stack(channels)
