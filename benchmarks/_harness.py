# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: where it ran, fair timing, where results go."""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["RESULTS", "data_folder", "environment", "interleaved", "write_results"]

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("ditr-cache", "numpy", "torch", "transformers", "zarr", "tensorstore", "Pillow", "simplejpeg")


def data_folder() -> Path:
    """Folder of the real sensor samples.

    Raises:
        SystemExit: If it is not there.
    """
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DITR_CACHE_TEST_DATA", default))
    if not folder.is_dir():
        raise SystemExit("this benchmark needs the real samples; set DITR_CACHE_TEST_DATA to their folder")
    return folder


def environment() -> dict[str, Any]:
    """CPU and GPU model, cores, versions and date: what a number means nothing without."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": _gpu_model(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Time functions side by side, every round in another order, so that drift and neighbours hit all alike.

    A B C then C B A would not do: A and C would follow themselves, with their memory and code still hot, and B never.

    Args:
        functions: By name.
        rounds: Measured calls of each.
        warmup: Calls of each before the first measured one.

    Returns:
        By name, in seconds: `median`, `q1`, `q3` and `best` of the wall time, and `cpu`, the median over all threads
        of the CPU time, which other work on the machine disturbs less.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    shuffler = random.Random(0)
    for turn in range(warmup + rounds):
        for name, function in shuffler.sample(list(functions.items()), len(functions)):
            start, start_cpu = time.perf_counter(), time.process_time()
            function()
            elapsed = time.perf_counter() - start, time.process_time() - start_cpu
            if turn >= warmup:
                times[name].append(elapsed)
    return {name: _summary(values) for name, values in times.items()}


def write_results(name: str, results: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write `results` with the environment to `<folder>/<name>.json`, by default in `benchmarks/results`."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **results}, indent=1) + "\n", "utf-8")
    return path


def _summary(times: list[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = zip(*times, strict=True)
    q1, median, q3 = np.quantile(wall, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "q1": q1, "q3": q3, "best": min(wall), "cpu": float(np.median(cpu))}


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_model() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
