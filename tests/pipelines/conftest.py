# SPDX-License-Identifier: Apache-2.0
"""Tiny worlds for stage one: rooms in memory that tests then damage, the same on disk, and networks for free."""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from ditr_cache.backbones.base import BackboneIdentity, PatchMaps
from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.errors import SampleError
from ditr_cache.pipelines.extract import Extract
from ditr_cache.types import BlockPlan, Camera, PointCloud, SamplePlan, Scene, View

# tests of clusters import `dask_world`
sys.path.insert(0, str(Path(__file__).parent))

PATCH = 4
HEIGHT, WIDTH = 20, 28


class PatchSums:
    """A network whose features are exact in any batch: integer statistics of the patches' pixels."""

    patch_size, dim, has_class_token = PATCH, 6, True
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    device = torch.device("cpu")
    identity = BackboneIdentity("sums", None, "0" * 64, "sums", 6, PATCH, 1, 1, False, 0, "fp32", "none")

    def __init__(self, patch_size=PATCH):
        self.patch_size = patch_size
        self.identity = replace(self.identity, patch_size=patch_size)
        self.batches = []

    def __call__(self, images_B3hw):
        self.batches.append(tuple(images_B3hw.shape))
        b, _, h, w = images_B3hw.shape
        p = self.patch_size
        cells = images_B3hw.float().reshape(b, 3, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        cells = cells.flatten(3)
        rows_BPD = torch.cat([cells.sum(3) / 16, cells[..., 0] - cells[..., -1]], 2).contiguous()
        return PatchMaps(rows_BPD, rows_BPD.mean(1))


@dataclass(frozen=True)
class Pixels:
    """A decoded image in memory."""

    array: np.ndarray

    def read(self):
        return self.array


class Rooms:
    """A data set in memory: blocks of samples; `load` may be told to fail."""

    name, version, preset = "rooms", "1", "nerfstudio"

    def __init__(self, blocks):
        self.class_names = {"segment": ("floor", "wall")}
        self.label_maps = {"segment": {7: 0, 8: 1}}
        self.blocks = {block: {scene.id: scene for scene in scenes} for block, scenes in blocks.items()}
        self.loaded = []
        self.failures = {}

    def plan(self):
        return tuple(
            BlockPlan(block, tuple(SamplePlan(s.id, "train", tuple(v.name for v in s.views)) for s in scenes.values()))
            for block, scenes in self.blocks.items()
        )

    def load(self, sample_id):
        self.loaded.append(sample_id)
        if self.failures.get(sample_id):
            raise self.failures[sample_id].pop(0)
        for scenes in self.blocks.values():
            if sample_id in scenes:
                return scenes[sample_id]
        raise SampleError("no such sample", where=sample_id)


def rng(*key):
    return np.random.default_rng(list(hashlib.sha256(repr(key).encode()).digest()))


def camera(i, height=HEIGHT, width=WIDTH):
    """Looks into the unit cube from z = -1, a little to the side."""
    pose = np.eye(4)
    pose[:3, 3] = 0.05 * i, -0.03 * i, 1.0
    return Camera(np.array([[width / 1.5, 0, width / 2], [0, width / 1.5, height / 2], [0, 0, 1]]), pose, height, width)


def image(*key, height=HEIGHT, width=WIDTH):
    return rng("image", *key).integers(0, 256, (height, width, 3), np.uint8)


def view(room, i, height=HEIGHT, width=WIDTH):
    source = Pixels(image(room, i, height=height, width=width))
    return View(f"{i:03d}", camera(i, height, width), source)


def cloud(room, n=200):
    r = rng("points", room)
    coord = r.uniform(-0.8, 0.8, (n, 3)).astype(np.float32)
    return PointCloud(
        coord,
        np.zeros(3),
        color=r.integers(0, 256, (n, 3), np.uint8),
        segments={"segment": r.integers(-1, 2, n).astype(np.int32)},
    )


def room(name, views=3, points=200, size=(HEIGHT, WIDTH)):
    return Scene(name, cloud(name, points), tuple(view(name, i, *size) for i in range(views)))


def rooms(count=3, views=3, points=200):
    """One block a room."""
    return Rooms({f"r{i}": [room(f"r{i}", views, points)] for i in range(count)})


def config(*settings, height=HEIGHT, width=WIDTH):
    """Settings of stage one at the tiny size, on one thread."""
    base = [f"images.size=[{height},{width}]", "run.batch_size=4", "run.threads=2", "visibility.depth_margin=null"]
    return load_config(ExtractConfig, [], [*base, *settings])


def extract(dataset, store, *settings, backbone=None, **options):
    return Extract(dataset, store, config(*settings), backbone=backbone or PatchSums(), **options)


def write_capture(folder, scenes=4, views=5, points=300, height=28, width=42):
    """The same rooms in nerfstudio's layout, for processes of their own."""
    for s in range(scenes):
        home = folder / f"scene{s}"
        (home / "images").mkdir(parents=True)
        frames = []
        for i in range(views + s):
            Image.fromarray(image(s, i, height=height, width=width)).save(home / f"images/{i}.png")
            pose = np.linalg.inv(camera(i, height, width).world_to_camera) @ np.diag([1.0, -1, -1, 1])
            frames.append({"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()})
        k = camera(0, height, width).intrinsics
        document = {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2], "w": width, "h": height}
        (home / "transforms.json").write_text(json.dumps(document | {"ply_file_path": "points.ply", "frames": frames}))
        coord = cloud(s, points).coord
        header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(coord)}\n"
        header += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
        (home / "points.ply").write_bytes(header.encode() + coord.astype("<f4").tobytes())
    return folder


@pytest.fixture(autouse=True, scope="session")
def _no_flushing():
    """Nothing here cuts the power, and flushing takes most of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.fixture(scope="session")
def tiny():
    """What this module makes, by name."""
    names = (PatchSums, Pixels, Rooms, camera, image, view, cloud, room, rooms, config, extract, write_capture, rng)
    return SimpleNamespace(**{thing.__name__: thing for thing in names}, height=HEIGHT, width=WIDTH, patch=PATCH)


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory):
    """Folder of a small seeded DINOv2 in Hugging Face layout, patch 14."""
    folder = tmp_path_factory.mktemp("tiny-vit")
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Dinov2Model(Dinov2Config(**settings)).eval()
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_network():
    """Settings of stage two for the rooms in memory: a network of two stages, one step."""
    model = {
        "stride": [2],
        "enc_depths": [1, 1],
        "enc_channels": [8, 16],
        "enc_num_head": [1, 2],
        "enc_patch_size": [32, 32],
        "dec_depths": [1],
        "dec_channels": [16],
        "dec_num_head": [2],
        "dec_patch_size": [32],
        "sparse_conv": "torch",
    }
    grid = [{"kind": "center_shift"}, {"kind": "normalize_color"}]
    data = {
        "features": ["color"],
        "val_splits": ["train"],
        "views": {"count": 2, "evaluation_count": 2},
        "train": [*grid, {"kind": "grid_sample", "grid_size": 0.2}],
        "val": [*grid, {"kind": "grid_sample", "grid_size": 0.2, "keep": "first"}],
        "test": {
            "before": grid,
            "rotations": [0.0, 0.5],
            "scales": [1.0],
            "flip": "once",
            "voxelize": [{"kind": "grid_sample", "grid_size": 0.2, "keep": "all"}],
        },
    }
    run = {"epochs": 1, "batch_size": 2, "workers": 0, "device": "cpu", "amp": "off"}
    return {"model": model, "data": data, "run": run}


@pytest.fixture(scope="session")
def rooms_store(tmp_path_factory):
    """Four generated rooms, one of them for validation, with features of the embedded ViT: do not write to it."""
    folder = tmp_path_factory.mktemp("rooms") / "store"
    settings = ["images.size=[56,70]", "run.threads=2", "run.batch_size=8"]
    config_ = load_config(ExtractConfig, [read_named_yaml("extract", "synthetic")], settings)
    Extract(open_dataset("synthetic:rooms=4,views=3,val=1", "synthetic"), folder, config_).run()
    return folder


@pytest.fixture(scope="session")
def micro():
    """Settings of stage two for `rooms_store`: everything random is on, eight steps, a second or two."""
    model = {
        "order": ["z", "hilbert", "hilbert-trans"],
        "stride": [2],
        "enc_depths": [1, 1],
        "enc_channels": [8, 16],
        "enc_num_head": [1, 2],
        "enc_patch_size": [64, 64],
        "dec_depths": [1],
        "dec_channels": [16],
        "dec_num_head": [2],
        "dec_patch_size": [64],
        "drop_path": 0.3,
        "sparse_conv": "torch",
    }
    grid = {"kind": "grid_sample", "grid_size": 0.1}
    train = [
        {"kind": "center_shift"},
        {"kind": "random_dropout"},
        {"kind": "random_rotate", "angle": [-1, 1], "p": 0.5},
        {"kind": "random_jitter"},
        {"kind": "chromatic_jitter", "p": 0.5},
        grid,
        {"kind": "sphere_crop", "point_max": 400},
        {"kind": "normalize_color"},
    ]
    val = [{"kind": "center_shift"}, {**grid, "keep": "first"}, {"kind": "normalize_color"}]
    data = {"views": {"count": 2, "rule": "random"}, "loop": 3, "mix_prob": 0.5, "train": train, "val": val}
    run = {
        "epochs": 2,
        "batch_size": 2,
        "workers": 0,
        "device": "cpu",
        "amp": "off",
        "deterministic": True,
        "threads": 1,
        "log_every": 1,
        "checkpoint_every": 3,
    }
    return {"model": model, "data": data, "run": run}
