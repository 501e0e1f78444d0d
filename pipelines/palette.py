# SPDX-License-Identifier: Apache-2.0
"""Class colours that can be told apart, and the texts around pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["BACKGROUND", "INK", "UNLABELLED", "class_colours", "draw_legend", "legend_height", "text_width"]

RGB = NDArray[np.uint8]
BACKGROUND = (250, 250, 250)
INK = (30, 30, 34)
UNLABELLED = (205, 205, 208)
"""Points without a label."""

_FONT, _ROW, _SWATCH = 14, 21, 13


@lru_cache(maxsize=8)
def class_colours(classes: int) -> RGB:
    """`[K, 3]` RGB. The first k are the same whatever K is.

    Each colour is the one, of a grid over RGB, that is farthest in OKLab from all before it, from the background and
    from the grey of unlabelled points.

    Args:
        classes: K.
    """
    steps = np.linspace(0, 255, 14)
    grid_G3 = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3).round()
    lab_G3 = _oklab(grid_G3)
    fit = (lab_G3[:, 0] > 0.32) & (lab_G3[:, 0] < 0.90)
    grid_G3, lab_G3 = grid_G3[fit], lab_G3[fit]
    taken = _oklab(np.array([BACKGROUND, UNLABELLED, (0, 0, 0)], np.float64))
    nearest_G = np.linalg.norm(lab_G3[:, None] - taken, axis=2).min(1)
    chosen = []
    for _ in range(classes):
        best = int(nearest_G.argmax())
        chosen.append(grid_G3[best])
        nearest_G = np.minimum(nearest_G, np.linalg.norm(lab_G3 - lab_G3[best], axis=1))
    return np.array(chosen, np.uint8).reshape(-1, 3)


def _oklab(rgb_N3: NDArray[np.float64]) -> NDArray[np.float64]:
    """From sRGB, 0 to 255, to OKLab (B. Ottosson, 2020), where equal distances look about equally different."""
    unit = rgb_N3 / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: NDArray[np.float64] = np.cbrt(linear @ to_lms.T) @ to_lab.T
    return lab


def text_width(text: str, size: int) -> int:
    """Pixels."""
    left, _, right, _ = _MEASURE.textbbox((0, 0), text, font_size=size)
    return int(np.ceil(right - left))


def legend_height(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int, most_rows: int = 12) -> int:
    """Pixels that `draw_legend` takes."""
    return _layout(entries, width, most_rows)[0] * _ROW


def draw_legend(
    draw: ImageDraw.ImageDraw,
    entries: Sequence[tuple[str, tuple[int, int, int]]],
    left: int,
    top: int,
    width: int,
    most_rows: int = 12,
) -> None:
    """Swatches with names, column by column; what does not fit is counted.

    Args:
        draw: Where to.
        entries: Name and colour, most important first.
        left: Pixels.
        top: Pixels.
        width: Pixels.
        most_rows: At most so many lines.
    """
    rows, columns, cell = _layout(entries, width, most_rows)
    shown = list(entries)
    if len(shown) > rows * columns:
        cut = len(shown) - rows * columns + 1
        shown = [*shown[: rows * columns - 1], (f"and {cut} more classes", BACKGROUND)]
    for i, (name, colour) in enumerate(shown):
        x, y = left + i // rows * cell, top + i % rows * _ROW
        if colour != BACKGROUND:
            draw.rectangle((x, y + 3, x + _SWATCH, y + 3 + _SWATCH), fill=colour, outline=INK)
        draw.text((x + _SWATCH + 6, y), name, fill=INK, font_size=_FONT)


def _layout(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int, most_rows: int) -> tuple[int, int, int]:
    """Rows, columns and the width of a column."""
    widest = max((text_width(name, _FONT) for name, _ in entries), default=0)
    cell = widest + _SWATCH + 24
    columns = max(1, width // cell)
    rows = min(most_rows, -(-max(len(entries), 1) // columns))
    return rows, columns, cell


_MEASURE = ImageDraw.Draw(Image.new("RGB", (1, 1)))
