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
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import learn, parser, scores_of, table, write
from stores import ARMS, make_store


def main() -> None:
    """Run the arms that were asked for; write the table once all are there."""
    options = parser(__doc__, "learning")
    options.add_argument("--arms", nargs="+", default=["plain", *ARMS], choices=["plain", *ARMS])
    options.add_argument("--report", action="store_true", help="train nothing, only tabulate what there is")
    args = options.parse_args()

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
        injection = "none" if arm == "plain" else "decoder"
        results[arm] = {
            str(seed): learn(
                run_folder(arm, seed, args),
                store,
                [*args.overrides, f"run.seed={seed}", f"model.injection={injection}"],
            )
            for seed in args.seeds
        }
    results = {arm: seeds for arm, seeds in results.items() if seeds}
    print(table(results))
    write(args, source, results)


def run_folder(arm: str, seed: int, args: argparse.Namespace) -> Path:
    """Where a run is kept."""
    return args.work / f"{args.name}-{arm}-{seed}"


if __name__ == "__main__":
    main()
