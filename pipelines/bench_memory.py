# SPDX-License-Identifier: Apache-2.0
"""The memory that one network takes at most, measured in a process of its own.

On CUDA it is what torch had allocated at most. On a CPU no allocator keeps such a count: the process loads everything,
gives back what loading left over, resets the system's high-water mark of its resident memory, and computes. What the
mark rises by, and the weights and inputs that were there before, make the number: libraries and code are not in it.
Where the allocator can be told to (glibc), it returns whatever is freed at once: the number then is that of what is in
use, and the same each time to 1 %. What it keeps for later otherwise varies by more than what cached features add.
"""

from __future__ import annotations

import ctypes
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ditr_cache.config import BackboneConfig
from ditr_cache.pipelines.bench_arms import Arm, ArmSettings, vit_modules
from ditr_cache.pipelines.bench_scenes import BenchScene

__all__ = ["Peaks", "measure_memory"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_M_MMAP_THRESHOLD = -3
"""Blocks from so many bytes on are taken from the system, and returned to it, one by one; from glibc's malloc.h."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes of one network at most: its weights, its inputs and what it computes."""

    inference: int
    training: int
    """With gradients and the optimiser's state."""


def measure_memory(settings: ArmSettings, scene: BenchScene, vit: BackboneConfig | None) -> Peaks | None:
    """Two passes of evaluation and two training steps in a fresh process.

    Args:
        settings: Which network.
        scene: The cloud.
        vit: For the online arm.

    Returns:
        None if the system killed the process, which is what it does where memory runs out.
    """
    # as bytes: the tensors would travel as shared memory, and count in both processes
    task = pickle.dumps((settings, scene, vit, torch.get_num_threads()))
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_alone, args=(task, sender), daemon=True)
    process.start()
    sender.close()
    try:
        found: Peaks | Exception = receiver.recv()
    except EOFError:
        return None
    finally:
        # also when this process is told to stop: nobody would wait for the other one
        process.terminate()
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _measure_alone(task: bytes, sender: Connection) -> None:
    # Ctrl-C reaches both processes, and the other one ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _tell_malloc("mallopt", _M_MMAP_THRESHOLD, 1 << 16)
    try:
        sender.send(_measure(task))
    except Exception as error:  # whatever it is, the process that asked reports it
        sender.send(error)


def _measure(task: bytes) -> Peaks:
    settings, scene, config, threads = pickle.loads(task)  # noqa: S301  written by `measure_memory`
    torch.set_num_threads(threads)
    cuda = settings.device.startswith("cuda")
    vit = None
    if config is not None:
        from ditr_cache.backbones import load_backbone

        vit = load_backbone(config, settings.device)
        for module in vit_modules(vit):
            for parameter in module.parameters():
                # a file that is mapped is not read before it is used
                parameter.data = parameter.data.clone()
    arm = Arm(settings, vit)
    there = arm.weight_bytes + scene.bytes(settings.name)
    _tell_malloc("malloc_trim", 0)
    low = _reset_mark()

    def peak(compute: Callable[[BenchScene], object]) -> int:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        _reset_mark()
        for _ in range(2):
            compute(scene)
        return torch.cuda.max_memory_allocated() if cuda else there + _mark() - low

    return Peaks(inference=peak(arm.infer), training=peak(arm.train))


def _tell_malloc(function: str, *args: int) -> None:
    """Call a function of glibc's allocator, where there is that one."""
    found = getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
    if found is not None:
        found(*args)


def _reset_mark() -> int:
    """Bytes that are resident now; from here on the high-water mark counts, where the system lets it be reset."""
    try:
        _RESET.write_text("5")
        return _field("VmRSS")
    except OSError:
        return _mark()


def _mark() -> int:
    """Most bytes that were resident.

    Not `ru_maxrss`, where there is another way: a fresh process inherits that from the one that started it.
    """
    try:
        return _field("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _field(name: str) -> int:
    for line in _STATUS.read_text("ascii").splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {name} in {_STATUS}")
