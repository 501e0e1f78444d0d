# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM: the first one asks a pipeline to stop, the second one stops it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["graceful_stop", "sigterm_as_ctrl_c"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_S = 1.0
"""Signals no further apart are one request: schedulers tell all processes of a job, and torchrun passes it on."""
_NOTICE = b"\nStopping: what is finished is kept. Once more to stop at once.\n"


def sigterm_as_ctrl_c() -> None:
    """Make SIGTERM, which schedulers send before they kill, raise KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _interrupt)


@contextmanager
def graceful_stop(request_stop: Callable[[], None]) -> Iterator[None]:
    """Within, the first signal calls `request_stop`, another one later than `_SAME_S` raises KeyboardInterrupt.

    Args:
        request_stop: Must be safe to call between any two instructions of the main thread.
    """

    def first(_number: int, _frame: FrameType | None) -> None:
        asked = time.monotonic()

        def again(number: int, frame: FrameType | None) -> None:
            if time.monotonic() - asked > _SAME_S:
                _interrupt(number, frame)

        for number in _SIGNALS:
            signal.signal(number, again)
        # not print: the signal may have come in the middle of one, and buffered streams cannot be entered twice
        os.write(2, _NOTICE)
        request_stop()

    before = {number: signal.signal(number, first) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
