# SPDX-License-Identifier: Apache-2.0
"""Stores of the same rooms with features of different worth: the arms of the learning benchmark.

    vit     a trained ViT
    random  the same network, untrained
    rgb     the mean colour of the patch, nothing else
    rows    the trained ViT, but every point gets the feature of some other patch of its room

Extraction resumes, so that a second call costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditr_cache.backbones import BackboneIdentity, PatchMaps
from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.pipelines.extract import Extract
from ditr_cache.store.reader import FeatureStore, open_store, read_manifest
from ditr_cache.types import FactoredFeatures, PointFeatures

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


class ShuffledRows(FeatureStore):
    """A store whose rows are dealt out again at random within what one read returns: right numbers, wrong places."""

    def read(self, sample_id: str, *args: Any, **options: Any) -> PointFeatures:
        """As of a store, with the rows in another order."""
        read = super().read(sample_id, *args, **options)
        seed = int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "little")
        order_P = np.random.default_rng(seed).permutation(len(read.features.rows))
        features = FactoredFeatures(read.features.rows[order_P], read.features.index)
        return PointFeatures(features, read.view, read.patch, read.points, *_rest(read))

    def __reduce__(self) -> tuple[Any, ...]:
        return (ShuffledRows, (self.root, self.manifest, self.version))


def make_store(arm: str, source: str, folder: Path, weights: Path, overrides: Sequence[str] = ()) -> FeatureStore:
    """Extract what is missing of an arm's store, and open it.

    Args:
        arm: One of `ARMS`.
        source: Rooms, e.g. `synthetic:rooms=60,views=12,val=15`.
        folder: Where stores go, one folder an arm.
        weights: Of the ViT, a local folder in Hugging Face layout.
        overrides: Further settings of the extraction.
    """
    dataset = open_dataset(source, "synthetic")
    backbone: dict[str, Any] = {"weights": str(weights)}
    if arm == "random":
        backbone["random_seed"] = 0
    layers: list[Mapping[str, Any]] = [read_named_yaml("extract", "synthetic"), {"backbone": backbone}]
    config = load_config(ExtractConfig, layers, overrides)
    path = folder / f"{'vit' if arm == 'rows' else arm}.store"
    Extract(dataset, path, config, backbone=PatchMeanRGB() if arm == "rgb" else None).run()
    return ShuffledRows(path, *read_manifest(path)) if arm == "rows" else open_store(path)


def _rest(read: PointFeatures) -> tuple[Any, ...]:
    return tuple(getattr(read, name) for name in read.__slots__[4:])
