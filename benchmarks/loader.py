# SPDX-License-Identifier: Apache-2.0
"""Claim: a sample out of the store costs at most 1/10 of what the official data path does for the same sample.

The scene is 7-Scenes RedKitchen (144,133 points, 10 of 50 views drawn, float16 and int8), the transforms are those of
the official ScanNet recipe. Both paths run on one thread, side by side:

- ours: read rows, hits and points, choose a view for every point, transforms, collate;
- the official path's work: decode and resize 10 images, decode 10 depth maps, project all points into 10 views, run the
  ViT on 10 images, and the same transforms. (Official loaders do the first two in workers, and the ViT in the step.)

The ViT here has 384 channels and 8 blocks (the first 8 of the 12 of DINOv2 ViT-S, real weights); the official one is
ViT-L, about 20 times as much work. So ratios are given without the ViT as well, where ours must still win.

Also: where a sample's time goes, what leaving unused rows behind costs and saves, and samples a second with workers.

    python benchmarks/loader.py
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import data_folder, environment, interleaved, write_results
from _stores import PATCH, REDKITCHEN, build_store, work_folder

from ditr_cache.backbones import load_backbone
from ditr_cache.config import BackboneConfig, ImagesConfig
from ditr_cache.datasets import open_dataset
from ditr_cache.geometry import find_hits
from ditr_cache.images import decode, resize
from ditr_cache.store.choose import Draw as Choice
from ditr_cache.store.choose import draw_views
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.collate import collate
from ditr_cache.training.data_config import DataConfig, ViewsConfig
from ditr_cache.training.dataset import FeatureStoreDataset, Item
from ditr_cache.training.loader import LoaderConfig, MakeBatch, TrainBatches
from ditr_cache.training.sample import Sample
from ditr_cache.training.sampler import BatchSampler, Draw
from ditr_cache.training.seeding import rng_for, seed_for
from ditr_cache.training.transforms import apply
from ditr_cache.types import FactoredFeatures

VIEWS, ROUNDS, CLAIM = 10, 11, 10.0
# RedKitchen has no normals
CONFIG = DataConfig(features=("color",), views=ViewsConfig(count=VIEWS), mix_prob=0)


class Stages:
    """Adds up CPU time by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        start = time.process_time()
        result = function(*args)
        self.seconds[name].append(time.process_time() - start)
        return result

    def medians(self) -> dict[str, float]:
        return {name: float(np.median(values)) for name, values in self.seconds.items()}


