# SPDX-License-Identifier: Apache-2.0
"""A confusion matrix as a picture: what each class is taken for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ditr_cache.pipelines.palette import INK, text_width

__all__ = ["confusion_picture"]

_FEW = 32
"""Up to so many classes, cells hold numbers and classes that never occur are shown, too."""
_GAP = 12
_LOW, _HIGH = np.array([255.0, 255, 255]), np.array([8.0, 48, 107])
_WRONG = np.array([165.0, 15, 21])
_GRID, _FAINT = (225, 225, 228), (120, 120, 126)


def confusion_picture(counts_KK: NDArray[np.int64], names: Sequence[str], title: str) -> Image.Image:
    """Draw it: a row a class, its points by what they were given, in per cent; blue is right, red is wrong.

    Args:
        counts_KK: `[K, K]` points by true class and prediction.
        names: K class names.
        title: A line above.
    """
    occurs = (counts_KK.sum(0) + counts_KK.sum(1)) > 0
    shown = np.arange(len(names)) if len(names) <= _FEW else np.flatnonzero(occurs)
    if len(shown) < len(names):
        title += f"; {len(names) - len(shown)} classes that never occur are left out"
    counts, labels = counts_KK[np.ix_(shown, shown)], [names[int(i)] for i in shown]
    cell, font = (38, 14) if len(shown) <= _FEW else (15, 12)

    points = counts.sum(1)
    iou = counts.diagonal() / np.maximum(points + counts.sum(0) - counts.diagonal(), 1)
    share = counts / np.maximum(points, 1)[:, None]
    notes = [(f"{u * 100:.1f}", f"{n:,}") for u, n in zip(iou, points, strict=True)]

    names_width = max((text_width(label, font) for label in labels), default=0)
    note_widths = [max(text_width(n[i], font) for n in [*notes, heads]) for i, heads in enumerate(("IoU", "points"))]
    side, left, top = cell * len(shown), _GAP * 2 + names_width, 64 + names_width
    right = left + side + _GAP
    width = max(right + sum(note_widths) + 3 * _GAP, text_width(title, 18) + 2 * _GAP)
    canvas = Image.new("RGB", (width, top + side + 2 * _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _GAP), title, fill=INK, font_size=18)
    draw.text((_GAP, _GAP + 24), "rows: true class, columns: prediction; per cent of a row", fill=_FAINT, font_size=13)

    canvas.paste(_cells(share, cell), (left, top))
    for i, label in enumerate(labels):
        middle = top + i * cell + cell // 2
        draw.text((left - 6, middle), label, fill=INK, font_size=font, anchor="rm")
        _upright(canvas, label, left + i * cell + cell // 2, top - 6, font)
        edge = right
        for text, wide in zip(notes[i], note_widths, strict=True):
            edge += wide
            draw.text((edge, middle), text, fill=INK if points[i] else _FAINT, font_size=font, anchor="rm")
            edge += _GAP
    edge = right
    for text, wide in zip(("IoU", "points"), note_widths, strict=True):
        edge += wide
        draw.text((edge, top - 8), text, fill=_FAINT, font_size=font, anchor="rs")
        edge += _GAP
    if len(shown) <= _FEW:
        _numbers(draw, share, cell, left, top)
    return canvas


def _cells(share: NDArray[np.float64], cell: int) -> Image.Image:
    """Deeper with the share; the square root lets rare confusions be seen. Lines between the cells."""
    depth = np.sqrt(share.clip(0, 1))[..., None]
    high = np.where(np.eye(len(share), dtype=bool)[..., None], _HIGH, _WRONG)
    pixels = (_LOW + depth * (high - _LOW)).round().astype(np.uint8)
    big = pixels.repeat(cell, 0).repeat(cell, 1)
    big[::cell] = _GRID
    big[:, ::cell] = _GRID
    return Image.fromarray(big)


def _numbers(draw: ImageDraw.ImageDraw, share: NDArray[np.float64], cell: int, left: int, top: int) -> None:
    for i, j in np.argwhere(share >= 0.005):
        value = share[i, j]
        at = (left + int(j) * cell + cell // 2, top + int(i) * cell + cell // 2)
        draw.text(at, f"{value * 100:.0f}", fill="white" if value > 0.2 else INK, font_size=14, anchor="mm")


def _upright(canvas: Image.Image, text: str, x: int, bottom: int, size: int) -> None:
    """Text that reads upwards and ends at `bottom`, centred on x."""
    strip = Image.new("RGB", (text_width(text, size) + 4, size + 6), "white")
    ImageDraw.Draw(strip).text((2, strip.height // 2), text, fill=INK, font_size=size, anchor="lm")
    turned = strip.rotate(90, expand=True)
    canvas.paste(turned, (x - turned.width // 2, bottom - turned.height))
