# SPDX-License-Identifier: Apache-2.0
"""Samples of a store as a torch data set: views drawn, rows and hits read, points transformed.

N points, P rows of the drawn views, V drawn views, D feature channels. No `[N, D]` array is ever built.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ditr_cache.errors import ConfigError, SampleError
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.data_config import DataConfig
from ditr_cache.training.limited import Annotations, EveryPoint
from ditr_cache.training.sample import Sample
from ditr_cache.training.sampler import Draw
from ditr_cache.training.seeding import rng_for, seed_for
from ditr_cache.training.transforms import Transform, apply
from ditr_cache.types import FactoredFeatures, PointCloud, PointFeatures

__all__ = ["FeatureStoreDataset", "Item", "label_set", "split_samples"]


class Item(NamedTuple):
    """One cloud, ready to be collated."""

    sample: Sample
    features: FactoredFeatures
    """Rows of the drawn views; its index is the sample's."""
    cls: NDArray[np.float16] | None
    """`[V, D]` class tokens of the drawn views, where they were asked for."""


class FeatureStoreDataset(Dataset[Item]):
    """A store's samples, seen through the settings. Pickles into workers; each opens the files for itself.

    Args:
        store: Where from.
        sample_ids: What will be asked for.
        config: Arrays, views and transforms.
        role: `train` draws views at random (`config.views`), `eval` takes them strided, later over earlier.
        seed: With the key of an item, decides every random number.
        transforms: What every sample goes through; None: `config.train` or `config.val`, by role.
        images: Read features; otherwise no point is seen, and there are no rows.
        cls: Read class tokens, too.
        labels: Whether labels are needed; False: taken where there are some; None: not looked at.
        annotations: Which of them count.

    Raises:
        ConfigError: If the store lacks an array that the settings ask for.
    """

    def __init__(
        self,
        store: FeatureStore,
        sample_ids: Sequence[str],
        config: DataConfig,
        role: Literal["train", "eval"],
        seed: int = 0,
        *,
        transforms: Sequence[Transform] | None = None,
        images: bool = True,
        cls: bool = False,
        labels: bool | None = True,
        annotations: Annotations | None = None,
    ) -> None:
        self.store, self.sample_ids, self.config, self.role, self.seed = store, tuple(sample_ids), config, role, seed
        self.transforms = tuple(transforms if transforms is not None else getattr(config, _TRANSFORMS[role]))
        self._images, self._cls, self._annotations = images, cls, annotations or EveryPoint()
        have = _arrays(store, self.sample_ids)
        _check_points(store, have, config)
        self.label_set = None if labels is None else label_set(have, config.label_set, required=labels)
        self._classes = len(store.class_names.get(self.label_set or "", ()))

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, key: Draw) -> Item:
        read = self.read(key)
        assert read.points is not None
        sample = self._sample(read.points, read.features.index)
        if sample.segment is not None:
            self._check_labels(sample.segment, key.sample_id)
            # before transforms, which drop points and change their order
            sample = self._annotations.limit(key.sample_id, sample)
        sample = apply(self.transforms, sample, rng_for(self.seed, "transforms", *_names(key)))
        rows = read.features
        return Item(sample, FactoredFeatures(rows.rows, sample.index, rows.affine, rows.row_view), read.cls)

    def read(self, key: Draw) -> PointFeatures:
        """Points and features of a sample as drawn, before any transform."""
        if not self._images:
            return self.store.read(key.sample_id, views=[], rule="last", seed=0)
        views = self.config.views
        if self.role == "eval":
            count = views.evaluation_count
            return self.store.read(key.sample_id, count=count, pick="strided", rule="last", seed=0, cls=self._cls)
        return self.store.read(
            key.sample_id,
            count=views.count,
            pick=views.pick,
            variant=views.variants,
            rule=views.rule,
            # of its own, so that a network without images sees the same points
            seed=seed_for(self.seed, "views", *_names(key)),
            cls=self._cls,
        )

    def _sample(self, points: PointCloud, index_N: NDArray[np.int32]) -> Sample:
        wanted = self.config.features
        return Sample(
            coord=points.coord,
            point=np.arange(len(points)),
            index=index_N,
            color=points.color.astype(np.float32) if "color" in wanted and points.color is not None else None,
            normal=points.normal if "normal" in wanted else None,
            strength=points.strength if "strength" in wanted else None,
            segment=None if self.label_set is None else points.segments[self.label_set],
        )

    def _check_labels(self, segment_N: NDArray[np.int32], sample_id: str) -> None:
        # here, because on a GPU the loss would end the process and not say why
        low, high = int(segment_N.min(initial=-1)), int(segment_N.max(initial=-1))
        if low < -1 or (self._classes and high >= self._classes):
            classes = f"0 to {self._classes - 1}" if self._classes else "numbers from 0"
            raise SampleError(
                f"{self.label_set} has label {low if low < -1 else high}; classes are {classes}, and -1 is none",
                where=sample_id,
            )


