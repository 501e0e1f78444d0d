# SPDX-License-Identifier: Apache-2.0
"""The dry run: a few measured frames, extrapolated to the plan."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import torch

from ditr_cache.backbones import Backbone
from ditr_cache.config import ExtractConfig
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import DatasetError, FrameError, SampleError
from ditr_cache.fusion import seen_rows
from ditr_cache.geometry import check_camera
from ditr_cache.images import variants
from ditr_cache.pipelines.events import PreparedFrame
from ditr_cache.pipelines.feeder import prepare_frame, select_views
from ditr_cache.pipelines.report import Estimate
from ditr_cache.store.locate import local_path
from ditr_cache.store.quantize import quantise
from ditr_cache.types import SamplePlan

__all__ = ["estimate"]

MEASURED_FRAMES = 4
MEASURED_SAMPLES = 32
"""How many are tried for usable frames."""
HIT_BYTES = 1.0
"""Stored size of a hit; 0.7 to 2.2 were measured, by how points are ordered."""
POINT_BYTES = 31
"""Coordinates, colour, normal and a label."""


def estimate(
    dataset: Dataset, store: Path | str, config: ExtractConfig, backbone: Backbone, shard: tuple[int, int]
) -> Estimate:
    """Measure frames of the first usable sample.

    Raises:
        DatasetError: If no sample of the plan has a usable frame.
    """
    plan = dataset.plan()[shard[0] :: shard[1]]
    samples = [sample for block in plan for sample in block.samples]
    frames = sum(len(select_views(sample, config)) for sample in samples)
    images = frames * len(variants(config.variants))
    points, prepared, seconds = _measure_preparing(dataset, samples, config, backbone)
    batch = [p.image_3hw for p in prepared]
    batch = (batch * config.run.batch_size)[: config.run.batch_size]
    with torch.inference_mode():
        backbone(torch.stack(batch))
        began = time.perf_counter()
        maps = backbone(torch.stack(batch)).rows.cpu()
        seconds += (time.perf_counter() - began) / len(batch)
    rows = [seen_rows(maps[i], p.hits.row_patch).cpu() for i, p in enumerate(prepared[: len(batch)])]
    errors = np.concatenate([quantise(r.float())[2] for r in rows])
    mean_rows = sum(map(len, rows)) / len(rows)
    mean_hits = sum(len(p.hits.hit_row) for p in prepared) / len(prepared)
    per_image = (2 + HIT_BYTES * mean_hits / max(1.0, mean_rows)) * mean_rows + 512
    kept_points = points * len(samples) * POINT_BYTES if config.store.points else 0
    return Estimate(
        blocks=len(plan),
        samples=len(samples),
        frames=frames,
        images=images,
        points_estimate=points * len(samples),
        bytes_f16=round(images * (per_image + mean_rows * backbone.dim * 2) + kept_points),
        bytes_int8=round(images * (per_image + mean_rows * backbone.dim + 8 * backbone.dim) + kept_points),
        seconds=round(images * seconds, 1),
        seconds_per_image=round(seconds, 5),
        int8_cosine_error_p99=float(np.quantile(errors, 0.99)) if len(errors) else None,
        free_bytes=_free_bytes(store),
        device=str(backbone.device),
        grid=prepared[0].grid,
        dim=backbone.dim,
    )


def _free_bytes(store: Path | str) -> int | None:
    folder = local_path(store)
    if folder is None:
        return None
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def _measure_preparing(
    dataset: Dataset, samples: list[SamplePlan], config: ExtractConfig, backbone: Backbone
) -> tuple[int, list[PreparedFrame], float]:
    """Points of the first usable sample, a few of its frames, and the seconds that preparing one took."""
    reason = "this shard has no samples"
    for sample in _some(samples):
        names = frozenset(select_views(sample, config))
        try:
            scene = dataset.load(sample.id)
        except (SampleError, OSError) as error:
            reason = str(error)
            continue
        views = [v for v in scene.views if v.name in names and not (v.problem or check_camera(v.camera))]
        if not views or not len(scene.points):
            reason = f"{sample.id} has no usable frame"
            continue
        prepared, began = [], time.perf_counter()
        for view in views[:: max(1, len(views) // MEASURED_FRAMES)][:MEASURED_FRAMES]:
            try:
                prepared.append(prepare_frame(scene, view, 0, backbone.patch_size, config))
            except (FrameError, OSError) as error:
                reason = str(error)
        if prepared:
            seconds = (time.perf_counter() - began) / len(prepared)
            # those that fit into one batch
            return len(scene.points), [p for p in prepared if p.grid == prepared[0].grid], seconds
    raise DatasetError(f"nothing could be measured: {reason}", where=dataset.name)


def _some(samples: list[SamplePlan]) -> list[SamplePlan]:
    """A few that are spread over the plan, then more of them, in case those are unusable."""
    spread = samples[:: max(1, len(samples) // 5)][:5]
    return [*spread, *(s for s in samples[:MEASURED_SAMPLES] if s not in spread)]
