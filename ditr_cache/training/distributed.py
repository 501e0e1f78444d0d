# SPDX-License-Identifier: Apache-2.0
"""Several processes as one: what `torchrun` says, gloo and nccl, and what all of them have to agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ditr_cache.errors import ConfigError, TrainingError

__all__ = ["World", "broadcast_buffers", "environment", "join", "pick_device", "unwrap", "wrap"]


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is CUDA where there is one; `cuda` is the GPU of this process.

    Raises:
        ConfigError: If the device is asked for and not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"run.device is {name}, but torch finds no CUDA device", hint="Use -s run.device=cpu")
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    except RuntimeError as error:
        raise ConfigError(f"run.device: there is no device {name!r}", hint="Use cpu, cuda or auto.") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"run.device: {name!r} is not supported", hint="Use cpu, cuda or auto.")
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise ConfigError(f"run.device is {device}, but there are {torch.cuda.device_count()} CUDA devices")
    return device


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, seen from one of them."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(total)
        return float(total)

    def mean(self, values: Tensor) -> Tensor:
        """Over all processes, element by element; on the CPU."""
        values = values.double().cpu()
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process: all leave the loop after the same step, or some would wait for ever."""
        return self.sum(float(flag)) > 0

    def wait(self) -> None:
        """Until all are here."""
        self.sum(0.0)

    @contextmanager
    def main_only(self) -> Iterator[bool]:
        """True within for the process that writes files; if it fails, the others fail too instead of waiting.

        Raises:
            TrainingError: In the others.
        """
        failed = True
        try:
            yield self.is_main
            failed = False
        finally:
            # also on the way out of an error
            failed = self.any(failed)
        if failed:
            raise TrainingError("another process of this run gave up")


def environment(environ: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, as `torchrun` sets them; (0, 1, 0) without it.

    Raises:
        ConfigError: If they make no sense.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in environ for name in names[:2]):
        return 0, 1, 0
    try:
        rank, size, local = (int(environ.get(name, environ["RANK"])) for name in names)
    except ValueError as error:
        raise ConfigError("RANK, WORLD_SIZE and LOCAL_RANK must be numbers, as torchrun sets them") from error
    if not 0 <= rank < size or local < 0:
        raise ConfigError(f"RANK={rank} of WORLD_SIZE={size} is not a process of a run")
    return rank, size, local


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Meet the other processes of `torchrun`; without it, this process is all there is.

    Args:
        device: As `pick_device`.
    """
    rank, size, local = environment()
    here = pick_device(device, local)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    world = World(here, rank, size)
    if size == 1 or dist.is_initialized():
        yield world
        return
    # numbers on the CPU go by gloo, so that asking whether to stop does not wait for the GPU's queue
    dist.init_process_group("cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, world: World, *, unused: bool = False) -> nn.Module:
    """Average gradients over processes. Buffers are left to each (official), until `broadcast_buffers`.

    Args:
        model: On its device.
        world: This process among the others.
        unused: Whether some parameters may take no part in a step, as norm layers of other data sets do.
    """
    if world.size == 1:
        return model
    return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=unused)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def broadcast_buffers(model: nn.Module, world: World) -> None:
    """Give all processes the first one's running statistics: the model that is evaluated is the one that is saved."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
