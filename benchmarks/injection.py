# SPDX-License-Identifier: Apache-2.0
"""Claim: factored injection needs at most half the time and half the memory of injection by points.

7-Scenes RedKitchen at 2 cm, ten views as in evaluation, all four levels of the decoder with the official widths:
pooling of the image features over the encoder's clusters, then linear, batch norm, GELU and their gradients. The lookup
is the real one; what the rows hold does not matter, so they are random. Both ways start from the rows that a loader
delivers.

    python benchmarks/injection.py [--device cuda]
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _harness import data_folder, interleaved, write_results
from _stores import REDKITCHEN
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditr_cache.config.model import ModelConfig
from ditr_cache.datasets import open_dataset
from ditr_cache.fusion import factor
from ditr_cache.geometry import find_hits
from ditr_cache.models.injection import ImageInjection
from ditr_cache.models.ptv3.images import DenseImage, FactoredImage
from ditr_cache.models.ptv3.level import Clusters, build_pyramid
from ditr_cache.types import FactoredFeatures, PointBatch

VOXEL = 0.02
VIEWS = 10
TARGET = 0.5
MODEL = ModelConfig(shuffle_orders=False)


def load(voxel: float = VOXEL) -> tuple[PointBatch, torch.Tensor, int]:
    """The cloud on a grid, the row of each point (-1 unseen), and the number of rows."""
    dataset = open_dataset(data_folder() / REDKITCHEN.folder)
    scene = dataset.load(dataset.plan()[0].samples[0].id)
    coord, grid = scene.points.coord, REDKITCHEN.grid
    index_N = np.full(len(coord), -1, np.int32)
    rows = 0
    # strided, and of several views that see a point the last one serves it: the rule of evaluation
    for view in scene.views[:: len(scene.views) // VIEWS][:VIEWS]:
        assert view.depth is not None
        hits = find_hits(coord, scene.points.origin, [view.camera], [view.depth.read()], [grid], REDKITCHEN.rule)[0]
        found = factor(hits, grid)
        index_N[found.hit_point] = rows + found.hit_row.astype(np.int32)
        rows += len(found.row_patch)
    grid_coord = np.floor((coord - coord.min(0)) / voxel).astype(np.int32)
    _, first = np.unique(grid_coord, axis=0, return_index=True)
    batch = PointBatch(
        grid_coord=torch.from_numpy(grid_coord[first]),
        coord=torch.from_numpy(coord[first]),
        feat=torch.zeros(len(first), 6),
        offset=torch.tensor([len(first)]),
    )
    return batch, torch.from_numpy(index_N[first]), rows


class LiveBytes(TorchDispatchMode):
    """The most memory that tensors made within held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def watch(self, *inputs: torch.Tensor) -> None:
        """Leave these out: they were there before."""
        self._known.update(t.untyped_storage()._cdata for t in inputs)

    def _add(self, storage: Any) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def inject(
    start: Callable[[], FactoredImage | DenseImage], clusters: tuple[Clusters, ...], layers: list[ImageInjection]
) -> list[int]:
    """Forward and backward of all levels; rows of each."""
    image, total, sizes = start(), torch.zeros(()), []
    for level, layer in enumerate(layers):
        total = total.to(layer[1].weight.device) + image.injected(layer, None).square().mean()
        sizes.append(len(image.features.rows) if isinstance(image, FactoredImage) else len(image.image_ND))
        if level + 1 < len(layers):
            image = image.pooled(clusters[level])
    total.backward()
    for layer in layers:
        layer.zero_grad(set_to_none=True)
    return sizes


def measure(channels: int, device: str, rounds: int) -> dict[str, Any]:
    """Time and peak memory of the three ways."""
    batch, index_N, rows = load()
    pyramid = build_pyramid(batch.to(device), MODEL, torch.arange(4).expand(5, -1))
    rows_PD = torch.randn(rows, channels, generator=torch.Generator().manual_seed(0)).half()
    narrow = FactoredFeatures(rows_PD, index_N).to(device)
    wide = replace(narrow, rows=narrow.rows.float())
    layers = [ImageInjection(channels, width).to(device) for width in MODEL.dec_channels]
    starts: dict[str, Callable[[], FactoredImage | DenseImage]] = {
        "factored float16": lambda: FactoredImage(narrow, "official"),
        "factored float32": lambda: FactoredImage(wide, "official"),
        "dense": lambda: DenseImage.of(wide, "official"),
    }
    sizes, peaks = {}, {}
    for name, start in starts.items():
        inject(start, pyramid.clusters, layers)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            sizes[name] = inject(start, pyramid.clusters, layers)
            peaks[name] = torch.cuda.max_memory_allocated() - before
        else:
            with LiveBytes() as live:
                live.watch(narrow.rows, wide.rows, narrow.index, *(p for layer in layers for p in layer.parameters()))
                sizes[name] = inject(start, pyramid.clusters, layers)
            peaks[name] = live.peak

    def timed(start: Callable[[], FactoredImage | DenseImage]) -> Callable[[], None]:
        def run() -> None:
            inject(start, pyramid.clusters, layers)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    times = interleaved({name: timed(start) for name, start in starts.items()}, rounds)
    return {
        "channels": channels,
        "points": [len(level) for level in pyramid.levels[:-1]],
        "rows delivered": rows,
        "rows": sizes["factored float16"],
        "seconds": times,
        "peak bytes": peaks,
        "time ratio": {n: times[n]["median"] / times["dense"]["median"] for n in times},
        "memory ratio": {n: peaks[n] / peaks["dense"] for n in peaks},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = {str(d): measure(d, options.device, options.rounds) for d in (384, 1024)}
    held = True
    for result in results.values():
        print(f"D = {result['channels']}: points {result['points']}, rows {result['rows']}")
        for name, times in result["seconds"].items():
            time, memory = result["time ratio"][name], result["memory ratio"][name]
            print(
                f"  {name:17} {times['median']:.3f} s ({times['q1']:.3f} to {times['q3']:.3f}), {time:.2f} of dense; "
                f"peak {result['peak bytes'][name] / 1e6:.0f} MB, {memory:.2f} of dense"
            )
            held &= name == "dense" or (time <= TARGET and memory <= TARGET)
    suffix = "" if options.device == "cpu" else f"_{options.device}"
    write_results(f"injection{suffix}", {"target": TARGET, "held": held, "threads": torch.get_num_threads(), **results})
    print(f"claim {'holds' if held else 'DOES NOT HOLD'}")
    sys.exit(not held)


if __name__ == "__main__":
    main()
