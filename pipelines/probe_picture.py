# SPDX-License-Identifier: Apache-2.0
"""The IoU of every class as bars, one for each way to classify."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from ditr_cache.pipelines.palette import INK, draw_legend, legend_height, text_width
from ditr_cache.pipelines.probe import ProbeReport
from ditr_cache.pipelines.probe_methods import MethodScores

__all__ = ["probe_picture"]

_SCALE, _BAR, _GAP, _FONT = 4, 9, 14, 14
"""Pixels of a per cent, of a bar's height, between classes."""
_COLOURS = {
    ("features", "linear"): (8, 48, 107),
    ("features", "neighbours"): (66, 146, 198),
    ("both", "linear"): (0, 109, 44),
    ("points", "linear"): (127, 59, 8),
    ("points", "neighbours"): (224, 150, 66),
}
_LINE = (225, 225, 228)


def probe_picture(report: ProbeReport) -> Image.Image:
    """Draw it: classes that have validation points from top to bottom, and their mean above.

    Args:
        report: Of a probe with labels.
    """
    methods = report.methods
    shown = [i for i, c in enumerate(methods[0].scores.classes) if c.points]
    rows = [("mean", [m.scores.miou_present for m in methods])]
    rows += [(methods[0].scores.classes[i].name, [m.scores.classes[i].iou for m in methods]) for i in shown]
    entries = [(f"{report.words(m.input)}: {_name(m.method, report)}", _colour(m)) for m in methods]
    left = 2 * _GAP + max(text_width(name, _FONT) for name, _ in rows)
    width = left + 100 * _SCALE + text_width("100.0", 11) + 2 * _GAP
    top = 2 * _GAP + 24 + legend_height(entries, width - 2 * _GAP)
    pitch = _BAR * len(methods) + _GAP
    canvas = Image.new("RGB", (width, top + pitch * len(rows) + 30), "white")
    draw = ImageDraw.Draw(canvas)
    title = f"{Path(report.store).name}: IoU of {report.val.drawn:,} points, in per cent"
    draw.text((_GAP, _GAP), title, fill=INK, font_size=18)
    draw_legend(draw, entries, _GAP, _GAP + 30, width - 2 * _GAP)
    for tick in range(0, 101, 20):
        x = left + tick * _SCALE
        draw.line((x, top, x, top + pitch * len(rows)), fill=_LINE)
        draw.text((x, top + pitch * len(rows) + 4), str(tick), fill=INK, font_size=11, anchor="ma")
    for number, (name, values) in enumerate(rows):
        y = top + number * pitch + _GAP // 2
        draw.text((left - 8, y + _BAR * len(methods) // 2), name, fill=INK, font_size=_FONT, anchor="rm")
        for method, value in zip(methods, values, strict=True):
            end = left + round(100 * value * _SCALE)
            draw.rectangle((left, y, end, y + _BAR - 2), fill=_colour(method))
            draw.text((end + 4, y + _BAR // 2 - 1), f"{100 * value:.1f}", fill=INK, font_size=10, anchor="lm")
            y += _BAR
    return canvas


def _name(method: str, report: ProbeReport) -> str:
    return "linear probe" if method == "linear" else f"{report.options.k} neighbours"


def _colour(method: MethodScores) -> tuple[int, int, int]:
    return _COLOURS[method.input, method.method]
