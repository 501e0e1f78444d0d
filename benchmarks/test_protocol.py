# SPDX-License-Identifier: Apache-2.0
"""What the official test protocol costs a scene: features from the store, against the ViT in every pass.

The official code resizes, normalises and encodes all views of a scene again for every fragment of each of its 13
copies. Measured side by side on 7-Scenes RedKitchen (10 strided views of 50, 420 x 560 pixels, D = 384), at the
official voxel size of 2 cm and at 5 cm:

- `PTv3`: one fragment through the full-size network (46 M parameters, torch back end) without images;
- `cached`: the same with image features, whose rows are held since the scene was read;
- `ViT`: resizing and encoding the views once. Images are decoded already, in favour of this arm.

A pass of the official code costs `cached` and `ViT` together. A few fragments are run, and how many is printed; the
cost of the scene is that of a fragment times the number of fragments that its 13 copies have, which is counted and not
estimated, plus the measured reading and transforming. Ratios are of the CPU time of one thread, which is disturbed
little by neighbours on the machine, and not at all by threads that wait for each other; wall times are kept beside.

The ViT is a real one, but of 8 blocks and 384 channels, where the paper's has 24 of 1024. What the larger one would
cost is not extrapolated; the paper measured 41 ms without and 76 ms with it a pass, on a GPU (1.85x).

    python benchmarks/test_protocol.py
"""

from __future__ import annotations

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
from ditr_cache.training.data_config import DataConfig, TestConfig, ViewsConfig
from ditr_cache.training.dataset import FeatureStoreDataset, Item
from ditr_cache.training.inference import Network
from ditr_cache.training.sample import Sample
from ditr_cache.training.sampler import Draw
from ditr_cache.training.seeding import rng_for, torch_generator_for
from ditr_cache.training.transforms import GridSample, apply, fragments

VIEWS, CLASSES = 10, 20
GRIDS = ((0.05, 3, 1), (0.02, 2, 0))
"""Voxel size in metres, fragments that are run, rounds before."""


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
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=work_folder()))
    try:
        store = build_store(REDKITCHEN, folder / "store")
        vit = Vit(store)
        # the smaller one first: it warms up what the larger one uses
        results = {f"{grid} m": measure(store, vit, grid, runs, warmup) for grid, runs, warmup in GRIDS}
    finally:
        shutil.rmtree(folder)
    about = {"source": REDKITCHEN.name, "vit": "real, 8 blocks x 384 channels, patch 14", "views": VIEWS}
    write_results("test_protocol", {**about, "voxel_size": results})


def measure(store: FeatureStore, vit: Vit, grid_size: float, runs: int, warmup: int) -> dict[str, Any]:
    """Measure and print."""
    arrays = next(iter(store.manifest.blocks.values())).arrays
    names = tuple(name for name in ("color", "normal") if name in arrays) or ("coord",)
    test = TestConfig(voxelize=(GridSample(grid_size=grid_size, keep="all"),))
    data = DataConfig(features=names, views=ViewsConfig(evaluation_count=VIEWS), test=test)
    item, read_s = read(store, data)
    samples, counts, transform_s = cut(item, data, runs)
    dim = item.features.rows.shape[1]
    ditr, ptv3 = (network(i, names, data.channels, d) for i, d in (("decoder", dim), ("none", None)))
    held, nothing = ditr.hold(item.features), ptv3.hold(item.features)
    times = interleaved(
        {
            "PTv3": each(lambda s: ptv3(ptv3.batch([s], nothing)).softmax(1), samples),
            "cached": each(lambda s: ditr(ditr.batch([s], held)).softmax(1), samples),
            "ViT": vit,
        },
        rounds=runs,
        warmup=warmup,
    )
    parts, pass_s = sum(counts), {name: t["cpu"] for name, t in times.items()}
    scene = {
        "PTv3 without images": transform_s + parts * pass_s["PTv3"],
        "cached": read_s + transform_s + parts * pass_s["cached"],
        "ViT once a scene": transform_s + pass_s["ViT"] + parts * pass_s["cached"],
        "ViT in every pass (official)": transform_s + parts * (pass_s["ViT"] + pass_s["cached"]),
    }
    voxels = [len(s) for s in samples]
    print(f"\nvoxels of {grid_size} m: {len(item.sample):,} points, {voxels[0]:,} voxels a fragment, D = {dim}")
    print(f"{len(counts)} copies have {parts} fragments; {runs} of them were run, each arm {runs} times")
    print(f"read {read_s:.3f} s; cut all copies and fragments {transform_s:.2f} s")
    for name, t in times.items():
        wall = f"wall {t['median']:.2f} s, {t['q1']:.2f} to {t['q3']:.2f}"
        print(f"  {name:8s} {t['cpu']:6.2f} CPU s a pass ({wall})")
    ratio = (pass_s["cached"] + pass_s["ViT"]) / pass_s["cached"]
    print(
        f"measured: a pass with the ViT costs {ratio:.2f}x a cached one, which costs "
        f"{pass_s['cached'] / pass_s['PTv3']:.2f}x one without images"
    )
    print("extrapolated to the whole protocol, from the fragments that were run to all that were counted:")
    for name, value in scene.items():
        print(f"  {name:28s} {value:8.1f} CPU s  {value / scene['cached']:.2f}x")
    return {
        "points": len(item.sample),
        "voxels": voxels,
        "fragments_by_copy": counts,
        "fragments_run": runs,
        "vit_images_saved": VIEWS * parts,
        "read_s": read_s,
        "transform_s": transform_s,
        "times_of_a_pass": times,
        "pass_cpu_s": pass_s,
        "ratio_of_a_pass": ratio,
        "scene_cpu_s_extrapolated": scene,
        "scene_ratio_extrapolated": {name: value / scene["cached"] for name, value in scene.items()},
    }


if __name__ == "__main__":
    main()
