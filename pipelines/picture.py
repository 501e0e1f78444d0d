# SPDX-License-Identifier: Apache-2.0
"""One PNG that shows what a store holds: an image, its patch features, and the points with theirs, in the same colours.

Colours are the first three principal components of the features: same things get the same colour in all panels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import ConfigError, SampleError
from ditr_cache.images import decode
from ditr_cache.pipelines.components import Components
from ditr_cache.pipelines.splat import axes, vantage
from ditr_cache.store.digests import coordinate_digests
from ditr_cache.store.reader import FeatureStore
from ditr_cache.types import PointCloud, Scene

__all__ = ["Picture", "PictureReport"]

PANEL = (480, 640)
"""Height and width of a panel in pixels."""
GAP, BAR = 8, 24
UNSEEN = np.array([40, 40, 44], np.uint8)

RGB = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PictureReport:
    """What was drawn."""

    path: str
    sample: str
    view: str
    explained: float
    """Share of the features' variance that the three colours carry."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"path": self.path, "sample": self.sample, "view": self.view, "explained": self.explained}


class Picture:
    """Draws one sample.

    Args:
        dataset: Where the image comes from; a store holds none.
        store: Where the features come from.
        path: PNG to write.
        sample: Sample id; the first by default.
        view: Index of the base view; the one with the most patches seen by default.
    """

    def __init__(
        self, dataset: Dataset, store: FeatureStore, path: Path, sample: str | None = None, view: int | None = None
    ) -> None:
        self.dataset, self.store, self.path = dataset, store, path
        self.sample = sample or next(iter(store.samples), "")
        self.view = view

    def run(self) -> PictureReport:
        """Draw and write.

        Raises:
            SampleNotFoundError: If the store has no such sample.
            ConfigError: If it has no such view.
            SampleError: If the data set has other points.
        """
        info = self.store.samples.info(self.sample)
        everything = self.store.read(self.sample, rule="last")
        scene = self.dataset.load(self.sample)
        if coordinate_digests(scene.points)[0] != info.coord_sha256:
            raise SampleError(
                "the points are not those that the features were made for",
                where=self.sample,
                hint=f"Name the data set that {self.store.root} was made from.",
            )
        if not info.view_names:
            raise ConfigError("the sample has no views to draw", where=self.sample)
        index = self._fullest_view(len(info.view_names)) if self.view is None else self.view
        name = info.view_names[index] if 0 <= index < len(info.view_names) else None
        view = next((v for v in scene.views if v.name == name), None)
        if view is None:
            raise ConfigError(f"no view {index} in the store and the data set", where=self.sample)
        one = self.store.read(self.sample, views=[index], rule="last")
        colour = Components(np.asarray(everything.features.dequantise().rows, np.float32))
        grid = self.store.grid(self.sample, index)
        panels = [
            ("image", decode(view.image.read(), view.camera.height, view.camera.width)),
            ("its patch features", _patches(colour, one, grid)),
            ("points", _cloud(scene, _colours(scene.points), None)),
            ("features of the points", _cloud(scene, _points(colour, everything), everything.view >= 0)),
        ]
        _compose(panels).save(self.path)
        return PictureReport(str(self.path), self.sample, str(name), round(colour.explained, 3))

    def _fullest_view(self, views: int) -> int:
        rows = [len(self.store.read(self.sample, views=[v], rule="last").features.rows) for v in range(views)]
        return int(np.argmax(rows))


def _patches(colour: Components, one: Any, grid: tuple[int, int]) -> RGB:
    """The patch map of one view; patches that no point sees are not in the store."""
    out = np.tile(UNSEEN, (grid[0] * grid[1], 1))
    seen = one.patch >= 0
    patches, first = np.unique(one.patch[seen], return_index=True)
    rows = np.asarray(one.features.dequantise().rows)
    out[patches] = colour(rows[one.features.index[seen][first]])
    return out.reshape(*grid, 3)


def _points(colour: Components, everything: Any) -> RGB:
    rows = colour(everything.features.dequantise().rows)
    colours: RGB = np.concatenate([rows, UNSEEN[None]])[everything.features.index]
    return colours


def _colours(points: PointCloud) -> RGB:
    if points.color is not None:
        return points.color
    height = points.coord[:, 2]
    low, high = np.percentile(height, [2, 98])
    grey = ((height - low) / max(high - low, 1e-6)).clip(0, 1) * 200 + 20
    return np.repeat(grey.astype(np.uint8)[:, None], 3, axis=1)


def _cloud(scene: Scene, colour_N3: RGB, seen_N: NDArray[np.bool_] | None) -> RGB:
    """Points from obliquely above, near ones over far ones; surfaces that face away (the near walls) are left out."""
    points = scene.points
    up, ahead = axes([v.camera.world_to_camera for v in scene.views])
    keep_N = seen_N if len(scene.views) <= 10 else None
    return vantage(points.coord, up, ahead, PANEL, points.normal, keep_N).draw(colour_N3)


def _compose(panels: list[tuple[str, RGB]]) -> Image.Image:
    height, width = PANEL
    canvas = Image.new("RGB", (2 * width + 3 * GAP, 2 * (height + BAR) + 3 * GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (title, pixels) in enumerate(panels):
        left, top = GAP + (i % 2) * (width + GAP), GAP + (i // 2) * (height + BAR + GAP)
        image = Image.fromarray(pixels)
        scale = min(width / image.width, height / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        smooth = Image.Resampling.NEAREST if image.width < 200 else Image.Resampling.BILINEAR
        canvas.paste(image.resize(size, smooth), (left + (width - size[0]) // 2, top + BAR + (height - size[1]) // 2))
        draw.text((left + 2, top + 4), title, fill="black", font_size=15)
    return canvas
