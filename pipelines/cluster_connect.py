# SPDX-License-Identifier: Apache-2.0
"""The two ways to a Dask cluster: processes of our own on this machine, or a scheduler that somebody started.

Whoever can talk to a Dask scheduler can run code on it and on its workers. Ours listens on the loopback device only;
certificates for others are taken from Dask's own configuration (`distributed.comm.tls`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import dask
from distributed import Client, Nanny, Scheduler, Security, SpecCluster
from distributed.comm import connect, get_address_host

from ditr_cache.config import ExtractConfig
from ditr_cache.errors import ConfigError, RemoteError

__all__ = ["Cluster", "LocalWorkers", "RemoteScheduler"]

LOOPBACK = "127.0.0.1"
THREADS_A_WORKER = 2
"""Blocks that a process has at hand: one before the ViT, and the one before it being written."""
DEATHS = 2
"""Of workers that were at a block, before it is tried alone."""
_MAX_FILE_BYTES = 1 << 20


class Cluster(Protocol):
    """Where workers are."""

    ours: bool
    """Whether the workers are this process's children, and end with it."""

    @property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        """What each of them keeps to, by its number; empty: all that it finds."""

    def connect(self) -> Any:
        """A context with a connected `Client`.

        Raises:
            RemoteError: If the scheduler cannot be reached in time.
        """

    def adapt(self, config: ExtractConfig) -> ExtractConfig:
        """Settings for one of the workers."""


