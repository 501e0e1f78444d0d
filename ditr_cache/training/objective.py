# SPDX-License-Identifier: Apache-2.0
"""What is minimised: cross entropy and Lovasz-softmax, weighted, in training; the cosine loss in distillation.

N points, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ditr_cache.errors import ConfigError
from ditr_cache.models.distiller import NOT_VISIBLE
from ditr_cache.models.losses import cross_entropy, label_weight, lovasz_softmax
from ditr_cache.training.config import LossConfig
from ditr_cache.training.distributed import World
from ditr_cache.types import PointBatch

__all__ = ["CosineObjective", "Objective", "SegmentationObjective"]

IGNORE = -1


class Objective(Protocol):
    """The loss of one batch."""

    def denominator(self, batches: Sequence[PointBatch], world: World) -> float | None:
        """What sums over points are divided by in every batch of a step; None: each batch has its own.

        The gradient of a step is the mean over its batches, so the mean of their own denominators makes it that of all
        of their points together.

        Args:
            batches: Those that this process accumulates, on the CPU.
            world: The others have theirs.
        """
        ...

    def __call__(self, output: Tensor, batch: PointBatch, denominator: float | None = None) -> Tensor:
        """The loss, a scalar.

        Args:
            output: Of the network, float32.
            batch: On the network's device.
            denominator: Of `denominator`.
        """
        ...


class SegmentationObjective:
    """Of class scores.

    Args:
        config: Weights of the parts.
        classes: K.
        device: Where logits are.

    Raises:
        ConfigError: If there are not as many class weights as classes.
    """

    def __init__(self, config: LossConfig, classes: int, device: torch.device | str = "cpu") -> None:
        self._config, self._weight_K = config, None
        if config.class_weights is not None:
            if len(config.class_weights) != classes:
                raise ConfigError(
                    f"{len(config.class_weights)} weights for {classes} classes", where="loss.class_weights"
                )
            self._weight_K = torch.tensor(config.class_weights, device=device)

    def denominator(self, batches: Sequence[PointBatch], world: World) -> float | None:
        """Of the cross entropy: label weights; see `Objective`."""
        if not self._config.global_normalisation:
            return None
        weight_K = None if self._weight_K is None else self._weight_K.cpu()
        own = [float(label_weight(b.segment, IGNORE, weight_K)) for b in batches if b.segment is not None]
        return world.sum(sum(own)) / (world.size * len(batches))

    def __call__(self, output: Tensor, batch: PointBatch, denominator: float | None = None) -> Tensor:
        """0, with gradients of 0, where no point has a label.

        Args:
            output: `[N, K]` float32.
            batch: With labels, -1 ignored.
            denominator: Of `denominator`.

        Raises:
            ConfigError: If there are no labels.
        """
        if batch.segment is None:
            raise ConfigError("there are no labels to train on", where="data.label_set")
        loss = output.new_zeros(())
        if self._config.cross_entropy:
            loss = loss + self._config.cross_entropy * cross_entropy(
                output, batch.segment, IGNORE, self._weight_K, denominator
            )
        if self._config.lovasz:
            loss = loss + self._config.lovasz * lovasz_softmax(output, batch.segment, IGNORE)
        return loss


class CosineObjective:
    """Mean of 1 - cos over visible points (DITR, equation 1). Labels are not looked at.

    Args:
        global_normalisation: Divide by the visible points of the whole step, not by those of one process's batch.
    """

    def __init__(self, global_normalisation: bool = False) -> None:
        self._global = global_normalisation

    def denominator(self, batches: Sequence[PointBatch], world: World) -> float | None:
        """Points that look up a row; see `Objective`."""
        if not self._global:
            return None
        own = [int((b.image.index >= 0).sum()) for b in batches if b.image is not None]
        return world.sum(sum(own)) / (world.size * len(batches))

    def __call__(self, output: Tensor, batch: PointBatch, denominator: float | None = None) -> Tensor:
        """0, with gradients of 0, where no point is visible.

        Args:
            output: `[N]` cosine; `NOT_VISIBLE` where a point is not.
            batch: Not used.
            denominator: Of `denominator`.
        """
        visible_N = output != NOT_VISIBLE
        total = torch.where(visible_N, 1 - output, 0).sum()
        divisor = visible_N.sum() if denominator is None else torch.as_tensor(denominator, device=output.device)
        return total / divisor.clamp(min=1)
