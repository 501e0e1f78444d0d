# SPDX-License-Identifier: Apache-2.0
"""What image features cost a network, from the store and with the ViT in every step (paper, Resource Usage)."""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.bench_arms import ARMS, Arm, ArmName, ArmSettings
from ditr_cache.pipelines.bench_memory import Peaks, measure_memory
from ditr_cache.pipelines.bench_scenes import BenchScene, generated_scene, stored_scenes
from ditr_cache.pipelines.bench_vit import VitChoice
from ditr_cache.pipelines.probe_points import evenly
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.store.locate import DEFAULT_CACHE_SIZE
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distributed import pick_device

__all__ = ["PAPER", "ArmReport", "ModelBench", "ModelBenchReport", "Quartiles"]

PAPER: Mapping[str, Any] = {
    "source": "arXiv 2503.18944, Resource Usage",
    "measured_on": "ScanNet200, ViT-L DINOv2, 10 views; training on two H100 GPUs, inference and memory on one",
    "training_h": {"ptv3": 12, "online": 15},
    "inference_ms": {"ptv3": 41, "online": 76},
    "inference_gib": {"ptv3": 1.4, "online": 5.6},
}
"""What the authors measured, with their code, for the network without and with images. Context, and no comparison."""


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Of the rounds."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Of at least one value."""
        q1, median, q3 = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, q1, q3)


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One network."""

    parameters: int
    """That are trained."""
    training_s: Quartiles
    """A step on one cloud."""
    inference_s: Quartiles
    vit_s: float | None
    """Median of the ViT's part of inference; its part of a training step is the same work."""
    training_ratio: Quartiles
    """To PTv3 in the same round."""
    inference_ratio: Quartiles
    memory: Peaks | None
    """None if it was not measured, or memory ran out."""


