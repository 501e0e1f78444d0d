# SPDX-License-Identifier: Apache-2.0
"""Distilling on rooms of two styles at once, whose classes differ, then fine-tuning on each with 10 % of its labels.

    scratch   PTv3, weights drawn
    own       distilled on the rooms of its own style
    both      distilled on the rooms of both styles, norm layers for each (paper, section 3.2)
    shared    the same with common norm layers

As many steps of each style in all of them. No claim is checked: the table is the result. Everything resumes.

    python benchmarks/learning/multistore.py --weights DIR --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _harness import RESULTS, write_results
from rows import cosines_of, distil, fewer, learn, pretraining_of, settings_of, summary, table
from stores import make_store

PERCENT = 10
STYLES = ("a", "b")
NAMES = f"distill.names=[{','.join(STYLES)}]"
ARMS = ("scratch", "own", "both", "shared")


def main() -> None:
    """Run the arms that were asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of the ViT; by default the one of the package")
    parser.add_argument("--work", type=Path, default=Path("learning"), help="folder for stores and runs")
    parser.add_argument("--rooms", type=int, default=60, help="of each style")
    parser.add_argument("--val", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("-s", "--set", dest="overrides", action="append", default=[], help="settings of the training")
    parser.add_argument(
        "-p", "--pretrain", dest="pretraining", action="append", default=[], help="settings of the distillation"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    parser.add_argument("--name", default="multistore", help="of the result")
    args = parser.parse_args()

    source = f"synthetic:rooms={args.rooms},views=12,val={args.val}"
    folders = {style: args.work / style for style in STYLES}
    stores = {}
    for style, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        stores[style] = make_store("vit", f"{source},style={style}", folder, args.weights)
    results: dict[str, dict[str, Any]] = {f"{arm}, style {style}": {} for style in STYLES for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            for style in STYLES:
                settings = [*args.overrides, f"run.seed={seed}", "model.injection=none"]
                settings += fewer(stores[style], folders[style], PERCENT, seed)
                settings += start(arm, style, stores, args.work / f"{args.name}-{arm}", seed, args.pretraining)
                run = args.work / f"{args.name}-{arm}-{style}-{seed}"
                results[f"{arm}, style {style}"][str(seed)] = learn(run, stores[style], settings, style)
    print(table(results))
    write_results(
        args.name,
        {
            "source": source,
            "backbone": args.weights.name if args.weights else "rooms-vit-tiny",
            "settings": settings_of(args.overrides).model_dump(mode="json"),
            "pretraining": pretraining_of(args.pretraining).model_dump(mode="json"),
            "cosines": {run.name: cosines_of(run) for run in sorted(args.work.glob(f"{args.name}-*pretrained-*"))},
            "arms": results,
            "summary": {arm: summary(seeds) for arm, seeds in results.items()},
        },
        args.results,
    )
    (args.results / f"{args.name}.md").write_text(table(results) + "\n", "utf-8")


def start(arm: str, style: str, stores: dict[str, Path], run: Path, seed: int, pretraining: list[str]) -> list[str]:
    """Settings that say what an arm starts from."""
    if arm == "scratch":
        return []
    if arm == "own":
        return [
            f"init.distilled={distil([stores[style]], Path(f'{run}-{style}-pretrained-{seed}'), seed, pretraining)}"
        ]
    own = [NAMES] if arm == "both" else [NAMES, "distill.separate_norms=false"]
    pretrained = distil(list(stores.values()), Path(f"{run}-pretrained-{seed}"), seed, [*pretraining, *own])
    return [f"init.distilled={pretrained}", f"init.norms={style}"]


if __name__ == "__main__":
    main()
