# SPDX-License-Identifier: Apache-2.0
"""Distilling on rooms of two styles at once, whose classes differ, then fine-tuning on each, with 10 % of its labels
and with all.

    scratch   PTv3, weights drawn
    own       distilled on the rooms of its own style
    both      distilled on the rooms of both styles, norm layers for each (paper, section 3.2)
    shared    the same with common norm layers

As many steps of each style in all of them; `--rooms` are of each style. No claim is checked: the table is the result.
Everything resumes.

    python benchmarks/learning/multistore.py --weights DIR --seeds 0 1 2
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import cosines_of, distil, fewer, learn, parser, pretraining_of, pretraining_option, table, write
from stores import make_store

PERCENT = (10, 100)
STYLES = ("a", "b")
NAMES = f"distill.names=[{','.join(STYLES)}]"
ARMS = ("scratch", "own", "both", "shared")


def main() -> None:
    """Run the arms that were asked for, and write the table."""
    options = parser(__doc__, "multistore")
    options.add_argument("--percent", type=int, nargs="+", default=list(PERCENT), choices=PERCENT)
    options.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    pretraining_option(options)
    args = options.parse_args()

    source = f"synthetic:rooms={args.rooms},views=12,val={args.val}"
    folders = {style: args.work / style for style in STYLES}
    stores = {}
    for style, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        stores[style] = make_store("vit", f"{source},style={style}", folder, args.weights)
    results: dict[str, dict[str, Any]] = {}
    for style, percent, arm, seed in itertools.product(STYLES, args.percent, args.arms, args.seeds):
        settings = [*args.overrides, f"run.seed={seed}", "model.injection=none"]
        if percent < 100:
            settings += fewer(stores[style], folders[style], percent, seed)
        settings += start(arm, style, stores, args.work / f"{args.name}-{arm}", seed, args.pretraining)
        run = args.work / f"{args.name}-{arm}-{style}-{percent:03d}-{seed}"
        found = results.setdefault(f"style {style}, {percent} %, {arm}", {})
        found[str(seed)] = learn(run, stores[style], settings, style)
    print(table(results))
    pretrained = sorted(args.work.glob(f"{args.name}-*pretrained-*"))
    write(
        args,
        source,
        results,
        pretraining=pretraining_of(args.pretraining).model_dump(mode="json"),
        cosines={run.name: cosines_of(run) for run in pretrained},
    )


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
