# SPDX-License-Identifier: Apache-2.0
"""What sets the supported ViT architectures apart, one table.

Everything else is the same for all of them: a stack of blocks, a final norm, patch tokens last and in raster order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ditr_cache.backbones import aimv2
from ditr_cache.errors import BackboneError

__all__ = ["FAMILIES", "Family", "family_of"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

Triple = tuple[float, float, float]


def _pixels(x_B3hw: torch.Tensor, patch: int) -> dict[str, Any]:
    return {"pixel_values": x_B3hw}


def _pixels_of_any_size(x_B3hw: torch.Tensor, patch: int) -> dict[str, Any]:
    return {"pixel_values": x_B3hw, "interpolate_pos_encoding": True}


def _flat_patches(x_B3hw: torch.Tensor, patch: int) -> dict[str, Any]:
    """SigLIP 2 NaFlex takes patches with interleaved colours, and the grid beside them."""
    b, _, h, w = x_B3hw.shape
    grid_B3rpcp = x_B3hw.reshape(b, 3, h // patch, patch, w // patch, patch)
    patches_BPx = grid_B3rpcp.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * 3)
    return {
        "pixel_values": patches_BPx,
        "pixel_attention_mask": torch.ones(patches_BPx.shape[:2], dtype=torch.int32, device=x_B3hw.device),
        "spatial_shapes": torch.tensor([[h // patch, w // patch]] * b),
    }


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture is built, called and normalised."""

    config_class: str
    """Name in transformers."""
    model_class: str
    """Name in transformers; of the vision tower alone."""
    norm: str
    """Attribute of the final norm."""
    positions: str
    """See `BackboneIdentity.position_embedding`."""
    class_token: bool = True
    default_mean_std: tuple[Triple, Triple] = _IMAGENET
    """Where the folder has no preprocessor_config.json."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that leave out pooling heads, which nobody reads."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the model's constructor, for the same reason."""
    inputs: Callable[[torch.Tensor, int], dict[str, Any]] = _pixels
    """From normalised images `[B, 3, h, w]` and the patch size to the model's arguments."""
    convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None] | None = None
    """From a foreign checkpoint layout to that of transformers; None where it is that already."""

    def registers(self, config: Any) -> int:
        """Register tokens between class token and patches."""
        return int(getattr(config, "num_register_tokens", 0))


_SIGLIP = Family(
    "SiglipVisionConfig",
    "SiglipVisionModel",
    "post_layernorm",
    "learned, bicubic",
    class_token=False,
    default_mean_std=_HALF,
    settings={"vision_use_head": False},
    inputs=_pixels_of_any_size,
)
_SIGLIP2 = Family(
    "Siglip2VisionConfig",
    "Siglip2VisionModel",
    "post_layernorm",
    "learned, bilinear antialiased",
    class_token=False,
    default_mean_std=_HALF,
    settings={"vision_use_head": False},
    inputs=_flat_patches,
)
_AIMV2 = Family(
    "Aimv2VisionConfig",
    "Aimv2VisionModel",
    "rms_norm",
    "learned, bicubic antialiased",
    class_token=False,
    default_mean_std=_CLIP,
    settings={"use_head": False},
    convert=aimv2.from_original,
)
FAMILIES: Mapping[str, Family] = {
    "dinov2": Family("Dinov2Config", "Dinov2Model", "layernorm", "learned, bicubic"),
    # the official choice of DITR, and its way of resizing positions
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", "layernorm", "learned, bicubic antialiased"
    ),
    "dinov3_vit": Family("DINOv3ViTConfig", "DINOv3ViTModel", "norm", "rotary"),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
    "aimv2": _AIMV2,
    "aimv2_vision_model": _AIMV2,
    "vit": Family(
        "ViTConfig",
        "ViTModel",
        "layernorm",
        "learned, bicubic",
        default_mean_std=_HALF,
        options={"add_pooling_layer": False},
        inputs=_pixels_of_any_size,
    ),
}
"""By `model_type` of config.json. Models of image and text count by their vision part."""


def family_of(model_type: object) -> Family:
    """The family of a `model_type`.

    Raises:
        BackboneError: If it is none of the supported ones.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise BackboneError(
            f"model_type {model_type!r} is not supported",
            where="config.json",
            hint=f"Supported: {', '.join(FAMILIES)}.",
        )
    return FAMILIES[model_type]
