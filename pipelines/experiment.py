# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates all arms of an experiment with all seeds, and makes a table of them.

Every arm is an ordinary run folder, and what is there is not done again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ditr_cache.config import canonical_json, load_config
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import CheckpointError, ConfigError, DitrCacheError
from ditr_cache.pipelines.distill import Distill
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.experiment_checks import check_images, check_settings
from ditr_cache.pipelines.experiment_picture import draw_rows
from ditr_cache.pipelines.experiment_plans import EXPERIMENTS, Arm, Plan
from ditr_cache.pipelines.experiment_table import Row, csv_table, markdown_table, rows_of
from ditr_cache.pipelines.labelling import LabelOptions
from ditr_cache.pipelines.pull import Pull
from ditr_cache.pipelines.train import Train
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.locate import DEFAULT_CACHE_SIZE
from ditr_cache.store.reader import FeatureStore, open_store
from ditr_cache.store.subset import Selection
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.dataset import split_samples
from ditr_cache.training.distill_config import DistillConfig, without_labels
from ditr_cache.training.distributed import pick_device
from ditr_cache.training.limited import limit_scenes
from ditr_cache.training.seeding import rng_for
from ditr_cache.training.store_check import check_complete
from ditr_cache.training.tracking import Nobody, Tracker

__all__ = ["Experiment", "ExperimentReport", "PlannedRun"]

_SEVERAL = ("backbones", "online")
"""Experiments on any number of stores of the same samples."""
SCORES = "scores.json"
"""In the folder of a run that was evaluated."""


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
        ConfigError: If there is no such experiment, or the stores do not suit it.
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
        self.name, self.out, self._locations = name, out, tuple(stores)
        self._layers, self._overrides, self._seeds = tuple(layers), tuple(overrides), tuple(seeds)
        self._cache: dict[str, Any] = {"cache_dir": cache_dir, "cache_size": cache_size}
        self._allow_incomplete = allow_incomplete
        self._tracker = tracker or (lambda _: nullcontext(Nobody()))
        self._opened: list[FeatureStore] = [open_store(store, **self._cache) for store in stores]
        for store in self._opened:
            check_complete(store, allow_incomplete=allow_incomplete)
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
        self.plan: Plan = EXPERIMENTS[name](self._opened)
        check_settings(name, self.plan, self._layers, self._overrides)
        if source is not None:
            check_images(source, self._opened[0])
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
                folder = self.out / f"{arm.name}-{seed}"
                found.append(PlannedRun(arm, seed, folder, (folder / SCORES).is_file()))
        return found

    def run(self) -> ExperimentReport:
        """Do what is not done, and write `table.md`, `table.csv`, `plot.png` and `results.json`.

        Raises:
            ConfigError: If the folder holds another experiment.
            CheckpointError: If what an earlier call wrote cannot be read.
        """
        self._claim()
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
        return self._write(failures)

    def _do(self, planned: PlannedRun) -> None:
        arm, seed = planned.arm, planned.seed
        store = self._store(arm)
        settings = [*self._overrides, *arm.settings, f"run.seed={seed}"]
        if arm.distilled:
            pretrained = self._distil(seed)
            if pretrained is None:
                return
            settings.append(f"init.distilled={pretrained}")
        if arm.percent < 100:
            settings += self._fewer(arm.percent, seed)
        config = load_config(TrainConfig, self._layers, settings)
        with self._tracker(planned.folder.name) as tracker:
            train = self._train(arm, store, planned.folder, config, tracker)
            if self._interruptible(train).interrupted:
                return
        options = LabelOptions(allow_incomplete=self._allow_incomplete, **self._cache)
        scores = Evaluate(planned.folder, store, options).run().scores
        parts = {"miou": scores.overall, "visible": scores.visible, "invisible": scores.invisible}
        found = {key: part.miou for key, part in parts.items()}
        Filesystem().replace(planned.folder / SCORES, json.dumps(found).encode() + b"\n")

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
        layers = [without_labels(dict(layer)) for layer in self._layers]
        config = load_config(DistillConfig, layers, [*self._shared(), f"run.seed={seed}"])
        with self._tracker(folder.name) as tracker:
            distill = Distill(self._locations, folder, config, resume=True, tracker=tracker, **self._options())
            return None if self._interruptible(distill).interrupted else folder.absolute()

    def _shared(self) -> list[str]:
        """Overrides that mean something to distillation, too."""
        return [
            text
            for text in self._overrides
            if not text.startswith(("loss.", "init.", "store.", "model.injection", "data.annotations"))
        ]

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

    def _fewer(self, percent: int, seed: int) -> list[str]:
        """Some of the training samples, and so many more passes over them. Small sets are part of the larger ones."""
        config = load_config(TrainConfig, self._layers, self._overrides)
        ids = split_samples(self._opened[0], config.data.train_splits)
        if config.data.scenes is not None:
            ids = limit_scenes(ids, config.data.scenes)
        keep = max(1, round(len(ids) * percent / 100))
        chosen = sorted(ids[i] for i in rng_for(seed, "experiment", "samples").permutation(len(ids))[:keep].tolist())
        path = self.out / f"samples-{percent:03d}-{seed}.txt"
        Filesystem().replace(path, "".join(f"{name}\n" for name in chosen).encode())
        loop = max(1, round(config.data.loop * len(ids) / keep))
        return [f"data.scenes={path.absolute()}", f"data.loop={loop}"]

    def _claim(self) -> None:
        """Say what the folder is, or see that it is the same."""
        about = {
            "experiment": self.name,
            "stores": [store.digest for store in self._opened],
            "settings": load_config(TrainConfig, self._layers, self._overrides).model_dump(mode="json"),
        }
        path, fs = self.out / "experiment.json", Filesystem()
        if path.exists():
            there = _read(path)
            differ = [key for key, value in about.items() if canonical_json(there.get(key)) != canonical_json(value)]
            if differ:
                raise ConfigError(
                    f"the folder holds another experiment ({', '.join(differ)} differ)",
                    where=self.out,
                    hint="Give the same command again to go on with it, or name another folder.",
                )
            return
        fs.make_folder(self.out)
        fs.replace(path, json.dumps(about, indent=1).encode() + b"\n")

    def _write(self, failures: Mapping[str, str]) -> ExperimentReport:
        single: dict[str, dict[str, dict[str, float]]] = {}
        for planned in self.runs():
            if planned.done:
                found = _read(planned.folder / SCORES)
                single.setdefault(planned.arm.name, {})[str(planned.seed)] = found
        rows, fs = rows_of(self.plan, single), Filesystem()
        fs.replace(self.out / "results.json", json.dumps(single, indent=1).encode() + b"\n")
        fs.replace(self.out / "table.md", markdown_table(self.plan, rows, failures).encode())
        fs.replace(self.out / "table.csv", csv_table(rows).encode())
        if rows:
            draw_rows(self.plan.title, rows).save(self.out / "plot.png")
        return ExperimentReport(
            self.name, self.plan.title, str(self.out), rows, failures, self.plan.notes, self._stop.is_set()
        )


def _read(path: Path) -> dict[str, Any]:
    """What an earlier call wrote.

    Raises:
        CheckpointError: If it is something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot be read", where=path, hint="Remove it, and give the command again.") from error
    if not isinstance(found, dict):
        raise CheckpointError("is not what an experiment writes", where=path)
    return found
