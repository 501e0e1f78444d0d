# SPDX-License-Identifier: Apache-2.0
"""What the learning benchmarks share: runs that are trained and evaluated once, and tables over seeds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _harness import RESULTS, write_results

from ditr_cache.config import load_config, read_named_yaml
from ditr_cache.datasets.rooms import STYLES
from ditr_cache.pipelines.distill import Distill
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.train import Train
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distill_config import DistillConfig, without_labels

__all__ = [
    "SETTINGS",
    "cosines_of",
    "distil",
    "fewer",
    "learn",
    "parser",
    "pretraining_of",
    "pretraining_option",
    "scores_of",
    "settings_of",
    "summary",
    "table",
    "write",
]

SETTINGS = Path(__file__).resolve().with_name("rooms.yaml")
FAMILIES = ("shape", "texture", "typical")


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """Options that all of them have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--weights", type=Path, help="folder of the ViT; by default the one of the package")
    made.add_argument("--work", type=Path, default=Path("learning"), help="folder for stores and runs")
    made.add_argument("--rooms", type=int, default=60)
    made.add_argument("--val", type=int, default=15)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("-s", "--set", dest="overrides", action="append", default=[], help="settings of the training")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    made.add_argument("--name", default=name, help="of the result")
    return made


def pretraining_option(made: argparse.ArgumentParser) -> None:
    """One more, for those that distil."""
    made.add_argument(
        "-p", "--pretrain", dest="pretraining", action="append", default=[], help="settings of the distillation"
    )


def write(args: argparse.Namespace, source: str, arms: Mapping[str, Mapping[str, Any]], **more: Any) -> None:
    """Every run, means and spreads as `<name>.json`, the table as `<name>.md`."""
    write_results(
        args.name,
        {
            "source": source,
            "backbone": args.weights.name if args.weights else "rooms-vit-tiny",
            "settings": settings_of(args.overrides).model_dump(mode="json"),
            **more,
            "arms": arms,
            "summary": {arm: summary(seeds) for arm, seeds in arms.items()},
        },
        args.results,
    )
    (args.results / f"{args.name}.md").write_text(table(arms) + "\n", "utf-8")


def settings_of(overrides: Sequence[str]) -> TrainConfig:
    """The benchmark's settings."""
    return load_config(TrainConfig, [read_named_yaml("train", str(SETTINGS))], overrides)


def pretraining_of(overrides: Sequence[str]) -> DistillConfig:
    """The benchmark's settings, of distillation."""
    layer = without_labels(dict(read_named_yaml("train", str(SETTINGS))))
    return load_config(DistillConfig, [layer], overrides)


def distil(stores: Sequence[Path], run: Path, seed: int, overrides: Sequence[str]) -> Path:
    """Pretrain without labels; found again if it is there, and refused if its settings are others."""
    report = Distill(stores, run, pretraining_of([*overrides, f"run.seed={seed}"]), resume=True).run()
    if report.steps:
        print(run.name, f"loss {report.loss:.3f}, cosine {report.cosine:.3f}", flush=True)
    return run.resolve()


def cosines_of(run: Path) -> dict[str, float]:
    """Mean cosine on the validation rooms by step of a distillation."""
    lines = map(json.loads, (run / "log.jsonl").read_text("utf-8").splitlines())
    return {str(line["step"]): line["scores"]["cosine"] for line in lines if line["kind"] == "evaluation"}


def fewer(store: Path, folder: Path, percent: int, seed: int) -> list[str]:
    """Settings of training on some of the rooms, with nearly as many steps."""
    ids = sorted(info.id for info in open_store(store).samples.values() if info.split == "train")
    keep = max(1, round(len(ids) * percent / 100))
    chosen = np.random.default_rng(seed).permutation(ids)[:keep]
    path = folder / f"{store.stem}-rooms-{percent:03d}-{seed}.txt"
    path.write_text("".join(f"{name}\n" for name in sorted(chosen)), "utf-8")
    loop = round(settings_of([]).data.loop * len(ids) / keep)
    return [f"data.scenes={path.resolve()}", f"data.loop={loop}"]


def learn(run: Path, store: Path, overrides: Sequence[str], style: str = "a") -> dict[str, Any]:
    """Train and evaluate; found again if it is there, and refused if its settings are others."""
    Train(store, run, settings_of(overrides), resume=True).run()
    if not scores_of(run):
        scores = Evaluate(run, store).run().scores
        classes = {c.name: c.iou for c in scores.overall.classes}
        row: dict[str, Any] = {
            "miou": scores.overall.miou,
            "visible": scores.visible.miou,
            "invisible": scores.invisible.miou,
            **{f: float(np.mean([classes[name] for name in STYLES[style].class_families[f]])) for f in FAMILIES},
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
