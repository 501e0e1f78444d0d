# SPDX-License-Identifier: Apache-2.0
"""One sample's labels as a picture: truth, prediction and errors side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ditr_cache.pipelines.palette import INK, UNLABELLED, class_colours, draw_legend, legend_height
from ditr_cache.pipelines.splat import Vantage
from ditr_cache.types import Int32

__all__ = ["cloud_picture"]

RGB = NDArray[np.uint8]
_GAP, _BAR, _HEAD = 10, 26, 34
_RIGHT, _WRONG = np.array([176, 196, 208], np.uint8), np.array([203, 24, 29], np.uint8)


def cloud_picture(
    vantage: Vantage, prediction_N: Int32, segment_N: Int32 | None, names: Sequence[str], title: str
) -> Image.Image:
    """Draw it.

    Args:
        vantage: Where the N points land.
        prediction_N: `[N]` classes.
        segment_N: `[N]` labels, -1 where there are none; None draws the prediction alone.
        names: K class names.
        title: A line above.
    """
    # one entry more, so that -1 finds the colour of unlabelled points
    colours = np.vstack([class_colours(len(names)), np.array(UNLABELLED, np.uint8)[None]])
    panels = [("prediction", vantage.draw(colours[prediction_N]))]
    if segment_N is not None:
        wrong_N = (prediction_N != segment_N) & (segment_N >= 0)
        labelled = int((segment_N >= 0).sum())
        errors = np.where(wrong_N[:, None], _WRONG, _RIGHT)
        errors[segment_N < 0] = UNLABELLED
        caption = f"errors (red): {wrong_N.sum() / max(labelled, 1):.1%} of {labelled:,} labelled points"
        panels = [("ground truth", vantage.draw(colours[segment_N])), *panels, (caption, vantage.draw(errors))]
    entries = _entries(prediction_N, segment_N, names, colours)
    height, width = vantage.size
    whole = len(panels) * (width + _GAP) + _GAP
    legend = legend_height(entries, whole - 2 * _GAP)
    canvas = Image.new("RGB", (whole, _HEAD + _BAR + height + _GAP + legend + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, 8), title, fill=INK, font_size=18)
    for i, (caption, pixels) in enumerate(panels):
        left = _GAP + i * (width + _GAP)
        draw.text((left + 2, _HEAD + 4), caption, fill=INK, font_size=15)
        canvas.paste(Image.fromarray(pixels), (left, _HEAD + _BAR))
    draw_legend(draw, entries, _GAP, _HEAD + _BAR + height + _GAP, whole - 2 * _GAP)
    return canvas


def _entries(
    prediction_N: Int32, segment_N: Int32 | None, names: Sequence[str], colours: RGB
) -> list[tuple[str, tuple[int, int, int]]]:
    """Classes that occur, those of the most points first."""
    k = len(names)
    of = prediction_N if segment_N is None else np.concatenate([prediction_N, segment_N])
    counts = np.bincount(of[of >= 0], minlength=k)
    found = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    entries = [(names[c], (int(colours[c][0]), int(colours[c][1]), int(colours[c][2]))) for c in found]
    if segment_N is not None and (segment_N < 0).any():
        entries.append(("no label", UNLABELLED))
    return entries
