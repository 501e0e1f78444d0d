# SPDX-License-Identifier: Apache-2.0
"""Who is told how a run goes: a file of JSON lines always, TensorBoard where it is installed, a terminal."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ditr_cache.training.state import ValidationScores

__all__ = [
    "EvaluationReport",
    "JsonLog",
    "Nobody",
    "StepReport",
    "TensorBoard",
    "Tracker",
    "Trackers",
    "tensorboard_or_nobody",
]


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step."""

    step: int
    """Steps done, this one included."""
    epoch: int
    """Which epoch it belongs to, from 0."""
    lr: float
    """Learning rate outside of blocks."""
    data_s: float
    """Seconds that the step waited for data."""
    step_s: float
    """Seconds of everything else."""
    points: int
    """Points of this process."""
    loss: float | None = None
    """Mean over the steps since the last one that has it; None in between, where reading it would stall a GPU."""
    grad_norm: float | None = None
    """Before clipping; None without clipping."""
    scale: float | None = None
    """Of the loss; None without a gradient scaler."""
    skipped: int = 0
    """Updates that the gradient scaler has skipped so far."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """One pass over the validation split."""

    step: int
    epoch: int
    scores: ValidationScores
    seconds: float
    best: bool
    """Whether no earlier one of the run was as good."""


class Tracker(Protocol):
    """Called by the main process of a run, in order."""

    def begin(self, done: int, total: int) -> None:
        """So many of so many steps are done."""
        ...

    def step(self, report: StepReport) -> None:
        """A step is done."""
        ...

    def evaluation(self, report: EvaluationReport) -> None:
        """The validation split was predicted."""
        ...

    def note(self, text: str) -> None:
        """One line for people."""
        ...

    def settle(self) -> None:
        """What was said so far must last: a checkpoint follows that counts on it."""
        ...

    def close(self) -> None:
        """The run ends, however it went."""
        ...


class Nobody:
    """Says nothing."""

    def begin(self, done: int, total: int) -> None:
        """Ignore."""

    def step(self, report: StepReport) -> None:
        """Ignore."""

    def evaluation(self, report: EvaluationReport) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def settle(self) -> None:
        """Ignore."""

    def close(self) -> None:
        """Ignore."""


class Trackers(Nobody):
    """Several at once.

    Args:
        trackers: Told in this order.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def begin(self, done: int, total: int) -> None:
        """Tell all."""
        for tracker in self._trackers:
            tracker.begin(done, total)

    def step(self, report: StepReport) -> None:
        """Tell all."""
        for tracker in self._trackers:
            tracker.step(report)

    def evaluation(self, report: EvaluationReport) -> None:
        """Tell all."""
        for tracker in self._trackers:
            tracker.evaluation(report)

    def note(self, text: str) -> None:
        """Tell all."""
        for tracker in self._trackers:
            tracker.note(text)

    def settle(self) -> None:
        """Tell all."""
        for tracker in self._trackers:
            tracker.settle()

    def close(self) -> None:
        """Close all."""
        for tracker in self._trackers:
            tracker.close()


class _Means(Nobody, ABC):
    """Times as means since the last reading of the loss: a GPU's work shows in the step that waits for it."""

    def __init__(self) -> None:
        self._steps, self._data_s, self._step_s = 0, 0.0, 0.0

    def step(self, report: StepReport) -> None:
        """Add up, and hand the means to `reading`."""
        self._steps, self._data_s, self._step_s = (
            self._steps + 1,
            self._data_s + report.data_s,
            self._step_s + report.step_s,
        )
        if report.loss is not None:
            n = self._steps
            self.reading(replace(report, data_s=self._data_s / n, step_s=self._step_s / n))
            self._steps, self._data_s, self._step_s = 0, 0.0, 0.0

    @abstractmethod
    def reading(self, report: StepReport) -> None:
        """A step whose loss is known."""


class JsonLog(_Means):
    """`log.jsonl`: an object a line, `{"kind": "step", ...}` or `{"kind": "evaluation", ...}`.

    Args:
        path: The file; made if need be.
        keep: Bytes that a checkpoint vouches for. What a killed run wrote after them is cut off.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        super().__init__()
        self._file = path.open("ab")
        # a file that is shorter has lost bytes that were flushed; padding it with zeros would hide that
        self._file.truncate(min(keep, os.fstat(self._file.fileno()).st_size))

    def reading(self, report: StepReport) -> None:
        """A line."""
        self._write({"kind": "step", **asdict(report)})

    def evaluation(self, report: EvaluationReport) -> None:
        """A line."""
        self._write({"kind": "evaluation", **asdict(report)})

    def settle(self) -> None:
        """Flush to the medium."""
        os.fsync(self._file.fileno())

    def length(self) -> int:
        """Bytes so far, for the checkpoint that follows."""
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, value: dict[str, Any]) -> None:
        # a loss or norm that overflowed is null: JSON has no infinity
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in value.items()}
        self._file.write(json.dumps(plain, allow_nan=False).encode() + b"\n")
        self._file.flush()


class TensorBoard(_Means):
    """Curves for TensorBoard.

    Args:
        folder: `RUN/tensorboard`.
        done: Steps that a checkpoint vouches for; what a killed run wrote after them is hidden.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        super().__init__()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1)

    def reading(self, report: StepReport) -> None:
        """Loss, rate and times."""
        values = {
            "train/loss": report.loss,
            "train/lr": report.lr,
            "train/grad_norm": report.grad_norm,
            "train/scale": report.scale,
            "time/data_s": report.data_s,
            "time/step_s": report.step_s,
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, report.step)

    def evaluation(self, report: EvaluationReport) -> None:
        """What the scores want to be plotted."""
        for name, value in report.scores.curves().items():
            self._writer.add_scalar(name, value, report.step)

    def settle(self) -> None:
        """Flush."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def tensorboard_or_nobody(folder: Path, done: int = 0) -> Tracker:
    """TensorBoard where it is installed."""
    return TensorBoard(folder, done) if find_spec("tensorboard") is not None else Nobody()
