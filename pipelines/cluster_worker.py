# SPDX-License-Identifier: Apache-2.0
"""What runs in a Dask worker: one ViT and one set of stages a process, whatever the number of its threads.

A task names a block, puts it before the stages and waits for its end. So the next block is decoded while the ViT sees
this one and the last one is written, and the ViT is loaded once. Schedulers unpickle tasks: neither torch nor NumPy is
imported at the top of this file.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distributed import Worker, WorkerPlugin, get_worker

from ditr_cache.config import ExtractConfig
from ditr_cache.errors import DatasetError
from ditr_cache.pipelines.outcome import BlockOutcome

if TYPE_CHECKING:
    from ditr_cache.datasets.base import Dataset
    from ditr_cache.pipelines.committer import Committer
    from ditr_cache.pipelines.events import BlockState
    from ditr_cache.pipelines.stages import Stages

__all__ = ["BlockWorker", "Job", "Readiness", "Unfit", "extract_block", "when_ready"]

TELL_EVERY_S = 1.0
"""How often a process says how far it is."""
STOP_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """All that a process needs to know of a run; the same for all of them."""

    name: str
    """Unique; also the topic under which processes say how far they are."""
    dataset: Dataset
    location: Any
    """Of the store."""
    config: ExtractConfig
    plan: str
    """`plan_sha256`: a process that sees other data takes no part."""
    ours: bool
    """Whether the processes are the driver's own: then Ctrl-C at its terminal, which reaches them too, is for it."""
    cores: tuple[tuple[int, ...], ...]
    """What each process keeps to, by the number that is its name; empty: all that it finds."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """A process after it tried to get ready."""

    host: str
    device: str = ""
    problem: str | None = None
    """Why it cannot take part, on one line."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """What a task returns from a process that cannot take part."""

    worker: str
    """Address."""
    readiness: Readiness


def extract_block(run: str, block: str, generation: int) -> BlockOutcome | Unfit:
    """The task: do one block. In a worker where `run`'s plugin is."""
    plugin: BlockWorker = get_worker().plugins[run]
    return plugin.extract(block, generation)


async def when_ready(run: str, dask_worker: Worker) -> Readiness:
    """Wait until the worker's process is ready to work for `run`, or knows why it cannot."""
    return await asyncio.shield(asyncio.wrap_future(dask_worker.plugins[run].ready))


class BlockWorker(WorkerPlugin):  # type: ignore[misc] # distributed has no types
    """The run's presence in one process.

    Args:
        job: What is to be done.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def setup(self, worker: Worker) -> None:
        """Begin to get ready, in a thread: loading may take longer than a scheduler waits for a sign of life."""
        if self._job.ours:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._job.cores:
            _keep_to(self._job.cores[worker.name])
        self._worker = worker
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[BlockState] = queue.SimpleQueue()
        self._awaited: dict[str, Future[BlockOutcome]] = {}
        self._closed = False
        self._notes: list[str] = []
        self._told = 0.0
        self.ready: Future[Readiness] = Future()
        self._thread = threading.Thread(target=self._serve, name="blocks", daemon=True)
        self._thread.start()

    async def teardown(self, worker: Worker) -> None:
        """Give up the block at hand, and let go of the ViT."""
        self._stopped.set()
        await asyncio.to_thread(self._thread.join, STOP_WITHIN_S)

    def extract(self, block: str, generation: int) -> BlockOutcome | Unfit:
        """Do a block; waits for its end. Any thread.

        Raises:
            RuntimeError: If the run is stopped meanwhile.
            Exception: Whatever nobody expected; it may be another block's fault.
        """
        from ditr_cache.pipelines.events import BlockState

        readiness = self.ready.result()
        if readiness.problem is not None:
            return Unfit(self._worker.address, readiness)
        with self._lock:
            if self._closed:
                raise RuntimeError("the run is stopped")
            if block not in self._awaited:
                self._awaited[block] = Future()
                self._inbox.put(BlockState(self._blocks[block], generation))
            end = self._awaited[block]
        return end.result()

    def _serve(self) -> None:
        host = socket.gethostname()
        try:
            stages, device = self._get_ready()
        except Exception as error:
            self.ready.set_result(Readiness(host, problem=" ".join(str(error).split()) or type(error).__name__))
            return
        self.ready.set_result(Readiness(host, device))
        while not self._closed:
            failure: Exception = RuntimeError("the run is stopped")
            try:
                stages.run(self._incoming(), self._tell)
            except Exception as error:
                # what it means for the blocks is the driver's business; later ones get fresh stages
                failure = error
            with self._lock:
                self._closed = self._stopped.is_set()
                self._inbox = queue.SimpleQueue()
                awaited, self._awaited = self._awaited, {}
            for end in awaited.values():
                end.set_exception(failure)

    def _get_ready(self) -> tuple[Stages, str]:
        """Load the data set's plan, the store and the ViT, and compare them with the driver's."""
        from ditr_cache.backbones import load_backbone
        from ditr_cache.pipelines.intent import check_plan, plan_sha256, store_identity
        from ditr_cache.pipelines.stages import Stages, pick_device
        from ditr_cache.store.writer import StoreWriter

        job = self._job
        plan = job.dataset.plan()
        check_plan(plan, job.dataset.name)
        if plan_sha256(job.dataset, plan, job.config) != job.plan:
            raise DatasetError("the data set is not here as it is where the run was started", where=job.dataset.name)
        self._blocks = {block.id: block for block in plan}
        # opened before it is created: in a folder that is not shared, nobody would find the features
        StoreWriter(job.location)
        backbone = load_backbone(job.config.backbone, pick_device(job.config.run.device))
        self._store = StoreWriter.create(job.location, store_identity(job.config, job.dataset, backbone))
        stages = Stages(
            job.dataset,
            self._store,
            job.config,
            backbone,
            note=self._notes.append,
            done=self._end,
            stopped=self._stopped.is_set,
            shared=True,
        )
        return stages, str(backbone.device)

    def _incoming(self) -> Iterator[BlockState | None]:
        """Blocks in the order in which tasks bring them."""
        busy = False
        while True:
            try:
                # nothing at hand is said at once: frames wait for it in a batch that is not full
                state = self._inbox.get(timeout=0 if busy else 0.2)
            except queue.Empty:
                busy = False
                yield None
                continue
            busy = True
            if self._store.has_receipt(state.plan.id, state.generation):
                self._resolve(BlockOutcome(state.plan.id))
            else:
                yield state

    def _end(self, outcome: BlockOutcome) -> None:
        # called in the thread that makes the notes
        notes = tuple(self._notes)
        self._notes.clear()
        self._resolve(replace(outcome, notes=notes))

    def _resolve(self, outcome: BlockOutcome) -> None:
        with self._lock:
            end = self._awaited.pop(outcome.block)
        end.set_result(outcome)

    def _tell(self, committer: Committer) -> None:
        block, images = committer.at
        if block and time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            self._worker.log_event(self._job.name, {"block": block, "images": images})


def _keep_to(cores: tuple[int, ...]) -> None:
    """Run this process's threads, and those that they start, on these cores."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread), cores)
