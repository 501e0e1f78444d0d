# SPDX-License-Identifier: Apache-2.0
"""A function applied to keys by processes or threads; the results come in the keys' order, whatever their number."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ditr_cache.errors import DitrCacheError, TrainingError
from ditr_cache.types import FactoredFeatures, PointBatch

__all__ = ["LoaderConfig", "load"]

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class LoaderConfig:
    """Who prepares data."""

    workers: int = 0
    """How many; 0: none, whoever iterates does it."""
    prefetch: int = 2
    """Results that each of them prepares ahead."""
    kind: Literal["process", "thread"] = "process"
    """Processes share the work of transforms, but every result has to travel from one to another. Threads hand results
    over for nothing, and wait for servers as well as processes do, but only one at a time runs Python."""
    pin: bool = False
    """Page-locked memory, from which copies to CUDA run beside the computation. Without CUDA it means nothing."""


def load(make: Callable[[K], V], keys: Iterable[K], loader: LoaderConfig) -> Iterator[tuple[K, V]]:
    """`make(key)` for every key, in their order; an exception in a worker is raised here.

    Args:
        make: A picklable function.
        keys: May be endless.
        loader: Who computes.

    Raises:
        DitrCacheError: As `make` raised it.
        TrainingError: If a worker died.
    """
    if loader.workers and loader.kind == "thread":
        yield from _load_in_threads(make, keys, loader)
        return
    options: dict[str, Any] = {}
    if loader.workers:
        options = {
            "multiprocessing_context": _context(),
            "prefetch_factor": loader.prefetch,
            "worker_init_fn": _begin_worker,
        }
    results = DataLoader(
        _Made(make),
        batch_size=None,
        sampler=_AsSampler(keys),
        num_workers=loader.workers,
        collate_fn=_identity,
        pin_memory=loader.pin and torch.cuda.is_available(),
        **options,
    )
    stream = iter(results)
    while True:
        try:
            result: _Result[K, V] = next(stream)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                "a process that prepares data died, most likely for want of memory",
                hint="Take fewer of them (-s run.workers=...), or give /dev/shm more room.",
            ) from error
        if result.error is not None:
            raise result.error from _WorkerError(result.trace)
        yield result.key, result.value  # type: ignore[misc]


def _load_in_threads(make: Callable[[K], V], keys: Iterable[K], loader: LoaderConfig) -> Iterator[tuple[K, V]]:
    """`load` by threads of this process."""
    pin = loader.pin and torch.cuda.is_available()
    pool = ThreadPoolExecutor(loader.workers, thread_name_prefix="ditr-cache-data")
    waiting: deque[tuple[K, Future[V]]] = deque()

    def first() -> tuple[K, V]:
        key, result = waiting.popleft()
        return key, _pinned(result.result()) if pin else result.result()

    try:
        for key in keys:
            waiting.append((key, pool.submit(make, key)))
            if len(waiting) > loader.workers * loader.prefetch:
                yield first()
        while waiting:
            yield first()
    finally:
        # what is being made has nobody to go to, and is not waited for
        pool.shutdown(wait=False, cancel_futures=True)


class _WorkerError(Exception):
    """Carries the trace of another process to where its error is raised."""


@dataclass(frozen=True, slots=True, eq=False)
class _Result(Generic[K, V]):
    """A value or an error: DataLoader would wrap an error's message in its own words."""

    key: K
    value: V | None
    error: DitrCacheError | None = None
    trace: str = ""

    def pin_memory(self) -> _Result[K, V]:
        """The same in page-locked memory; DataLoader calls this."""
        return _Result(self.key, _pinned(self.value), self.error, self.trace)


class _Made(Dataset[_Result[K, V]]):
    """A function as a data set."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make

    def __getitem__(self, key: K) -> _Result[K, V]:
        try:
            return _Result(key, self._make(key))
        except DitrCacheError as error:
            return _Result(key, None, error, traceback.format_exc())


class _AsSampler(Sampler[K]):
    """Keys as torch wants them."""

    def __init__(self, keys: Iterable[K]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[K]:
        return iter(self._keys)


def _pinned(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, PointBatch | FactoredFeatures):
        return type(value)(*(_pinned(getattr(value, name)) for name in value.__slots__))
    return value


def _identity(value: V) -> V:
    return value


def _begin_worker(worker: int) -> None:
    """Live as long as the parent, and leave signals to it.

    Ctrl-C and SIGTERM reach a whole process group, and the parent wants to finish its step first. A killed parent says
    nothing: torch looks at the parent's process id, which here is the fork server's, and that one lives on as long as
    its workers do.
    """
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="ditr-cache-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _context() -> Any:
    """Workers that start from a clean process: a forked store hangs with some readers, a forked CUDA always does."""
    # where there is none (Windows), every worker starts from nothing
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with suppress(AttributeError):
        # imported once and not once a worker
        context.set_forkserver_preload(["ditr_cache.training.loader"])
    return context
