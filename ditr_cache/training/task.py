# SPDX-License-Identifier: Apache-2.0
"""What a store and the settings make together: which samples, which labels, which network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.models.random import draw_weights
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.dataset import FeatureStoreDataset, split_samples
from ditr_cache.training.limited import ListedPoints, limit_scenes
from ditr_cache.training.seeding import torch_generator_for
from ditr_cache.training.store_check import coordinates_digest

__all__ = ["Task", "draw_model"]

_MOST_NUMBERS = 10_000
"""A head is allocated by the highest label where nobody names the classes."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Everything that follows from a store and the settings before a weight is drawn."""

    store: FeatureStore
    train: FeatureStoreDataset
    val: FeatureStoreDataset | None
    """None where the store has no validation split."""
    class_names: tuple[str, ...]
    image_channels: int | None
    """D; None for a network without images."""
    condition: str | None
    """Name of the data set, for norm layers of its own."""
    coordinates: Mapping[str, str]
    """Sample -> digest of its coordinates, of all samples that are read."""
    limits: Mapping[str, str]
    """Setting (`scenes`, `annotations`) -> digest of what its file says, for those that are set."""

    @classmethod
    def of(cls, store: FeatureStore, config: TrainConfig, found: Mapping[str, str]) -> Task:
        """Look up what the settings name.

        Args:
            store: That of the settings.
            config: All settings.
            found: Digests of the coordinates of all samples that are read.

        Raises:
            ConfigError: If the store lacks a split, an array, labels, or class tokens that the settings need, or has
                not what the files of `data.scenes` and `data.annotations` name.
        """
        data, seed = config.data, config.run.seed
        images, cls_ = config.model.injection != "none", config.model.injection == "cls"
        every = split_samples(store, data.train_splits)
        ids = every if data.scenes is None else limit_scenes(every, data.scenes)
        dim = _channels(store, ids) if images else None
        points = None if data.annotations is None else ListedPoints.read(data.annotations, store, ids)
        train = FeatureStoreDataset(store, ids, data, "train", seed, images=images, cls=cls_, annotations=points)
        splits = {info.split for info in store.samples.values()}
        val = None
        if splits.intersection(data.val_splits):
            ids = split_samples(store, [split for split in data.val_splits if split in splits])
            val = FeatureStoreDataset(store, ids, data, "eval", seed, images=images, cls=cls_)
        assert train.label_set is not None
        # a few scenes need not have all classes
        names = store.class_names.get(train.label_set) or _numbers(store, train.label_set, every)
        limits = {} if data.scenes is None else {"scenes": coordinates_digest({n: found[n] for n in train.sample_ids})}
        if points is not None:
            limits["annotations"] = points.digest()
        return cls(store, train, val, tuple(names), dim, _condition(store, config.model), found, limits)


def draw_model(task: Task, config: TrainConfig) -> Segmentor:
    """The network with its first weights, on the CPU: a seed means the same ones everywhere.

    Raises:
        ConfigError: If the settings and the store do not make a network.
    """
    # every weight is drawn below, so torch's own initialisation, which takes global random numbers, is left out
    with torch.device("meta"):
        model = Segmentor(config.model, config.data.channels, len(task.class_names), task.image_channels)
    model = model.to_empty(device="cpu")
    draw_weights(model, torch_generator_for(config.run.seed, "weights"))
    return model


def _numbers(store: FeatureStore, label_set: str, sample_ids: Sequence[str]) -> tuple[str, ...]:
    """Classes by number, for a data set that does not name them: as many as the training labels need."""
    highest = -1
    for sample_id in sample_ids:
        receipt, position = store.samples.locate(sample_id)
        points = store.block(receipt).read_points(position)
        if points is not None and label_set in points.segments:
            highest = max(highest, int(points.segments[label_set].max(initial=-1)))
    if highest < 0:
        raise ConfigError(f"no training sample has a label in {label_set}", where=store.root)
    if highest >= _MOST_NUMBERS:
        raise ConfigError(
            f"{label_set} goes up to {highest:,}, and the store does not name the classes: these are no class numbers",
            where=store.root,
        )
    return tuple(map(str, range(highest + 1)))


def _channels(store: FeatureStore, sample_ids: Sequence[str]) -> int:
    """D: the same in every block of a store, for its identity names one backbone."""
    receipt, _ = store.samples.locate(sample_ids[0])
    return receipt.arrays["features"].shape[1]


def _condition(store: FeatureStore, config: ModelConfig) -> str | None:
    """The store's data set among those that have norm layers."""
    if not config.norm_conditions:
        return None
    name = str(store.identity["dataset"]["name"])
    if name not in config.norm_conditions:
        raise ConfigError(
            f"the store's data set, {name}, has no norm layers", where="model.norm_conditions", hint=f"Add {name}."
        )
    return name
