# SPDX-License-Identifier: Apache-2.0
"""k-NN purity of patch features on rooms that no training saw.

For patches of one room, the share of the 10 nearest neighbours by cosine among patches of the OTHER rooms that show the
same class; classes weigh the same. Prints a table, writes `benchmarks/results/rooms_vit.json`.

    python benchmarks/rooms_vit/evaluate.py --teacher DIR
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch
import transformers
from card import update
from transformers import Dinov2Config, Dinov2Model

from ditr_cache.datasets.rooms import STYLES, RoomKey, build_room, camera_poses, label_map, render

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / "ditr_cache/backbones/weights/rooms-vit-tiny"
SIZE, GRID = (238, 308), (17, 22)
TEST_SEED, NEIGHBOURS, PER_CLASS, MAJORITY = 0, 10, 60, 0.6
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def patch_labels(labels: np.ndarray) -> np.ndarray:
    """The class that covers most of each patch, `[17 * 22]`; -1 where none covers 60 %."""
    rows = np.arange(labels.shape[0]) * GRID[0] // labels.shape[0]
    columns = np.arange(labels.shape[1]) * GRID[1] // labels.shape[1]
    cell = rows[:, None] * GRID[1] + columns
    width = labels.max() + 2
    votes = np.bincount((cell * width + labels + 1).ravel(), minlength=GRID[0] * GRID[1] * width).reshape(-1, width)
    best = votes.argmax(1)
    return np.where(votes.max(1) >= MAJORITY * votes.sum(1), best - 1, -1)


def held_out(style: str, rooms: int, views: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Normalised images, patch labels and the room of every patch."""
    images, labels, owner = [], [], []
    for index in range(rooms):
        key = RoomKey(TEST_SEED, style, index)
        room = build_room(key)
        for view, pose in enumerate(camera_poses(room, key, views)):
            image, _ = render(room, pose, key.rng("sensor", views, view))
            images.append(torch.from_numpy(image).permute(2, 0, 1))
            labels.append(patch_labels(label_map(room, pose)))
            owner.append(np.full(len(labels[-1]), index))
    resized = torch.nn.functional.interpolate(torch.stack(images), size=SIZE, mode="bilinear", antialias=True)
    return (resized / 255 - MEAN) / STD, np.concatenate(labels), np.concatenate(owner)


@torch.inference_mode()
def features(model: Dinov2Model, images: torch.Tensor) -> torch.Tensor:
    """Patch tokens after the final norm, unit length, `[images * 374, D]`."""
    tokens = torch.cat([model(batch).last_hidden_state[:, 1:] for batch in images.split(8)])
    return torch.nn.functional.normalize(tokens.flatten(0, 1), dim=1)


def purity(feature: torch.Tensor, label: np.ndarray, owner: np.ndarray) -> dict[int, float]:
    """Purity by class, with as many patches of every class and room."""
    rng = np.random.default_rng(0)
    chosen = []
    for room in np.unique(owner):
        for cls in np.unique(label[label >= 0]):
            found = np.flatnonzero((owner == room) & (label == cls))
            chosen.append(rng.permutation(found)[:PER_CLASS])
    pick = np.concatenate(chosen)
    x, y, room = feature[pick], torch.from_numpy(label[pick]), torch.from_numpy(owner[pick])
    nearest = torch.cat(
        [
            (x[part] @ x.T).masked_fill(room[part, None] == room[None], -2).topk(NEIGHBOURS).indices
            for part in torch.arange(len(x)).split(1024)
        ]
    )
    same = (y[nearest] == y[:, None]).float().mean(1)
    return {int(cls): float(same[y == cls].mean()) for cls in y.unique()}


def models(teacher: Path | None) -> dict[str, Dinov2Model]:
    """What is compared."""
    torch.manual_seed(0)
    found = {"random weights": Dinov2Model(Dinov2Config.from_pretrained(STUDENT))} if STUDENT.is_dir() else {}
    if (STUDENT / "model.safetensors").exists():
        found["rooms-vit-tiny"] = Dinov2Model.from_pretrained(STUDENT, dtype=torch.float32)
    if teacher is not None:
        found["teacher"] = Dinov2Model.from_pretrained(teacher, dtype=torch.float32)
    return {name: model.eval() for name, model in found.items()}


def evaluate(teacher: Path | None, rooms: int, views: int) -> dict[str, dict[str, float]]:
    """Purity by `style/family` and model; `style/all` is the mean over classes."""
    compared, table = models(teacher), {}
    for style, spec in STYLES.items():
        images, label, owner = held_out(style, rooms, views)
        for name, model in compared.items():
            by_class = purity(features(model, images), label, owner)
            for family, names in {**spec.class_families, "all": spec.class_names}.items():
                values = [by_class[i] for n in names if (i := spec.class_names.index(n)) in by_class]
                table.setdefault(f"{style}/{family}", {})[name] = round(float(np.mean(values)), 3)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("DITR_CACHE_TEST_WEIGHTS")
    parser.add_argument("--teacher", type=Path, default=Path(default) if default else None)
    parser.add_argument("--rooms", type=int, default=10)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/rooms_vit.json")
    parser.add_argument("--card", action="store_true", help="also write the table into the model card")
    options = parser.parse_args()
    table = evaluate(options.teacher, options.rooms, options.views)
    names = list(next(iter(table.values())))
    lines = [["style/family", *names], ["---"] + ["---:"] * len(names)]
    lines += [[row, *(f"{values[name]:.3f}" for name in names)] for row, values in table.items()]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    print(markdown)
    if options.card:
        update(STUDENT / "README.md", "purity", markdown)
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":")[1].strip() for line in about.splitlines() if "model name" in line), "")
    result = {
        "benchmark": "k-NN purity of patch features on held-out rooms",
        "purity": table,
        "settings": {
            "rooms_per_style": options.rooms, "views_per_room": options.views, "seed": TEST_SEED, "k": NEIGHBOURS,
            "patches_per_class_and_room": PER_CLASS, "image_size": SIZE,
        },
        "cpu": cpu or platform.processor(),
        "versions": {
            "python": platform.python_version(), "numpy": np.__version__,
            "torch": torch.__version__, "transformers": transformers.__version__,
        },
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
