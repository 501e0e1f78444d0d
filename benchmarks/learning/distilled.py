# SPDX-License-Identifier: Apache-2.0
"""Claim: pretraining on features without labels (D-DITR) helps most where labels are few, on held-out synthetic rooms.

    scratch   PTv3, weights drawn
    d-ditr    PTv3, distilled on all training rooms without their labels, then trained as `scratch`
    ditr      PTv3 + DITR

With 10 % of the labelled rooms d-ditr is to beat scratch by 5 points of mIoU on classes of typical shape and texture;
with all of them ditr is to beat d-ditr, and d-ditr scratch. On classes that differ in texture alone d-ditr cannot help:
points do not carry it. Everything resumes: call it again after an interruption.

    python benchmarks/learning/distilled.py --weights DIR --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from _harness import RESULTS, write_results
from rows import SETTINGS, learn, settings_of, summary, table
from stores import make_store

from ditr_cache.config import load_config, read_named_yaml
from ditr_cache.pipelines.distill import Distill
from ditr_cache.store.reader import open_store
from ditr_cache.training.distill_config import DistillConfig, without_labels

ARMS = {
    "scratch-010": ("none", 10),
    "d-ditr-010": ("none", 10),
    "scratch-100": ("none", 100),
    "d-ditr-100": ("none", 100),
    "ditr-100": ("decoder", 100),
}
"""Injection, and per cent of the labelled rooms; as many steps in all of them."""
GAIN = 0.05


def pretrain(store: Path, run: Path, seed: int, overrides: list[str]) -> Path:
    """Distil; found again if it is there."""
    layer = without_labels(dict(read_named_yaml("train", str(SETTINGS))))
    config = load_config(DistillConfig, [layer], [*overrides, f"run.seed={seed}"])
    report = Distill([store], run, config, resume=True).run()
    if report.steps:
        print(run.name, f"loss {report.loss:.3f}, cosine {report.cosine:.3f}", flush=True)
    return run.resolve()


def fewer(store: Path, folder: Path, percent: int, seed: int) -> list[str]:
    """Settings of training on some of the rooms, with as many steps."""
    ids = sorted(info.id for info in open_store(store).samples.values() if info.split == "train")
    keep = round(len(ids) * percent / 100)
    chosen = np.random.default_rng(seed).permutation(ids)[:keep]
    path = folder / f"rooms-{percent:03d}-{seed}.txt"
    path.write_text("".join(f"{name}\n" for name in sorted(chosen)), "utf-8")
    loop = round(settings_of([]).data.loop * len(ids) / keep)
    return [f"data.scenes={path.resolve()}", f"data.loop={loop}"]


def main() -> int:
    """Run the arms that were asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of the ViT; by default the one of the package")
    parser.add_argument("--work", type=Path, default=Path("learning"), help="folder for stores and runs")
    parser.add_argument("--rooms", type=int, default=60)
    parser.add_argument("--val", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("-s", "--set", dest="overrides", action="append", default=[], help="settings of the training")
    parser.add_argument(
        "-p", "--pretrain", dest="pretraining", action="append", default=[], help="settings of the distillation"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    parser.add_argument("--name", default="distilled", help="of the result")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    source = f"synthetic:rooms={args.rooms},views=12,val={args.val}"
    store = make_store("vit", source, args.work, args.weights)
    results: dict[str, dict[str, Any]] = {arm: {} for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            injection, percent = ARMS[arm]
            settings = [*args.overrides, f"run.seed={seed}", f"model.injection={injection}"]
            if percent < 100:
                settings += fewer(store, args.work, percent, seed)
            if arm.startswith("d-ditr"):
                pretrained = pretrain(store, args.work / f"{args.name}-pretrained-{seed}", seed, args.pretraining)
                settings.append(f"init.distilled={pretrained}")
            results[arm][str(seed)] = learn(args.work / f"{args.name}-{arm}-{seed}", store, settings)
    print(table(results))
    mean = {arm: {key: x["mean"] for key, x in summary(seeds).items()} for arm, seeds in results.items()}
    claims: dict[str, bool] = {}
    if {"scratch-010", "d-ditr-010"} <= mean.keys():
        claims["10 %: d-ditr - scratch >= 5, typical"] = (
            mean["d-ditr-010"]["typical"] - mean["scratch-010"]["typical"] >= GAIN
        )
    if {"scratch-100", "d-ditr-100", "ditr-100"} <= mean.keys():
        claims["100 %: ditr > d-ditr > scratch"] = (
            mean["ditr-100"]["miou"] > mean["d-ditr-100"]["miou"] > mean["scratch-100"]["miou"]
        )
    print(claims)
    write_results(
        args.name,
        {
            "source": source,
            "backbone": args.weights.name if args.weights else "rooms-vit-tiny",
            "settings": args.overrides,
            "pretraining": args.pretraining,
            "arms": results,
            "summary": {arm: summary(seeds) for arm, seeds in results.items()},
            "claims": claims,
        },
        args.results,
    )
    (args.results / f"{args.name}.md").write_text(table(results) + "\n", "utf-8")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
