# SPDX-License-Identifier: Apache-2.0
"""Stores of the same rooms with features of different worth: the arms of the learning benchmark.

    vit     a trained ViT
    random  the same network, untrained
    rgb     the mean colour of the patch, nothing else
    rows    the trained ViT, but every patch gets the feature of some other patch of its image

Extraction resumes, so that a second call costs nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ditr_cache.backbones import Backbone, BackboneIdentity, PatchMaps, load_backbone
from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.pipelines.extract import Extract

__all__ = ["ARMS", "make_store"]

ARMS = ("vit", "random", "rgb", "rows")


class PatchMeanRGB:
    """A backbone that sees no more than a point does: the mean colour of each patch, scaled to about one."""

    patch_size = 14
    dim = 3
    has_class_token = False
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    device = torch.device("cpu")
    identity = BackboneIdentity(
        name="patch-mean-rgb",
        revision=None,
        weights_sha256=hashlib.sha256(b"patch-mean-rgb").hexdigest(),
        architecture="mean",
        dim=3,
        patch_size=14,
        layer=1,
        layers=1,
        norm=False,
        registers=0,
        dtype="fp32",
        position_embedding="none",
    )

    def __call__(self, images_B3hw: torch.Tensor) -> PatchMaps:
        """Mean colour of every patch, normalised as a ViT's input is."""
        mean, std = (torch.tensor(x)[:, None, None] for x in (self.mean, self.std))
        patches = torch.nn.functional.avg_pool2d((images_B3hw.float() / 255 - mean) / std, self.patch_size)
        return PatchMaps(patches.flatten(2).transpose(1, 2).contiguous(), None)


class ShuffledPatches:
    """A trained ViT whose features end up at other patches of the same image: right numbers, wrong places."""

    def __init__(self, vit: Backbone) -> None:
        self._vit = vit
        for name in ("patch_size", "dim", "has_class_token", "mean", "std", "device"):
            setattr(self, name, getattr(vit, name))
        self.identity = dataclasses.replace(vit.identity, name=f"{vit.identity.name}, patches shuffled")

    def __call__(self, images_B3hw: torch.Tensor) -> PatchMaps:
        """As the ViT's, each image with a permutation of its own, which its pixels decide."""
        maps = self._vit(images_B3hw)
        rows = torch.empty_like(maps.rows)
        for i, image in enumerate(images_B3hw):
            seed = int.from_bytes(hashlib.sha256(image.numpy().tobytes()).digest()[:7], "little")
            rows[i] = maps.rows[i, torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed))]
        return PatchMaps(rows, maps.cls)


def make_store(arm: str, source: str, folder: Path, weights: Path | None, overrides: Sequence[str] = ()) -> Path:
    """Extract what is missing of an arm's store.

    Args:
        arm: One of `ARMS`.
        source: Rooms, e.g. `synthetic:rooms=60,views=12,val=15`.
        folder: Where stores go, one folder an arm.
        weights: Of the ViT, a local folder in Hugging Face layout; None: the one that ships with the package.
        overrides: Further settings of the extraction.

    Returns:
        The store's folder.
    """
    layers: list[Mapping[str, Any]] = [read_named_yaml("extract", "synthetic")]
    if weights is not None:
        layers.append({"backbone": {"weights": str(weights)}})
    if arm == "random":
        layers.append({"backbone": {"random_seed": 0}})
    config = load_config(ExtractConfig, layers, overrides)
    backbone: Backbone | None = None
    if arm == "rgb":
        backbone = PatchMeanRGB()
    elif arm == "rows":
        backbone = ShuffledPatches(load_backbone(config.backbone, "cpu"))
    path = folder / f"{arm}.store"
    Extract(open_dataset(source, "synthetic"), path, config, backbone=backbone).run()
    return path
