# SPDX-License-Identifier: Apache-2.0
"""Stage two: PTv3 + DITR learns from the store. The ViT never runs, and nothing here can reach it.

run folder   settings, store and versions are written down, or compared with what the run began with
worker processes   views drawn, rows and hits read, points transformed, clouds collated
this process   forward and backward, update, evaluation, checkpoint
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditr_cache.config import load_config
from ditr_cache.errors import CheckpointError
from ditr_cache.pipelines.train_build import (
    Watch,
    build_batches,
    build_evaluation,
    build_model,
    build_step,
    loader_config,
)
from ditr_cache.pipelines.train_report import TrainEstimate, TrainReport
from ditr_cache.store.locate import DEFAULT_CACHE_SIZE
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distributed import World, join
from ditr_cache.training.loop import Loop
from ditr_cache.training.run_folder import RunFolder, config_difference, git_revision
from ditr_cache.training.settle import settled
from ditr_cache.training.store_check import (
    check_classes,
    check_complete,
    check_expected,
    check_limits,
    check_same,
    coordinates,
    coordinates_digest,
)
from ditr_cache.training.task import Task
from ditr_cache.training.tracking import JsonLog, Nobody, Tracker, Trackers, tensorboard_or_nobody

__all__ = ["Train"]


class Train:
    """Runs stage two, alone or as one of the processes of `torchrun`.

    Args:
        store: A folder or a URL.
        run: Folder of the run.
        config: All settings.
        resume: Go on with the run in the folder; begin one where there is none.
        allow_incomplete: Train on what a store has of its plan.
        cache_dir: Where to keep what was read from a server; None: nowhere.
        cache_size: Bytes that the cache may take.
        tracker: Who else listens.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        run: Path,
        config: TrainConfig,
        *,
        resume: bool = False,
        allow_incomplete: bool = False,
        cache_dir: Path | None = None,
        cache_size: int = DEFAULT_CACHE_SIZE,
        tracker: Tracker | None = None,
    ) -> None:
        self.store, self.folder, self.config, self.resume = store, RunFolder(run), config, resume
        self._cache_dir, self._cache_size = cache_dir, cache_size
        self._allow_incomplete, self._listener = allow_incomplete, tracker or Nobody()
        self._stop = threading.Event()

    def request_stop(self) -> None:
        """Stop after the step at hand, with a checkpoint. Safe in signal handlers."""
        self._stop.set()

    def run(self) -> TrainReport:
        """Train to the last step.

        Raises:
            TrainingError: If there is a run in the folder and `resume` is not set, or the loss is not finite.
            CheckpointError: If the run in the folder has other settings, or cannot be read.
            IdentityMismatchError: If the store is not the one that the settings or the run want.
            IncompleteStoreError: If blocks are missing and that is not allowed.
            ConfigError: If the store lacks what the settings need.
        """
        began = time.monotonic()
        with join(self.config.run.device) as world, ExitStack() as stack:
            with world.main_only() as main:
                if main:
                    stack.enter_context(self._own_folder())
                task = self._task()
                self._say_what_is_not_evaluated(task)
                threads = stack.enter_context(settled(self.config.run, self._threads_before()))
                if main:
                    self._write_down(task, world, threads)
            watch = Watch()
            loop = self._assemble(task, world, watch, stack)
            first = loop.state.step
            loop.run()
            return self._report(task, world, loop, watch, first, time.monotonic() - began)

    def estimate(self) -> TrainEstimate:
        """Measure one step and extrapolate; writes nothing."""
        from ditr_cache.pipelines.train_estimate import estimate

        with join(self.config.run.device) as world, settled(self.config.run):
            return estimate(self._task(), self.config, world)

    @contextmanager
    def _own_folder(self) -> Iterator[None]:
        """Nobody else trains here, and what is here is the run that is meant."""
        if self.folder.exists and self.resume:
            self._check_settings()
        else:
            self.folder.check_new()
        with self.folder.lock():
            yield

    def _check_settings(self) -> None:
        before = load_config(TrainConfig, [self.folder.config()])
        lines = config_difference(before, self.config)
        if lines:
            raise CheckpointError(
                "the run has other settings:\n  " + "\n  ".join(lines),
                where=self.folder.path,
                hint="Leave them as they were (--resume takes the run's own by itself), or name a new run folder.",
            )

    def _threads_before(self) -> int | None:
        if not (self.resume and self.folder.exists):
            return None
        threads = self.folder.run().get("threads")
        return threads if isinstance(threads, int) else None

    def _task(self) -> Task:
        """The store, once it is known to be the right one."""
        store = open_store(self.store, cache_dir=self._cache_dir, cache_size=self._cache_size)
        check_complete(store, allow_incomplete=self._allow_incomplete)
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
        return task

    def _write_down(self, task: Task, world: World, threads: int) -> None:
        store = task.store
        if not self.folder.exists:
            run = {
                "store": {
                    "path": str(store.root),
                    "digest": store.digest,
                    "version": store.version,
                    "coordinates": coordinates_digest(task.coordinates),
                    "identity": dict(store.identity),
                },
                "label_set": task.train.label_set,
                "classes": list(task.class_names),
                "image_channels": task.image_channels,
                "limits": dict(task.limits),
                "threads": threads,
                "processes": world.size,
            }
            self.folder.begin(self.config, run, task.coordinates)
        else:
            self._say_what_changed(store.digest, world.size)
        start = self.folder.checkpoints.find("last")
        self.folder.start(_provenance(world, threads, 0 if start is None else start.step), self.config)

    def _say_what_is_not_evaluated(self, task: Task) -> None:
        """A store need not have a split for validation, but one may also have named a wrong one."""
        have = {info.split for info in task.store.samples.values()}
        missing = [split for split in self.config.data.val_splits if split not in have]
        if missing:
            what = "of them is evaluated" if task.val is not None else "is evaluated"
            self._listener.note(f"the store has no split {', '.join(missing)}: nothing {what}")

    def _say_what_changed(self, digest: str, processes: int) -> None:
        """What does not forbid to go on, and makes the numbers others than those of an unbroken run."""
        before = self.folder.run()
        if before["store"]["digest"] != digest:
            self._listener.note("the store's content digest is not the one that the run began with")
        if before["processes"] != processes:
            self._listener.note(f"the run began with {before['processes']} processes, and goes on with {processes}")

    def _assemble(self, task: Task, world: World, watch: Watch, stack: ExitStack) -> Loop:
        """All parts, as the last checkpoint left them; `stack` closes them."""
        config, start = self.config, self.folder.checkpoints.find("last") if self.resume else None
        model, loader = build_model(task, config, world, start), loader_config(config, world)
        batches = build_batches(task, config, world, loader)
        stack.callback(batches.close)
        step = build_step(task, config, world, model, batches.steps * config.run.epochs)
        evaluation = build_evaluation(task, config, world, model, loader)
        state = None if start is None else start.state()
        log, tracker = self._trackers(world, state, watch)
        stack.callback(tracker.close)
        loop = Loop(step, batches, evaluation, config, world, self.folder.checkpoints, log, tracker, self._stop)
        if state is not None:
            loop.restore(state)
        return loop

    def _trackers(self, world: World, state: dict[str, Any] | None, watch: Watch) -> tuple[JsonLog | None, Tracker]:
        """Log and TensorBoard, cut back to what the checkpoint vouches for."""
        if not world.is_main:
            return None, watch
        if self.resume:
            self.folder.checkpoints.prune()
        log = JsonLog(self.folder.log, 0 if state is None else int(state["log_bytes"]))
        board = tensorboard_or_nobody(self.folder.tensorboard, 0 if state is None else int(state["step"]))
        return log, Trackers([log, board, watch, self._listener])

    def _report(self, task: Task, world: World, loop: Loop, watch: Watch, first: int, seconds: float) -> TrainReport:
        state, done = loop.state, loop.state.step - first
        return TrainReport(
            run=str(self.folder.path),
            steps=done,
            step=state.step,
            total=loop.total,
            epochs=self.config.run.epochs,
            parameters=loop.parameters,
            samples=len(task.train),
            val_samples=0 if task.val is None else len(task.val),
            label_set=str(task.train.label_set),
            loss=watch.loss,
            best_miou=None if state.best is None else state.best.miou,
            best_step=None if state.best is None else state.best.step,
            last=watch.scores,
            skipped=state.step - state.updates,
            seconds=round(seconds, 3),
            data_s=watch.data_s / done if done else 0.0,
            step_s=watch.step_s / done if done else 0.0,
            device=device_name(world.device),
            processes=world.size,
            resumed_at=first or None,
            digest=task.store.digest,
            interrupted=loop.stopped,
        )


def device_name(device: torch.device) -> str:
    """For people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _provenance(world: World, threads: int, step: int) -> dict[str, Any]:
    """What is recorded of every start and decides nothing."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "git": git_revision(),
        "ditr_cache": version("ditr-cache"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": device_name(world.device),
        "processes": world.size,
        "threads": threads,
    }
