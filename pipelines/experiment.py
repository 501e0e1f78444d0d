# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates all arms of an experiment with all seeds, and makes a table of them.

Every arm is an ordinary run folder, and what is there is not done again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import ConfigError, DitrCacheError
from ditr_cache.pipelines.distill import Distill
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.experiment_checks import check_images, check_stores
from ditr_cache.pipelines.experiment_folder import ExperimentFolder
from ditr_cache.pipelines.experiment_plans import EXPERIMENTS, Arm, Plan, limited, of_network
from ditr_cache.pipelines.experiment_settings import ExperimentSettings
from ditr_cache.pipelines.experiment_table import Row
from ditr_cache.pipelines.labelling import LabelOptions
from ditr_cache.pipelines.pull import Pull
from ditr_cache.pipelines.train import Train
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.locate import DEFAULT_CACHE_SIZE
from ditr_cache.store.reader import FeatureStore, open_store
from ditr_cache.store.subset import Selection
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distributed import pick_device
from ditr_cache.training.seeding import rng_for
from ditr_cache.training.store_check import check_complete
from ditr_cache.training.tracking import Nobody, Tracker

__all__ = ["Experiment", "ExperimentReport", "PlannedRun"]

_SEVERAL = ("backbones", "online")
"""Experiments on any number of stores of the same samples."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One arm with one seed."""

    arm: Arm
    seed: int
    folder: Path
    done: bool


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """What came out."""

    name: str
    title: str
    out: str
    rows: tuple[Row, ...]
    failures: Mapping[str, str]
    """Run -> why it failed."""
    notes: tuple[str, ...]
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class _Stoppable(Protocol):
    def request_stop(self) -> None: ...


