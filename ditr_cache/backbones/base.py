# SPDX-License-Identifier: Apache-2.0
"""What a backbone is: a frozen network from images to patch features.

Shape suffixes: B images, h and w their sides in pixels, P patches of one image in raster order, D channels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch

__all__ = ["Backbone", "BackboneIdentity", "PatchMaps"]


@dataclass(frozen=True, slots=True)
class BackboneIdentity:
    """Everything about a backbone that changes its features; part of a store's identity."""

    name: str
    """Registered name, hub repository, or name of the local folder."""
    revision: str | None
    """Commit of the hub repository; None for local folders."""
    weights_sha256: str
    """Of the safetensors files' bytes, in the order of their names; of the parameters' bytes for random weights."""
    architecture: str
    """`model_type` of the configuration."""
    dim: int
    """D, channels of a patch feature."""
    patch_size: int
    """Side of a patch, pixels."""
    layer: int
    """Block whose output is taken, counted from 1."""
    layers: int
    """Blocks the network has."""
    norm: bool
    """Whether the final norm is applied."""
    registers: int
    """Register tokens, which are dropped."""
    dtype: str
    """fp32, or the autocast type bf16 or fp16."""
    position_embedding: str
    """How positions are brought to other grids than the trained one: implementations differ, and with them features."""
    random_seed: int | None = None
    """Seed of random weights; None for trained ones."""
    config_sha256: str | None = None
    """Of what config.json says of the network: heads and activations are in no weight."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class PatchMaps:
    """Features of a batch of images, on the backbone's device."""

    rows: torch.Tensor
    """`[B, P, D]` float32, patches in raster order (row by row), contiguous."""
    cls: torch.Tensor | None
    """`[B, D]` float32, where the backbone has a class token."""


@runtime_checkable
class Backbone(Protocol):
    """A frozen ViT. `ditr_cache.testing.backbones.BackboneTests` checks that one keeps the contract."""

    @property
    def identity(self) -> BackboneIdentity:
        """What its features depend on."""
        ...

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        ...

    @property
    def dim(self) -> int:
        """D, channels of a feature."""
        ...

    @property
    def has_class_token(self) -> bool:
        """Whether `PatchMaps.cls` is given."""
        ...

    @property
    def mean(self) -> tuple[float, float, float]:
        """RGB mean that normalisation subtracts, of pixels in [0, 1]."""
        ...

    @property
    def std(self) -> tuple[float, float, float]:
        """RGB standard deviation that normalisation divides by."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def __call__(self, images_B3hw: torch.Tensor) -> PatchMaps:
        """Features of a batch of images of one size.

        Args:
            images_B3hw: uint8 RGB on any device, sides multiples of the patch size. Moving and normalising is the
                backbone's work.

        Raises:
            BackboneError: If type or size do not fit.
        """
        ...