class Official:
    """What the official path does between the disk and a sample of dense features."""

    def __init__(self) -> None:
        dataset = open_dataset(data_folder() / REDKITCHEN.folder)
        self.scene = dataset.load(dataset.plan()[0].samples[0].id)
        default = Path(__file__).resolve().parents[2] / "shared" / "weights" / "dinov2-small-first8blocks"
        weights = Path(os.environ.get("DITR_CACHE_TEST_WEIGHTS", default))
        self.vit = load_backbone(BackboneConfig(weights=weights), "cpu")
        self.size = (REDKITCHEN.grid[0] * PATCH, REDKITCHEN.grid[1] * PATCH)

    def images(self, views: Sequence[int]) -> torch.Tensor:
        made = []
        for view in (self.scene.views[v] for v in views):
            image = decode(view.image.read(), view.camera.height, view.camera.width)
            made.append(resize(image, self.size, ImagesConfig().filter))
        return torch.stack(made)

    def project(self, views: Sequence[int]) -> np.ndarray:
        """`[N]` row of the point's feature in the maps of all drawn views; later views overwrite earlier ones."""
        points = self.scene.points
        index_N = np.full(len(points), -1, np.int32)
        for i, view in enumerate(self.scene.views[v] for v in views):
            depth = None if view.depth is None else view.depth.read()
            (hits,) = find_hits(points.coord, points.origin, [view.camera], [depth], [REDKITCHEN.grid], REDKITCHEN.rule)
            index_N[hits.point] = hits.patch + i * REDKITCHEN.grid[0] * REDKITCHEN.grid[1]
        return index_N

    def encode(self, images: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return self.vit(images).rows.flatten(0, 1).half().numpy()

    def transform(self, index_N: np.ndarray, key: Draw) -> Sample:
        points = self.scene.points
        assert points.color is not None
        sample = Sample(points.coord, np.arange(len(points)), index_N, points.color.astype(np.float32))
        return apply(CONFIG.train, sample, rng_for(0, "transforms", key.epoch, key.position, key.sample_id))

    def __call__(self, key: Draw, stages: Stages, *, vit: bool = True) -> np.ndarray | None:
        """`[n, D]` features of the points that are left, or None without the ViT."""
        seed = seed_for(0, "views", key.epoch, key.position, key.sample_id)
        views = draw_views(range(len(self.scene.views)), VIEWS, "random", Choice(seed))
        images = stages("decode and resize", self.images, views)
        index_N = stages("project", self.project, views)
        sample = stages("transforms", self.transform, index_N, key)
        if not vit:
            return None
        rows = stages("ViT", self.encode, images)
        return stages("lookup", lambda: FactoredFeatures(rows, sample.index).dense())


def ours(dataset: FeatureStoreDataset, key: Draw, stages: Stages) -> Any:
    """The same as `dataset[key]` and `collate`, by stage."""
    read = stages("read", dataset._read, key)
    sample = stages("to a sample", dataset._sample, read.points, read.features.index)
    rng = rng_for(0, "transforms", key.epoch, key.position, key.sample_id)
    for i, transform in enumerate(dataset.transforms):
        sample = stages(f"transform {i + 1:2d} {transform.kind}", transform, sample, rng)
    rows = read.features
    item = Item(sample, FactoredFeatures(rows.rows, sample.index, rows.affine, rows.row_view), None)
    return stages("collate", collate, [item], CONFIG.features)


def benchmark(stores: dict[str, FeatureStore]) -> dict[str, Any]:
    official = Official()
    (sample_id,) = stores["float16"].samples
    data = {dtype: FeatureStoreDataset(s, [sample_id], CONFIG, "train", labels=False) for dtype, s in stores.items()}
    check_equal(official, data["float16"], sample_id)

    stages = {name: Stages() for name in (*data, "official")}
    whole = {name: keys(sample_id) for name in (*data, "official", "official without ViT")}
    times = interleaved(
        {
            **{d: each(whole[d], lambda key, d=d: ours(data[d], key, stages[d])) for d in data},
            "official": each(whole["official"], lambda key: official(key, stages["official"])),
            "official without ViT": each(whole["official without ViT"], lambda key: official(key, Stages(), vit=False)),
        },
        ROUNDS,
        warmup=1,
    )
    cheaper = {d: times["official"]["cpu"] / times[d]["cpu"] for d in data}
    without = {d: times["official without ViT"]["cpu"] / times[d]["cpu"] for d in data}
    print(f"{environment()['cpu']}; {VIEWS} of 50 views, {stores['float16'].samples[sample_id].points:,} points")
    for name, t in times.items():
        print(f"{name}: {t['cpu'] * 1e3:.1f} ms of CPU time a sample, {1 / t['cpu']:.2f} samples/s on one thread")
        for stage, seconds in (stages[name].medians() if name in stages else {}).items():
            print(f"    {stage:34s} {seconds * 1e3:9.2f} ms")
    print("official / ours:", {d: round(r, 1) for d, r in cheaper.items()}, "with the ViT of 8 blocks, D = 384")
    print("official / ours:", {d: round(r, 2) for d, r in without.items()}, "without any ViT")
    return {
        "vit": "dinov2-small, first 8 of 12 blocks, D = 384, 420 x 560",
        "times_cheaper": cheaper,
        "times_cheaper_without_vit": without,
        "target": CLAIM,
        "seconds": times,
        "stage_cpu_seconds": {name: s.medians() for name, s in stages.items()},
        "unused_rows": {d: unused_rows(data[d], sample_id) for d in data},
        "samples_a_second": {d: {str(n): throughput(data[d], sample_id, n) for n in (0, 1, 2)} for d in data},
    }


def check_equal(official: Official, dataset: FeatureStoreDataset, sample_id: str) -> None:
    """Both paths must give the same points the same features, or they are not the same work."""
    key = Draw(0, 0, sample_id)
    theirs = official(key, Stages())
    sample, features, _ = dataset[key]
    mine = features.dense()
    assert theirs is not None
    # float16, and a ViT whose sums depend on the batch; a few points lie on the border of a patch
    equal = np.isclose(mine, theirs, atol=0.05).all(1).mean()
    if len(theirs) != len(sample) or equal < 0.999:
        raise SystemExit(f"the two paths differ: {1 - equal:.2%} of the points")


def unused_rows(dataset: FeatureStoreDataset, sample_id: str) -> dict[str, float]:
    """How many rows no point needs, and what taking them along or leaving them behind costs."""
    items = [dataset[Draw(epoch, 0, sample_id)] for epoch in range(8)]
    batches = [collate([item], CONFIG.features) for item in items]
    share = np.mean([len(b.image.rows) / len(i.features.rows) for b, i in zip(batches, items, strict=True)])
    each_item, each_other = iter(items * ROUNDS), iter(items * ROUNDS)
    images = interleaved(
        {
            "left behind": lambda: collate([next(each_item)], CONFIG.features),
            "taken along": lambda: [
                collate([item := next(each_other)], CONFIG.features, images=False),
                item.features.rows.copy(),
                item.sample.index.copy(),
            ],
        },
        4 * ROUNDS,
    )
    print(
        f"rows in use: {share:.1%}; collate with {images['left behind']['cpu'] * 1e3:.2f} ms, "
        f"with all rows {images['taken along']['cpu'] * 1e3:.2f} ms"
    )
    return {"share_in_use": float(share), **{f"collate {name}": t["cpu"] for name, t in images.items()}}


def throughput(dataset: FeatureStoreDataset, sample_id: str, workers: int, samples: int = 48) -> float:
    """Samples a second of wall time through the loader, in batches of 4, once it runs."""
    sampler = BatchSampler([sample_id], 0, 4, loop=10_000)
    batches = TrainBatches(MakeBatch(dataset), sampler, LoaderConfig(workers, prefetch=2))
    stream = batches.epoch(0)
    # what is prepared ahead does not count
    for _ in range(2 * workers + 2):
        next(stream)
    start = time.perf_counter()
    for _ in range(samples // 4):
        next(stream)
    rate = samples / (time.perf_counter() - start)
    batches.close()
    print(f"{workers} workers: {rate:.1f} samples/s")
    return rate


def keys(sample_id: str) -> Iterator[Draw]:
    """The same draws for all who are timed."""
    return (Draw(epoch, 0, sample_id) for epoch in count())


def each(of: Iterator[Draw], function: Callable[[Draw], object]) -> Callable[[], object]:
    return lambda: function(next(of))


def main() -> int:
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="loader-", dir=work_folder()))
    try:
        results = benchmark({dtype: build_store(REDKITCHEN, folder / dtype, dtype) for dtype in ("float16", "int8")})
    finally:
        shutil.rmtree(folder)
    write_results("loader", results)
    kept = all(ratio >= CLAIM for ratio in results["times_cheaper"].values())
    kept &= all(ratio >= 1 for ratio in results["times_cheaper_without_vit"].values())
    print("all claims hold" if kept else "a claim does not hold")
    return 0 if kept else 1


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    raise SystemExit(main())