class Experiment:
    """Runs one.

    Args:
        name: One of `EXPERIMENTS`.
        stores: Folders or URLs; most experiments want one.
        out: Folder for runs, table and plot.
        layers: Settings of training below those of the arms.
        overrides: Further ones, as `-s` has them.
        seeds: A run for each.
        source: The data set, for `online`: a store holds no images.
        weights: Folder of the ViT, for `online`, where it is not one that goes by its name.
        allow_incomplete: Take stores of which blocks are missing.
        cache_dir: Where to keep what was read from a server; None: nowhere.
        cache_size: Bytes that the cache may take.
        tracker: Makes who listens to a run.

    Raises:
        ConfigError: If there is no such experiment, stores or settings do not suit it, or `out` holds something else.
        IdentityMismatchError: If the stores do not belong together.
        CheckpointError: If what an earlier call wrote into `out` cannot be read.
    """

    def __init__(
        self,
        name: str,
        stores: Sequence[str | os.PathLike[str]],
        out: Path,
        layers: Sequence[Mapping[str, Any]] = (),
        overrides: Sequence[str] = (),
        *,
        seeds: Sequence[int] = (0, 1, 2),
        source: Dataset | None = None,
        weights: Path | None = None,
        allow_incomplete: bool = False,
        cache_dir: Path | None = None,
        cache_size: int = DEFAULT_CACHE_SIZE,
        tracker: Callable[[str], AbstractContextManager[Tracker]] | None = None,
    ) -> None:
        if name not in EXPERIMENTS:
            raise ConfigError(f"no experiment {name!r}", hint=f"There are: {', '.join(EXPERIMENTS)}")
        self.name, self.out, self._locations, self._seeds = name, out, tuple(stores), tuple(seeds)
        self._cache: dict[str, Any] = {"cache_dir": cache_dir, "cache_size": cache_size}
        self._allow_incomplete = allow_incomplete
        self._tracker = tracker or (lambda _: nullcontext(Nobody()))
        self._opened: list[FeatureStore] = [open_store(store, **self._cache) for store in stores]
        for store in self._opened:
            check_complete(store, allow_incomplete=allow_incomplete)
            if not store.samples:
                raise ConfigError("the store has no samples", where=store.root)
        if name not in _SEVERAL and len(stores) != 1:
            raise ConfigError(f"{name} is an experiment on one store, not on {len(stores)}")
        if (name == "online") != (source is not None):
            if source is None:
                raise ConfigError(
                    "online needs the images", where="--source", hint="Name the data set that the store was made from."
                )
            raise ConfigError(f"{name} needs no images", where="--source", hint="It is for `online` alone.")
        if weights is not None and source is None:
            raise ConfigError(f"{name} runs no ViT", where="--weights", hint="It is for `online` alone.")
        self._source, self._weights = source, weights
        plan, self._settings = EXPERIMENTS[name](self._opened), ExperimentSettings(layers, overrides)
        self._settings.check(name, plan)
        self._sample_ids = check_stores(plan, self._settings, self._opened)[0].train.sample_ids
        self.plan: Plan = of_network(limited(plan, len(self._sample_ids)), self._settings.common.model.network)
        if source is not None:
            check_images(source, self._opened[0])
        digests = [store.digest for store in self._opened]
        self._folder = ExperimentFolder(out, name, digests, self._settings.common)
        self._folder.check()
        self._stop = threading.Event()
        self._running: _Stoppable | None = None

    def distillations(self) -> list[Path]:
        """Folders of what arms start from; one a seed, if any does."""
        needed = any(arm.distilled for arm in self.plan.arms)
        return [self.out / f"distilled-{seed}" for seed in self._seeds] if needed else []

    def request_stop(self) -> None:
        """Stop soon, with a checkpoint. Safe in signal handlers."""
        self._stop.set()
        if self._running is not None:
            self._running.request_stop()

    def runs(self) -> list[PlannedRun]:
        """All runs, in the order in which they are done: one seed after the other, so that a table comes early."""
        found = []
        for seed in self._seeds:
            for arm in self.plan.arms:
                run = f"{arm.name}-{seed}"
                found.append(PlannedRun(arm, seed, self.out / run, self._folder.is_done(run)))
        return found

    def run(self) -> ExperimentReport:
        """Do what is not done, and after every run write `table.md`, `table.csv`, `plot.png` and `results.json`.

        Raises:
            ConfigError: If the folder holds another experiment.
            CheckpointError: If what an earlier call wrote cannot be read.
        """
        self._folder.claim()
        failures: dict[str, str] = {}
        for planned in self.runs():
            if self._stop.is_set():
                break
            if planned.done:
                continue
            try:
                self._do(planned)
            except (DitrCacheError, torch.OutOfMemoryError) as error:
                # one arm that cannot be trained must not cost the others
                failures[planned.folder.name] = " ".join(str(error).split())
            self._write(failures)
        rows = self._write(failures)
        return ExperimentReport(
            self.name, self.plan.title, str(self.out), rows, failures, self.plan.notes, self._stop.is_set()
        )

    def _do(self, planned: PlannedRun) -> None:
        arm, seed = planned.arm, planned.seed
        store = self._store(arm)
        pretrained = self._distil(seed) if arm.distilled else None
        if arm.distilled and pretrained is None:
            return
        config = self._settings.of(arm, seed, pretrained, self._fewer(arm, seed))
        with self._tracker(planned.folder.name) as tracker:
            train = self._train(arm, store, planned.folder, config, tracker)
            if self._interruptible(train).interrupted:
                return
        options = LabelOptions(device=config.run.device, **self._options())
        scores = Evaluate(planned.folder, store, options).run().scores
        parts = {"miou": scores.overall, "visible": scores.visible, "invisible": scores.invisible}
        self._folder.keep(planned.folder.name, {key: part.miou for key, part in parts.items()})

    def _train(
        self, arm: Arm, store: str | os.PathLike[str], folder: Path, config: TrainConfig, tracker: Tracker
    ) -> Train:
        if not arm.online:
            return Train(store, folder, config, resume=True, tracker=tracker, **self._options())
        # not at the top: it brings the ViT, which no other arm needs
        from ditr_cache.pipelines.online import OnlineTrain, backbone_of

        assert self._source is not None
        device = str(pick_device(config.run.device))
        backbone = backbone_of(self._opened[arm.store].identity, self._weights, device)
        return OnlineTrain(
            self._source, backbone, store, folder, config, resume=True, tracker=tracker, **self._options()
        )

    def _distil(self, seed: int) -> Path | None:
        """The folder of a distillation on all training samples; None if it was interrupted."""
        folder = self.out / f"distilled-{seed}"
        config = self._settings.distillation(seed)
        with self._tracker(folder.name) as tracker:
            distill = Distill(self._locations, folder, config, resume=True, tracker=tracker, **self._options())
            return None if self._interruptible(distill).interrupted else folder.absolute()

    def _interruptible(self, pipeline: Any) -> Any:
        self._running = pipeline
        if self._stop.is_set():
            pipeline.request_stop()
        try:
            return pipeline.run()
        finally:
            self._running = None

    def _options(self) -> dict[str, Any]:
        return {"allow_incomplete": self._allow_incomplete, **self._cache}

    def _store(self, arm: Arm) -> str | os.PathLike[str]:
        if not arm.int8:
            return self._locations[arm.store]
        copy = self.out / "int8.store"
        Pull(self._locations[arm.store], copy, Selection(dtype="int8")).run()
        return copy

    def _fewer(self, arm: Arm, seed: int) -> list[str]:
        """Some of the training samples, and so many more passes over them. Small sets are part of the larger ones."""
        if arm.samples is None:
            return []
        ids = self._sample_ids
        order = rng_for(seed, "experiment", "samples").permutation(len(ids))
        chosen = sorted(ids[i] for i in order[: arm.samples].tolist())
        path = self.out / f"samples-{arm.percent:03d}-{seed}.txt"
        Filesystem().replace(path, "".join(f"{name}\n" for name in chosen).encode())
        loop = max(1, round(self._settings.common.data.loop * len(ids) / arm.samples))
        return [f"data.scenes={path.absolute()}", f"data.loop={loop}"]

    def _write(self, failures: Mapping[str, str]) -> tuple[Row, ...]:
        single: dict[str, dict[str, dict[str, float]]] = {}
        for planned in self.runs():
            if planned.done:
                found = self._folder.scores(planned.folder.name)
                single.setdefault(planned.arm.name, {})[str(planned.seed)] = found
        return self._folder.write(self.plan, single, failures)
