# SPDX-License-Identifier: Apache-2.0
"""What cached image variants lose against a ViT in every step on images that are mirrored and jittered anew.

    cached, plain images          one copy of every image
    cached, 2 variants            and a mirrored one
    cached, 4 variants            and jittered ones of both
    ViT in every step             as upstream: never the same image twice; what the cache cannot reproduce

Held-out synthetic rooms say how much it matters elsewhere. The kitchen (7-Scenes, geometric pseudo-labels) and the
shelf (labelled objects) are one real scene each: learned from the labels of every other cell of a checkerboard and
scored on the rest, so that they say it of the same scene alone. No claim is checked: the table is the result. What an
earlier call found of other cases stays in it.

    python benchmarks/learning/online.py --weights DIR --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from _harness import RESULTS, data_folder, write_results
from rows import SETTINGS

from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.datasets.base import Dataset
from ditr_cache.pipelines.experiment import Experiment
from ditr_cache.pipelines.extract import Extract
from ditr_cache.types import BlockPlan, SamplePlan, Scene

VARIANTS = {"flip": ("variants.flip=true",), "both": ("variants.flip=true", "variants.jitter=1")}
"""Two stores; the plain images of the first are the arm without variants."""


class Checkerboard:
    """One labelled scene as two samples: labels of every other cell train, those of the rest validate.

    Args:
        dataset: Of one scene, or its first is taken.
        label_set: Its labels; classes that do not occur are left out.
        cell: Edge of a cell in metres.
    """

    def __init__(self, dataset: Dataset, label_set: str, cell: float) -> None:
        self._dataset, self._label_set, self._cell = dataset, label_set, cell
        self.name, self.preset = dataset.name, dataset.preset
        self.version = f"{dataset.version},checkerboard={cell}"
        self._sample = dataset.plan()[0].samples[0]
        labels = dataset.load(self._sample.id).points.segments[label_set]
        self._kept = np.unique(labels[labels >= 0]).tolist()
        names = dataset.class_names.get(label_set) or [str(i) for i in range(labels.max() + 1)]
        self.class_names = {"segment": tuple(names[i] for i in self._kept)}
        self.label_maps: Mapping[str, Mapping[int, int]] = {}

    def plan(self) -> tuple[BlockPlan, ...]:
        """One block a half."""
        samples = [SamplePlan(f"{self._sample.id}-{split}", split, self._sample.views) for split in ("train", "val")]
        return tuple(BlockPlan(sample.id, (sample,)) for sample in samples)

    def load(self, sample_id: str) -> Scene:
        """All points, with the labels of half of the cells."""
        scene = self._dataset.load(self._sample.id)
        found = scene.points.segments[self._label_set]
        labels = np.full_like(found, -1)
        for new, old in enumerate(self._kept):
            labels[found == old] = new
        cells = np.floor(scene.points.coord / self._cell).astype(np.int64).sum(axis=1)
        labels[cells % 2 == sample_id.endswith("-train")] = -1
        return replace(scene, id=sample_id, points=replace(scene.points, segments={"segment": labels}))


@dataclass(frozen=True)
class Case:
    """One data set."""

    what: str
    extraction: tuple[str, ...]
    settings: Mapping[str, Any]
    """Of training, on top of the learning benchmark's."""


def _voxels(size: float, keep: str) -> dict[str, Any]:
    return {"kind": "grid_sample", "grid_size": size, "keep": keep}


def _scene(size: float, views: int) -> dict[str, Any]:
    """Settings for one real scene with voxels of `size` metres."""
    shift = {"kind": "center_shift"}
    turn = {"kind": "random_rotate", "angle": [-1, 1], "axis": "z", "center": [0, 0, 0], "p": 0.5}
    flip, colour = {"kind": "random_flip", "p": 0.5}, {"kind": "normalize_color"}
    return {
        "data": {
            "features": ["color"],
            "views": {"count": views, "evaluation_count": views},
            "mix_prob": 0,
            "loop": 100,
            "train": [shift, turn, flip, _voxels(size, "random"), colour],
            "val": [shift, _voxels(size, "first"), colour],
        },
        "run": {"epochs": 1, "batch_size": 1, "eval_every": 1},
    }


