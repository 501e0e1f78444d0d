# SPDX-License-Identifier: Apache-2.0
"""The things that stand in a room, as lists of solids around their own centre on the floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ditr_cache.datasets.rooms.solids import Kind

__all__ = ["BUILDERS", "Builder", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """One solid of a thing, upright and unrotated."""

    kind: Kind
    center: tuple[float, float, float]
    """Metres; z from the floor."""
    half: tuple[float, float, float]
    """Half-sizes, metres."""
    material: int = 0
    """0 the thing's main texture, 1 its second one."""


Builder = Callable[[np.random.Generator], list[Part]]


def _block(x: float, y: float, z: float, w: float, d: float, h: float, material: int = 0) -> Part:
    """A box by the centre of its underside and its full sizes."""
    return Part("box", (x, y, z + h / 2), (w / 2, d / 2, h / 2), material)


def _legs(w: float, d: float, h: float, thick: float, material: int = 0) -> list[Part]:
    x, y = w / 2 - thick / 2, d / 2 - thick / 2
    return [_block(sx * x, sy * y, 0, thick, thick, h, material) for sx in (-1, 1) for sy in (-1, 1)]


def _crate(rng: np.random.Generator) -> list[Part]:
    w, d, h = rng.uniform(0.4, 0.65, 3)
    return [_block(0, 0, 0, w, d, h)]


def _pillar(rng: np.random.Generator) -> list[Part]:
    r, h = rng.uniform(0.16, 0.27), rng.uniform(0.5, 1.1)
    return [Part("cylinder", (0, 0, h / 2), (r, r, h / 2))]


def _ball(rng: np.random.Generator) -> list[Part]:
    r = rng.uniform(0.22, 0.36)
    return [Part("ball", (0, 0, r), (r, r, r))]


def _cone(rng: np.random.Generator) -> list[Part]:
    r, h = rng.uniform(0.24, 0.38), rng.uniform(0.5, 0.95)
    return [Part("cone", (0, 0, h / 2), (r, r, h / 2))]


def _steps(rng: np.random.Generator) -> list[Part]:
    count, w, tread, rise = rng.integers(3, 5), rng.uniform(0.5, 0.7), rng.uniform(0.18, 0.24), rng.uniform(0.15, 0.2)
    depth = count * tread
    return [
        _block(0, -depth / 2 + (i + 0.5) * tread, 0, w, tread, (i + 1) * rise) for i in range(count)
    ]  # columns side by side: no faces inside faces


def _arch(rng: np.random.Generator) -> list[Part]:
    w, d, h, thick = rng.uniform(0.7, 0.95), rng.uniform(0.2, 0.32), rng.uniform(0.75, 1.1), rng.uniform(0.14, 0.2)
    x = (w - thick) / 2
    return [
        _block(-x, 0, 0, thick, d, h - thick),
        _block(x, 0, 0, thick, d, h - thick),
        _block(0, 0, h - thick, w, d, thick),
    ]


def _pyramid(rng: np.random.Generator) -> list[Part]:
    count, w, rise = rng.integers(3, 5), rng.uniform(0.55, 0.75), rng.uniform(0.13, 0.2)
    return [_block(0, 0, i * rise, w * (1 - i / count), w * (1 - i / count), rise) for i in range(count)]


def _panel_or_box(rng: np.random.Generator) -> list[Part]:
    # the one shape distribution that all texture-only classes share
    if rng.random() < 0.5:
        return [_block(0, 0, 0, rng.uniform(0.65, 0.95), rng.uniform(0.1, 0.16), rng.uniform(0.75, 1.15))]
    w, d, h = rng.uniform(0.45, 0.7, 3)
    return [_block(0, 0, 0, w, d, h)]


def _table(rng: np.random.Generator) -> list[Part]:
    w, d, h, top = rng.uniform(0.85, 1.25), rng.uniform(0.55, 0.75), rng.uniform(0.62, 0.78), rng.uniform(0.03, 0.06)
    return [_block(0, 0, h - top, w, d, top), *_legs(w, d, h - top, rng.uniform(0.05, 0.08))]


def _chair(rng: np.random.Generator) -> list[Part]:
    w, seat, back = rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.48), rng.uniform(0.38, 0.5)
    return [
        _block(0, 0, seat - 0.05, w, w, 0.05),
        *_legs(w, w, seat - 0.05, 0.045),
        _block(0, w / 2 - 0.02, seat, w, 0.04, back),
    ]


