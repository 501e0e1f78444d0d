# SPDX-License-Identifier: Apache-2.0
"""What the official test protocol costs a scene: features from the store, against the ViT in every pass.

The official code resizes, normalises and encodes all views of a scene again for every fragment of each of its 13
copies. Measured side by side on 7-Scenes RedKitchen (10 strided views of 50, 420 x 560 pixels, D = 384):

- `cached`: one fragment through the full-size network (46 M parameters, torch back end), rows held since the scene was read;
- `with ViT`: the same after the views were resized and encoded. Images are decoded already, in favour of this arm;
- `plain PTv3`: the same network without images, which no cache can beat.

A few fragments are run, and how many is printed; the cost of the scene is theirs times the number of fragments that its
13 copies have, which is counted and not estimated, plus the measured reading and transforming.

The ViT is a real one of 8 blocks and 384 channels. The networks of the paper have 24 blocks of 1024: their share would
be larger, and is not claimed here.

    python benchmarks/test_protocol.py [--fragments N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import data_folder, interleaved, write_results
from _stores import PATCH, REDKITCHEN, build_store, work_folder

from ditr_cache.backbones import load_backbone
from ditr_cache.config import BackboneConfig, ImagesConfig
from ditr_cache.config.model import ModelConfig
from ditr_cache.datasets import open_dataset
from ditr_cache.images import decode, resize
from ditr_cache.models.random import draw_weights
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.data_config import DataConfig, ViewsConfig
from ditr_cache.training.dataset import FeatureStoreDataset, Item
from ditr_cache.training.inference import Network
from ditr_cache.training.sample import Sample
from ditr_cache.training.sampler import Draw
from ditr_cache.training.seeding import rng_for, torch_generator_for
from ditr_cache.training.transforms import apply, fragments

VIEWS, CLASSES = 10, 20


def network(injection: str, features: tuple[Any, ...], channels: int, dim: int | None) -> Network:
    """Full size, on one random draw of weights: time does not depend on them."""
    config = ModelConfig(injection=injection, sparse_conv="torch")
    with torch.device("meta"):
        model = Segmentor(config, channels, CLASSES, dim)
    model = model.to_empty(device="cpu")
    draw_weights(model, torch_generator_for(0, "weights"))
    return Network(model, features)


def read(store: FeatureStore, data: DataConfig) -> tuple[Item, float]:
    """The scene as stored, and the median time that reading it took."""
    dataset = FeatureStoreDataset(store, tuple(store.samples), data, "eval", transforms=(), labels=False)
    draw = Draw(0, 0, next(iter(store.samples)))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        item = dataset[draw]
        times.append(time.perf_counter() - start)
    return item, float(np.median(times))


def cut(item: Item, data: DataConfig, wanted: int) -> tuple[list[Sample], list[int], float]:
    """Some fragments spread over the copies, how many each copy has, and what cutting all of them took."""
    rng, test = rng_for(0, "benchmark"), data.test
    start = time.perf_counter()
    base = apply(test.before, item.sample, rng)
    counts, kept = [], []
    for number, copy in enumerate(test.augmentations()):
        moved = apply((*copy, *test.voxelize), base, rng)
        parts = fragments(moved)
        counts.append(len(parts))
        for i, seat_n in enumerate(parts):
            part = apply(test.after, moved.take(seat_n), rng)
            if i == 0 and number % max(1, len(test.augmentations()) // wanted) == 0 and len(kept) < wanted:
                kept.append(part)
    return kept, counts, time.perf_counter() - start


class Vit:
    """What the official code does to a scene's views in every pass."""

    def __init__(self, store: FeatureStore) -> None:
        default = Path(__file__).resolve().parents[2] / "shared" / "weights" / "dinov2-small-first8blocks"
        weights = Path(os.environ.get("DITR_CACHE_TEST_WEIGHTS", default))
        self.backbone = load_backbone(BackboneConfig(weights=weights), "cpu")
        dataset = open_dataset(data_folder() / REDKITCHEN.folder)
        scene = dataset.load(next(iter(store.samples)))
        step = len(scene.views) // VIEWS
        views = scene.views[::step][:VIEWS]
        self.images = [decode(v.image.read(), v.camera.height, v.camera.width) for v in views]
        self.size = (REDKITCHEN.grid[0] * PATCH, REDKITCHEN.grid[1] * PATCH)

    def __call__(self) -> torch.Tensor:
        """Patch features of all views, one batch as upstream."""
        batch = torch.stack([resize(image, self.size, ImagesConfig().filter) for image in self.images])
        with torch.inference_mode():
            rows: torch.Tensor = self.backbone(batch).rows
        return rows