_TRANSFORMS = {"train": "train", "eval": "val"}


def split_samples(store: FeatureStore, splits: Iterable[str]) -> tuple[str, ...]:
    """Ids of the samples of some splits, in the store's order.

    Raises:
        ConfigError: If the store has none in one of them.
    """
    by_split: dict[str, list[str]] = {}
    for info in store.samples.values():
        by_split.setdefault(info.split, []).append(info.id)
    wanted = tuple(splits)
    for split in wanted:
        if split not in by_split:
            have = ", ".join(f"{name} ({len(ids)})" for name, ids in sorted(by_split.items())) or "none"
            raise ConfigError(f"no samples in split {split!r}", where=store.root, hint=f"Splits of the store: {have}")
    return tuple(info.id for info in store.samples.values() if info.split in wanted)


def label_set(arrays: Iterable[str], wanted: str | None, *, required: bool = True) -> str | None:
    """The array of labels: the one that is wanted, or the only one.

    Args:
        arrays: Names of arrays in the store.
        wanted: `data.label_set`.
        required: Refuse a store without labels instead of returning None.

    Raises:
        ConfigError: If the choice is not clear, or there is none.
    """
    have = sorted(name for name in arrays if name.startswith("segment"))
    if wanted is not None and wanted in have:
        return wanted
    if wanted is None and len(have) == 1:
        return have[0]
    if not have and not required:
        return None
    what = f"the store has no labels {wanted!r}" if wanted is not None else "the store has no labels"
    if wanted is None and have:
        what = "the store has several label sets"
    hint = f"Name one of them, e.g. -s data.label_set={have[0]}: {', '.join(have)}" if have else None
    raise ConfigError(what, where="data.label_set", hint=hint)


def _arrays(store: FeatureStore, sample_ids: Iterable[str]) -> set[str]:
    """Names of the arrays that every block of these samples has."""
    blocks = {store.samples.locate(sample_id)[0].block for sample_id in sample_ids}
    every = [set(store.manifest.blocks[block].arrays) for block in sorted(blocks)]
    return set.intersection(*every) if every else set()


def _check_points(store: FeatureStore, have: set[str], config: DataConfig) -> None:
    if "coord" not in have:
        raise ConfigError(
            "this store has no points, so nothing can be trained or evaluated on it",
            where=store.root,
            hint="Put them in from the data set: ditr-cache attach STORE SOURCE OUT",
        )
    missing = [name for name in config.features if name not in have]
    if missing:
        some = ", ".join(name for name in ("color", "normal", "coord", "strength") if name in have)
        raise ConfigError(
            f"the store has no {' and no '.join(missing)}",
            where="data.features",
            hint=f"It has: {some}. For example: -s data.features=[{some}]",
        )


def _names(key: Draw) -> tuple[Any, ...]:
    return key.epoch, key.position, key.sample_id
