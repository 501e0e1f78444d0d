# SPDX-License-Identifier: Apache-2.0
"""Does it learn? PTv3 alone, PTv3 + DITR, and controls that must lose the gain, on held-out synthetic rooms.

    plain   PTv3, which sees the colour and the normal of every point
    vit     PTv3 + DITR, features of a trained ViT
    random  the same ViT untrained
    rgb     the mean colour of the patch instead of features
    rows    the trained ViT's features, dealt out to patches at random

The same network, seed, steps and views for every arm; only what is injected differs. Mean IoU over the classes of a
family, and over all; points that a drawn view sees and the others apart. Everything resumes: call it again after an
interruption.

    python benchmarks/learning/run.py --weights DIR --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _harness import RESULTS, write_results
from stores import ARMS, make_store

from ditr_cache.config import load_config, read_named_yaml
from ditr_cache.datasets.rooms import STYLES
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.train import Train
from ditr_cache.training.config import TrainConfig

HERE = Path(__file__).resolve().parent
FAMILIES = {family: names for family, names in STYLES["a"].class_families.items() if family != "structure"}


def main() -> None:
    """Run the arms that were asked for; write the table once all are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of the ViT; by default the one of the package")
    parser.add_argument("--work", type=Path, default=Path("learning"), help="folder for stores and runs")
    parser.add_argument("--rooms", type=int, default=60)
    parser.add_argument("--val", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["plain", *ARMS], choices=["plain", *ARMS])
    parser.add_argument("-s", "--set", dest="overrides", action="append", default=[], help="settings of the training")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    parser.add_argument("--name", default="learning", help="of the result")
    parser.add_argument("--report", action="store_true", help="train nothing, only tabulate what there is")
    args = parser.parse_args()

    source = f"synthetic:rooms={args.rooms},views=12,val={args.val}"
    args.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for arm in args.arms:
        if args.report:
            results[arm] = {
                str(seed): found for seed in args.seeds if (found := scores_of(run_folder(arm, seed, args)))
            }
            continue
        # PTv3 alone reads the points of the first store and none of its features
        store = make_store("vit" if arm == "plain" else arm, source, args.work, args.weights)
        results[arm] = {str(seed): train(arm, seed, store, args) for seed in args.seeds}
    results = {arm: seeds for arm, seeds in results.items() if seeds}
    print(table(results))
    write_results(
        args.name,
        {
            "source": source,
            "backbone": args.weights.name if args.weights else "rooms-vit-tiny",
            "settings": yaml_settings(args.overrides).model_dump(mode="json"),
            "arms": results,
            "summary": {arm: summary(seeds) for arm, seeds in results.items()},
        },
        args.results,
    )
    (args.results / f"{args.name}.md").write_text(table(results) + "\n", "utf-8")


def yaml_settings(overrides: list[str]) -> TrainConfig:
    """The benchmark's settings."""
    return load_config(TrainConfig, [read_named_yaml("train", str(HERE / "rooms.yaml"))], overrides)


def train(arm: str, seed: int, store: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one arm with one seed; found again if it is there."""
    run = run_folder(arm, seed, args)
    if not scores_of(run):
        injection = "none" if arm == "plain" else "decoder"
        config = yaml_settings([*args.overrides, f"run.seed={seed}", f"model.injection={injection}"])
        Train(store, run, config, resume=True).run()
        report = Evaluate(run, store).run()
        scores = report.scores
        classes = {c.name: c.iou for c in scores.overall.classes}
        row: dict[str, Any] = {
            "miou": scores.overall.miou,
            "visible": scores.visible.miou,
            "invisible": scores.invisible.miou,
            **{family: float(np.mean([classes[name] for name in names])) for family, names in FAMILIES.items()},
        }
        (run / "scores.json").write_text(json.dumps(row), "utf-8")
        print(arm, seed, {k: round(100 * v, 1) for k, v in row.items()}, flush=True)
    return scores_of(run)


def run_folder(arm: str, seed: int, args: argparse.Namespace) -> Path:
    """Where a run is kept."""
    return args.work / f"{args.name}-{arm}-{seed}"


def scores_of(run: Path) -> dict[str, Any]:
    """Of a finished run; empty otherwise."""
    path = run / "scores.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def summary(seeds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and spread (highest minus lowest) over seeds."""
    keys = next(iter(seeds.values()))
    values = {key: np.array([row[key] for row in seeds.values()]) for key in keys}
    return {key: {"mean": float(v.mean()), "spread": float(np.ptp(v))} for key, v in values.items()}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown; per cent, mean over seeds, in brackets the spread from lowest to highest."""
    keys = ["miou", *FAMILIES, "visible", "invisible"]
    lines = ["| arm | seeds | mIoU | " + " | ".join(keys[1:]) + " |", "|---" * (len(keys) + 2) + "|"]
    for arm, seeds in results.items():
        found = summary(seeds)
        cells = [f"{100 * found[key]['mean']:.1f} ({100 * found[key]['spread']:.1f})" for key in keys]
        lines.append(f"| {arm} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