@dataclass(frozen=True, slots=True)
class ModelBenchReport:
    """What was measured."""

    network: str
    """`ptv3` or `minkunet`: what is called `ptv3` in `networks`."""
    store: str | None
    """None: a generated hall."""
    samples: tuple[str, ...]
    points: int
    """Of the clouds, on average."""
    rows: int
    """Of stored features that a cloud looks up, on average."""
    views: int
    images: tuple[tuple[int, int], ...]
    """Heights and widths, pixels."""
    dim: int
    """D."""
    vit: str
    vit_why: str
    vit_dtype: str
    random_weights: bool
    """Of the ViT; those of the networks always are."""
    rounds: int
    amp: str
    """Autocast of the training step."""
    device: str
    threads: int
    read_s: float | None
    """Median of reading a cloud from the store, which no network's time includes."""
    networks: Mapping[str, ArmReport]
    """`ptv3` (points only), `cached`, `online`."""
    online_over_cached: Mapping[str, Quartiles]
    """`training` and `inference`, of times in the same round."""
    paper: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class ModelBench:
    """Times three networks on the same clouds, in turn, in another order every round.

    Args:
        config: Settings of the network, the data path and the training step.
        vit: The one that the online network runs.
        store: Folder or URL of a store, for real clouds; None: a generated hall.
        samples: Clouds of the store, evenly spread over it.
        points: Of the generated hall.
        rounds: Measured calls of each network, after one for each cloud that is not; at least one a cloud.
        memory: Also measure memory, in a fresh process for each network.
        cache_dir: Where to keep what was read from a server; None: nowhere.
        cache_size: Bytes that the cache may take.
        progress: Who listens; counts calls.

    Raises:
        ConfigError: If the settings inject no patch features.
    """

    def __init__(
        self,
        config: TrainConfig,
        vit: VitChoice,
        store: str | os.PathLike[str] | None = None,
        *,
        samples: int = 3,
        points: int = 20_000,
        rounds: int = 5,
        memory: bool = True,
        cache_dir: Path | None = None,
        cache_size: int = DEFAULT_CACHE_SIZE,
        progress: Progress | None = None,
    ) -> None:
        if config.model.injection in ("none", "cls"):
            raise ConfigError(
                f"nothing to compare: injection is {config.model.injection!r}, which takes no patch features",
                where="model.injection",
                hint="For example: -s model.injection=decoder",
            )
        self._config, self._vit, self._store = config, vit, store
        self._samples, self._points, self._rounds, self._memory = samples, points, rounds, memory
        self._cache_dir, self._cache_size = cache_dir, cache_size
        self._progress: Progress = progress or Silent()
        self._device = pick_device(config.run.device)

    def run(self) -> ModelBenchReport:
        """Measure.

        Raises:
            ConfigError: If the ViT's features have other channels than the store's, or the store lacks an array.
            StoreError: If something cannot be read.
            WeightsUnavailableError: If the ViT's weights cannot be had.
        """
        # only here: nothing else of training ever loads a ViT
        from ditr_cache.backbones import load_backbone

        if self._config.run.threads is not None:
            torch.set_num_threads(self._config.run.threads)
        vit = load_backbone(self._vit.config, str(self._device))
        names, scenes = self._scenes(vit.patch_size, vit.dim)
        dim = scenes[0].cached.rows.shape[1]
        if dim != vit.dim:
            raise ConfigError(
                f"the store's features have {dim} channels, and those of {self._vit.name} have {vit.dim}",
                hint="Name a backbone of as many with --backbone NAME or --weights DIR.",
            )
        classes = max(scene.classes for scene in scenes)
        settings = {name: ArmSettings(name, self._config, classes, dim, str(self._device)) for name in ARMS}
        rounds = max(self._rounds, len(scenes))
        calls = 2 * len(ARMS) * (len(scenes) + rounds)
        self._progress.begin(calls + (len(ARMS) if self._memory else 0))
        try:
            # first: later this process is larger, which a machine that is short of memory would feel
            largest = max(scenes, key=lambda scene: len(scene.batch.coord))
            peaks = {name: self._measure(settings[name], largest) for name in ARMS} if self._memory else {}
            arms = {name: Arm(settings[name], vit if name == "online" else None) for name in ARMS}
            training = self._time({name: arm.train for name, arm in arms.items()}, scenes, rounds)
            for arm in arms.values():
                arm.vit_s.clear()
            inference = self._time({name: arm.infer for name, arm in arms.items()}, scenes, rounds)
        finally:
            self._progress.end()
        reads = [scene.read_s for scene in scenes if scene.read_s is not None]
        return ModelBenchReport(
            network=self._config.model.network,
            store=None if self._store is None else str(self._store),
            samples=names,
            points=round(np.mean([len(scene.batch.coord) for scene in scenes])),
            rows=round(np.mean([len(scene.cached.rows) for scene in scenes])),
            views=max(scene.views for scene in scenes),
            images=tuple(sorted({(i.shape[2], i.shape[3]) for scene in scenes for i in scene.images})),
            dim=dim,
            vit=self._vit.name,
            vit_why=self._vit.why,
            vit_dtype=self._vit.config.dtype,
            random_weights=self._vit.random_weights,
            rounds=rounds,
            amp=arms["ptv3"].amp,
            device=_device_name(self._device),
            threads=torch.get_num_threads(),
            read_s=float(np.median(reads)) if reads else None,
            networks={
                name: ArmReport(
                    parameters=arm.parameters,
                    training_s=Quartiles.of(training[name]),
                    inference_s=Quartiles.of(inference[name]),
                    vit_s=float(np.median(arm.vit_s)) if arm.vit_s else None,
                    training_ratio=_ratio(training, name, "ptv3"),
                    inference_ratio=_ratio(inference, name, "ptv3"),
                    memory=peaks.get(name),
                )
                for name, arm in arms.items()
            },
            online_over_cached={
                "training": _ratio(training, "online", "cached"),
                "inference": _ratio(inference, "online", "cached"),
            },
            paper=PAPER,
        )

    def _scenes(self, patch_size: int, dim: int) -> tuple[tuple[str, ...], list[BenchScene]]:
        data = self._config.data
        if self._store is None:
            views = data.views.evaluation_count or 10
            return (), [generated_scene(self._points, views, dim, patch_size, data.channels)]
        with open_store(self._store, cache_dir=self._cache_dir, cache_size=self._cache_size) as store:
            ids = tuple(store.samples)
            if not ids:
                raise ConfigError("the store has no samples", where=store.root)
            some = evenly(ids, self._samples)
            return some, stored_scenes(store, some, self._config, patch_size)

    def _measure(self, settings: ArmSettings, scene: BenchScene) -> Peaks | None:
        peaks = measure_memory(settings, scene, self._vit.config if settings.name == "online" else None)
        self._progress.advance(1)
        return peaks

    def _time(
        self, calls: Mapping[ArmName, Callable[[BenchScene], object]], scenes: Sequence[BenchScene], rounds: int
    ) -> dict[ArmName, list[float]]:
        """Seconds by network, a value a round; the clouds take turns."""
        shuffler = random.Random(0)
        times: dict[ArmName, list[float]] = {name: [] for name in calls}
        for turn in range(-len(scenes), rounds):
            for name, call in shuffler.sample(list(calls.items()), len(calls)):
                start = time.perf_counter()
                call(scenes[turn % len(scenes)])
                if turn >= 0:
                    times[name].append(time.perf_counter() - start)
                self._progress.advance(1)
        return times


def _ratio(times: Mapping[ArmName, Sequence[float]], name: ArmName, to: ArmName) -> Quartiles:
    return Quartiles.of((np.array(times[name]) / np.array(times[to])).tolist())


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or platform.machine()
