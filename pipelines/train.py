# SPDX-License-Identifier: Apache-2.0
"""Stage two: PTv3 + DITR learns from the store. The ViT never runs, and nothing here can reach it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from ditr_cache.pipelines.learn import Done, Learn, LearnOptions, Parts, device_name
from ditr_cache.pipelines.train_build import build_batches, build_evaluation, build_model, build_step, loader_config
from ditr_cache.pipelines.train_estimate import estimate
from ditr_cache.pipelines.train_report import TrainEstimate, TrainReport
from ditr_cache.training.checkpoint import Checkpoint
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distilled import origin
from ditr_cache.training.distributed import World, join
from ditr_cache.training.loader import LoaderConfig
from ditr_cache.training.metrics import SegmentationScores
from ditr_cache.training.settle import settled
from ditr_cache.training.store_check import (
    check_classes,
    check_expected,
    check_limits,
    check_same,
    coordinates,
    coordinates_digest,
)
from ditr_cache.training.task import Task

__all__ = ["Train"]


class Train(Learn[TrainConfig, Task, TrainReport]):
    """Runs stage two; see `Learn.run` for errors.

    Args:
        store: A folder or a URL.
        run: Folder of the run.
        config: All settings.
        options: As `LearnOptions`.
    """

    kind = "train"
    schema = TrainConfig

    def __init__(
        self, store: str | os.PathLike[str], run: Path, config: TrainConfig, **options: Unpack[LearnOptions]
    ) -> None:
        super().__init__(run, config, **options)
        self.store = store

    def estimate(self) -> TrainEstimate:
        """Measure one step and extrapolate; writes nothing."""
        config, loader = self.config, LoaderConfig()
        with join(config.run.device) as world, settled(config.run):
            task = self._task()
            model, batches = build_model(task, config, world, None), build_batches(task, config, world, loader)
            step = build_step(task, config, world, model, batches.steps * config.run.epochs)
            clouds = 0 if task.val is None else len(task.val)
            one = [(build_evaluation(task, config, world, model, loader, 1), clouds)] if clouds else []
            return TrainEstimate(
                **estimate(step, batches, one, config, world).to_dict(),
                samples=len(task.train),
                val_samples=clouds,
                label_set=str(task.train.label_set),
                classes=len(task.class_names),
                image_channels=task.image_channels,
            )

    def _task(self) -> Task:
        store = self._open(self.store)
        data = self.config.data
        found = coordinates(store, (*data.train_splits, *data.val_splits))
        check_expected(store, self.config.store, coordinates_digest(found))
        if self.resume and self.folder.exists:
            run = self.folder.run()
            check_same(store, run["store"]["identity"], self.folder.samples(), found)
            check_classes(store, run["label_set"], run["classes"])
        task = Task.of(store, self.config, found)
        if self.resume and self.folder.exists:
            check_limits(self.folder.run().get("limits", {}), task.limits)
        self._say_what_is_not_evaluated(task)
        return task

    def _say_what_is_not_evaluated(self, task: Task) -> None:
        """A store need not have a split for validation, but one may also have named a wrong one."""
        have = {info.split for info in task.store.samples.values()}
        missing = [split for split in self.config.data.val_splits if split not in have]
        if missing:
            what = "of them is evaluated" if task.val is not None else "is evaluated"
            self.listener.note(f"the store has no split {', '.join(missing)}: nothing {what}")

    def _record(self, task: Task) -> tuple[dict[str, Any], Mapping[str, str]]:
        store = task.store
        record: dict[str, Any] = {
            "store": {
                "path": str(store.root),
                "digest": store.digest,
                "version": store.version,
                "coordinates": coordinates_digest(task.coordinates),
                "identity": dict(store.identity),
            },
            "label_set": task.train.label_set,
            "classes": list(task.class_names),
            "label_map": store.manifest.dataset.label_maps.get(str(task.train.label_set), {}),
            "image_channels": task.image_channels,
            "limits": dict(task.limits),
        }
        if self.config.init.distilled is not None:
            record["init"] = self._origin(self.config.init.distilled)
        return record, task.coordinates

    def _origin(self, distilled: Path) -> dict[str, Any]:
        found = origin(distilled)
        if found["total"] is not None and found["step"] < found["total"]:
            self.listener.note(
                f"{distilled} is not finished: training starts from its step {found['step']:,} of {found['total']:,}"
            )
        return found

    def _changed(self, task: Task, before: Mapping[str, Any]) -> bool:
        return bool(before["store"]["digest"] != task.store.digest)

    def _parts(self, task: Task, world: World, start: Checkpoint | None) -> Parts:
        config = self.config
        model, loader = build_model(task, config, world, start), loader_config(config, world)
        batches = build_batches(task, config, world, loader)
        step = build_step(task, config, world, model, batches.steps * config.run.epochs)
        return Parts(step, batches, build_evaluation(task, config, world, model, loader))

    def _report(self, task: Task, done: Done) -> TrainReport:
        loop, state = done.loop, done.loop.state
        assert done.scores is None or isinstance(done.scores, SegmentationScores)
        return TrainReport(
            run=str(self.folder.path),
            steps=done.steps,
            step=state.step,
            total=loop.total,
            epochs=self.config.run.epochs,
            parameters=loop.parameters,
            samples=len(task.train),
            val_samples=0 if task.val is None else len(task.val),
            label_set=str(task.train.label_set),
            loss=done.loss,
            best_miou=None if state.best is None else state.best.score,
            best_step=None if state.best is None else state.best.step,
            last=done.scores,
            skipped=state.step - state.updates,
            seconds=done.seconds,
            data_s=done.data_s,
            step_s=done.step_s,
            device=device_name(done.world.device),
            processes=done.world.size,
            resumed_at=done.first or None,
            digest=task.store.digest,
            interrupted=loop.stopped,
        )
