# SPDX-License-Identifier: Apache-2.0
"""The embedded backbone: small, loadable, and better than chance."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import Dinov2Config, Dinov2Model

from ditr_cache.datasets.rooms import RoomKey, build_room, camera_poses, label_map, render

FOLDER = Path(str(files("ditr_cache.backbones"))) / "weights" / "rooms-vit-tiny"
SIZE, GRID = (238, 308), (17, 22)


@pytest.fixture(scope="module")
def model():
    return Dinov2Model.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rooms():
    """Normalised images of four rooms that training did not see, the class of every patch, and its room."""
    images, labels = [], []
    for index in range(4):
        key = RoomKey(90, "a", index)
        room = build_room(key)
        for view, pose in enumerate(camera_poses(room, key, 3)):
            images.append(render(room, pose, key.rng("sensor", view))[0])
            shown = label_map(room, pose)
            rows, columns = ((np.arange(n) + 0.5) * s / n for n, s in zip(GRID, shown.shape, strict=True))
            labels.append(shown[rows.astype(int)[:, None], columns.astype(int)].ravel())
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    batch = torch.nn.functional.interpolate(batch, size=SIZE, mode="bilinear", antialias=True) / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    label = torch.from_numpy(np.concatenate(labels))
    return (batch - mean) / std, label, torch.arange(4).repeat_interleave(len(label) // 4)


@torch.inference_mode()
def purity(model, images, label, owner):
    """Share of the 5 nearest neighbours in other rooms that show the same class, as many patches of every class."""
    tokens = model(images).last_hidden_state[:, 1:].flatten(0, 1)
    assert bool(tokens.isfinite().all())
    found = [(label == c) & (owner == o) for c in label[label >= 0].unique() for o in owner.unique()]
    pick = torch.cat([torch.nonzero(f)[:, 0][:: max(1, int(f.sum()) // 30)] for f in found if f.any()])
    x, label, owner = torch.nn.functional.normalize(tokens[pick], dim=1), label[pick], owner[pick]
    similarity = (x @ x.T).masked_fill(owner[:, None] == owner, -2)
    return float((label[similarity.topk(5).indices] == label[:, None]).float().mean())


def test_is_small(model):
    assert sum(p.numel() for p in model.parameters()) <= 4_000_000
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8_000_000
    assert model.config.patch_size == 14


def test_weights_are_half_precision():
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118 - not a mapping
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


def test_card_says_what_it_is():
    card = (FOLDER / "README.md").read_text("utf-8")
    assert "not DINOv2" in card
    assert "teacher_sha256" in card
    assert "| a/all |" in card


def test_beats_random_weights(model, rooms):
    torch.manual_seed(0)
    untrained = Dinov2Model(Dinov2Config.from_pretrained(FOLDER)).eval()
    assert purity(model, *rooms) > purity(untrained, *rooms) + 0.1
