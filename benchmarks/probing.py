# SPDX-License-Identifier: Apache-2.0
"""Claim: `ditr-cache probe` tells good features from bad ones, before a network is trained.

Generated rooms, the same ones each time (8 to learn from, 4 to classify, 8 views each), with features of the embedded
ViT after several of its blocks, and of the same ViT with random weights. The claim holds if the trained features beat
the random ones in every measure.

    python benchmarks/probing.py [--source synthetic:rooms=12,views=8,val=4]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from _harness import write_results
from _stores import work_folder

from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.pipelines.extract import Extract
from ditr_cache.pipelines.probe import Probe, ProbeReport

STORES = {
    "layer 2": ["backbone.layer=2"],
    "layer 4": ["backbone.layer=4"],
    "layer 6": [],
    "random weights": ["backbone.random_seed=0"],
}
HEAD = (
    "| store | linear probe | 20 neighbours | linear, with coordinates | separation | one point | two points |\n"
    "|---|---|---|---|---|---|---|"
)


def probe(source: str, folder: Path, settings: list[str]) -> ProbeReport:
    """Extract and probe."""
    dataset = open_dataset(source)
    Extract(dataset, folder, load_config(ExtractConfig, [read_named_yaml("extract", dataset.preset)], settings)).run()
    return Probe(folder).run()


def numbers(report: ProbeReport) -> dict[str, Any]:
    """What the claim is about, and what the documentation shows."""
    assert report.consistency is not None
    scores = {f"{m.input}, {m.method}": m.scores for m in report.methods}
    return {
        "miou": {name: s.miou_present for name, s in scores.items()},
        "allacc": {name: s.allacc for name, s in scores.items()},
        "iou": {name: {c.name: c.iou for c in s.classes} for name, s in scores.items()},
        "penalty": {f"{m.input}, {m.method}": m.penalty for m in report.methods},
        "consistency": report.consistency.to_dict(),
        "drawn": [report.train.drawn if report.train else 0, report.val.drawn],
        "seconds": report.seconds,
    }


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="synthetic:rooms=12,views=8,val=4")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=work_folder()))
    try:
        found = {name: numbers(probe(args.source, folder / name, s)) for name, s in STORES.items()}
    finally:
        shutil.rmtree(folder)
    print(HEAD)
    for name, n in found.items():
        miou, c = n["miou"], n["consistency"]
        scores = [f"{miou[key]:.1%}" for key in ("features, linear", "features, neighbours", "both, linear")]
        cosines = [f"{c[key]['mean']:.2f}" for key in ("same", "random")]
        print("|", " | ".join([name, *scores, f"{c['separation']:.1%}", *cosines]), "|")
    plain = found["layer 6"]["miou"]
    print(f"| no features | {plain['points, linear']:.1%} | {plain['points, neighbours']:.1%} | | | | |")
    write_results("probing", {"source": args.source, "stores": found})
    trained, random = found["layer 6"], found["random weights"]
    better = all(trained["miou"][key] > random["miou"][key] for key in ("features, linear", "features, neighbours"))
    return 0 if better and trained["consistency"]["separation"] > random["consistency"]["separation"] else 1


if __name__ == "__main__":
    sys.exit(main())
