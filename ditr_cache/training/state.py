# SPDX-License-Identifier: Apache-2.0
"""Where a run is, and what the training loop needs of others."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ditr_cache.types import PointBatch

__all__ = ["Batches", "Best", "Evaluation", "TrainState", "ValidationScores"]


class Batches(Protocol):
    """Where batches come from."""

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        ...

    def epoch(self, epoch: int, start: int) -> Iterator[Sequence[PointBatch]]:
        """The accumulated batches of this process, for every step of an epoch from step `start` on."""
        ...


class ValidationScores(Protocol):
    """What came out of one pass over the validation split."""

    @property
    def main(self) -> float:
        """What the best checkpoint goes by; higher is better."""
        ...

    def curves(self) -> dict[str, float]:
        """Numbers to plot, by name."""
        ...

    def __str__(self) -> str:
        """A few words for people."""
        ...


class Evaluation(Protocol):
    """One pass over the validation split."""

    def __call__(self, stopped: threading.Event) -> ValidationScores | None:
        """Scores over all processes; None if there is nothing to evaluate, or `stopped` was set meanwhile."""
        ...


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far."""

    step: int
    score: float
    """What its kind goes by: mIoU, or mean cosine."""


@dataclass(slots=True)
class TrainState:
    """Where a run is. All that is not weights, optimiser or scaler."""

    step: int = 0
    """Steps done."""
    updates: int = 0
    """Of them applied: the gradient scaler may skip some, and the learning rate then waits."""
    evaluated: int = 0
    """Step of the last evaluation."""
    best: Best | None = None
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last one that was logged, means over processes."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> TrainState:
        """The reverse of `to_dict`."""
        best = plain["best"]
        return cls(**{**plain, "best": None if best is None else Best(**best)})
