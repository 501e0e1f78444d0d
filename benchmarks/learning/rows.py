# SPDX-License-Identifier: Apache-2.0
"""What the learning benchmarks share: a run that is trained and evaluated once, and tables over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ditr_cache.config import load_config, read_named_yaml
from ditr_cache.datasets.rooms import STYLES
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.train import Train
from ditr_cache.training.config import TrainConfig

__all__ = ["FAMILIES", "SETTINGS", "learn", "scores_of", "settings_of", "summary", "table"]

SETTINGS = Path(__file__).resolve().with_name("rooms.yaml")
FAMILIES = {family: names for family, names in STYLES["a"].class_families.items() if family != "structure"}


def settings_of(overrides: Sequence[str]) -> TrainConfig:
    """The benchmark's settings."""
    return load_config(TrainConfig, [read_named_yaml("train", str(SETTINGS))], overrides)


def learn(run: Path, store: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate; found again if it is there."""
    if not scores_of(run):
        Train(store, run, settings_of(overrides), resume=True).run()
        scores = Evaluate(run, store).run().scores
        classes = {c.name: c.iou for c in scores.overall.classes}
        row: dict[str, Any] = {
            "miou": scores.overall.miou,
            "visible": scores.visible.miou,
            "invisible": scores.invisible.miou,
            **{family: float(np.mean([classes[name] for name in names])) for family, names in FAMILIES.items()},
        }
        (run / "scores.json").write_text(json.dumps(row), "utf-8")
        print(run.name, {k: round(100 * v, 1) for k, v in row.items()}, flush=True)
    return scores_of(run)


def scores_of(run: Path) -> dict[str, Any]:
    """Of a finished run; empty otherwise."""
    path = run / "scores.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def summary(seeds: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and spread (highest minus lowest) over seeds."""
    keys = next(iter(seeds.values()))
    values = {key: np.array([row[key] for row in seeds.values()]) for key in keys}
    return {key: {"mean": float(v.mean()), "spread": float(np.ptp(v))} for key, v in values.items()}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown; per cent, mean over seeds, in brackets the spread from lowest to highest."""
    keys = ["miou", *FAMILIES, "visible", "invisible"]
    lines = ["| arm | seeds | mIoU | " + " | ".join(keys[1:]) + " |", "|---" * (len(keys) + 2) + "|"]
    for arm, seeds in results.items():
        found = summary(seeds)
        cells = [f"{100 * found[key]['mean']:.1f} ({100 * found[key]['spread']:.1f})" for key in keys]
        lines.append(f"| {arm} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