ROOMS = "synthetic:rooms=30,views=8,val=8"
CASES = {
    "rooms": Case(
        f"held-out rooms ({ROOMS})",
        (),
        {"data": {"views": {"count": 4, "evaluation_count": 8}}, "run": {"epochs": 20, "eval_every": 10}},
    ),
    "kitchen": Case("7-Scenes kitchen, 3 pseudo-classes, 0.5 m cells", ("images.size=[224,308]",), _scene(0.05, 8)),
    "shelf": Case("shelf, 3 classes, 0.05 m cells", ("images.size=[224,308]",), _scene(0.01, 4)),
}


@lru_cache
def dataset_of(case: str) -> Dataset:
    """What is extracted, and what the ViT in every step looks at."""
    if case == "rooms":
        return open_dataset(ROOMS)
    if case == "kitchen":
        return Checkerboard(open_dataset(data_folder() / "scannet"), "segment20", 0.5)
    return Checkerboard(open_dataset(data_folder() / "nerfstudio" / "shelf"), "segment", 0.05)


def stores_of(case: str, work: Path, weights: Path) -> list[Path]:
    """A store with mirrored images, and one with jittered ones as well."""
    dataset, stores = dataset_of(case), []
    for kind, overrides in VARIANTS.items():
        layers = [read_named_yaml("extract", dataset.preset), {"backbone": {"weights": str(weights)}}]
        path = work / f"online-{case}-{kind}.store"
        Extract(dataset, path, load_config(ExtractConfig, layers, [*CASES[case].extraction, *overrides])).run()
        stores.append(path)
    return stores


def seconds_of(folder: Path, arm: str, seeds: list[int]) -> float:
    """Median time of a step, data included, without the first reading, when nothing is warm yet."""
    found = []
    for seed in seeds:
        lines = (folder / f"{arm}-{seed}" / "log.jsonl").read_text("utf-8").splitlines()
        found += [x["data_s"] + x["step_s"] for x in map(json.loads, lines) if x["kind"] == "step"][1:]
    return float(np.median(found))


def main() -> None:
    """All cases that were asked for, one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of a real ViT")
    parser.add_argument("--work", type=Path, default=Path("learning"), help="folder for stores and runs")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-s", "--set", dest="overrides", action="append", default=[], help="settings of the training")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    parser.add_argument("--name", default="online", help="of the result")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.results / f"{args.name}.json"
    results: dict[str, Any] = json.loads(kept.read_text("utf-8"))["cases"] if kept.is_file() else {}
    for case in args.cases:
        experiment = Experiment(
            "online",
            stores_of(case, args.work, args.weights),
            args.work / f"{args.name}-{case}",
            [read_named_yaml("train", str(SETTINGS)), CASES[case].settings],
            args.overrides,
            seeds=args.seeds,
            source=dataset_of(case),
            weights=args.weights,
        )
        report = experiment.run()
        if report.failures:
            raise SystemExit("\n".join(f"{run}: {why}" for run, why in report.failures.items()))
        arms = {
            row.name: {
                "label": row.label,
                "seeds": row.seeds,
                **{key: asdict(spread) for key, spread in row.scores.items()},
                "step_s": seconds_of(experiment.out, row.name, args.seeds),
            }
            for row in report.rows
        }
        results[case] = {"what": CASES[case].what, "settings": args.overrides, "arms": arms}
        print(table(results), flush=True)
    write_results(args.name, {"backbone": args.weights.name, "cases": results}, args.results)
    (args.results / f"{args.name}.md").write_text(table(results) + "\n", "utf-8")


def table(results: Mapping[str, Any]) -> str:
    """Markdown of all cases; per cent, mean over seeds, in brackets the lowest and the highest."""
    lines = ["| data | arm | seeds | mIoU | visible | s a step |", "|---|---|---|---|---|---|"]
    for found in results.values():
        for arm in found["arms"].values():
            scores = [
                f"{100 * s['mean']:.1f} ({100 * s['low']:.1f} to {100 * s['high']:.1f})"
                for s in (arm["miou"], arm["visible"])
            ]
            cells = [found["what"], arm["label"], str(arm["seeds"]), *scores, f"{arm['step_s']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
