# SPDX-License-Identifier: Apache-2.0
"""Training with the ViT in every step, as upstream does it: what cached features are compared with, and nothing else.

Every drawn view is decoded, mirrored with a chance of one half, jittered anew and shown to the ViT at every visit. Who
sees what is the store's: that does not change with an image's colours.

N points, P rows, D feature channels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from ditr_cache.backbones import Backbone, load_backbone
from ditr_cache.config import BackboneConfig, ImagesConfig
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import ConfigError, IdentityMismatchError
from ditr_cache.images import augment, decode, resize, target_size
from ditr_cache.pipelines.learn import LearnOptions
from ditr_cache.pipelines.train import Train
from ditr_cache.store.identity import identity_difference
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.dataset import FeatureStoreDataset
from ditr_cache.training.sampler import Draw
from ditr_cache.training.seeding import rng_for
from ditr_cache.training.task import Task
from ditr_cache.types import FactoredFeatures, Float32, PointFeatures, Scene, View

__all__ = ["OnlineDataset", "OnlineTrain", "backbone_of", "check_scene"]

JITTERS = 16_000
"""Draws of colour jitter to choose from."""


class OnlineDataset(FeatureStoreDataset):
    """A store's samples, with features that are made at every visit.

    Args:
        cached: The same without.
        source: Where images come from; a store holds none.
        backbone: That of the store.
        images: Its image policy.
    """

    def __init__(self, cached: FeatureStoreDataset, source: Dataset, backbone: Backbone, images: ImagesConfig) -> None:
        self.__dict__.update(cached.__dict__)
        self._source, self._backbone, self._policy = source, backbone, images
        self._views: dict[str, Mapping[str, View]] = {}

    def read(self, key: Draw) -> PointFeatures:
        """The views that the store would draw, seen anew."""
        read, name = super().read(key), key.sample_id
        rng = rng_for(self.seed, "online", key.epoch, key.position, name)
        old = read.features
        rows_PD = np.zeros((len(old.rows), self._backbone.dim), np.float16)
        view_names = self.store.samples[name].view_names
        for index in np.unique(read.view[read.view >= 0]).tolist():
            variant = draw_variant(rng)
            map_RD = self._see(name, view_names[index], variant)
            seat_n = np.flatnonzero(read.view == index)
            patch_n = read.patch[seat_n]
            if variant & 1:
                columns = self.store.grid(name, index)[1]
                patch_n = patch_n + columns - 1 - 2 * (patch_n % columns)
            rows_PD[old.index[seat_n]] = map_RD[patch_n]
        return replace(read, features=FactoredFeatures(rows_PD, old.index))

    def _see(self, sample_id: str, view_name: str, variant: int) -> Float32:
        """Patch map `[R, D]` of one variant of an image."""
        if sample_id not in self._views:
            scene = self._source.load(sample_id)
            check_scene(self.store, scene)
            self._views[sample_id] = {view.name: view for view in scene.views}
        view = self._views[sample_id][view_name]
        height, width = view.camera.height, view.camera.width
        size = target_size(height, width, self._backbone.patch_size, self._policy)
        image_3hw = resize(decode(view.image.read(), height, width), size, self._policy.filter)
        with torch.inference_mode():
            maps = self._backbone(augment(image_3hw, variant, sample_id, view_name)[None].contiguous())
        rows_RD: Float32 = maps.rows[0].float().cpu().numpy()
        return rows_RD


def draw_variant(rng: np.random.Generator) -> int:
    """Mirrored or not, and one of many draws of colour jitter, numbered as stored variants are."""
    return int(rng.integers(JITTERS)) << 1 | int(rng.integers(2))


class OnlineTrain(Train):
    """`Train`, with the ViT in every step. Validation takes stored features, which are those of plain images.

    Args:
        source: Where images come from.
        backbone: That of the store.
        store: As `Train`.
        run: As `Train`.
        config: As `Train`; this process prepares the data itself.
        options: As `Train`.
    """

    def __init__(
        self,
        source: Dataset,
        backbone: Backbone,
        store: str | os.PathLike[str],
        run: Path,
        config: TrainConfig,
        **options: Unpack[LearnOptions],
    ) -> None:
        if config.model.injection == "none":
            raise ConfigError("a network that is shown no features needs no ViT", where="model.injection")
        if config.run.workers:
            raise ConfigError("the ViT runs in this process: no others prepare data", where="run.workers")
        super().__init__(store, run, config, **options)
        self._source, self._backbone = source, backbone

    def _task(self) -> Task:
        task = super()._task()
        stored = task.store.identity["images"]
        policy = ImagesConfig(**{key: stored[key] for key in ("size", "budget", "filter") if key in stored})
        return replace(task, train=OnlineDataset(task.train, self._source, self._backbone, policy))


def check_scene(store: FeatureStore, scene: Scene) -> None:
    """Refuse images from elsewhere than those that the store was made from: names alone may be the same.

    Raises:
        ConfigError: If a view is missing, or its camera is another one.
    """
    receipt, position = store.samples.locate(scene.id)
    block, cameras = store.block(receipt), {view.name: view.camera for view in scene.views}
    stored = {name: block.array(name).read_all() for name in ("world_to_camera", "intrinsics", "image_size")}
    for index, name in enumerate(store.samples[scene.id].view_names):
        camera, at = cameras.get(name), block.view(position, index, 0)
        if (
            camera is None
            or (camera.height, camera.width) != tuple(stored["image_size"][at].tolist())
            or not np.allclose(camera.world_to_camera, stored["world_to_camera"][at], rtol=1e-9)
            or not np.allclose(camera.intrinsics, stored["intrinsics"][at], rtol=1e-9)
        ):
            what = "no such view" if camera is None else "its camera is another one"
            raise ConfigError(
                f"{scene.id}, {name}: {what}",
                where="--source",
                hint=f"Name the data set that {store.root} was made from.",
            )


def backbone_of(identity: Mapping[str, Any], weights: Path | None, device: str) -> Backbone:
    """The ViT that a store's features are of.

    Args:
        identity: Of the store.
        weights: A local folder, where it is not one that goes by its name.
        device: Where it runs.

    Raises:
        IdentityMismatchError: If it is another one.
    """
    wanted = identity["backbone"]
    config = BackboneConfig(
        name=wanted["name"],
        weights=weights,
        layer=wanted["layer"],
        norm=wanted["norm"],
        dtype=wanted["dtype"],
        random_seed=wanted["random_seed"],
    )
    backbone = load_backbone(config, device)
    lines = identity_difference({"backbone": backbone.identity.to_dict()}, {"backbone": wanted})
    if lines:
        raise IdentityMismatchError(
            "not the ViT that made the store:\n  " + "\n  ".join(lines),
            where=weights or wanted["name"],
            hint="Name its folder with --weights DIR.",
        )
    return backbone