def each(function: Callable[[Sample], object], samples: list[Sample]) -> Callable[[], object]:
    """Call with the next fragment, every time."""
    following = cycle(samples)
    return lambda: function(next(following))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fragments", type=int, default=4, help="how many are run")
    wanted = parser.parse_args().fragments
    folder = Path(tempfile.mkdtemp(dir=work_folder()))
    try:
        store = build_store(REDKITCHEN, folder / "store")
        measure(store, wanted)
    finally:
        shutil.rmtree(folder)


def measure(store: FeatureStore, wanted: int) -> None:
    """Measure, print and keep."""
    arrays = next(iter(store.manifest.blocks.values())).arrays
    names = tuple(name for name in ("color", "normal") if name in arrays) or ("coord",)
    data = DataConfig(features=names, views=ViewsConfig(evaluation_count=VIEWS))
    item, read_s = read(store, data)
    samples, counts, transform_s = cut(item, data, wanted)
    dim = item.features.rows.shape[1]
    ditr, ptv3 = (network(i, names, data.channels, d) for i, d in (("decoder", dim), ("none", None)))
    held, nothing, vit = ditr.hold(item.features), ptv3.hold(item.features), Vit(store)

    def cached(sample: Sample) -> object:
        return ditr(ditr.batch([sample], held)).softmax(1)

    def with_vit(sample: Sample) -> object:
        vit()
        return cached(sample)

    arms = {
        "plain PTv3": each(lambda s: ptv3(ptv3.batch([s], nothing)).softmax(1), samples),
        "cached": each(cached, samples),
        "with ViT": each(with_vit, samples),
    }
    times = interleaved(arms, rounds=len(samples), warmup=1)
    fragments_ = sum(counts)
    seconds = {name: t["median"] for name, t in times.items()}
    scene = {
        "plain PTv3": transform_s + fragments_ * seconds["plain PTv3"],
        "cached": read_s + transform_s + fragments_ * seconds["cached"],
        "with ViT": transform_s + fragments_ * seconds["with ViT"],
        "ViT once a scene": transform_s + seconds["with ViT"] + (fragments_ - 1) * seconds["cached"],
    }
    print(
        f"points {len(item.sample):,}, voxels a fragment {len(samples[0]):,}, rows {len(item.features.rows):,}, D {dim}"
    )
    print(f"{len(counts)} copies, {fragments_} fragments; {len(samples)} fragments run, each arm {len(samples)} times")
    print(f"read {read_s:.3f} s, transform all copies and fragments {transform_s:.2f} s")
    for name, t in times.items():
        print(f"{name:12s} {t['median']:.2f} s a fragment ({t['q1']:.2f} to {t['q3']:.2f})")
    ratio = seconds["with ViT"] / seconds["cached"]
    print(f"measured: the ViT in every pass costs {ratio:.2f}x the cached pass")
    print("extrapolated to the whole scene (per-fragment medians x counted fragments):")
    for name, value in scene.items():
        print(f"  {name:17s} {value:7.1f} s  {value / scene['cached']:.2f}x of cached")
    write_results(
        "test_protocol",
        {
            "source": REDKITCHEN.name,
            "vit": "real, 8 blocks x 384 channels, patch 14",
            "views": VIEWS,
            "vit_images_saved": VIEWS * fragments_,
            "points": len(item.sample),
            "voxels": [len(s) for s in samples],
            "copies": len(counts),
            "fragments_by_copy": counts,
            "fragments_run": len(samples),
            "read_s": read_s,
            "transform_s": transform_s,
            "seconds_a_fragment": times,
            "ratio_a_fragment": ratio,
            "scene_s_extrapolated": scene,
            "scene_ratio_extrapolated": {name: value / scene["cached"] for name, value in scene.items()},
        },
    )


if __name__ == "__main__":
    main()
