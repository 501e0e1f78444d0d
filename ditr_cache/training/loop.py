# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, evaluations and checkpoints, in an order that a resumed run repeats."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ditr_cache.errors import CheckpointError, TrainingError
from ditr_cache.training.checkpoint import Checkpoints
from ditr_cache.training.config import StageConfig
from ditr_cache.training.distributed import World, broadcast_buffers, unwrap
from ditr_cache.training.state import Batches, Best, Evaluation, TrainState
from ditr_cache.training.step import Step, StepResult
from ditr_cache.training.tracking import EvaluationReport, JsonLog, StepReport, Tracker
from ditr_cache.types import PointBatch

__all__ = ["Loop"]


class Loop:
    """Trains until the last step, or until asked to stop.

    Args:
        step: Does a step.
        batches: Where batches come from.
        evaluation: Over the validation split.
        config: All settings.
        world: This process among the others.
        checkpoints: Where to save.
        log: The file that a resumed run cuts back.
        tracker: Told of everything, the log too.
        stop: Set it, and the run ends after the step at hand, with a checkpoint.
    """

    def __init__(
        self,
        step: Step,
        batches: Batches,
        evaluation: Evaluation,
        config: StageConfig,
        world: World,
        checkpoints: Checkpoints,
        log: JsonLog | None,
        tracker: Tracker,
        stop: threading.Event,
    ) -> None:
        self._step, self._batches, self._evaluation, self._config = step, batches, evaluation, config
        self._world, self._checkpoints, self._log, self._tracker = world, checkpoints, log, tracker
        self._losses: list[Tensor] = []
        self._stop = stop
        self.state = TrainState()
        self.stopped = False
        """Whether the run was left before its last step."""

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self._batches.steps * self._config.run.epochs

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self._step.model.parameters())

    def run(self) -> None:
        """From where the state is to the last step.

        Raises:
            TrainingError: If the loss is no longer finite.
        """
        self._tracker.begin(self.state.step, self.total)
        # a run that was stopped between an epoch and its evaluation goes on with the evaluation
        while not self.stopped:
            if self._evaluation_is_due():
                self._evaluate()
            elif self.state.step < self.total:
                self._train_epoch()
            else:
                return

    def _train_epoch(self) -> None:
        """The rest of the epoch at hand, with a checkpoint at its end."""
        epoch, start = divmod(self.state.step, self._batches.steps)
        batches = self._batches.epoch(epoch, start)
        for _ in range(start, self._batches.steps):
            self._train_step(epoch, batches)
            if self._world.any(self._stop.is_set()):
                self.stopped = self.state.step < self.total or self._evaluation_is_due()
                self._save()
                return
            if self._checkpoint_is_due():
                self._save()

    def _checkpoint_is_due(self) -> bool:
        """At the end of an epoch, unless an evaluation comes first; in between if asked for."""
        if self.state.step % self._batches.steps == 0:
            return not self._evaluation_is_due()
        every = self._config.run.checkpoint_every
        return every is not None and self.state.step % every == 0

    def _train_step(self, epoch: int, batches: Iterator[Sequence[PointBatch]]) -> None:
        began = time.perf_counter()
        try:
            some = next(batches)
        except StopIteration:
            raise TrainingError("the data ended before the epoch did") from None
        waited = time.perf_counter()
        result = self._step(some, self.state.step, self.state.updates)
        self.state.step += 1
        self.state.updates += result.applied
        self._losses.append(result.loss)
        loss = self._read_loss() if self._is_logged() else None
        points = sum(len(batch.coord) for batch in some)
        self._report(epoch, result, waited - began, time.perf_counter() - waited, points, loss)

    def _is_logged(self) -> bool:
        return self.state.step % self._config.run.log_every == 0 or self.state.step == self.total

    def _read_loss(self) -> float:
        """Mean over the steps since the last reading; waits for the device."""
        self._collect()
        mean = math.fsum(self.state.losses) / len(self.state.losses)
        self.state.losses.clear()
        return mean

    def _collect(self) -> None:
        """Read the losses that are still on the device, before anything is saved that they may have spoiled."""
        if not self._losses:
            return
        losses = self._world.mean(torch.stack(self._losses)).tolist()
        self._losses.clear()
        scaler = self._step.precision.scaler
        # an overflow now and then is how the scaler finds its scale, and then there was no update
        for loss in losses if not scaler.is_enabled() or scaler.get_scale() <= 1 else ():
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {self.state.step:,} or shortly before it",
                    hint="Lower the learning rate (-s optim.lr=...), clip gradients (-s optim.clip_grad=1), or leave "
                    "the narrow types (-s run.amp=off). The last checkpoint is from before.",
                )
        self.state.losses += losses

    def _report(
        self, epoch: int, result: StepResult, data_s: float, step_s: float, points: int, loss: float | None
    ) -> None:
        scaler = self._step.precision.scaler
        self._tracker.step(
            StepReport(
                self.state.step,
                epoch,
                result.lr,
                data_s,
                step_s,
                points,
                loss,
                result.grad_norm,
                scaler.get_scale() if scaler.is_enabled() else None,
                self.state.step - self.state.updates,
            )
        )

    def _evaluation_is_due(self) -> bool:
        """At the end of every n-th epoch and of the last, unless it was done before the run was interrupted."""
        epoch, rest = divmod(self.state.step, self._batches.steps)
        due = epoch % self._config.run.eval_every == 0 or self.state.step == self.total
        return self.state.step > self.state.evaluated and rest == 0 and due

    def _evaluate(self) -> None:
        """Evaluate what is saved, and save it with what came out."""
        broadcast_buffers(self._step.model, self._world)
        began = time.perf_counter()
        scores = self._evaluation(self._stop)
        if self._world.any(self._stop.is_set() and scores is None):
            # the checkpoint of a run that is stopped here knows that its evaluation is still to come
            self.stopped = True
            self._save()
            return
        self.state.evaluated = self.state.step
        best = False
        if scores is not None:
            best = self.state.best is None or scores.main > self.state.best.score
            if best:
                self.state.best = Best(self.state.step, scores.main)
            epoch = self.state.step // self._batches.steps - 1
            seconds = time.perf_counter() - began
            self._tracker.evaluation(EvaluationReport(self.state.step, epoch, scores, seconds, best))
        self._save(best=best)

    def _save(self, *, best: bool = False) -> None:
        """A checkpoint, of the main process; the others go on when it is whole."""
        self._collect()
        broadcast_buffers(self._step.model, self._world)
        if self._world.is_main:
            self._tracker.settle()
            state = {
                **self.state.to_dict(),
                "optimizer": self._step.optimizer.state_dict(),
                "scaler": self._step.precision.scaler.state_dict(),
                "log_bytes": 0 if self._log is None else self._log.length(),
                "total": self.total,
            }
            self._checkpoints.save(self.state.step, unwrap(self._step.model).state_dict(), state, best=best)
        self._world.wait()

    def restore(self, state: dict[str, Any]) -> None:
        """Take optimiser, scaler and counters from a checkpoint; the weights are in the model already.

        Raises:
            CheckpointError: If they do not fit.
        """
        plain = dict(state)
        try:
            self._step.optimizer.load_state_dict(plain.pop("optimizer"))
            self._step.precision.scaler.load_state_dict(plain.pop("scaler"))
            plain.pop("log_bytes")
            plain.pop("total", None)  # for those who start from this run; this one may go on for longer
            self.state = TrainState.from_dict(plain)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"the saved state does not fit ({reason})") from error
