# SPDX-License-Identifier: Apache-2.0
"""Where would extraction on many GPUs stop scaling? A simulation from measured constants, not a measurement.

Blocks are handed out longest first to whoever is free, as `extract --scheduler` does. A block takes the longer of what
its GPU and its CPU cores need for its images, plus the measured overhead; the scheduler hands out one after the other.
Measured: core-ms an image (results/extraction.json), overhead a block (results/cluster.json). Assumed, for no GPU was
at hand: images a second of ViT-L on one GPU, cores a GPU, start-up of a worker, variation of block lengths.

    python benchmarks/scaling_plan.py [--images-per-second 250]
"""

from __future__ import annotations

import argparse
import heapq
import json

import numpy as np
from _harness import RESULTS, write_results

# blocks (scenes), images a block on average, bytes a block at D = 1024 in float16: round figures, see docs/scaling.md
DATASETS = {"nuScenes": (850, 241, 0.47e9), "ScanNet": (1513, 100, 0.37e9)}
GPUS = (1, 8, 64, 512)
CORES_A_GPU, START_S, SCHEDULER_S, SPREAD = 8, 60.0, 0.003, 0.5


def makespan(seconds: np.ndarray, workers: int) -> float:
    """When the last block ends: longest first, each to the first worker that is free."""
    free = [0.0] * workers
    for number, duration in enumerate(sorted(seconds.tolist(), reverse=True)):
        start = max(heapq.heappop(free), number * SCHEDULER_S)
        heapq.heappush(free, start + duration)
    return max(free)


def main() -> None:
    """Print and keep the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-second", type=float, default=250, help="of one GPU; assumed")
    args = parser.parse_args()
    core_s = json.loads((RESULTS / "extraction.json").read_text())["cpu"]["all_cores"]["pillow"]["core_ms"] / 1e3
    overhead_s = json.loads((RESULTS / "cluster.json").read_text())["overhead_ms_a_block"]["median"] / 1e3
    overhead_s = max(overhead_s, 0.0)
    image_s = max(1 / args.images_per_second, core_s / CORES_A_GPU)
    rows = []
    print("| data set | GPUs | minutes | of the ideal | longest block, s | MB/s written |")
    print("|---|---|---|---|---|---|")
    for name, (blocks, images, size) in DATASETS.items():
        # lengths of scenes vary: log-normal, with this standard deviation of the logarithm, and a seed
        lengths = np.random.default_rng(0).lognormal(0, SPREAD, blocks)
        seconds = lengths / lengths.mean() * images * image_s + overhead_s
        ideal = float(seconds.sum())
        for gpus in GPUS:
            total = makespan(seconds, gpus)
            row = {
                "dataset": name,
                "gpus": gpus,
                "minutes": (total + START_S) / 60,
                "of_ideal": ideal / gpus / (total + START_S),
                "longest_s": float(seconds.max()),
                "mb_per_s": blocks * size / total / 1e6,
            }
            rows.append(row)
            print(
                f"| {name} | {gpus} | {row['minutes']:.1f} | {row['of_ideal']:.2f} | {row['longest_s']:.1f} "
                f"| {row['mb_per_s']:,.0f} |"
            )
    constants = {
        "measured": {"core_s_an_image": core_s, "overhead_s_a_block": overhead_s},
        "from earlier measurements": {"scheduler_s_a_task": SCHEDULER_S},
        "assumed": {
            "images_per_second": args.images_per_second,
            "cores_a_gpu": CORES_A_GPU,
            "start_s": START_S,
            "log_spread_of_blocks": SPREAD,
            "datasets": {
                k: {"blocks": b, "images_a_block": i, "bytes_a_block": s} for k, (b, i, s) in DATASETS.items()
            },
        },
    }
    write_results("scaling_plan", {"simulated": rows, "constants": constants})


if __name__ == "__main__":
    main()
