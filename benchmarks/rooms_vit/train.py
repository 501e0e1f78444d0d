# SPDX-License-Identifier: Apache-2.0
"""Train the embedded backbone `rooms-vit-tiny`: distil a larger ViT on generated rooms.

Renders rooms of both styles (seeds that no test uses), augments them, keeps the teacher's patch tokens in memory and
fits a small DINOv2-shaped student to them through a linear head that is thrown away. Everything is seeded; on one
machine and one thread the result is reproducible.

    python benchmarks/rooms_vit/train.py --teacher DIR --out ditr_cache/backbones/weights/rooms-vit-tiny
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from card import update
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from ditr_cache.datasets.rooms import RoomKey, build_room, camera_poses, render

ROOT = Path(__file__).resolve().parents[2]
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
FULL, CROP = (238, 308), (168, 168)
Data = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Images (uint8) and the teacher's patch tokens (f16), by image height."""


@dataclass(frozen=True)
class Settings:
    """Written beside the weights."""

    seed: int = 7000
    """Of the rooms (tests use seeds below 100) and of everything else."""
    rooms: int = 300
    """Of each style."""
    views: int = 5
    """A room."""
    crops: int = 2
    """168 x 168 crops a view."""
    full_every: int = 6
    """One view in so many is also used whole, at 238 x 308."""
    epochs: int = 7
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.05
    hidden: int = 192
    layers: int = 6
    heads: int = 3


def images(s: Settings) -> Iterator[torch.Tensor]:
    """Every rendered view as a uint8 tensor `[3, 240, 320]`."""
    for index in range(s.rooms):
        for style in "ab":
            key = RoomKey(s.seed, style, index)
            room = build_room(key)
            for view, pose in enumerate(camera_poses(room, key, s.views)):
                yield torch.from_numpy(render(room, pose, key.rng("sensor", view))[0]).permute(2, 0, 1)


def jitter(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Brightness, contrast, saturation and a swap of the colour channels."""
    if rng.random() < 0.3:
        image = image[torch.from_numpy(rng.permutation(3))]
    image = image * float(rng.uniform(0.7, 1.3))
    image = (image - image.mean()) * float(rng.uniform(0.7, 1.3)) + image.mean()
    gray = image.mean(0, keepdim=True)
    return (gray + (image - gray) * float(rng.uniform(0.4, 1.4))).clamp(0, 1)


def crop(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A 168 x 168 crop: turned by up to 20 degrees, at 0.75 to 1.5 times the scale, mirrored half of the time."""
    angle, scale = np.deg2rad(rng.uniform(-20, 20)), 1 / np.exp(rng.uniform(np.log(0.75), np.log(1.5)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:, 0] *= rng.choice([-1, 1])
    height, width = image.shape[1:]
    centre = rng.uniform(CROP[0] / 2, np.array([width, height]) - CROP[0] / 2)
    step = (np.arange(CROP[0]) - (CROP[0] - 1) / 2) * scale
    offsets = np.stack(np.meshgrid(step, step), 2) @ turn.T
    grid = torch.from_numpy((offsets + centre) / [width, height] * 2 - 1).float()
    return F.grid_sample(image[None], grid[None], padding_mode="reflection", align_corners=False)[0]


def training_images(s: Settings) -> Iterator[torch.Tensor]:
    """Augmented float images in [0, 1], of the two sizes."""
    rng = np.random.default_rng(s.seed)
    for count, image in enumerate(images(s)):
        pixels = image.float() / 255
        for _ in range(s.crops):
            yield jitter(crop(pixels, rng), rng)
        if count % s.full_every == 0:
            whole = F.interpolate(pixels[None], size=FULL, mode="bilinear", antialias=True)[0]
            yield whole.flip(2) if rng.random() < 0.5 else whole


def normalise(images_u8: torch.Tensor) -> torch.Tensor:
    """uint8 `[B, 3, H, W]` to what both networks expect."""
    return (images_u8.float() / 255 - MEAN) / STD


@torch.inference_mode()
def targets(teacher: Dinov2Model, s: Settings) -> Data:
    """Every training image with what the teacher makes of it."""
    pending: dict[int, list[torch.Tensor]] = {FULL[0]: [], CROP[0]: []}
    done: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {FULL[0]: ([], []), CROP[0]: ([], [])}

    def flush(height: int) -> None:
        batch = torch.stack(pending[height])
        done[height][0].append(batch)
        done[height][1].append(teacher(normalise(batch)).last_hidden_state[:, 1:].half())
        pending[height].clear()

    start = time.time()
    for count, image in enumerate(training_images(s), 1):
        pending[image.shape[1]].append((image * 255 + 0.5).to(torch.uint8))
        if len(pending[image.shape[1]]) == 16:
            flush(image.shape[1])
        if count % 500 == 0:
            print(f"teacher: {count} images, {time.time() - start:.0f} s", flush=True)
    for height, left in pending.items():
        if left:
            flush(height)
    return {height: (torch.cat(x), torch.cat(y)) for height, (x, y) in done.items() if x}


def batches(data: Data, s: Settings, epoch: int) -> list[tuple[int, torch.Tensor]]:
    """Shuffled batches of one size each; whole images in smaller ones, of about as many tokens."""
    rng = np.random.default_rng([s.seed, epoch])
    found = []
    for height, (x, _) in data.items():
        size = s.batch if height == CROP[0] else max(1, s.batch * 144 // 374)
        found += [(height, part) for part in torch.from_numpy(rng.permutation(len(x))).split(size)]
    return [found[i] for i in rng.permutation(len(found))]


def fit(data: Data, s: Settings) -> Dinov2Model:
    """The student."""
    torch.manual_seed(s.seed)
    student = Dinov2Model(
        Dinov2Config(
            hidden_size=s.hidden, num_hidden_layers=s.layers, num_attention_heads=s.heads, patch_size=14, image_size=224
        )
    )
    head = nn.Linear(s.hidden, next(iter(data.values()))[1].shape[2])
    sample = torch.cat([y[:: max(1, len(y) // 200)].flatten(0, 1).float() for _, y in data.values()])
    center, spread = sample.mean(0), sample.std(0)
    plain = [p for p in student.parameters() if p.ndim < 2 or p.shape[0] == 1]
    weights = [p for p in student.parameters() if not (p.ndim < 2 or p.shape[0] == 1)]
    optimiser = torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": s.weight_decay},
            {"params": [*plain, *head.parameters()], "weight_decay": 0.0},
        ],
        lr=s.lr,
        betas=(0.9, 0.98),
    )
    total = s.epochs * len(batches(data, s, 0))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min(1.0, (i + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, i / total))))
    )
    start, step, cosine = time.time(), 0, 0.0
    student.train()
    for epoch in range(s.epochs):
        for height, index in batches(data, s, epoch):
            x, y = data[height]
            wanted = (y[index].float() - center) / spread
            given = head(student(normalise(x[index])).last_hidden_state[:, 1:])
            similarity = F.cosine_similarity(given, wanted, dim=-1).mean()
            loss = (1 - similarity) + F.smooth_l1_loss(given, wanted)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*student.parameters(), *head.parameters()], 1.0)
            optimiser.step()
            schedule.step()
            cosine = 0.98 * cosine + 0.02 * float(similarity.detach())
            step += 1
            if step % 50 == 0:
                mean = cosine / (1 - 0.98**step)
                print(f"epoch {epoch} step {step}/{total} cosine {mean:.4f} {time.time() - start:.0f} s", flush=True)
    return center_features(student.eval(), data)


