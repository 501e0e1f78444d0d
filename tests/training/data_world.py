# SPDX-License-Identifier: Apache-2.0
"""Small stores whose points fill rooms, and settings that suit them."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from store_builder import BlockSpec, build_store, random_block

from ditr_cache.errors import SampleError
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.reader import open_store
from ditr_cache.training.data_config import DataConfig, ViewsConfig
from ditr_cache.training.dataset import FeatureStoreDataset
from ditr_cache.training.transforms import (
    CenterShift,
    ChromaticJitter,
    ElasticDistortion,
    GridSample,
    NormalizeColor,
    RandomDropout,
    RandomRotate,
    SphereCrop,
)
from ditr_cache.training.transforms.base import TransformModel

TRAIN = (
    CenterShift(),
    RandomDropout(dropout_application_ratio=0.5),
    RandomRotate(),
    ElasticDistortion(),
    ChromaticJitter(),
    GridSample(grid_size=0.3),
    SphereCrop(point_max=200),
    NormalizeColor(),
)
VAL = (CenterShift(), GridSample(grid_size=0.3, keep="first"), NormalizeColor())


def blocks(count=5, points=400, views=8, **options) -> list[BlockSpec]:
    """`count` samples `b<i>/s0`; the first of each block is in the split train."""
    return [random_block(i, f"b{i}", points=points, views=views, **options) for i in range(count)]


def make_store(folder, specs=None, dtype="float16", **settings):
    build_store(folder, specs or blocks(), BlockSettings(8, dtype, **settings))
    return open_store(folder)


def config(**changes) -> DataConfig:
    base = DataConfig(train=TRAIN, val=VAL, views=ViewsConfig(count=4, evaluation_count=4), label_set="segment20")
    return DataConfig.model_validate({**{k: getattr(base, k) for k in type(base).model_fields}, **changes})


def dataset(store, role="train", seed=0, settings=None, **options) -> FeatureStoreDataset:
    return FeatureStoreDataset(store, tuple(store.samples), settings or config(), role, seed, **options)


def spec_without(block: BlockSpec, *names: str) -> BlockSpec:
    """The block with some point arrays left out; `segments` is all labels."""
    empty = {name: {} if name == "segments" else None for name in names}
    return replace(block, samples=tuple(replace(s, points=replace(s.points, **empty)) for s in block.samples))


def same(a, b) -> None:
    """Two batches are equal to the bit."""
    for name in a.__slots__:
        x, y = getattr(a, name), getattr(b, name)
        if hasattr(x, "__slots__") and type(x).__name__ == "FactoredFeatures":
            same(x, y)
        elif hasattr(x, "numpy"):
            assert x.dtype == y.dtype, name
            np.testing.assert_array_equal(x.numpy(), y.numpy(), err_msg=name)
        else:
            assert x == y, name


class Fails(TransformModel):
    """Fails in the library's own way, or as a mistake in the code would."""

    kind: str = "fails"
    known: bool

    def __call__(self, sample, rng):
        if self.known:
            raise SampleError("a coordinate is not finite", hint="Look at it.")
        return sample.coord["x"]


def kill_process(key):
    """What the kernel does to a worker when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
