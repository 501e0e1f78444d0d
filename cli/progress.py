# SPDX-License-Identifier: Apache-2.0
"""How far a pipeline is: a bar at a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from ditr_cache.cli.output import Output, is_fancy
from ditr_cache.cli.text import bytes_, duration
from ditr_cache.pipelines.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["Bar", "Lines", "progress_for"]

LINE_EVERY_S = 30.0
Unit = Literal["images", "samples", "steps", "bytes"]


@contextmanager
def progress_for(output: Output, unit: Unit = "images") -> Iterator[Progress]:
    """What suits where stderr goes. It is taken down at the end, however that comes."""
    if output.quiet:
        yield Silent()
        return
    progress: Bar | Lines = Bar(output, unit) if is_fancy(sys.stderr) else Lines(output, unit)
    try:
        yield progress
    finally:
        progress.end()


class Lines:
    """For log files: a line every 30 seconds and at the end.

    Args:
        output: Where to.
        unit: What is counted.
        clock: Seconds.
    """

    def __init__(self, output: Output, unit: Unit = "images", clock: Callable[[], float] = time.monotonic) -> None:
        self._output, self._unit, self._clock = output, unit, clock
        self._total = self._done = 0
        self._start = self._said = clock()
        self._running = False

    def begin(self, images: int) -> None:
        """Start counting."""
        self._total, self._done, self._running = images, 0, True
        self._start = self._said = self._clock()

    def advance(self, images: int) -> None:
        """Count; say so if it is time."""
        self._done += images
        if self._clock() - self._said >= LINE_EVERY_S:
            self._say()

    def note(self, text: str) -> None:
        """A line at once."""
        self._output.status(text)

    def end(self) -> None:
        """The last line."""
        if self._running and self._total:
            self._say()
        self._running = False

    def _say(self) -> None:
        self._said = self._clock()
        elapsed = self._said - self._start
        rate = self._done / elapsed if elapsed > 0 else 0.0
        left = f", {duration((self._total - self._done) / rate)} left" if rate and self._done < self._total else ""
        self._output.status(
            f"{_amounts(self._done, self._total, self._unit)} in {duration(elapsed)}, {_rate(rate, self._unit)}{left}"
        )


class Bar:
    """For people at a terminal.

    Args:
        output: Speaks above the bar while there is one.
        unit: What is counted.
    """

    def __init__(self, output: Output, unit: Unit = "images") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        self._output, self._console, self._unit = output, console, unit
        self._rich = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.fields[amounts]}"),
            # of all so far: batches come in bursts, and the time left should not jump with each
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            speed_estimate_period=600,
        )
        self._task: TaskID | None = None
        self._total, self._done, self._start = 0, 0, 0.0
        self._up = ExitStack()

    def begin(self, images: int) -> None:
        """Put the bar up."""
        self._total, self._done, self._start = images, 0, time.monotonic()
        self._task = self._rich.add_task("", total=images or None, amounts=_amounts(0, images, self._unit))
        self._up.enter_context(self._rich)
        self._up.enter_context(self._output.speaking_through(lambda text: self._console.print(text, soft_wrap=True)))

    def advance(self, images: int) -> None:
        """Move it."""
        if self._task is None:
            return
        self._done += images
        elapsed = time.monotonic() - self._start
        amounts = _amounts(self._done, self._total, self._unit)
        if elapsed > 0:
            amounts += f", {_rate(self._done / elapsed, self._unit)}"
        self._rich.update(self._task, completed=self._done, amounts=amounts)

    def note(self, text: str) -> None:
        """A line above it."""
        self._output.status(text)

    def end(self) -> None:
        """Take it down."""
        self._up.close()


def _amounts(done: int, total: int, unit: Unit) -> str:
    if unit == "bytes":
        return f"{bytes_(done)} of {bytes_(max(done, total))}" if total else bytes_(done)
    return f"{done:,} of {total:,} {unit}"


def _rate(rate: float, unit: Unit) -> str:
    return f"{bytes_(rate)}/s" if unit == "bytes" else f"{rate:.1f} {unit}/s"
