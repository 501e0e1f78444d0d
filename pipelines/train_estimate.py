# SPDX-License-Identifier: Apache-2.0
"""What a training run would cost, from one measured step and one measured evaluation."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time

import torch

from ditr_cache.models.segmentor import Segmentor
from ditr_cache.pipelines.train_build import build_batches, build_model, build_step
from ditr_cache.pipelines.train_report import TrainEstimate
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distributed import World
from ditr_cache.training.loader import LoaderConfig
from ditr_cache.training.task import Task
from ditr_cache.training.validation import Validation

__all__ = ["estimate"]


def estimate(task: Task, config: TrainConfig, world: World) -> TrainEstimate:
    """Do two steps of a run in memory, measure the second one, and a cloud of the evaluation.

    Args:
        task: What would be trained.
        config: All settings.
        world: This process.
    """
    model = build_model(task, config, world, None)
    batches = build_batches(task, config, world, LoaderConfig())
    total = batches.steps * config.run.epochs
    step = build_step(task, config, world, model, total)
    began = time.perf_counter()
    some = next(batches.epoch(0, 0))
    data_s = time.perf_counter() - began
    batches.close()
    # the first one also pays for what is made once
    for number in range(2):
        began = time.perf_counter()
        float(step(some, number, number).loss)
        step_s = time.perf_counter() - began
    evaluation_s = _evaluation(task, config, world, model)
    evaluations = -(-config.run.epochs // config.run.eval_every)
    workers = min(config.run.workers, len(os.sched_getaffinity(0)))
    # workers prepare while the network computes; without them it waits
    pace = max(step_s, data_s / workers) if workers else step_s + data_s
    images = [batch.image for batch in some if batch.image is not None]
    return TrainEstimate(
        samples=len(task.train),
        val_samples=0 if task.val is None else len(task.val),
        label_set=str(task.train.label_set),
        classes=len(task.class_names),
        image_channels=task.image_channels,
        steps_per_epoch=batches.steps,
        steps=total,
        parameters=sum(p.numel() for p in model.parameters()),
        points=sum(len(batch.coord) for batch in some),
        rows=sum(len(image.rows) for image in images),
        data_s=data_s,
        step_s=step_s,
        evaluation_s=evaluation_s,
        seconds=total * pace + evaluations * (evaluation_s or 0.0),
        memory_bytes=_memory(world.device),
        workers=config.run.workers,
        device=str(world.device),
    )


def _evaluation(task: Task, config: TrainConfig, world: World, model: Segmentor) -> float | None:
    """Seconds of one pass over the validation split, from its first cloud."""
    if task.val is None:
        return None
    validation = Validation(
        model,
        task.val,
        task.class_names,
        world,
        LoaderConfig(),
        config.run.seed,
        task.condition,
        task.val.sample_ids[:1],
    )
    began = time.perf_counter()
    validation(threading.Event())
    return (time.perf_counter() - began) * len(task.val)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # kilobytes, but for macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
