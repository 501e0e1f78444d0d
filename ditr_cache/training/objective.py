# SPDX-License-Identifier: Apache-2.0
"""What training minimises: cross entropy and Lovasz-softmax, weighted.

N points, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ditr_cache.errors import ConfigError
from ditr_cache.models.losses import cross_entropy, label_weight, lovasz_softmax
from ditr_cache.training.config import LossConfig
from ditr_cache.training.distributed import World
from ditr_cache.types import PointBatch

__all__ = ["Objective"]

IGNORE = -1


class Objective:
    """The loss of one batch.

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
        """What the cross entropy of every batch of a step is divided by; None: each by its own label weight.

        The gradient of a step is the mean over its batches, so the mean of their label weights makes it that of all of
        their points together.

        Args:
            batches: Those that this process accumulates, on the CPU.
            world: The others have theirs.
        """
        if not self._config.global_normalisation:
            return None
        weight_K = None if self._weight_K is None else self._weight_K.cpu()
        own = [float(label_weight(b.segment, IGNORE, weight_K)) for b in batches if b.segment is not None]
        return world.sum(sum(own)) / (world.size * len(batches))

    def __call__(self, logits_NK: Tensor, segment_N: Tensor, denominator: float | None = None) -> Tensor:
        """The loss, a scalar; 0, with gradients of 0, where no point has a label.

        Args:
            logits_NK: `[N, K]` float32.
            segment_N: `[N]` int64, -1 ignored.
            denominator: Of `denominator`.
        """
        loss = logits_NK.new_zeros(())
        if self._config.cross_entropy:
            loss = loss + self._config.cross_entropy * cross_entropy(
                logits_NK, segment_N, IGNORE, self._weight_K, denominator
            )
        if self._config.lovasz:
            loss = loss + self._config.lovasz * lovasz_softmax(logits_NK, segment_N, IGNORE)
        return loss