@torch.inference_mode()
def center_features(student: Dinov2Model, data: Data) -> Dinov2Model:
    """Take the mean patch token out of the last norm's bias: cosines between features then use their whole range."""
    tokens = [student(normalise(part)).last_hidden_state[:, 1:] for x, _ in data.values() for part in x[:256].split(16)]
    mean = torch.cat([t.flatten(0, 1) for t in tokens]).mean(0)
    student.layernorm.bias.sub_(mean)
    return student


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(student: Dinov2Model, s: Settings, out: Path, record: dict[str, object]) -> None:
    """f16 weights in Hugging Face layout, and how they came about."""
    state = student.state_dict()
    largest = max(float(value.abs().max()) for value in state.values())
    if not largest < 1000:
        raise SystemExit(f"a weight of {largest} is not fit for f16")
    student.half().save_pretrained(out)
    (out / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 238},
                "do_center_crop": False, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255,
                "do_normalize": True, "image_mean": [round(x, 6) for x in MEAN.flatten().tolist()],
                "image_std": [round(x, 6) for x in STD.flatten().tolist()],
                "do_convert_rgb": True,
            }, indent=1,
        ) + "\n"
    )  # fmt: skip
    record = {"settings": asdict(s), "largest_weight": round(largest, 3), **record}
    update(out / "README.md", "training", f"```json\n{json.dumps(record, indent=1)}\n```")
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("DITR_CACHE_TEST_WEIGHTS")
    parser.add_argument("--teacher", type=Path, default=Path(default) if default else None, required=default is None)
    parser.add_argument("--out", type=Path, default=ROOT / "ditr_cache/backbones/weights/rooms-vit-tiny")
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    teacher_dir, out = options.pop("teacher"), options.pop("out")
    s, start = Settings(**options), time.time()
    torch.set_num_threads(1)
    teacher = Dinov2Model.from_pretrained(teacher_dir, dtype=torch.float32).eval()
    data = targets(teacher, s)
    student = fit(data, s)
    record = {
        "teacher_sha256": sha256(teacher_dir / "model.safetensors"),
        "images": {f"height {height}": len(x) for height, (x, _) in data.items()},
        "steps": s.epochs * len(batches(data, s, 0)),
        "parameters": sum(p.numel() for p in student.parameters()),
        "seconds": round(time.time() - start),
        "torch": torch.__version__,
    }
    save(student, s, out, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
