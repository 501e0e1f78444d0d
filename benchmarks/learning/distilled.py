# SPDX-License-Identifier: Apache-2.0
"""What pretraining on features without labels (D-DITR) is worth where labels are few, on held-out synthetic rooms.

    scratch   PTv3, weights drawn
    d-ditr    PTv3, distilled on all training rooms and on --unlabelled further ones, then trained as `scratch`
    ditr      PTv3 + DITR: what the features themselves are worth with as many labels

With 2, 10 and 100 % of the labelled rooms, and about as many steps. Distilled once; seeds are of what follows.

Two claims are checked. With 10 % d-ditr beats scratch by 5 points of mIoU on classes of typical shape and texture, and
with all of them ditr beats d-ditr, and d-ditr scratch. On classes that differ in texture alone d-ditr cannot help:
points do not carry it. Everything resumes: call it again after an interruption.

    python benchmarks/learning/distilled.py --weights DIR --seeds 0 1 2
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import (
    cosines_of,
    distil,
    fewer,
    learn,
    parser,
    pretraining_of,
    pretraining_option,
    summary,
    table,
    write,
)
from stores import make_store

ARMS = {
    "scratch-002": ("scratch", 2),
    "d-ditr-002": ("d-ditr", 2),
    "scratch-010": ("scratch", 10),
    "d-ditr-010": ("d-ditr", 10),
    "ditr-010": ("ditr", 10),
    "scratch-100": ("scratch", 100),
    "d-ditr-100": ("d-ditr", 100),
    "ditr-100": ("ditr", 100),
}
"""Way, and per cent of the labelled rooms."""
PRETRAINING = ("run.epochs=24", "run.eval_every=4")
GAIN = 0.05


def main() -> int:
    """Run the arms that were asked for, and write the table."""
    options = parser(__doc__, "distilled")
    options.add_argument("--unlabelled", type=int, default=120, help="further rooms, to distil on")
    options.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    pretraining_option(options)
    args = options.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    source = f"synthetic:rooms={args.rooms},views=12,val={args.val}"
    store = make_store("vit", source, args.work, args.weights)
    pretraining = [*PRETRAINING, *args.pretraining]
    pretrained = args.work / f"{args.name}-pretrained"
    if any(ARMS[arm][0] == "d-ditr" for arm in args.arms):
        distil([store, *further_rooms(args.unlabelled, args.work, args.weights)], pretrained, 0, pretraining)
    results: dict[str, dict[str, Any]] = {arm: {} for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            way, percent = ARMS[arm]
            settings = [*args.overrides, f"run.seed={seed}"]
            settings.append(f"model.injection={'decoder' if way == 'ditr' else 'none'}")
            if percent < 100:
                settings += fewer(store, args.work, percent, seed)
            if way == "d-ditr":
                settings.append(f"init.distilled={pretrained.resolve()}")
            results[arm][str(seed)] = learn(args.work / f"{args.name}-{arm}-{seed}", store, settings)
    print(table(results))
    found = claims(results)
    print(found)
    write(
        args,
        source,
        results,
        unlabelled=args.unlabelled,
        pretraining=pretraining_of(pretraining).model_dump(mode="json"),
        cosines=cosines_of(pretrained) if pretrained.is_dir() else {},
        claims=found,
    )
    return 0 if all(found.values()) else 1


def further_rooms(count: int, work: Path, weights: Path | None) -> list[Path]:
    """A store of rooms whose labels nobody has."""
    if not count:
        return []
    folder = work / "unlabelled"
    folder.mkdir(exist_ok=True)
    return [make_store("vit", f"synthetic:rooms={count},views=12,seed=1,val=0", folder, weights)]


def claims(results: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Which of those hold whose arms are there."""
    mean = {arm: {key: x["mean"] for key, x in summary(seeds).items()} for arm, seeds in results.items()}
    found: dict[str, bool] = {}
    if {"scratch-010", "d-ditr-010"} <= mean.keys():
        gain = mean["d-ditr-010"]["typical"] - mean["scratch-010"]["typical"]
        found["10 %: d-ditr - scratch >= 5, typical"] = gain >= GAIN
    if {"scratch-100", "d-ditr-100", "ditr-100"} <= mean.keys():
        found["100 %: ditr > d-ditr > scratch"] = (
            mean["ditr-100"]["miou"] > mean["d-ditr-100"]["miou"] > mean["scratch-100"]["miou"]
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
