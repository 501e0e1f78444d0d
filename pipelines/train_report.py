# SPDX-License-Identifier: Apache-2.0
"""What stage two says when it is done, and before it starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ditr_cache.training.metrics import SegmentationScores

__all__ = ["DistillEstimate", "RunEstimate", "TrainEstimate", "TrainReport"]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """One call of `train`, and the state of the run after it."""

    run: str
    """Its folder."""
    steps: int
    """Done by this call."""
    step: int
    """Done in all."""
    total: int
    """Of the whole run."""
    epochs: int
    parameters: int
    samples: int
    """Of the training split."""
    val_samples: int
    label_set: str
    loss: float | None
    """As it was last read by this call."""
    best_miou: float | None
    best_step: int | None
    last: SegmentationScores | None
    """Of this call's last evaluation."""
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
    digest: str
    """Content digest of the store."""
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a run would cost, from one measured step."""

    steps_per_epoch: int
    steps: int
    """Of the whole run."""
    parameters: int
    points: int
    """Of the measured batch."""
    rows: int
    """Image features of the measured batch."""
    data_s: float
    """To prepare one step's clouds in one process."""
    step_s: float
    """Forward, backward and update of one step."""
    evaluation_s: float | None
    """One pass over the validation split, from its first cloud."""
    seconds: float
    """Of the whole run."""
    memory_bytes: int
    """Highest, of the device that trains."""
    workers: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TrainEstimate(RunEstimate):
    """Of training."""

    samples: int
    val_samples: int
    label_set: str
    classes: int
    image_channels: int | None


@dataclass(frozen=True, slots=True)
class DistillEstimate(RunEstimate):
    """Of distillation."""

    names: tuple[str, ...]
    """What the stores are called."""
    samples: tuple[int, ...]
    """To train on, of each store."""
    val_samples: tuple[int, ...]
    image_channels: tuple[int, ...]
    """D of each name, each name once."""
