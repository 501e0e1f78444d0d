# SPDX-License-Identifier: Apache-2.0
"""What training and distillation have in common: a run folder, a loop, and everything put back at the end.

run folder   settings, store and versions are written down, or compared with what the run began with
worker processes   views drawn, rows and hits read, points transformed, clouds collated
this process   forward and backward, update, evaluation, checkpoint
"""

from __future__ import annotations

import os
import platform
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from pydantic import BaseModel

from ditr_cache.config import load_config
from ditr_cache.errors import CheckpointError
from ditr_cache.store.locate import DEFAULT_CACHE_SIZE
from ditr_cache.store.reader import FeatureStore, open_store
from ditr_cache.training.checkpoint import Checkpoint
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distill_config import DistillConfig
from ditr_cache.training.distributed import World, join
from ditr_cache.training.loader import TrainBatches
from ditr_cache.training.loop import Loop
from ditr_cache.training.run_folder import RunFolder, config_difference, git_revision
from ditr_cache.training.settle import settled
from ditr_cache.training.state import Evaluation, ValidationScores
from ditr_cache.training.step import Step
from ditr_cache.training.store_check import check_complete
from ditr_cache.training.tracking import (
    EvaluationReport,
    JsonLog,
    Nobody,
    StepReport,
    Tracker,
    Trackers,
    tensorboard_or_nobody,
)

__all__ = ["Done", "Learn", "LearnOptions", "Parts", "device_name"]

