# SPDX-License-Identifier: Apache-2.0
"""Settings of stage one. Defaults are the official recipe; `configs/extract/` holds what differs between data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "BackboneConfig",
    "ExtractConfig",
    "FramesConfig",
    "ImagesConfig",
    "RunConfig",
    "StoreConfig",
    "VariantsConfig",
    "VisibilityConfig",
]

Metres = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Pixels = Annotated[int, Field(gt=0, le=16_384)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class FramesConfig(_Model):
    """Which of a sample's views are extracted."""

    stride: int = Field(1, ge=1)
    """Every n-th view, counted over all planned ones."""
    limit: int | None = Field(None, ge=1)
    """At most this many views a sample, spread evenly; no limit by default."""


class ImagesConfig(_Model):
    """What the ViT sees."""

    size: tuple[Pixels, Pixels] | None = None
    """H, W that every image is resized to; multiples of the patch size. None: by `budget`."""
    budget: int = Field(1369, ge=1, le=65_536)
    """Without `size`: the largest grid of at most this many patches that keeps the aspect ratio (37 x 37 = 1369)."""
    filter: Literal["bilinear", "bilinear-antialias", "bicubic-antialias"] = "bilinear"
    """The official code resizes bilinearly without antialiasing."""


class VisibilityConfig(_Model):
    """When a point counts as seen (paper section 3.1; official depth rules)."""

    min_depth: Metres = 0.0
    """Points must be farther than this (strictly)."""
    max_depth: Metres | None = None
    """Points must be nearer than this (strictly); None: no limit."""
    depth_margin: Metres | None = 0.2
    """Where a depth map exists, |z - depth| must not exceed this; None: depth maps are not used."""
    zbuffer: bool = False
    """Occlusion test for data without depth maps. The official code has none outdoors, hence off."""
    zbuffer_margin: Metres = 0.5
    """How far behind the nearest point of its cell a point may lie, metres."""
    zbuffer_cell: int = Field(8, ge=1, le=512)
    """Side of a z-buffer cell in source pixels."""


class BackboneConfig(_Model):
    """The frozen ViT."""

    name: str = "dinov2-reg-large"
    """A name from `ditr-cache doctor`, or a Hugging Face repository id."""
    weights: Path | None = None
    """A local Hugging Face folder; takes precedence over `name`."""
    layer: int | None = None
    """Block whose output is stored, 1-based, or negative from the end; None: the last."""
    norm: bool = True
    """Apply the final LayerNorm."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of the forward pass."""
    compile: bool = False
    """torch.compile the forward pass."""
    random_seed: int | None = None
    """Seeded random weights instead of trained ones; marked in the store's identity."""


class StoreConfig(_Model):
    """How features are kept."""

    dtype: Literal["f16", "int8"] = "f16"
    """int8 halves the store; its error is measured and bounded."""
    compress: Literal["none", "zstd"] = "none"
    """zstd saves 8 % of f16 rows and costs decompression in every read."""
    points: bool = True
    """False leaves coordinates and labels out, for data that may not be passed on."""


class VariantsConfig(_Model):
    """Augmented copies of every image, stored as further views."""

    flip: bool = False
    """Also extract the mirrored image."""
    jitter: int = Field(0, ge=0, le=16_000)
    """Also extract this many colour-jittered copies (of the mirrored image too)."""


class RunConfig(_Model):
    """How this machine does it; never part of a store's identity."""

    device: str = "auto"
    """`auto` takes CUDA where there is one."""
    batch_size: int = Field(8, ge=1, le=4096)
    """Images a forward pass."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Decoding and projecting threads; None: one a core."""


class ExtractConfig(_Model):
    """All of stage one."""

    frames: FramesConfig = FramesConfig()
    images: ImagesConfig = ImagesConfig()
    visibility: VisibilityConfig = VisibilityConfig()
    backbone: BackboneConfig = BackboneConfig()
    store: StoreConfig = StoreConfig()
    variants: VariantsConfig = VariantsConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _depth_range(self) -> ExtractConfig:
        v = self.visibility
        if v.max_depth is not None and v.max_depth <= v.min_depth:
            raise ValueError(f"visibility.max_depth ({v.max_depth}) must exceed visibility.min_depth ({v.min_depth})")
        return self
