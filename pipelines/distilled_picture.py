# SPDX-License-Identifier: Apache-2.0
"""Cached and regressed features of a cloud side by side, in the colours of the same principal components (Fig. 3).

N points of the transformed sample, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ditr_cache.pipelines.components import Components
from ditr_cache.pipelines.palette import INK
from ditr_cache.pipelines.splat import axes, vantage
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.training.sample import Sample
from ditr_cache.types import Float64, PointCloud

__all__ = ["FeaturePicture", "draw_features", "write_ply"]

PANEL = (480, 640)
"""Height and width of a panel in pixels."""
UNSEEN = np.array([205, 205, 210], np.uint8)
_GAP, _BAR, _HEAD = 10, 26, 34

RGB = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class FeaturePicture:
    """What was drawn, and its colours."""

    image: Image.Image
    seat: NDArray[np.int64]
    """`[N]` which stored point each colour belongs to."""
    cached: RGB
    """`[N, 3]`; grey where no view sees the point."""
    predicted: RGB
    """`[N, 3]`."""


def draw_features(
    points: PointCloud,
    sample: Sample,
    rows_PD: NDArray[np.float32],
    predicted: Iterable[NDArray[np.float32]],
    poses: Sequence[Float64],
    title: str,
) -> FeaturePicture:
    """Draw the cloud in its own colours, in those of its image features, and of what the network makes of the points.

    Args:
        points: As stored.
        sample: One point a voxel, with the row of each.
        rows_PD: `[P, D]` image features of length one.
        predicted: Regressed features of length one, in parts that are `[N, D]` together.
        poses: World to camera `[4, 4]`, to look at the cloud from behind the first camera.
        title: A line above.
    """
    colour, seat = Components(rows_PD[np.unique(sample.index[sample.index >= 0])]), sample.point
    cached = np.concatenate([colour(rows_PD), UNSEEN[None]])[sample.index]
    predicted_N3 = colour.together(predicted)
    up, ahead = axes(poses)
    normal = None if points.normal is None else points.normal[seat]
    view = vantage(points.coord[seat], up, ahead, PANEL, normal)
    own = points.color[seat] if points.color is not None else np.full((len(seat), 3), 120, np.uint8)
    panels = [
        ("points", view.draw(own)),
        (f"cached features ({colour.explained:.0%} of their variance)", view.draw(cached)),
        ("regressed from points alone", view.draw(predicted_N3)),
    ]
    return FeaturePicture(_compose(panels, title), seat, cached, predicted_N3)


def write_ply(path: Path, points: PointCloud, seat: NDArray[np.int64], colour_N3: RGB) -> None:
    """Coloured points, whole or not at all."""
    row = np.dtype([(axis, "<f8") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")])
    out_N = np.empty(len(seat), row)
    for i, axis in enumerate("xyz"):
        out_N[axis] = points.coord[seat, i] + points.origin[i]
    for i, channel in enumerate(("red", "green", "blue")):
        out_N[channel] = colour_N3[:, i]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(seat)}"]
    lines += [f"property double {axis}" for axis in "xyz"]
    lines += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    Filesystem().replace(path, "\n".join([*lines, "end_header", ""]).encode("ascii") + out_N.tobytes())


def _compose(panels: Sequence[tuple[str, RGB]], title: str) -> Image.Image:
    height, width = PANEL
    canvas = Image.new("RGB", (len(panels) * (width + _GAP) + _GAP, _HEAD + _BAR + height + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, 8), title, fill=INK, font_size=18)
    for i, (caption, pixels) in enumerate(panels):
        left = _GAP + i * (width + _GAP)
        draw.text((left + 2, _HEAD + 4), caption, fill=INK, font_size=15)
        canvas.paste(Image.fromarray(pixels), (left, _HEAD + _BAR))
    return canvas
