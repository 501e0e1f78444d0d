# SPDX-License-Identifier: Apache-2.0
"""Stores of the same rooms with features of different worth: the arms of the learning benchmark.

    vit     a trained ViT
    random  the same network, untrained
    rgb     the mean colour of the patch, nothing else
    rows    features of the trained ViT, but every patch gets that of a random patch of any room

Extraction resumes, so that a second call costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditr_cache.backbones import Backbone, BackboneIdentity, PatchMaps
from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.pipelines.extract import Extract
from ditr_cache.store.reader import FeatureStore, open_store

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


class DealtRows:
    """Features of a trained ViT dealt out at random: right numbers, wrong places.

    Drawn from all rooms: patches of the same image would still tell what stands near.

    Args:
        store: Of the trained ViT.
        rooms: How many rooms' features to draw from.
    """

    mean, std = PatchMeanRGB.mean, PatchMeanRGB.std
    device = torch.device("cpu")
    has_class_token = False

    def __init__(self, store: FeatureStore, rooms: int = 12) -> None:
        reads = [store.read(sample_id, seed=0) for sample_id in list(store.samples)[:rooms]]
        self._rows_PD = torch.from_numpy(np.concatenate([read.features.rows for read in reads])).float()
        vit = store.identity["backbone"]
        self.patch_size, self.dim = vit["patch_size"], self._rows_PD.shape[1]
        self.identity = BackboneIdentity(**{**vit, "name": f"{vit['name']}, rows dealt out at random"})

    def __call__(self, images_B3hw: torch.Tensor) -> PatchMaps:
        """A random feature for every patch, which the image's pixels decide."""
        side = self.patch_size
        patches = (images_B3hw.shape[2] // side) * (images_B3hw.shape[3] // side)
        maps = []
        for image in images_B3hw:
            seed = int.from_bytes(hashlib.sha256(image.numpy().tobytes()).digest()[:7], "little")
            drawn = torch.randint(len(self._rows_PD), (patches,), generator=torch.Generator().manual_seed(seed))
            maps.append(self._rows_PD[drawn])
        return PatchMaps(torch.stack(maps), None)


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
        backbone = DealtRows(open_store(make_store("vit", source, folder, weights, overrides)))
    path = folder / f"{arm}.store"
    Extract(open_dataset(source, "synthetic"), path, config, backbone=backbone).run()
    return path
