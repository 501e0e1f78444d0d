# SPDX-License-Identifier: Apache-2.0
"""The one-cycle learning rate, as a function of the number of updates and of nothing else.

A function has no state that a resumed run would have to bring back, and an update that the gradient scaler skipped
does not count. Equal to `torch.optim.lr_scheduler.OneCycleLR` with cosine annealing (tested), whose defaults the
official configurations leave alone, the cycled momentum among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ditr_cache.errors import ConfigError
from ditr_cache.training.config import OptimConfig

__all__ = ["OneCycle", "Rates"]


@dataclass(frozen=True, slots=True)
class Rates:
    """What one update uses."""

    factor: float
    """Learning rate over its highest value."""
    momentum: float | None
    """First beta of AdamW; None where it is not cycled."""


@dataclass(frozen=True, slots=True)
class OneCycle:
    """Up to the highest rate on a cosine, then down on another (Smith and Topin 2018)."""

    total: int
    """Updates of the whole run."""
    pct_start: float
    """Share of them that goes up."""
    div_factor: float
    """Highest rate over the first one."""
    final_div_factor: float
    """First rate over the last one."""
    momentum: tuple[float, float] | None
    """Lowest (at the highest rate) and highest momentum."""

    @classmethod
    def of(cls, config: OptimConfig, total: int) -> OneCycle:
        """The cycle of a run of `total` updates.

        Raises:
            ConfigError: If there are no updates.
        """
        if total < 1:
            raise ConfigError(f"a run of {total} updates", where="run.epochs", hint="At least one is needed.")
        return cls(total, config.pct_start, config.div_factor, config.final_div_factor, config.momentum)

    def at(self, updates: int) -> Rates:
        """Rates of the update before which `updates` were applied; past the end, those of the last one."""
        first, last = 1 / self.div_factor, 1 / (self.div_factor * self.final_div_factor)
        low, high = self.momentum or (0.0, 0.0)
        step, top, end = min(updates, self.total - 1), self.pct_start * self.total - 1, self.total - 1
        if step <= top and top > 0:
            share = step / top
            factor, momentum = _cosine(first, 1.0, share), _cosine(high, low, share)
        else:
            # a run too short to go up starts at the top
            share = (step - max(top, 0)) / (end - max(top, 0)) if end > max(top, 0) else 1.0
            factor, momentum = _cosine(1.0, last, share), _cosine(low, high, share)
        return Rates(factor, None if self.momentum is None else momentum)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
