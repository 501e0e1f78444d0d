# SPDX-License-Identifier: Apache-2.0
"""Claim: on real data it learns what it is shown: at least 95 % of the labelled points it was trained on.

A nuScenes keyframe (lidar, six cameras) and a labelled shelf (RealSense, 15 views), each extracted with a real ViT and
learned by the small network of the learning benchmark. One sample each: this says that real poses, labels and features
find together, and nothing of how well it would do elsewhere.

    python benchmarks/learning/real.py --weights DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _harness import data_folder, write_results

from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.extract import Extract
from ditr_cache.pipelines.labelling import LabelOptions
from ditr_cache.pipelines.train import Train
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig

TARGET = 0.95
SETTINGS = Path(__file__).resolve().with_name("rooms.yaml")
SPIN = {"kind": "random_rotate", "angle": [-1, 1], "axis": "z", "center": [0, 0, 0], "p": 0.5}
SHIFT = {"kind": "center_shift"}
FLIP = {"kind": "random_flip", "p": 0.5}


def voxels(size: float, keep: str) -> dict[str, Any]:
    """A grid sample."""
    return {"kind": "grid_sample", "grid_size": size, "keep": keep}


SCENES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "nuscenes": (
        "nuscenes",
        {
            "features": ["coord", "strength"],
            "views": {"count": None, "evaluation_count": None},
            "train": [{"kind": "scale_strength", "divisor": 255}, SPIN, FLIP, voxels(0.1, "random")],
            "val": [{"kind": "scale_strength", "divisor": 255}, voxels(0.1, "first")],
        },
    ),
    "shelf": (
        "nerfstudio/shelf",
        {
            "features": ["color"],
            "train": [SHIFT, SPIN, FLIP, voxels(0.01, "random"), {"kind": "normalize_color"}],
            "val": [SHIFT, voxels(0.01, "first"), {"kind": "normalize_color"}],
        },
    ),
}


def learn(name: str, work: Path, weights: Path, steps: int) -> dict[str, float]:
    """Extract, train and evaluate on the same sample."""
    folder, data = SCENES[name]
    dataset = open_dataset(data_folder() / folder)
    store = work / f"{name}.store"
    layers = [read_named_yaml("extract", dataset.preset), {"backbone": {"weights": str(weights)}}]
    Extract(dataset, store, load_config(ExtractConfig, layers)).run()
    split = next(iter(open_store(store).samples.values())).split
    config = load_config(
        TrainConfig,
        [
            read_named_yaml("train", str(SETTINGS)),
            {
                "data": {**data, "label_set": None, "train_splits": [split], "val_splits": [split], "mix_prob": 0},
                "run": {"epochs": 1, "batch_size": 1, "eval_every": 1},
            },
        ],
        [f"data.loop={steps}"],
    )
    run = work / f"{name}-run"
    Train(store, run, config, resume=True).run()
    scores = Evaluate(run, store, LabelOptions(splits=(split,))).run().scores
    return {
        "accuracy": scores.overall.allacc,
        "miou_present": scores.overall.miou_present,
        "labelled_points": scores.overall.points,
        "steps": steps,
    }


def main() -> int:
    """Both scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of a real ViT")
    parser.add_argument("--work", type=Path, default=Path("learning"), help="folder for stores and runs")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    results = {name: learn(name, args.work, args.weights, args.steps) for name in SCENES}
    for name, found in results.items():
        print(
            f"{name}: {found['accuracy']:.2%} of {found['labelled_points']:,} labelled points after {args.steps} steps"
        )
    write_results("learning_real", {"backbone": args.weights.name, "target_accuracy": TARGET, "scenes": results})
    return 0 if all(found["accuracy"] >= TARGET for found in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
