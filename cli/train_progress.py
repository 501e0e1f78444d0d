# SPDX-License-Identifier: Apache-2.0
"""How a training run goes: a bar at a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ditr_cache.cli.output import Output, is_fancy
from ditr_cache.cli.progress import LINE_EVERY_S
from ditr_cache.cli.text import duration
from ditr_cache.training.tracking import EvaluationReport, Nobody, StepReport, Tracker

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["TrainBar", "TrainLines", "training_progress"]

_MEMORY = 0.95
"""How much of a mean of times is kept at each step: the last 20 or so count."""


@contextmanager
def training_progress(output: Output) -> Iterator[Tracker]:
    """What suits where stderr goes. It is taken down at the end, however that comes."""
    if output.quiet:
        yield Nobody()
        return
    progress: TrainBar | TrainLines = TrainBar(output) if is_fancy(sys.stderr) else TrainLines(output)
    try:
        yield progress
    finally:
        progress.close()


class Pace:
    """Means of the last steps, and what is left to do."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self._loss: float | None = None
        self._lr = self._data_s = self._step_s = 0.0
        self._epoch, self._seen = 0, 0

    def begin(self, done: int, total: int) -> None:
        """So many of so many steps are done."""
        self.done, self.total = done, total

    def step(self, report: StepReport) -> None:
        """Take a step in."""
        self.done, self._epoch, self._lr = report.step, report.epoch, report.lr
        self._loss = self._loss if report.loss is None else report.loss
        # the first step waits for workers to start, and makes what is made once
        keep = _MEMORY if self._seen > 1 else 0.0
        self._data_s = keep * self._data_s + (1 - keep) * report.data_s
        self._step_s = keep * self._step_s + (1 - keep) * report.step_s
        self._seen += 1

    @property
    def left_s(self) -> float | None:
        """Seconds of training to go; evaluations come on top."""
        return (self.total - self.done) * (self._data_s + self._step_s) if self._seen else None

    def __str__(self) -> str:
        if not self._seen:
            return f"step {self.done:,} of {self.total:,}"
        loss = "-" if self._loss is None else f"{self._loss:.4g}"
        return (
            f"epoch {self._epoch + 1}, step {self.done:,} of {self.total:,}: loss {loss}, lr {self._lr:.2g}, "
            f"{self._data_s + self._step_s:.2f} s/step ({self._data_s:.2f} waiting for data)"
        )


def _scores(report: EvaluationReport) -> str:
    best = ", the best so far" if report.best else ""
    return f"epoch {report.epoch + 1}: {report.scores}{best} ({duration(report.seconds)})"


class TrainLines(Nobody):
    """For log files: a line every 30 seconds, after every evaluation, and at the end.

    Args:
        output: Where to.
        clock: Seconds.
    """

    def __init__(self, output: Output, clock: Callable[[], float] = time.monotonic) -> None:
        self._output, self._clock, self._pace = output, clock, Pace()
        self._said = clock()
        self._news = False

    def begin(self, done: int, total: int) -> None:
        """Start counting."""
        self._pace.begin(done, total)
        self._said = self._clock()

    def step(self, report: StepReport) -> None:
        """Count; say so if it is time."""
        self._pace.step(report)
        self._news = True
        if self._clock() - self._said >= LINE_EVERY_S:
            self._say()

    def evaluation(self, report: EvaluationReport) -> None:
        """Say it."""
        self._output.status(_scores(report))

    def note(self, text: str) -> None:
        """Say it."""
        self._output.status(text)

    def close(self) -> None:
        """The last line."""
        if self._news:
            self._say()

    def _say(self) -> None:
        self._said, self._news = self._clock(), False
        left = f", {duration(self._pace.left_s)} left" if self._pace.done < self._pace.total else ""
        self._output.status(f"{self._pace}{left}")


class TrainBar(Nobody):
    """For people at a terminal.

    Args:
        output: Speaks above the bar while there is one.
    """

    def __init__(self, output: Output) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        self._output, self._console, self._pace = output, console, Pace()
        self._rich = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._up = ExitStack()

    def begin(self, done: int, total: int) -> None:
        """Put the bar up."""
        self._pace.begin(done, total)
        self._task = self._rich.add_task("", total=total, completed=done, words=str(self._pace), left="")
        self._up.enter_context(self._rich)
        self._up.enter_context(self._output.speaking_through(lambda text: self._console.print(text, soft_wrap=True)))

    def step(self, report: StepReport) -> None:
        """Move it."""
        self._pace.step(report)
        if self._task is not None:
            left = f"{duration(self._pace.left_s)} left"
            self._rich.update(self._task, completed=report.step, words=str(self._pace), left=left)

    def evaluation(self, report: EvaluationReport) -> None:
        """A line above it."""
        self._output.status(_scores(report))

    def note(self, text: str) -> None:
        """A line above it."""
        self._output.status(text)

    def close(self) -> None:
        """Take it down."""
        self._up.close()
