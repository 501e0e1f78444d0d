# SPDX-License-Identifier: Apache-2.0
"""Claim: on a CPU the torch back end is a match for spconv: at no level of PTv3 does it take over 1.75 times as long.

7-Scenes RedKitchen at 5 cm (18,642 voxels, surfaces) and a nuScenes keyframe at 5 cm (23,112 voxels, scattered): the
stem and the widths of PTv3 at the resolutions where it uses them, float32. `table` is what a level costs once: finding
the neighbours. Ratios are spconv / torch: above 1, torch is the faster one.

    python benchmarks/sparse_conv.py [--rounds 15]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from _harness import data_folder, environment, interleaved, write_results
from plyfile import PlyData
from torch import Tensor

from ditr_cache.models.sparse_conv import SubmanifoldConv3d, neighbours

VOXEL = 0.05
TARGET = 1 / 1.75
BACKENDS = ("torch", "spconv")
# pooling, kernel size, input and output width
LAYERS = (
    (0, 5, 6, 32),
    (0, 3, 32, 32),
    (0, 3, 64, 64),
    (1, 3, 64, 64),
    (2, 3, 128, 128),
    (3, 3, 256, 256),
    (4, 3, 512, 512),
)


@dataclass(frozen=True)
class Cloud:
    name: str
    grid: Tensor

    def pooled(self, level: int) -> tuple[Tensor, Tensor]:
        """Voxels of a coarser level and the cloud that each belongs to."""
        grid = torch.unique(self.grid >> level, dim=0)
        return grid, torch.zeros(len(grid), dtype=torch.int64)


def clouds(folder: Path) -> Iterator[Cloud]:
    vertex = PlyData.read(str(folder / "nerfstudio" / "redkitchen" / "points.ply"))["vertex"]
    lidar = next((folder / "nuscenes" / "samples" / "LIDAR_TOP").iterdir())
    for name, coord in (
        ("redkitchen", np.stack([vertex["x"], vertex["y"], vertex["z"]], 1)),
        ("nuscenes", np.fromfile(lidar, np.float32).reshape(-1, 5)[:, :3]),
    ):
        grid = torch.from_numpy(np.floor(coord.astype(np.float64) / VOXEL).astype(np.int64))
        yield Cloud(name, grid - grid.amin(0))


def measure(cloud: Cloud, level: int, kernel: int, widths: tuple[int, int], rounds: int) -> dict[str, object]:
    grid, batch = cloud.pooled(level)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(grid), widths[0], generator=generator)
    weight = torch.randn(widths[1], kernel, kernel, kernel, widths[0], generator=generator) / widths[0]
    functions: dict[str, Callable[[], object]] = {}
    outputs = {}
    for backend in BACKENDS:
        layer = SubmanifoldConv3d(*widths, kernel, bias=False, backend=backend)
        with torch.no_grad():
            layer.weight.copy_(weight)
        table = neighbours(grid, batch, kernel, backend)
        # the stem's input is data, which no gradient is wanted of
        leaf = x.clone().requires_grad_(kernel == 3)

        def forward(layer=layer, table=table, leaf=leaf) -> Tensor:
            with torch.no_grad():
                return layer(leaf, table)

        def step(layer=layer, table=table, leaf=leaf) -> None:
            layer(leaf, table).sum().backward()

        def build(backend=backend, layer=layer) -> object:
            # spconv finds its pairs in the first convolution: add the cheapest one to both
            narrow = SubmanifoldConv3d(1, 1, kernel, bias=False)
            with torch.no_grad():
                return narrow(x[:, :1].contiguous(), neighbours(grid, batch, kernel, backend))

        functions |= {f"{backend}_forward": forward, f"{backend}_step": step, f"{backend}_table": build}
        outputs[backend] = forward()
    error = float((outputs["torch"] - outputs["spconv"]).abs().max() / outputs["spconv"].abs().max())
    times = interleaved(functions, rounds)
    ratios = {
        kind: times[f"spconv_{kind}"]["median"] / times[f"torch_{kind}"]["median"]
        for kind in ("forward", "step", "table")
    }
    return {
        "cloud": cloud.name,
        "level": level,
        "kernel": kernel,
        "widths": widths,
        "voxels": len(grid),
        "fill": neighbours(grid, batch, kernel, "torch").convolution.pairs.fill,
        "relative_error": error,
        "ratios": ratios,
        "seconds": times,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{environment()['cpu']}; {torch.get_num_threads()} threads; milliseconds torch / spconv (ratio)")
    rows = []
    for cloud in clouds(data_folder()):
        for level, kernel, *widths in LAYERS:
            row = measure(cloud, level, kernel, tuple(widths), rounds)
            rows.append(row)
            cells = []
            for kind, ratio in row["ratios"].items():
                ours, theirs = (row["seconds"][f"{backend}_{kind}"]["median"] * 1e3 for backend in BACKENDS)
                cells.append(f"{kind} {ours:7.2f} / {theirs:7.2f} ({ratio:4.2f}x)")
            shape = f"{cloud.name:10s} level {level} k{kernel} {widths[0]:3d}->{widths[1]:3d} {row['voxels']:6d} voxels"
            print(f"{shape} fill {row['fill']:.2f}  {'  '.join(cells)}  error {row['relative_error']:.0e}", flush=True)
    slowest = {kind: min(row["ratios"][kind] for row in rows) for kind in ("forward", "step", "table")}
    print("slowest ratios " + ", ".join(f"{kind} {ratio:.2f}x" for kind, ratio in slowest.items()))
    write_results(
        "sparse_conv",
        {
            "threads": torch.get_num_threads(),
            "spconv": version("spconv-cu120"),
            "target_ratio": TARGET,
            "slowest_ratios": slowest,
            "layers": rows,
        },
    )
    return 0 if min(slowest["forward"], slowest["step"]) >= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