def _shelf(rng: np.random.Generator) -> list[Part]:
    w, d, h, boards = rng.uniform(0.65, 0.95), rng.uniform(0.25, 0.34), rng.uniform(0.85, 1.3), rng.integers(3, 5)
    inner = w - 0.06
    levels = [i * (h - 0.03) / (boards - 1) for i in range(boards)]
    return [
        _block(-w / 2 + 0.015, 0, 0, 0.03, d, h),
        _block(w / 2 - 0.015, 0, 0, 0.03, d, h),
        _block(0, d / 2 - 0.01, 0, inner, 0.02, h),
        *[_block(0, -0.01, z, inner, d - 0.02, 0.03) for z in levels],
    ]


def _sofa(rng: np.random.Generator) -> list[Part]:
    w, d, seat, arm = rng.uniform(1.0, 1.4), rng.uniform(0.6, 0.75), rng.uniform(0.34, 0.42), rng.uniform(0.12, 0.18)
    return [
        _block(0, -0.09, 0, w - 2 * arm, d - 0.18, seat),
        _block(0, d / 2 - 0.09, 0, w, 0.18, rng.uniform(0.68, 0.82)),
        _block(-(w - arm) / 2, -0.09, 0, arm, d - 0.18, seat + 0.16),
        _block((w - arm) / 2, -0.09, 0, arm, d - 0.18, seat + 0.16),
    ]


def _bench(rng: np.random.Generator) -> list[Part]:
    w, d, h = rng.uniform(0.85, 1.25), rng.uniform(0.28, 0.38), rng.uniform(0.4, 0.5)
    x = w / 2 - 0.1
    return [
        _block(0, 0, h - 0.05, w, d, 0.05),
        _block(-x, 0, 0, 0.06, d - 0.04, h - 0.05),
        _block(x, 0, 0, 0.06, d - 0.04, h - 0.05),
    ]


def _cabinet(rng: np.random.Generator) -> list[Part]:
    w, d, h = rng.uniform(0.6, 0.9), rng.uniform(0.35, 0.48), rng.uniform(0.75, 1.15)
    door = (w - 0.12) / 2
    return [
        _block(0, 0, 0.08, w, d, h - 0.08),
        *_legs(w - 0.06, d - 0.06, 0.08, 0.05, 1),
        *[_block(s * (door / 2 + 0.015), -d / 2 - 0.01, 0.13, door, 0.02, h - 0.19) for s in (-1, 1)],
        *[Part("ball", (s * 0.06, -d / 2 - 0.035, h / 2), (0.018, 0.018, 0.018), 1) for s in (-1, 1)],
    ]


def _bed(rng: np.random.Generator) -> list[Part]:
    w, length, h = rng.uniform(0.75, 0.9), rng.uniform(1.35, 1.6), rng.uniform(0.22, 0.3)
    return [
        _block(0, 0, 0, w, length, h, 1),
        _block(0, -0.02, h, w - 0.06, length - 0.08, 0.14),
        _block(0, length / 2 + 0.025, 0, w, 0.05, rng.uniform(0.65, 0.9), 1),
        _block(0, length / 2 - 0.22, h + 0.14, w * 0.6, 0.28, 0.08, 1),
    ]


def _lamp(rng: np.random.Generator) -> list[Part]:
    h, r, shade = rng.uniform(1.0, 1.3), rng.uniform(0.15, 0.2), rng.uniform(0.2, 0.26)
    return [
        Part("cylinder", (0, 0, 0.015), (r, r, 0.015), 1),
        Part("cylinder", (0, 0, h / 2), (0.018, 0.018, h / 2 - 0.031), 1),
        # a cone whose tip hides the end of the pole
        Part("cone", (0, 0, h - 0.06), (shade, shade, 0.18)),
    ]


BUILDERS: Mapping[str, Builder] = {
    "crate": _crate, "pillar": _pillar, "ball": _ball, "cone": _cone, "steps": _steps, "arch": _arch,
    "pyramid": _pyramid, "panel": _panel_or_box, "table": _table, "chair": _chair, "shelf": _shelf, "sofa": _sofa,
    "bench": _bench, "cabinet": _cabinet, "bed": _bed, "lamp": _lamp,
}  # fmt: skip
"""Builders by shape name."""