C = TypeVar("C", TrainConfig, DistillConfig)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop runs."""

    step: Step
    batches: TrainBatches
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class Done:
    """What a call did, for its report."""

    world: World
    loop: Loop
    steps: int
    """By this call."""
    first: int
    """The step that it began with."""
    loss: float | None
    """As it was last read."""
    scores: ValidationScores | None
    """Of the last evaluation."""
    seconds: float
    data_s: float
    """Mean wait for data in a step."""
    step_s: float
    """Mean of everything else in a step."""


class LearnOptions(TypedDict, total=False):
    """How a run is done."""

    resume: bool
    """Go on with the run in the folder; begin one where there is none."""
    allow_incomplete: bool
    """Train on what stores have of their plans."""
    cache_dir: Path | None
    """Where to keep what was read from a server; None: nowhere."""
    cache_size: int
    """Bytes that the cache may take."""
    tracker: Tracker | None
    """Who else listens."""


class Learn(ABC, Generic[C, T, R]):
    """A run, alone or as one of the processes of `torchrun`: settings, task, and report are the heirs' own.

    Args:
        run: Folder of the run.
        config: All settings.
        options: The rest; see `LearnOptions`.
    """

    kind: str
    """Which of the heirs a run folder belongs to."""
    schema: type[BaseModel]
    """Of the settings."""

    def __init__(self, run: Path, config: C, **options: Unpack[LearnOptions]) -> None:
        self.config: C = config
        self.folder, self.resume = RunFolder(run), options.get("resume", False)
        self.listener: Tracker = options.get("tracker") or Nobody()
        self._allow_incomplete = options.get("allow_incomplete", False)
        self._cache_dir, self._cache_size = options.get("cache_dir"), options.get("cache_size", DEFAULT_CACHE_SIZE)
        self._stop = threading.Event()

    def request_stop(self) -> None:
        """Stop after the step at hand, with a checkpoint. Safe in signal handlers."""
        self._stop.set()

    def run(self) -> R:
        """Go to the last step.

        Raises:
            TrainingError: If there is a run in the folder and `resume` is not set, or the loss is not finite.
            CheckpointError: If the run in the folder has other settings, or cannot be read.
            IdentityMismatchError: If a store is not the one that the settings or the run want.
            IncompleteStoreError: If blocks are missing and that is not allowed.
            ConfigError: If a store lacks what the settings need.
        """
        began = time.monotonic()
        with join(self.config.run.device) as world, ExitStack() as stack:
            with world.main_only() as main:
                if main:
                    stack.enter_context(self._own_folder())
                task = self._task()
                threads = stack.enter_context(settled(self.config.run, self._threads_before()))
                if main:
                    self._write_down(task, world, threads)
            watch = _Watch()
            loop = self._assemble(task, world, watch, stack)
            first = loop.state.step
            loop.run()
            steps = loop.state.step - first
            each = 1 / max(steps, 1)
            seconds = round(time.monotonic() - began, 3)
            done = Done(
                world,
                loop,
                steps,
                first,
                watch.loss,
                watch.scores,
                seconds,
                watch.data_s * each,
                watch.step_s * each,
            )
            return self._report(task, done)

    def _open(self, location: str | os.PathLike[str]) -> FeatureStore:
        """A store that is complete, or need not be."""
        store = open_store(location, cache_dir=self._cache_dir, cache_size=self._cache_size)
        check_complete(store, allow_incomplete=self._allow_incomplete)
        return store

    @abstractmethod
    def _task(self) -> T:
        """The stores, once they are known to be the right ones."""

    @abstractmethod
    def _record(self, task: T) -> tuple[dict[str, Any], Mapping[str, str]]:
        """What the run folder keeps of a task: what decides the numbers, and the samples' coordinates."""

    @abstractmethod
    def _parts(self, task: T, world: World, start: Checkpoint | None) -> Parts:
        """Network, data and evaluation, as a checkpoint left them."""

    @abstractmethod
    def _report(self, task: T, done: Done) -> R:
        """What this call did."""

    @abstractmethod
    def _changed(self, task: T, before: Mapping[str, Any]) -> bool:
        """Whether a store's features are not those that the run began with."""

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
        self.folder.check_kind(self.kind)
        before = load_config(self.schema, [self.folder.config()])
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

    def _write_down(self, task: T, world: World, threads: int) -> None:
        if not self.folder.exists:
            record, samples = self._record(task)
            run = {"kind": self.kind, **record, "threads": threads, "processes": world.size}
            self.folder.begin(self.config, run, samples)
        else:
            self._say_what_changed(task, world.size)
        start = self.folder.checkpoints.find("last")
        self.folder.start(_provenance(world, threads, 0 if start is None else start.step), self.config)

    def _say_what_changed(self, task: T, processes: int) -> None:
        """What does not forbid to go on, and makes the numbers others than those of an unbroken run."""
        before = self.folder.run()
        if self._changed(task, before):
            self.listener.note("the store's content digest is not the one that the run began with")
        if before["processes"] != processes:
            self.listener.note(f"the run began with {before['processes']} processes, and goes on with {processes}")

    def _assemble(self, task: T, world: World, watch: Tracker, stack: ExitStack) -> Loop:
        """All parts, as the last checkpoint left them; `stack` closes them."""
        start = self.folder.checkpoints.find("last") if self.resume else None
        parts = self._parts(task, world, start)
        stack.callback(parts.batches.close)
        state = None if start is None else start.state()
        log, tracker = self._trackers(world, state, watch)
        stack.callback(tracker.close)
        loop = Loop(
            parts.step,
            parts.batches,
            parts.evaluation,
            self.config,
            world,
            self.folder.checkpoints,
            log,
            tracker,
            self._stop,
        )
        if state is not None:
            loop.restore(state)
        return loop

    def _trackers(self, world: World, state: dict[str, Any] | None, watch: Tracker) -> tuple[JsonLog | None, Tracker]:
        """Log and TensorBoard, cut back to what the checkpoint vouches for."""
        if not world.is_main:
            return None, watch
        if self.resume:
            self.folder.checkpoints.prune()
        log = JsonLog(self.folder.log, 0 if state is None else int(state["log_bytes"]))
        board = tensorboard_or_nobody(self.folder.tensorboard, 0 if state is None else int(state["step"]))
        return log, Trackers([log, board, watch, self.listener])


class _Watch(Nobody):
    """Remembers what the report says of this call."""

    def __init__(self) -> None:
        self.loss: float | None = None
        self.scores: ValidationScores | None = None
        self.data_s = self.step_s = 0.0

    def step(self, report: StepReport) -> None:
        """Add up."""
        self.data_s += report.data_s
        self.step_s += report.step_s
        self.loss = self.loss if report.loss is None else report.loss

    def evaluation(self, report: EvaluationReport) -> None:
        """Remember the last one."""
        self.scores = report.scores


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