@dataclass(frozen=True, slots=True)
class LocalWorkers:
    """Processes on this machine, one a GPU where there are any, that share its cores.

    Args:
        number: How many.
    """

    number: int
    ours = True

    @property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        """Neighbouring ones for each process; some are shared where there are more processes than cores.

        Left to the system, threads of two processes change places all the time: on two cores that cost 9 % of the work.
        """
        n, have = self.number, sorted(os.sched_getaffinity(0))
        if n > len(have):
            return tuple((have[i % len(have)],) for i in range(n))
        return tuple(tuple(have[len(have) * i // n : len(have) * (i + 1) // n]) for i in range(n))

    @property
    def _threads(self) -> int:
        return min(map(len, self.cores))

    def adapt(self, config: ExtractConfig) -> ExtractConfig:
        """Every process decodes on its share of the cores."""
        if config.run.threads is not None:
            return config
        return config.model_copy(update={"run": config.run.model_copy(update={"threads": self._threads})})

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """Start the processes; they are gone at the end."""
        # no dashboard; their servers for health checks cannot be had without
        common = {"host": LOOPBACK, "protocol": "tcp://", "dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
        quiet = {
            "distributed.worker.daemon": True,
            # samples every thread's stack a hundred times a second
            "distributed.worker.profile.enabled": False,
            # wakes every process so often to see whether its loop is blocked
            "distributed.admin.tick.interval": "1s",
            "distributed.scheduler.allowed-failures": DEATHS,
            # features never stay with the worker: nothing to spill, and a process that is large must not be paused
            **{f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause", "terminate")},
        }
        workers = {
            i: {
                "cls": Nanny,
                "options": {
                    **common,
                    "nthreads": THREADS_A_WORKER,
                    "memory_limit": 0,
                    "env": self._environment(i),
                    "silence_logs": logging.CRITICAL,
                },
            }
            for i in range(self.number)
        }
        with ExitStack() as stack:
            stack.enter_context(dask.config.set(quiet))
            stack.enter_context(_silence())
            cluster = stack.enter_context(
                SpecCluster(
                    workers=workers,
                    scheduler={"cls": Scheduler, "options": {**common, "port": 0}},
                    silence_logs=logging.CRITICAL,
                )
            )
            yield stack.enter_context(Client(cluster, set_as_default=False))

    def _environment(self, i: int) -> dict[str, str]:
        threads = str(self._threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {name: os.environ.get(name, threads) for name in names}
        gpus = _visible_gpus(os.environ)
        # with fewer GPUs than processes, some share one
        return environment | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})


@dataclass(frozen=True, slots=True)
class RemoteScheduler:
    """A scheduler that is running.

    Args:
        where: Address (`tcp://host:8786`, `tls://host:8786`), or the file it wrote (`dask scheduler --scheduler-file`).
        patience: Seconds to wait for its answer.
    """

    where: str
    patience: float = 15.0
    ours = False

    @property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        """They keep to what they were started with."""
        return ()

    def adapt(self, config: ExtractConfig) -> ExtractConfig:
        """Nothing is known of the machines: what is not set is decided there."""
        return config

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """Connect, and see that everybody there has this version of ditr-cache."""
        address = _address(self.where)
        with ExitStack() as stack:
            stack.enter_context(_silence())
            try:
                _greet(address, self.patience)
                client = Client(address, timeout=self.patience, set_as_default=False, name="ditr-cache")
            except (OSError, TimeoutError, ImportError) as error:
                raise RemoteError(
                    f"no Dask scheduler answered within {self.patience:.0f} s",
                    where=address,
                    hint="Start one with: dask scheduler",
                ) from error
            stack.enter_context(client)
            _check_versions(client, address)
            yield client


def _greet(address: str, patience: float) -> None:
    """See that a Dask server answers: `Client` would wait forever for the first word of another kind of server.

    Raises:
        OSError: If none does in time.
    """

    async def greet() -> None:
        arguments = Security().get_connection_args("client")
        comm = await asyncio.wait_for(connect(address, timeout=patience, **arguments), patience)
        await comm.close()

    # in a thread: notebooks have a loop running in theirs
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, greet()).result()


def _address(where: str) -> str:
    """An address as it stands, or the one in a scheduler's file.

    Raises:
        ConfigError: If it is neither.
    """
    if "://" in where:
        try:
            get_address_host(where)
        except ValueError as error:
            raise ConfigError(f"not the address of a scheduler ({error})", where=where) from error
        return where
    try:
        with Path(where).open("rb") as file:
            found = json.loads(file.read(_MAX_FILE_BYTES))
        address = found["address"]
    except FileNotFoundError as error:
        raise ConfigError(
            "neither an address such as tcp://host:8786 nor a file",
            where=where,
            hint="A scheduler writes one with: dask scheduler --scheduler-file FILE",
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError("not the file of a Dask scheduler", where=where) from error
    if not isinstance(address, str) or "://" not in address:
        raise ConfigError("not the file of a Dask scheduler", where=where)
    return _address(address)


def _check_versions(client: Client, address: str) -> None:
    """Refuse a scheduler or a worker with another version.

    Raises:
        RemoteError: If there is one; the message says which.
    """
    # a function of the standard library, so that it can be asked of whoever lacks our package
    try:
        scheduler: object = client.run_on_scheduler(version, "ditr-cache")
    except (PackageNotFoundError, ImportError) as error:
        scheduler = error
    found = {f"the scheduler {address}": scheduler}
    found |= {f"worker {w}": v for w, v in client.run(version, "ditr-cache", on_error="return").items()}
    mine = version("ditr-cache")
    wrong = {who: what for who, what in found.items() if what != mine and isinstance(what, str | ImportError)}
    if wrong:
        who, what = next(iter(wrong.items()))
        raise RemoteError(
            f"{who} has {f'ditr-cache {what}' if isinstance(what, str) else 'no ditr-cache'}, and {mine} is running "
            f"here{f' ({len(wrong)} of {len(found)} do not fit)' if len(wrong) > 1 else ''}",
            hint="Install the same version everywhere.",
        )


def _visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()] if torch.cuda.is_available() else []
    return [str(i) for i in range(torch.cuda.device_count())]


@contextmanager
def _silence() -> Iterator[None]:
    """Within, Dask's own log lines stay away: what matters of them is said by us."""
    # those below `distributed` have levels of their own
    names = ("distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application", "asyncio")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
