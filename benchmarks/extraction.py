# SPDX-License-Identifier: Apache-2.0
"""What stage one costs beside the ViT, on real frames (RedKitchen).

    python benchmarks/extraction.py [wall] [cpu] [memory]

wall    extraction against the bare forward passes of the same batches, real ViT; target <= 1.10
cpu     core-ms an image with a backbone that costs nothing, 1296 x 968 JPEG, 144,133 points; targets <= 18 with Pillow,
        <= 15 with simplejpeg, a depth map + 4, int8 + 2; and the share of the cores kept busy; target >= 0.9
memory  peak resident memory with 250 views against 25; target <= 1.10

Every cpu and memory figure comes from a process of its own, cpu figures are medians of three. Hyperthreads of one core
slow each other down, so core-ms are also given for one core alone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent))

PARTS = ("wall", "cpu", "memory")
WALL_FRAMES, WALL_BATCH, WALL_ROUNDS = 24, 4, 3
CPU_IMAGES = 600
"""With 200, beginning and end are a tenth of the time, in which one core has nothing to do."""


@dataclass(frozen=True, slots=True)
class Memory:
    """An image that lies in memory, as the page cache would have it."""

    data: bytes

    def read(self) -> bytes:
        return self.data


class Kitchen:
    """RedKitchen as one scene of `views` views (frames repeated), optionally as 1296 x 968 JPEG."""

    name, version, preset = "redkitchen", "benchmark", "scannet"
    class_names: ClassVar[dict] = {}
    label_maps: ClassVar[dict] = {}

    def __init__(self, views: int, *, large: bool, depth: bool) -> None:
        from _harness import data_folder

        from ditr_cache.datasets import open_dataset
        from ditr_cache.types import Scene

        dataset = open_dataset(data_folder() / "nerfstudio" / "redkitchen")
        scene = dataset.load(dataset.plan()[0].samples[0].id)
        frames = [self._frame(view, large, depth) for view in scene.views[:25]]
        repeated = tuple(replace(frames[i % len(frames)], name=str(i)) for i in range(views))
        self.scene = Scene("redkitchen", scene.points, repeated)

    @staticmethod
    def _frame(view, large: bool, depth: bool):
        from PIL import Image

        data = view.image.read()
        camera = view.camera
        if large:
            image = Image.open(io.BytesIO(data)).resize((1296, 968), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
            intrinsics = camera.intrinsics.copy()
            intrinsics[0] *= 1296 / camera.width
            intrinsics[1] *= 968 / camera.height
            camera = replace(camera, intrinsics=intrinsics, height=968, width=1296)
        return replace(view, image=Memory(data), camera=camera, depth=view.depth if depth else None)

    def plan(self):
        from ditr_cache.types import BlockPlan, SamplePlan

        return (BlockPlan("redkitchen", (SamplePlan("redkitchen", "train", tuple(v.name for v in self.scene.views)),)),)

    def load(self, sample_id: str):
        return self.scene


class Free:
    """A backbone that costs nothing: the same noise for every batch."""

    patch_size, dim, has_class_token = 14, 384, True
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self) -> None:
        import torch

        from ditr_cache.backbones.base import BackboneIdentity

        self.device = torch.device("cpu")
        self.identity = BackboneIdentity("free", None, "0" * 64, "none", 384, 14, 1, 1, True, 0, "fp32", "none", 0)
        self._maps: dict = {}

    def __call__(self, images):
        import torch

        from ditr_cache.backbones.base import PatchMaps

        key = tuple(images.shape)
        if key not in self._maps:
            patches = (key[2] // 14) * (key[3] // 14)
            self._maps = {key: PatchMaps(torch.randn(key[0], patches, 384), torch.randn(key[0], 384))}
        return self._maps[key]


def real_vit():
    """The ViT of the tests: 8 blocks, 384 channels, trained."""
    from ditr_cache.backbones import load_backbone
    from ditr_cache.config import BackboneConfig

    weights = os.environ.get("DITR_CACHE_TEST_WEIGHTS")
    folder = Path(weights) if weights else HERE.parents[2] / "shared" / "weights" / "dinov2-small-first8blocks"
    return load_backbone(BackboneConfig(weights=folder), "cpu")


def config(*overrides: str):
    from ditr_cache.config import ExtractConfig, load_config, read_named_yaml

    return load_config(ExtractConfig, [read_named_yaml("extract", "scannet")], overrides)


def child(images: int, *flags: str) -> dict[str, float]:
    """Extract with a free backbone in this process and say what it took."""
    from ditr_cache.pipelines.extract import Extract

    backbone = real_vit() if "vit" in flags else Free()
    dataset = Kitchen(images, large=True, depth="depth" in flags)
    store = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / "store"
    try:
        pipeline = Extract(
            dataset, store, config(f"store.dtype={'int8' if 'int8' in flags else 'f16'}"), backbone=backbone
        )
        wall, cpu = time.perf_counter(), time.process_time()
        report = pipeline.run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        shutil.rmtree(store.parent)
    assert report.images == images, report
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"core_ms": 1e3 * cpu / images, "busy": cpu / wall / len(os.sched_getaffinity(0)), "peak_mib": peak}


def alone() -> dict[str, float]:
    """The parts that cannot be avoided, one after the other on one thread: core-ms an image."""
    import torch

    from ditr_cache.geometry import find_hits
    from ditr_cache.images import decode, resize

    torch.set_num_threads(1)
    scene = Kitchen(10, large=True, depth=True).scene
    rule = config().visibility
    images = [decode(v.image.read(), 968, 1296) for v in scene.views]

    def cost(work) -> float:
        work(0)
        start = time.process_time()
        for i in range(10):
            work(i)
        return 1e2 * (time.process_time() - start)

    def project(i: int) -> None:
        find_hits(scene.points.coord, scene.points.origin, [scene.views[i].camera], [None], [(30, 40)], rule)

    return {
        "decode": cost(lambda i: decode(scene.views[i].image.read(), 968, 1296)),
        "resize": cost(lambda i: resize(images[i], (420, 560), "bilinear")),
        "project": cost(project),
        "depth": cost(lambda i: scene.views[i].depth.read()),
    }


def median_of(runs: int, *arguments: str) -> dict[str, float]:
    """Medians over processes: neighbours on the machine cost a single run up to a third."""
    found = [in_process(*arguments) for _ in range(runs)]
    return {key: statistics.median(run[key] for run in found) for key in found[0]}


def in_process(*arguments: str) -> dict[str, float]:
    """Run this script in a process of its own."""
    done = subprocess.run([sys.executable, str(HERE), "--child", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def wall() -> dict[str, float]:
    """Extraction and bare forward passes, turn about, with the real ViT."""
    import torch

    from ditr_cache.images import decode, resize
    from ditr_cache.pipelines.extract import Extract

    backbone = real_vit()
    dataset = Kitchen(WALL_FRAMES, large=False, depth=True)
    settings = config(f"run.batch_size={WALL_BATCH}")
    pixels = [resize(decode(v.image.read(), 480, 640), (420, 560), "bilinear") for v in dataset.scene.views]
    batches = [torch.stack(pixels[i : i + WALL_BATCH]) for i in range(0, WALL_FRAMES, WALL_BATCH)]
    for batch in batches[:2]:
        backbone(batch)
    bare, extract = [], []
    for turn in range(WALL_ROUNDS):
        for which in ("bare", "extract") if turn % 2 == 0 else ("extract", "bare"):
            start = time.perf_counter()
            if which == "bare":
                for batch in batches:
                    backbone(batch)
                bare.append(time.perf_counter() - start)
            else:
                with tempfile.TemporaryDirectory() as folder_:
                    Extract(dataset, Path(folder_) / "store", settings, backbone=backbone).run()
                    extract.append(time.perf_counter() - start)
    ratios = [e / b for e, b in zip(extract, bare, strict=True)]
    return {
        "images": WALL_FRAMES,
        "bare_s": statistics.median(bare),
        "extract_s": statistics.median(extract),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main(parts: list[str]) -> None:
    from _harness import write_results

    results: dict = {"target": "wall <= 1.10; core-ms <= 18 (Pillow), <= 15 (simplejpeg); busy >= 0.9; memory <= 1.10"}
    if "cpu" in parts:
        flags = {"pillow": ["pillow"], "simplejpeg": [], "simplejpeg, depth": ["depth"], "simplejpeg, int8": ["int8"]}
        runs = {name: median_of(3, str(CPU_IMAGES), "one-core", *f) for name, f in flags.items()}
        every = {name: median_of(3, str(CPU_IMAGES), *flags[name]) for name in ("pillow", "simplejpeg")}
        floor = {name: median_of(3, "alone", *flags[name]) for name in ("pillow", "simplejpeg")}
        results["cpu"] = {"images": CPU_IMAGES, "one_core": runs, "all_cores": every, "alone": floor}
        for name, run in runs.items():
            print(f"one core, {name:18s} {run['core_ms']:6.2f} core-ms an image")
        for name, run in every.items():
            print(f"all cores, {name:17s} {run['core_ms']:6.2f} core-ms an image, {run['busy']:.2f} of the cores busy")
        for name, costs in floor.items():
            print(f"alone, {name:13s} " + ", ".join(f"{k} {v:.2f}" for k, v in costs.items()))
    if "memory" in parts:
        few, many = in_process("25", "vit")["peak_mib"], in_process("250", "vit")["peak_mib"]
        results["memory"] = {"views_25_mib": few, "views_250_mib": many, "ratio": many / few}
        print(f"peak memory: {few:.0f} MiB with 25 views, {many:.0f} MiB with 250, ratio {many / few:.3f}")
    if "wall" in parts:
        results["wall"] = wall()
        r = results["wall"]
        print(f"wall: bare ViT {r['bare_s']:.2f} s, extraction {r['extract_s']:.2f} s, ratio {r['ratio']:.3f}")
    print(write_results("extraction", results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        arguments = sys.argv[2:]
        if "pillow" in arguments:
            sys.modules["simplejpeg"] = None  # type: ignore[assignment]
        if "one-core" in arguments:
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(json.dumps(alone() if arguments[0] == "alone" else child(int(arguments[0]), *arguments[1:])))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
        wanted = parser.parse_args().parts or list(PARTS)
        if not set(wanted) <= set(PARTS):
            parser.error(f"parts are {', '.join(PARTS)}")
        main(wanted)
