# SPDX-License-Identifier: Apache-2.0
"""D-DITR (arXiv 2503.18944, section 3.2): a network that sees points only learns to regress cached image features."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import torch.distributed as dist

from ditr_cache.errors import CheckpointError
from ditr_cache.models.distiller import Distiller
from ditr_cache.models.norm import synchronise_batch_norm
from ditr_cache.models.random import draw_weights
from ditr_cache.models.weights import initialise
from ditr_cache.pipelines.learn import Done, Learn, LearnOptions, Parts, device_name
from ditr_cache.pipelines.train_build import loader_config, optimising_step
from ditr_cache.pipelines.train_estimate import estimate
from ditr_cache.pipelines.train_report import DistillEstimate
from ditr_cache.training.checkpoint import Checkpoint
from ditr_cache.training.distill_config import DistillConfig
from ditr_cache.training.distill_task import DistillTask
from ditr_cache.training.distill_validation import SimilarityScores, SimilarityValidation
from ditr_cache.training.distilled import distiller
from ditr_cache.training.distributed import World, join
from ditr_cache.training.loader import LoaderConfig, MakeBatch, TrainBatches
from ditr_cache.training.mixture import MakeMixed, MixedSampler
from ditr_cache.training.objective import CosineObjective
from ditr_cache.training.sampler import BatchSampler
from ditr_cache.training.seeding import torch_generator_for
from ditr_cache.training.settle import settled
from ditr_cache.training.state import Evaluation
from ditr_cache.training.step import Step
from ditr_cache.training.store_check import check_same, coordinates
from ditr_cache.training.validation import NoValidation

__all__ = ["Distill", "DistillReport"]


@dataclass(frozen=True, slots=True)
class DistillReport:
    """One call of `distill`, and the state of the run after it."""

    run: str
    """Its folder."""
    stores: tuple[str, ...]
    names: tuple[str, ...]
    """What the stores are called."""
    samples: tuple[int, ...]
    """To train on, of each store."""
    digests: tuple[str, ...]
    """Content digests of the stores."""
    image_channels: tuple[int, ...]
    """D of each name, each name once."""
    steps: int
    """Done by this call."""
    step: int
    """Done in all."""
    total: int
    """Of the whole run."""
    parameters: int
    loss: float | None
    """As it was last read by this call."""
    cosine: float | None
    """Mean over visible points of the validation splits, of this call's last evaluation."""
    skipped: int
    """Updates that the gradient scaler left out."""
    seconds: float
    data_s: float
    """Mean wait for data in a step."""
    step_s: float
    """Mean of everything else in a step."""
    device: str
    processes: int
    resumed_at: int | None
    """Step at which this call took over; None for a new run."""
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Distill(Learn[DistillConfig, DistillTask, DistillReport]):
    """Pretrains on the features of one or several stores; labels are never read. See `Learn.run` for errors.

    Args:
        stores: Folders or URLs.
        run: Folder of the run.
        config: All settings.
        options: As `LearnOptions`.
    """

    kind = "distill"
    schema = DistillConfig

    def __init__(
        self,
        stores: Sequence[str | os.PathLike[str]],
        run: Path,
        config: DistillConfig,
        **options: Unpack[LearnOptions],
    ) -> None:
        super().__init__(run, config, **options)
        self.stores = tuple(stores)

    def estimate(self) -> DistillEstimate:
        """Measure one step and extrapolate; writes nothing."""
        with join(self.config.run.device) as world, settled(self.config.run):
            task = self._task()
            model, batches = self._model(task, world, None), self._batches(task, world, LoaderConfig())
            step, first = self._step(task, world, model, batches), self._first_clouds(task, world, model)
            return DistillEstimate(
                **estimate(step, batches, first, self.config, world).to_dict(),
                names=tuple(source.name for source in task.sources),
                samples=tuple(len(source.train) for source in task.sources),
                val_samples=_val_samples(task),
                image_channels=task.image_channels,
            )

    def _task(self) -> DistillTask:
        stores = [self._open(store) for store in self.stores]
        splits = (*self.config.data.train_splits, *self.config.data.val_splits)
        found = [coordinates(store, splits) for store in stores]
        if self.resume and self.folder.exists:
            before, samples = self.folder.run()["stores"], self.folder.samples()
            if len(before) != len(stores):
                raise CheckpointError(
                    f"the run has {len(before)} stores, and not {len(stores)}", where=self.folder.path
                )
            for i, (store, entry) in enumerate(zip(stores, before, strict=True)):
                own = {key.removeprefix(f"{i}/"): x for key, x in samples.items() if key.startswith(f"{i}/")}
                check_same(store, entry["identity"], own, found[i])
        task = DistillTask.of(stores, self.config, found)
        self._say_what_is_shared(task)
        return task

    def _say_what_is_shared(self, task: DistillTask) -> None:
        """What a user of several stores may not expect, and what is not evaluated."""
        same = [n for n in task.names if sum(source.name == n for source in task.sources) > 1]
        if same and not self.config.distill.names:
            self.listener.note(
                f"several stores are called {', '.join(same)} and share norm layers: name them apart with distill.names"
            )
        if all(source.val is None for source in task.sources):
            splits = ", ".join(self.config.data.val_splits)
            self.listener.note(f"the stores have no split {splits}: nothing is evaluated")

    def _record(self, task: DistillTask) -> tuple[dict[str, Any], Mapping[str, str]]:
        stores = [
            {
                "name": source.name,
                "path": str(source.store.root),
                "digest": source.store.digest,
                "version": source.store.version,
                "identity": dict(source.store.identity),
            }
            for source in task.sources
        ]
        return {"stores": stores, "image_channels": list(task.image_channels)}, task.coordinates

    def _changed(self, task: DistillTask, before: Mapping[str, Any]) -> bool:
        return [entry["digest"] for entry in before["stores"]] != [source.store.digest for source in task.sources]

    def _parts(self, task: DistillTask, world: World, start: Checkpoint | None) -> Parts:
        loader = loader_config(self.config, world)
        model, batches = self._model(task, world, start), self._batches(task, world, loader)
        step = self._step(task, world, model, batches)
        return Parts(step, batches, self._evaluation(task, world, model, loader))

    def _step(self, task: DistillTask, world: World, model: Distiller, batches: TrainBatches) -> Step:
        config = self.config
        objective = CosineObjective(config.distill.global_normalisation)
        updates = batches.steps * config.run.epochs
        return optimising_step(config, world, model, objective, updates, unused=len(task.names) > 1)

    def _model(self, task: DistillTask, world: World, start: Checkpoint | None) -> Distiller:
        model = distiller(self.config, task.image_channels, task.names)
        run = self.config.run
        if start is None:
            draw_weights(model, torch_generator_for(run.seed, "weights"))
            if run.weights is not None:
                initialise(model, run.weights, strict=run.strict_weights)
        else:
            try:
                model.load_state_dict(start.weights())
            except RuntimeError as error:
                raise CheckpointError("the weights are not those of this network", where=start.folder) from error
        if run.sync_bn and world.size > 1:
            synchronise_batch_norm(model, dist.group.WORLD)
        return model.to(world.device).train()

    def _batches(self, task: DistillTask, world: World, loader: LoaderConfig) -> TrainBatches:
        """Every step is of one data set, and so is each of its micro-batches, in all processes."""
        run, data = self.config.run, self.config.data
        samplers = [
            BatchSampler(
                source.train.sample_ids,
                run.seed,
                run.batch_size,
                loop=data.loop,
                accumulation=run.accumulation,
                rank=world.rank,
                world=world.size,
            )
            for source in task.sources
        ]
        makes = [MakeBatch(source.train, condition=task.condition(source)) for source in task.sources]
        weights = self.config.distill.weights or (1.0,) * len(samplers)
        return TrainBatches(MakeMixed(makes), MixedSampler(samplers, weights, run.seed), loader, run.epochs)

    def _evaluation(self, task: DistillTask, world: World, model: Distiller, loader: LoaderConfig) -> Evaluation:
        datasets = [(source.val, task.condition(source)) for source in task.sources if source.val is not None]
        if not datasets:
            return NoValidation()
        return SimilarityValidation(model, datasets, world, loader, self.config.run.seed)

    def _first_clouds(self, task: DistillTask, world: World, model: Distiller) -> list[tuple[Evaluation, int]]:
        """For every store with validation samples the evaluation of its first one, and how many there are."""
        seed = self.config.run.seed
        return [
            (SimilarityValidation(model, [(source.val, task.condition(source))], world, LoaderConfig(), seed, 1), n)
            for source, n in zip(task.sources, _val_samples(task), strict=True)
            if source.val is not None
        ]

    def _report(self, task: DistillTask, done: Done) -> DistillReport:
        loop, state = done.loop, done.loop.state
        assert done.scores is None or isinstance(done.scores, SimilarityScores)
        return DistillReport(
            run=str(self.folder.path),
            stores=tuple(str(source.store.root) for source in task.sources),
            names=tuple(source.name for source in task.sources),
            samples=tuple(len(source.train) for source in task.sources),
            digests=tuple(source.store.digest for source in task.sources),
            image_channels=task.image_channels,
            steps=done.steps,
            step=state.step,
            total=loop.total,
            parameters=loop.parameters,
            loss=done.loss,
            cosine=None if done.scores is None else done.scores.cosine,
            skipped=state.step - state.updates,
            seconds=done.seconds,
            data_s=done.data_s,
            step_s=done.step_s,
            device=device_name(done.world.device),
            processes=done.world.size,
            resumed_at=done.first or None,
            interrupted=loop.stopped,
        )


def _val_samples(task: DistillTask) -> tuple[int, ...]:
    return tuple(0 if source.val is None else len(source.val) for source in task.sources)
