# SPDX-License-Identifier: Apache-2.0
"""Claim: a step of DITR from the store costs at most 1.08 of a step of PTv3 alone, at D = 384 and at D = 1024, and a
step of distillation (D-DITR) at most 1.10 of it, at D = 1024.

The full-size network (46 M parameters), torch back end, float32, AdamW, on 7-Scenes RedKitchen at 5 cm (18,642 voxels)
with the real lookup of ten views; what the rows hold does not matter for time, so they are random. Every round runs all
four networks, in another order each time; ratios are medians of ratios within a round. With it go the absolute limits
for two cores (forward 1.5 s, step 5 s), the injection alone, and where the time of a step goes.

    python benchmarks/training_step.py [--rounds 12] [--device cuda]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _harness import environment, write_results
from injection import load

from ditr_cache.config.model import ModelConfig
from ditr_cache.models.distiller import Distiller
from ditr_cache.models.losses import cross_entropy
from ditr_cache.models.random import draw_weights
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.training.objective import CosineObjective
from ditr_cache.types import FactoredFeatures, PointBatch

VOXEL = 0.05
CLASSES = 20
TARGETS = {"384": 1.08, "1024": 1.08, "distillation 1024": 1.10}
FORWARD_LIMIT, STEP_LIMIT = 1.5, 5.0
GROUPS = {
    "sparse convolution": ("_ByPairs", "_ByTable"),
    "attention": ("scaled_dot_product", "_flash_attention"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::addmm_"),
    "gather and scatter": ("aten::index", "aten::gather", "aten::scatter", "aten::take"),
    "norms": ("layer_norm", "batch_norm", "_NormaliseRows"),
    "injection": ("_NarrowLinear",),
    "GELU": ("gelu",),
    "optimiser": ("Optimizer", "_foreach", "_fused_adam"),
}


class Arm:
    """One network and what its step needs."""

    def __init__(self, batch: PointBatch, index: torch.Tensor, rows: int, dim: int | None, device: str) -> None:
        config = ModelConfig(injection="none" if dim is None else "decoder")
        self.model = Segmentor(config, 6, CLASSES, dim)
        draw_weights(self.model, torch.Generator().manual_seed(0))
        self.model.to(device)
        generator = torch.Generator().manual_seed(1)
        points = len(batch.coord)
        image = None
        if dim is not None:
            image = FactoredFeatures(torch.randn(rows, dim, generator=generator).half(), index)
        self.batch = PointBatch(
            batch.grid_coord, batch.coord, torch.randn(points, 6, generator=generator), batch.offset, image
        ).to(device)
        self.labels = torch.randint(0, CLASSES, (points,), generator=generator).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-5)

    def loss(self) -> torch.Tensor:
        """Of labels."""
        logits = self.model(self.batch, generator=torch.Generator().manual_seed(2))
        return cross_entropy(logits, self.labels)

    def forward(self) -> None:
        """As in evaluation."""
        self.model.eval()
        with torch.no_grad():
            self.model(self.batch, generator=torch.Generator().manual_seed(2))
        _wait()

    def step(self) -> None:
        """Forward, backward, update."""
        self.model.train()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        _wait()


class DistillationArm(Arm):
    """The network regresses the rows instead."""

    def __init__(self, batch: PointBatch, index: torch.Tensor, rows: int, dim: int, device: str) -> None:
        super().__init__(batch, index, rows, None, device)
        self.model = Distiller(ModelConfig(injection="none"), 6, (dim,))
        draw_weights(self.model, torch.Generator().manual_seed(0))
        self.model.to(device)
        features = torch.randn(rows, dim, generator=torch.Generator().manual_seed(1)).half()
        self.batch = replace(self.batch, image=FactoredFeatures(features, index).to(device))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-5)

    def loss(self) -> torch.Tensor:
        """Of features."""
        cosine = self.model(self.batch, generator=torch.Generator().manual_seed(2))
        return CosineObjective()(cosine, self.batch)


def rounds_of(functions: dict[str, Callable[[], None]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds by name, a value a round; another order every round."""
    shuffler = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + rounds):
        for name, function in shuffler.sample(list(functions.items()), len(functions)):
            start = time.perf_counter()
            function()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], name: str) -> dict[str, float]:
    """Of a network to PTv3 alone, within rounds."""
    q1, median, q3 = np.quantile(np.array(times[name]) / np.array(times["plain"]), (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "q1": q1, "q3": q3}


def profile(arm: Arm) -> dict[str, float]:
    """Share of a step's time by kind of operation."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as prof:
        arm.step()
    shares: dict[str, float] = dict.fromkeys([*GROUPS, "other"], 0.0)
    for event in prof.events():
        own = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        shares[_group(event)] += own
    total = sum(shares.values())
    return {name: own / total for name, own in sorted(shares.items(), key=lambda item: -item[1])}


def _group(event: Any) -> str:
    """The kind of operation that an event belongs to: the outermost one above it that has a kind."""
    found = "other"
    while event is not None:
        found = next((g for g, words in GROUPS.items() if any(word in event.name for word in words)), found)
        event = event.cpu_parent
    return found


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    batch, index, rows = load(VOXEL)
    arms = {
        name: Arm(batch, index, rows, dim, args.device) for name, dim in (("plain", None), ("384", 384), ("1024", 1024))
    }
    arms["distillation 1024"] = DistillationArm(batch, index, rows, 1024, args.device)
    points = len(batch.coord)
    print(f"{environment()['cpu']}; {torch.get_num_threads()} threads; {points:,} points, {rows:,} rows")
    steps = rounds_of({name: arm.step for name, arm in arms.items()}, args.rounds, 2)
    forwards = rounds_of({name: arm.forward for name, arm in arms.items()}, args.rounds, 1)
    result = {
        "device": args.device,
        "points": points,
        "rows": rows,
        "threads": torch.get_num_threads(),
        "target_ratio": TARGETS,
        "step_ratio": {name: ratio(steps, name) for name in TARGETS},
        "forward_ratio": {name: ratio(forwards, name) for name in TARGETS},
        "step_seconds": {name: float(np.median(values)) for name, values in steps.items()},
        "forward_seconds": {name: float(np.median(values)) for name, values in forwards.items()},
        "injection_seconds": {
            name: float(np.median(np.array(steps[name]) - np.array(steps["plain"]))) for name in ("384", "1024")
        },
        "limits_seconds": {"forward": FORWARD_LIMIT, "step": STEP_LIMIT},
        "profile_of_a_step": {name: profile(arms[name]) for name in ("plain", "1024", "distillation 1024")},
    }
    for kind in ("step", "forward"):
        for name, found in result[f"{kind}_ratio"].items():
            print(
                f"{kind}, {name}: {found['median']:.3f} of PTv3 alone (q1 {found['q1']:.3f}, q3 {found['q3']:.3f}); "
                f"{result[f'{kind}_seconds'][name]:.2f} s, PTv3 {result[f'{kind}_seconds']['plain']:.2f} s"
            )
    for name, share in result["profile_of_a_step"]["1024"].items():
        print(f"  {name:20s} {share:6.1%}")
    write_results("training_step" if args.device == "cpu" else f"training_step_{args.device}", result)
    met = all(result["step_ratio"][name]["median"] <= target for name, target in TARGETS.items())
    return 0 if met else 1


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
