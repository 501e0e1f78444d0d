# SPDX-License-Identifier: Apache-2.0
"""Two-colour surface textures, evaluated anywhere.

A pattern maps surface coordinates, in units of its period, to a value in [0, 1] that blends between two colours. The
patterns of `TWO_TONE` are what the texture-only classes differ in: each is black on one half of the area and white on
the other, so that their colour distributions are equal by construction and only the arrangement tells them apart.

Shape suffixes: M surface samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PATTERNS", "TWO_TONE", "Texture"]

Floats = NDArray[np.floating[Any]]
Pattern = Callable[[Floats, Floats], Floats]

_CELLS, _STEPS = 48, 24


@lru_cache(maxsize=1)
def _noise_table() -> Floats:
    """Periodic smooth noise whose values are uniform on [0, 1]; 48 x 48 cells of 24 x 24 steps."""
    lattice = np.random.default_rng(20250318).random((_CELLS, _CELLS))
    x = np.arange(_STEPS) / _STEPS
    weight = x * x * (3 - 2 * x)
    for axis in (0, 1):
        after = np.roll(lattice, -1, axis)
        blend = np.stack([lattice * (1 - w) + after * w for w in weight], axis + 1)
        shape = list(lattice.shape)
        shape[axis] *= _STEPS
        lattice = blend.reshape(shape)
    # equal shares of every value: thresholding at one half then halves the area, as TWO_TONE needs
    rank = np.empty(lattice.size, np.float32)
    rank[np.argsort(lattice, axis=None, kind="stable")] = np.linspace(0, 1, lattice.size, dtype=np.float32)
    return rank.reshape(lattice.shape)


def _noise(u_M: Floats, v_M: Floats) -> Floats:
    table = _noise_table()
    size = len(table)
    column_M = np.floor(u_M * _STEPS).astype(np.int32) % size
    row_M = np.floor(v_M * _STEPS).astype(np.int32) % size
    return table[row_M, column_M]


def _frac(x_M: Floats) -> Floats:
    return x_M - np.floor(x_M)


def _binary(inside_M: NDArray[np.bool_]) -> Floats:
    return inside_M.astype(np.float32)


def _radius2(u_M: Floats, v_M: Floats) -> Floats:
    x_M, y_M = _frac(u_M) - np.float32(0.5), _frac(v_M) - np.float32(0.5)
    return x_M * x_M + y_M * y_M


def _stripes(u_M: Floats, v_M: Floats) -> Floats:
    return _binary(_frac(u_M) < 0.5)


def _checks(u_M: Floats, v_M: Floats) -> Floats:
    return _binary((_frac(u_M) < 0.5) ^ (_frac(v_M) < 0.5))


def _dots(u_M: Floats, v_M: Floats) -> Floats:
    return _binary(_radius2(u_M, v_M) < 0.5 / np.pi)


def _speckle(u_M: Floats, v_M: Floats) -> Floats:
    # two cells a period give blobs of about the size of the dots
    return _binary(_noise(u_M * 2, v_M * 2) < 0.5)


def _zigzag(u_M: Floats, v_M: Floats) -> Floats:
    return _binary(_frac(v_M + np.abs(_frac(u_M * np.float32(0.5)) * 2 - 1)) < 0.5)


def _weave(u_M: Floats, v_M: Floats) -> Floats:
    along_M = (_frac(u_M * np.float32(0.5)) < 0.5) ^ (_frac(v_M * np.float32(0.5)) < 0.5)
    return _binary(np.where(along_M, _frac(u_M), _frac(v_M)) < 0.5)


def _bricks(u_M: Floats, v_M: Floats) -> Floats:
    # joints of 0.382 of a course: (1 - j)(2 - j) = 1, half of the area of a 2 x 1 brick
    shift_M = u_M + np.floor(v_M) % 2
    return _binary((_frac(shift_M * np.float32(0.5)) * 2 > 0.381966) & (_frac(v_M) > 0.381966))


def _rings(u_M: Floats, v_M: Floats) -> Floats:
    # an annulus of outer radius 0.46 that covers half of its cell; cells of 1.4 periods leave it 0.32 periods thick
    radius2_M = _radius2(u_M * np.float32(0.714), v_M * np.float32(0.714))
    return _binary((radius2_M < 0.2116) & (radius2_M > 0.2116 - 0.5 / np.pi))


def _plain(u_M: Floats, v_M: Floats) -> Floats:
    return np.full(u_M.shape, 0.5, np.float32)


def _wood(u_M: Floats, v_M: Floats) -> Floats:
    bend_M = _noise(u_M * np.float32(0.2), v_M * np.float32(0.6))
    return (_frac(v_M + 2 * bend_M) + _noise(u_M * np.float32(0.3), v_M * 6)) * np.float32(0.5)


def _planks(u_M: Floats, v_M: Floats) -> Floats:
    plank_M = np.floor(v_M * np.float32(0.25))
    tone_M = _frac(plank_M * np.float32(0.618))
    grain_M = _noise(u_M * np.float32(0.25) + plank_M * 7, v_M * 4)
    return np.where(_frac(v_M * np.float32(0.25)) < 0.06, 0, 0.4 * tone_M + 0.6 * grain_M).astype(np.float32)


def _marble(u_M: Floats, v_M: Floats) -> Floats:
    turbulence_M = _noise(u_M * np.float32(0.35), v_M * np.float32(0.35)) * 3 + _noise(u_M, v_M)
    vein_M = np.abs(_frac(turbulence_M + u_M * np.float32(0.2)) * 2 - 1)
    return vein_M * vein_M


def _fabric(u_M: Floats, v_M: Floats) -> Floats:
    thread_M = np.where((_frac(u_M) < 0.5) ^ (_frac(v_M) < 0.5), _frac(u_M * 2), _frac(v_M * 2))
    return np.float32(0.6) * thread_M + np.float32(0.4) * _noise(u_M, v_M)


def _plaid(u_M: Floats, v_M: Floats) -> Floats:
    wide_M = _binary(_frac(u_M * np.float32(0.3)) < 0.4) + _binary(_frac(v_M * np.float32(0.3)) < 0.4)
    thin_M = _binary(_frac(u_M * np.float32(0.3)) > 0.9) + _binary(_frac(v_M * np.float32(0.3)) > 0.9)
    return np.float32(0.35) * wide_M + np.float32(0.15) * thin_M


def _tiles(u_M: Floats, v_M: Floats) -> Floats:
    x_M, y_M = u_M * np.float32(0.125), v_M * np.float32(0.125)
    joint_M = (_frac(x_M) < 0.03) | (_frac(y_M) < 0.03)
    tone_M = _frac(np.floor(x_M) * np.float32(0.37) + np.floor(y_M) * np.float32(0.71))
    return np.where(joint_M, 0, 0.6 + 0.2 * tone_M + 0.2 * _noise(u_M, v_M)).astype(np.float32)


def _grain(u_M: Floats, v_M: Floats) -> Floats:
    return (_noise(u_M, v_M) + _noise(u_M * np.float32(0.13), v_M * np.float32(0.13))) * np.float32(0.5)


TWO_TONE: tuple[str, ...] = ("stripes", "checks", "dots", "speckle", "zigzag", "weave", "bricks", "rings")
"""Patterns with equal areas of both colours and nothing coarser than two periods."""

PATTERNS: Mapping[str, Pattern] = {
    "stripes": _stripes, "checks": _checks, "dots": _dots, "speckle": _speckle,
    "zigzag": _zigzag, "weave": _weave, "bricks": _bricks, "rings": _rings,
    "plain": _plain, "wood": _wood, "planks": _planks, "marble": _marble,
    "fabric": _fabric, "plaid": _plaid, "tiles": _tiles, "grain": _grain,
}  # fmt: skip
"""Every pattern by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Texture:
    """One instance of a pattern."""

    pattern: str
    """Key of `PATTERNS`."""
    period: float
    """Metres."""
    angle: float
    """Radians, of the pattern's first axis on the surface."""
    shift: tuple[float, float]
    """Periods."""
    low: Floats
    """`[3]` RGB in [0, 1] where the pattern is 0."""
    high: Floats
    """`[3]` RGB in [0, 1] where the pattern is 1."""

    def color(self, uv_M2: Floats, footprint_M: Floats | None = None) -> Floats:
        """Albedo at surface coordinates.

        Args:
            uv_M2: Metres on the surface.
            footprint_M: Metres on the surface that one pixel covers; the pattern fades into its mean as a pixel grows
                beyond a third of a period, where sampling it would alias. None: no fading, as at a point.

        Returns:
            `[M, 3]` float32 RGB in [0, 1].
        """
        cos, sin = np.float32(np.cos(self.angle) / self.period), np.float32(np.sin(self.angle) / self.period)
        u_M, v_M = uv_M2[:, 0], uv_M2[:, 1]
        value_M = PATTERNS[self.pattern](
            cos * u_M + sin * v_M + np.float32(self.shift[0]), cos * v_M - sin * u_M + np.float32(self.shift[1])
        )
        if footprint_M is not None:
            keep_M = np.clip(np.float32(2) - footprint_M * np.float32(3 / self.period), 0, 1)
            value_M = np.float32(0.5) + (value_M - np.float32(0.5)) * keep_M
        return self.low + value_M[:, None] * (self.high - self.low)
