# SPDX-License-Identifier: Apache-2.0
"""The parts of a training run, put together from the settings."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from ditr_cache.errors import CheckpointError
from ditr_cache.models.norm import synchronise_batch_norm
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.models.weights import initialise
from ditr_cache.training.checkpoint import Checkpoint
from ditr_cache.training.config import StageConfig, TrainConfig
from ditr_cache.training.distilled import start_from_distilled
from ditr_cache.training.distributed import World, wrap
from ditr_cache.training.loader import LoaderConfig, MakeBatch, TrainBatches
from ditr_cache.training.objective import Objective, SegmentationObjective
from ditr_cache.training.optim import build_optimizer
from ditr_cache.training.sampler import BatchSampler
from ditr_cache.training.schedule import OneCycle
from ditr_cache.training.state import Evaluation
from ditr_cache.training.step import Precision, Step
from ditr_cache.training.task import Task, draw_model
from ditr_cache.training.validation import NoValidation, Validation

__all__ = ["build_batches", "build_evaluation", "build_model", "build_step", "loader_config", "optimising_step"]


def build_model(task: Task, config: TrainConfig, world: World, start: Checkpoint | None) -> Segmentor:
    """The network on its device, with the weights of a checkpoint, a distillation or a file, or drawn from the seed.

    Raises:
        CheckpointError: If the checkpoint's weights are another network's.
        WeightsError: If those of the file or of the distillation are.
    """
    model = draw_model(task, config)
    if start is not None:
        try:
            model.load_state_dict(start.weights())
        except RuntimeError as error:
            raise CheckpointError("the weights are not those of this network", where=start.folder) from error
    elif config.init.distilled is not None:
        start_from_distilled(model, config, str(task.store.identity["dataset"]["name"]))
    elif config.run.weights is not None:
        initialise(model, config.run.weights, strict=config.run.strict_weights)
    if config.run.sync_bn and world.size > 1:
        synchronise_batch_norm(model, dist.group.WORLD)
    return model.to(world.device).train()


def loader_config(config: StageConfig, world: World) -> LoaderConfig:
    """This process's share of the workers."""
    run = config.run
    share = -(-run.workers // world.size)
    return LoaderConfig(share, run.prefetch, run.worker_kind, pin=world.device.type == "cuda")


def build_batches(task: Task, config: TrainConfig, world: World, loader: LoaderConfig) -> TrainBatches:
    """This process's part of every step.

    Raises:
        ConfigError: If a step cannot be divided evenly, or there are too few samples for one.
    """
    run = config.run
    sampler = BatchSampler(
        task.train.sample_ids,
        run.seed,
        run.batch_size,
        loop=config.data.loop,
        accumulation=run.accumulation,
        rank=world.rank,
        world=world.size,
    )
    make = MakeBatch(task.train, images=task.image_channels is not None, condition=task.condition)
    return TrainBatches(make, sampler, loader, run.epochs)


def build_step(task: Task, config: TrainConfig, world: World, model: Segmentor, updates: int) -> Step:
    """One step of a run of so many updates."""
    objective = SegmentationObjective(config.loss, len(task.class_names), world.device)
    return optimising_step(config, world, model, objective, updates, unused=len(config.model.norm_conditions) > 1)


def optimising_step(
    config: StageConfig, world: World, model: nn.Module, objective: Objective, updates: int, *, unused: bool
) -> Step:
    """One step of a run of so many updates, whatever is minimised.

    Args:
        config: All settings.
        world: This process among the others.
        model: On its device.
        objective: What is minimised.
        updates: Of the whole run.
        unused: Whether some parameters may take no part in a step, as norm layers of other data sets do.
    """
    return Step(
        wrap(model, world, unused=unused),
        objective,
        build_optimizer(model, config.optim),
        OneCycle.of(config.optim, updates),
        Precision(config.run.amp, world.device),
        config,
        world,
    )


def build_evaluation(
    task: Task, config: TrainConfig, world: World, model: Segmentor, loader: LoaderConfig, most: int | None = None
) -> Evaluation:
    """Over the validation split, or its first `most` samples, if there is one."""
    if task.val is None:
        return NoValidation()
    ids = task.val.sample_ids[:most]
    return Validation(model, task.val, task.class_names, world, loader, config.run.seed, task.condition, ids)
