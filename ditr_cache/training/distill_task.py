# SPDX-License-Identifier: Apache-2.0
"""What the stores of a distillation and its settings make together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ditr_cache.errors import ConfigError, IdentityMismatchError
from ditr_cache.store.identity import identity_difference
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.dataset import FeatureStoreDataset, split_samples
from ditr_cache.training.distill_config import DistillConfig
from ditr_cache.training.limited import limit_scenes

__all__ = ["DistillTask", "Source", "name_stores"]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One store. Its labels are never looked at."""

    name: str
    store: FeatureStore
    train: FeatureStoreDataset
    val: FeatureStoreDataset | None
    """None where the store has no validation split."""


@dataclass(frozen=True, slots=True, eq=False)
class DistillTask:
    """Everything that is known before a weight is drawn."""

    sources: tuple[Source, ...]
    names: tuple[str, ...]
    """Of the sources, each name once."""
    image_channels: tuple[int, ...]
    """D of each name."""
    coordinates: Mapping[str, str]
    """Name of the store / sample -> digest of its coordinates, of all samples that are read."""

    @classmethod
    def of(
        cls, stores: Sequence[FeatureStore], config: DistillConfig, found: Sequence[Mapping[str, str]]
    ) -> DistillTask:
        """Look up what the settings name.

        Args:
            stores: Of the command, in its order.
            config: All settings.
            found: For every store, the digests of the coordinates of all samples that are read.

        Raises:
            ConfigError: If a store lacks a split or an array, or the settings do not fit the number of stores.
            IdentityMismatchError: If features of two stores do not mean the same.
        """
        names = name_stores(stores, config)
        _check_teacher(names, stores, config)
        if config.data.scenes is not None and len(stores) > 1:
            raise ConfigError("a list of scenes is of one store, and there are several", where="data.scenes")
        sources = tuple(_source(n, store, config) for n, store in zip(names, stores, strict=True))
        coordinates = {f"{i}/{key}": value for i, one in enumerate(found) for key, value in one.items()}
        dims = {source.name: _channels(source) for source in sources}
        return cls(sources, tuple(dims), tuple(dims.values()), coordinates)

    def condition(self, source: Source) -> str | None:
        """What batches of a source are called; None where all share everything."""
        return source.name if len(self.names) > 1 else None


def name_stores(stores: Sequence[FeatureStore], config: DistillConfig) -> tuple[str, ...]:
    """What each store is called: as the settings say, or as its data set.

    Raises:
        ConfigError: If there are not as many names, or weights, as stores.
    """
    names, weights = config.distill.names, config.distill.weights
    for key, given in (("names", names), ("weights", weights)):
        if given and len(given) != len(stores):
            raise ConfigError(f"{len(given)} {key} for {len(stores)} stores", where=f"distill.{key}")
    return names or tuple(str(store.identity["dataset"]["name"]) for store in stores)


def _source(name: str, store: FeatureStore, config: DistillConfig) -> Source:
    data, seed = config.data, config.run.seed
    ids = split_samples(store, data.train_splits)
    ids = ids if data.scenes is None else limit_scenes(ids, data.scenes)
    train = FeatureStoreDataset(store, ids, data, "train", seed, labels=None)
    there = [split for split in data.val_splits if any(info.split == split for info in store.samples.values())]
    val = None
    if there:
        val = FeatureStoreDataset(store, split_samples(store, there), data, "eval", seed, labels=None)
    return Source(name, store, train, val)


def _channels(source: Source) -> int:
    receipt, _ = source.store.samples.locate(source.train.sample_ids[0])
    return receipt.arrays["features"].shape[1]


def _check_teacher(names: Sequence[str], stores: Sequence[FeatureStore], config: DistillConfig) -> None:
    """Stores that share a regression must have the features of one ViT."""
    first: dict[str, FeatureStore] = {}
    for name, store in zip(names, stores, strict=True):
        other = first.setdefault(name if config.distill.separate_heads else "", store)
        lines = identity_difference({"backbone": store.identity["backbone"]}, {"backbone": other.identity["backbone"]})
        if lines:
            raise IdentityMismatchError(
                f"its features are of another network than those of {other.root}:\n  " + "\n  ".join(lines),
                where=store.root,
                hint="Give each its own regression: -s distill.separate_heads=true, and -s distill.names=[...]",
            )
