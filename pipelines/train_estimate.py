# SPDX-License-Identifier: Apache-2.0
"""What a run would cost, from one measured step and one measured evaluation."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ditr_cache.pipelines.train_report import RunEstimate
from ditr_cache.training.config import StageConfig
from ditr_cache.training.distributed import World
from ditr_cache.training.loader import TrainBatches
from ditr_cache.training.state import Evaluation
from ditr_cache.training.step import Step
from ditr_cache.types import PointBatch

__all__ = ["estimate"]


def estimate(
    step: Step,
    batches: TrainBatches,
    evaluations: Sequence[tuple[Evaluation, int]],
    config: StageConfig,
    world: World,
) -> RunEstimate:
    """Do two steps of a run in memory, measure the second one, and a cloud of every evaluation.

    Args:
        step: Of the run.
        batches: Without workers; closed here.
        evaluations: Each of one cloud, and of how many clouds it speaks for.
        config: All settings.
        world: This process.
    """
    some, data_s = _timed(next, batches.epoch(0, 0))
    batches.close()
    # the first one also pays for what is made once
    for number in range(2):
        _, step_s = _timed(_finished, step, some, number)
    passes = [count * _timed(one, threading.Event())[1] for one, count in evaluations]
    evaluation_s = sum(passes) if passes else None
    workers = min(config.run.workers, len(os.sched_getaffinity(0)))
    # workers prepare while the network computes; without them it waits
    pace = max(step_s, data_s / workers) if workers else step_s + data_s
    total = batches.steps * config.run.epochs
    times = -(-config.run.epochs // config.run.eval_every)
    return RunEstimate(
        steps_per_epoch=batches.steps,
        steps=total,
        parameters=sum(p.numel() for p in step.model.parameters()),
        points=sum(len(batch.coord) for batch in some),
        rows=sum(len(batch.image.rows) for batch in some if batch.image is not None),
        data_s=data_s,
        step_s=step_s,
        evaluation_s=evaluation_s,
        seconds=total * pace + times * (evaluation_s or 0.0),
        memory_bytes=_memory(world.device),
        workers=config.run.workers,
        device=str(world.device),
    )


def _timed(do: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What it gives, and the seconds that it took."""
    began = time.perf_counter()
    found = do(*arguments)
    return found, time.perf_counter() - began


def _finished(step: Step, some: Sequence[PointBatch], number: int) -> float:
    """The loss of a step; waits for the device."""
    return float(step(some, number, number).loss)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # kilobytes, but for macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
