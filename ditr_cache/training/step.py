# SPDX-License-Identifier: Apache-2.0
"""One step: forward and backward of every batch, then one update of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ditr_cache.training.config import StageConfig
from ditr_cache.training.distributed import World
from ditr_cache.training.objective import Objective
from ditr_cache.training.optim import clip_gradients, set_rates
from ditr_cache.training.schedule import OneCycle
from ditr_cache.training.seeding import torch_generator_for
from ditr_cache.types import PointBatch

__all__ = ["Precision", "Step", "StepResult"]


class Precision:
    """Autocast and gradient scaling.

    Args:
        amp: `run.amp`.
        device: Where the network runs.
    """

    def __init__(self, amp: str, device: torch.device) -> None:
        if amp == "auto":
            amp = "bf16" if device.type == "cuda" else "off"
        self.name = amp
        self._device = device
        self._dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Within, dense layers compute in the narrow type."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did."""

    loss: Tensor
    """Mean over the batches of this process; a scalar on the device that is not read yet."""
    lr: float
    grad_norm: float | None
    """Before clipping; None without clipping."""
    applied: bool
    """False where the gradient scaler found an overflow and skipped the update."""


class Step:
    """Reads like the recipe: losses of all batches, their mean gradient, clip, update.

    Args:
        model: Takes `(batch, generator=...)`; wrapped for several processes if there are.
        objective: The loss.
        optimizer: Of `build_optimizer`.
        schedule: Learning rate by updates.
        precision: Autocast and gradient scaling.
        config: All settings.
        world: This process among the others.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        schedule: OneCycle,
        precision: Precision,
        config: StageConfig,
        world: World,
    ) -> None:
        self.model, self.objective, self.optimizer, self.precision = model, objective, optimizer, precision
        self._schedule, self._config, self._world = schedule, config, world

    def __call__(self, batches: Sequence[PointBatch], step: int, updates: int) -> StepResult:
        """Do step number `step`, the update after `updates` others.

        Args:
            batches: The accumulated batches of this process, on the CPU.
            step: From 0; names the random draws.
            updates: How many were applied; decides the learning rate.
        """
        lr = set_rates(self.optimizer, self._schedule, updates)
        self.optimizer.zero_grad(set_to_none=True)
        denominator = self.objective.denominator(batches, self._world)
        losses = []
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with self._local(last):
                losses.append(self._backward(batch, denominator, self._number(i), step, len(batches)))
        grad_norm, applied = self._update()
        return StepResult(torch.stack(losses).mean(), lr, grad_norm, applied)

    def _number(self, i: int) -> int:
        """Which of the step's batches this is, counted over all processes as `BatchSampler` does."""
        return i * self._world.size + self._world.rank

    def _backward(
        self, batch: PointBatch, denominator: float | None, number: int, step: int, accumulated: int
    ) -> Tensor:
        batch = batch.to(self._world.device)
        # curves and drop path: by what the batch is, never by who computes it
        generator = torch_generator_for(self._config.run.seed, "model", step, number)
        with self.precision.autocast():
            output = self.model(batch, generator=generator)
        loss = self.objective(output.float(), batch, denominator)
        self.precision.scaler.scale(loss / accumulated).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _local(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients meet those of other processes once a step, with the last batch."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _update(self) -> tuple[float | None, bool]:
        scaler = self.precision.scaler
        scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.model, self._config.optim.clip_grad)
        before = scaler.get_scale()
        scaler.step(self.optimizer)
        scaler.update()
        # a scale that went down is how torch says that it skipped the update
        return grad_norm, scaler.get_scale() >= before
