# SPDX-License-Identifier: Apache-2.0
"""Claims on extraction over Dask, on CPU, with the embedded `rooms-vit-tiny` on generated rooms:

- two workers of one thread reach at least 0.9 of the ideal, start-up (processes, imports, ViT) aside. The ideal is what
  the cores give: two processes that know nothing of each other, `--shard 0/2` and `--shard 1/2`, each on a core of its
  own. Twice the speed of one process on one core is given as well; cores that are threads of one do not reach it;
- a block costs less than 50 ms more than in one process, where it is tiny: the start-up of a run cancels out of the
  difference between a run of many blocks and one of few.

Start-up is excluded the same way: a run of many rooms less one of few, for all arms, in turn. At the end of a run one
worker may wait for the other's last block, a second or so: there are enough rooms for that to weigh little.

    python benchmarks/cluster.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

# before torch is imported, here and in the workers
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from _harness import environment, write_results
from _stores import work_folder

from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.pipelines.cluster import ClusterExtract
from ditr_cache.pipelines.cluster_connect import LocalWorkers
from ditr_cache.pipelines.extract import Extract

IDEAL, OVERHEAD_MS = 0.9, 50.0
FEW, MANY, VIEWS = 4, 40, 12
TINY_FEW, TINY_MANY = 4, 44
SHARDS = -2
ONE_THREAD = ["run.threads=1", "run.device=cpu"]


def settings(overrides: list[str]) -> ExtractConfig:
    return load_config(ExtractConfig, [read_named_yaml("extract", "synthetic")], overrides)


def shards(source: str, overrides: list[str], folder: Path) -> float:
    """Seconds of two processes side by side, each with half of the blocks and one core; one store for both."""
    start = time.perf_counter()
    running = []
    for i, core in enumerate(sorted(os.sched_getaffinity(0))[:2]):
        words = ["extract", source, str(folder / "store"), "--shard", f"{i}/2", "-q", "--json"]
        command = [sys.executable, "-m", "ditr_cache.cli", *words, *(word for s in overrides for word in ("-s", s))]
        pin = partial(os.sched_setaffinity, 0, {core})
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=pin))
    if any(process.wait() for process in running):
        raise SystemExit(f"{source}: a shard failed")
    elapsed = time.perf_counter() - start
    shutil.rmtree(folder / "store")
    return elapsed


def seconds(source: str, overrides: list[str], workers: int, folder: Path) -> float:
    """Of one whole run into a new store; 0 workers: this process; SHARDS: two processes without Dask."""
    if workers == SHARDS:
        return shards(source, overrides, folder)
    config = settings(overrides)
    dataset, store = open_dataset(source, "synthetic"), folder / "store"
    cores = os.sched_getaffinity(0)
    start = time.perf_counter()
    if workers:
        report = ClusterExtract(dataset, store, config, LocalWorkers(workers)).run()
    else:
        # decoding and writing have threads of their own: "single-threaded" is one core
        os.sched_setaffinity(0, {min(cores)})
        report = Extract(dataset, store, config).run()
        os.sched_setaffinity(0, cores)
    elapsed = time.perf_counter() - start
    if report.failures or report.dropped:
        raise SystemExit(f"{source}: blocks or frames failed")
    shutil.rmtree(store)
    return elapsed


def slopes(
    sources: tuple[str, str], overrides: list[str], arms: tuple[int, ...], folder: Path, rounds: int
) -> dict[int, list[float]]:
    """Seconds that the larger source takes more than the smaller, by number of workers, arms in turn."""
    found: dict[int, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        for workers in sorted(found, reverse=bool(turn % 2)):
            few, many = (seconds(source, overrides, workers, folder) for source in sources)
            found[workers].append(many - few)
            print(f"  {workers} workers: {few:.2f} s, {many:.2f} s", flush=True)
    return found


def main() -> None:
    """Print and keep the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=work_folder()))
    try:
        print(f"rooms of {VIEWS} views")
        rooms = slopes(
            (f"synthetic:rooms={FEW},views={VIEWS}", f"synthetic:rooms={MANY},views={VIEWS}"),
            ONE_THREAD,
            (0, 2, SHARDS),
            folder,
            args.rounds,
        )
        print("tiny rooms of one view")
        tiny = slopes(
            (f"synthetic:rooms={TINY_FEW},views=1", f"synthetic:rooms={TINY_MANY},views=1"),
            [*ONE_THREAD, "images.size=[14,14]"],
            (0, 1),
            folder,
            args.rounds,
        )
    finally:
        shutil.rmtree(folder)
    ratios = [apart / two for apart, two in zip(rooms[SHARDS], rooms[2], strict=True)]
    doubled = [alone / (2 * two) for alone, two in zip(rooms[0], rooms[2], strict=True)]
    blocks = TINY_MANY - TINY_FEW
    overheads = [1e3 * (one - alone) / blocks for alone, one in zip(tiny[0], tiny[1], strict=True)]
    results: dict[str, Any] = {
        "share_of_ideal": {"median": median(ratios), "all": ratios},
        "share_of_twice_one_core": {"median": median(doubled), "all": doubled},
        "overhead_ms_a_block": {"median": median(overheads), "all": overheads},
        "seconds": {"rooms": rooms, "tiny": tiny},
    }
    print(f"two workers reach {median(ratios):.3f} of the ideal ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"and {median(doubled):.3f} of twice one process on one core ({min(doubled):.3f} to {max(doubled):.3f})")
    print(f"a block costs {median(overheads):.1f} ms more ({min(overheads):.1f} to {max(overheads):.1f})")
    target = f">= {IDEAL} of the ideal; < {OVERHEAD_MS:.0f} ms a block"
    write_results("cluster", {"environment": environment(), "target": target, "backbone": "rooms-vit-tiny", **results})


if __name__ == "__main__":
    main()
