# SPDX-License-Identifier: Apache-2.0
"""The arms of an experiment as bars, with the lowest and the highest seed."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ditr_cache.pipelines.experiment_table import Row
from ditr_cache.pipelines.palette import INK, draw_legend, legend_height, text_width

__all__ = ["draw_rows"]

_SCALE, _BAR, _GAP, _FONT = 5, 13, 18, 15
"""Pixels of a per cent, of a bar's height, between arms."""
_PARTS = {
    "miou": ("all points", (8, 48, 107)),
    "visible": ("visible points", (66, 146, 198)),
    "invisible": ("invisible points", (158, 188, 206)),
}
_LINE = (225, 225, 228)


def draw_rows(title: str, rows: Sequence[Row]) -> Image.Image:
    """Draw them from top to bottom.

    Args:
        title: A line above.
        rows: One at least.
    """
    entries = list(_PARTS.values())
    left = 2 * _GAP + max(text_width(row.label, _FONT) for row in rows)
    width = max(left + 100 * _SCALE + text_width("100.0", 12) + 2 * _GAP, text_width(title, 18) + 2 * _GAP)
    top = 2 * _GAP + 24 + legend_height(entries, width - 2 * _GAP)
    pitch = _BAR * len(_PARTS) + _GAP
    canvas = Image.new("RGB", (width, top + pitch * len(rows) + 40), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _GAP), title, fill=INK, font_size=18)
    draw_legend(draw, entries, _GAP, _GAP + 30, width - 2 * _GAP)
    bottom = top + pitch * len(rows)
    for tick in range(0, 101, 20):
        x = left + tick * _SCALE
        draw.line((x, top, x, bottom), fill=_LINE)
        draw.text((x, bottom + 4), str(tick), fill=INK, font_size=12, anchor="ma")
    draw.text((left + 50 * _SCALE, bottom + 20), "mIoU, per cent", fill=INK, font_size=12, anchor="ma")
    for number, row in enumerate(rows):
        y = top + number * pitch + _GAP // 2
        draw.text((left - 8, y + _BAR * len(_PARTS) // 2), row.label, fill=INK, font_size=_FONT, anchor="rm")
        for key, (_, colour) in _PARTS.items():
            spread = row.scores[key]
            middle, ends = y + _BAR // 2 - 1, [left + round(100 * x * _SCALE) for x in (spread.low, spread.high)]
            end = left + round(100 * spread.mean * _SCALE)
            draw.rectangle((left, y, end, y + _BAR - 2), fill=colour)
            if row.seeds > 1:
                draw.line((ends[0], middle, ends[1], middle), fill=INK, width=2)
                for x in ends:
                    draw.line((x, middle - 3, x, middle + 3), fill=INK, width=2)
            text = f"{100 * spread.mean:.1f}"
            draw.text((max(end, ends[1]) + 5, middle), text, fill=INK, font_size=12, anchor="lm")
            y += _BAR
    return canvas
