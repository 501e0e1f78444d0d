# SPDX-License-Identifier: Apache-2.0
"""Small stores whose features are made from labels, as closely as a test wants."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from store_builder import BlockSpec, SampleSpec, ViewSpec, build_store

from ditr_cache.store.encode import BlockSettings
from ditr_cache.types import Camera, PointCloud

CLASSES, DIM = 4, 8
IDENTITY = {
    "format_version": 1,
    "dataset": {"name": "labels", "version": "1"},
    "backbone": {"name": "labels", "random_seed": None, "layer": 2, "layers": 3},
    "images": {"size": [28, 42]},
}


def view(rng, name, label_N, centre_KD, *, noise, seen=0.7):
    """Every class has five patches; a point falls into one of those of its class."""
    point = np.flatnonzero(rng.random(len(label_N)) < seen).astype(np.int32)
    patch = label_N[point] * 5 + rng.integers(0, 5, len(point))
    row_patch, hit_row = np.unique(patch, return_inverse=True)
    rows = centre_KD[row_patch // 5] + noise * rng.normal(size=(len(row_patch), DIM))
    camera = Camera(np.eye(3), np.eye(4), 28, 42)
    return ViewSpec(
        name,
        0,
        camera,
        (CLASSES, 5),
        rows.astype(np.float32),
        row_patch.astype(np.uint16),
        point,
        hit_row.astype(np.uint16),
        None,
    )


def sample(seed, split, *, points=300, views=3, noise=0.1, shuffled=False, keep=True, labelled=True):
    rng = np.random.default_rng(seed)
    centre_KD = 3 * np.random.default_rng(99).normal(size=(CLASSES, DIM))
    true_N = rng.integers(0, CLASSES, points)
    specs = tuple(view(rng, f"v{i}", true_N, centre_KD, noise=noise) for i in range(views))
    told_N = rng.permutation(true_N) if shuffled else true_N.copy()
    told_N[rng.random(points) < 0.1] = -1
    cloud = PointCloud(
        rng.normal(size=(points, 3)).astype(np.float32),
        color=rng.integers(0, 256, (points, 3)).astype(np.uint8),
        segments={"segment20": told_N.astype(np.int32)} if labelled else {},
    )
    return BlockSpec(f"b{seed}", (SampleSpec(f"s{seed}", split, cloud, specs),))


def make(folder, *, train=4, val=2, dtype="float16", stored=True, identity=None, **options):
    """`train` and `val` samples, one a block."""
    blocks = [sample(i, "train" if i < train else "val", **options) for i in range(train + val)]
    build_store(folder, blocks, BlockSettings(DIM, dtype, points=stored), identity=identity or IDENTITY)
    return folder
