# SPDX-License-Identifier: Apache-2.0
"""Hands blocks to workers, a few ahead of what they have done, and decides what the death of one means.

A task that dies with its process is run again by Dask, `allowed-failures` times. Which of the blocks that were in the
process killed it cannot be known, so all of them come here in the end, and are tried once more, one at a time and with
nothing else at work: what dies then is failed, and has cost the others nothing.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from distributed import Client, Future, KilledWorker

from ditr_cache.errors import DitrCacheError, RemoteError
from ditr_cache.pipelines.cluster_worker import Job, Readiness, Unfit, extract_block
from ditr_cache.pipelines.events import BlockState
from ditr_cache.pipelines.outcome import BlockOutcome
from ditr_cache.pipelines.progress import Progress

__all__ = ["BlockQueue", "connection_lost"]

AHEAD = 2
"""Blocks a worker that are handed out: one at work, one waiting beside it."""
FEWEST_AHEAD = 8
"""At least so many, so that clusters which grow with their load have a load to grow with."""
POLL_S = 0.25
LOOK_EVERY_S = 1.0


def connection_lost() -> RemoteError:
    """The scheduler is gone, and with it what it knew."""
    return RemoteError(
        "the connection to the Dask scheduler was lost",
        hint="What is finished is kept. Run the same command again to go on.",
    )


class BlockQueue:
    """One run's blocks.

    Args:
        client: Connected; the job's plugin is registered.
        job: Whose blocks.
        progress: Who listens.
        stopped: Whether to hand out no more and leave.
        meanwhile: Called now and then.
    """

    def __init__(
        self,
        client: Client,
        job: Job,
        progress: Progress,
        stopped: Callable[[], bool],
        meanwhile: Callable[[], None],
    ) -> None:
        self._client, self._job, self._progress = client, job, progress
        self._stopped, self._meanwhile = stopped, meanwhile
        self._inbox: queue.SimpleQueue[Future | dict[str, Any]] = queue.SimpleQueue()
        self._waiting: deque[BlockState] = deque()
        self._handed_out: dict[Future, BlockState] = {}
        self._suspects: dict[str, tuple[BlockState, str]] = {}
        self._shown: dict[str, int] = {}
        self._unfit: set[str] = set()
        self._workers: list[str] = []
        self._looked = 0.0
        self._alone = False
        self.outcomes: dict[str, BlockOutcome] = {}
        """How blocks ended so far, by id."""

    def run(self, blocks: Sequence[BlockState]) -> None:
        """Get all of them done, in this order as far as workers allow.

        Raises:
            RemoteError: If the scheduler is lost, or no worker can take part.
            OSError: If the disk is full.
        """
        self._client.subscribe_topic(self._job.name, lambda event: self._inbox.put(event[1]))
        try:
            self._hand_out(blocks)
            # once more what a medium's failure cost
            self._hand_out([block for block in blocks if self._ended(block).transient])
            self._alone = True
            for block, _ in list(self._suspects.values()):
                self._hand_out([block])
        finally:
            with contextlib.suppress(OSError):  # the connection was lost, and with it the tasks
                if self._handed_out and self._client.status == "running":
                    self._client.cancel(list(self._handed_out))

    def failures_unrecorded(self) -> dict[str, str]:
        """Blocks that failed without a worker to record it."""
        return {block: reason for block, (_, reason) in self._suspects.items() if block in self.outcomes}

    def _ended(self, block: BlockState) -> BlockOutcome:
        return self.outcomes.get(block.plan.id, BlockOutcome(block.plan.id))

    def _hand_out(self, blocks: Iterable[BlockState]) -> None:
        self._waiting.extend(blocks)
        while (self._waiting or self._handed_out) and not self._stopped():
            self._look()
            while self._waiting and len(self._handed_out) < max(FEWEST_AHEAD, AHEAD * len(self._workers)):
                self._submit(self._waiting.popleft())
            try:
                event = self._inbox.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if isinstance(event, Future):
                self._take(event)
            elif any(block.plan.id == event["block"] for block in self._handed_out.values()):
                self._show(event["block"], event["images"])

    def _look(self) -> None:
        """See who is there, now and then."""
        if self._client.status != "running":
            raise connection_lost()
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._meanwhile()
        try:
            there = self._client.nthreads()
        except OSError as error:
            raise connection_lost() from error
        if not there and (self._workers or not self._looked):
            self._progress.note("no workers at the moment; waiting for some")
        self._workers = [worker for worker in there if worker not in self._unfit]
        self._looked = time.monotonic()

    def _submit(self, block: BlockState) -> None:
        future = self._client.submit(
            extract_block,
            self._job.name,
            block.plan.id,
            block.generation,
            pure=False,
            # to those who can; if they have all gone, to anybody: a list of the dead would never be served
            **({"workers": self._workers, "allow_other_workers": True} if self._unfit and self._workers else {}),
        )
        self._handed_out[future] = block
        future.add_done_callback(self._inbox.put)

    def _take(self, future: Future) -> None:
        """What became of a block."""
        block = self._handed_out.pop(future)
        try:
            result = future.result()
        except KilledWorker as error:
            self._suspect(block, f"its worker processes died, {error.allowed_failures + 1} times in a row")
        except Exception as error:
            if self._client.status != "running":
                raise connection_lost() from error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            text = " ".join(str(error).split())
            self._suspect(block, text if isinstance(error, DitrCacheError) else f"{type(error).__name__}: {text}")
        else:
            if isinstance(result, Unfit):
                self._exclude(result.worker, result.readiness)
                self._waiting.appendleft(block)
                return
            for note in result.notes:
                self._progress.note(note)
            self._show(block.plan.id, result.images)
            self.outcomes[block.plan.id] = result
            self._suspects.pop(block.plan.id, None)
            if result.disk_full:
                raise OSError(errno.ENOSPC, result.failure)

    def _suspect(self, block: BlockState, reason: str) -> None:
        self._show(block.plan.id, 0)
        self._suspects[block.plan.id] = block, reason
        if self._alone:
            self.outcomes[block.plan.id] = BlockOutcome(block.plan.id, failure=reason)
            self._progress.note(f"block {block.plan.id} failed: {reason}")
        else:
            self._progress.note(f"block {block.plan.id}: {reason}; tried again at the end, alone")

    def _exclude(self, worker: str, readiness: Readiness) -> None:
        if worker not in self._unfit:
            self._unfit.add(worker)
            self._progress.note(f"worker {worker} on {readiness.host} gets no more blocks: {readiness.problem}")
        self._workers = [other for other in self._workers if other != worker]
        if not self._workers:
            raise RemoteError(str(readiness.problem), where=f"worker {worker} on {readiness.host}")

    def _show(self, block: str, images: int) -> None:
        self._progress.advance(images - self._shown.get(block, 0))
        self._shown[block] = images
