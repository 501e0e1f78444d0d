# SPDX-License-Identifier: Apache-2.0
"""Features as colours: their first three principal components. Same things get the same colour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Components"]

RGB = NDArray[np.uint8]
MAX_PCA_ROWS = 20_000


class Components:
    """Principal components of rows, scaled to RGB.

    Args:
        rows_PD: `[P, D]`.
    """

    def __init__(self, rows_PD: NDArray[np.float32]) -> None:
        some = rows_PD[:: max(1, len(rows_PD) // MAX_PCA_ROWS)].astype(np.float64)
        self._mean = some.mean(axis=0) if len(some) else np.zeros(rows_PD.shape[1])
        centred = some - self._mean
        values, vectors = np.linalg.eigh(centred.T @ centred)
        self._axes = vectors[:, ::-1][:, :3]
        # the sign of an eigenvector is arbitrary: fix it, so that a store is drawn alike everywhere
        self._axes = self._axes * np.where(self._axes.sum(axis=0) < 0, -1.0, 1.0)
        self.explained = float(values[::-1][:3].sum() / max(values.sum(), 1e-12))
        """Share of the variance that the three colours carry."""
        self._range = _range(centred @ self._axes)

    def __call__(self, rows_PD: NDArray[Any]) -> RGB:
        """`[P, 3]` colours of rows `[P, D]`, along the same axes and in the same range."""
        return _colours(self._along(rows_PD), self._range)

    def together(self, parts: Iterable[NDArray[Any]]) -> RGB:
        """Colours of other rows, along the same axes and in a range of their own: they may lie closer together.

        Args:
            parts: `[., D]` each.
        """
        along_N3 = np.concatenate([self._along(part) for part in parts])
        return _colours(along_N3, _range(along_N3))

    def _along(self, rows_PD: NDArray[Any]) -> NDArray[np.float64]:
        along_P3: NDArray[np.float64] = (np.asarray(rows_PD, np.float64) - self._mean) @ self._axes
        return along_P3


def _colours(along_P3: NDArray[np.float64], low_high: NDArray[np.float64]) -> RGB:
    low, high = low_high
    colours: RGB = (((along_P3 - low) / np.maximum(high - low, 1e-9)).clip(0, 1) * 255).astype(np.uint8)
    return colours


def _range(along_P3: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[2, 3]` what becomes the darkest and the brightest of each colour."""
    return np.percentile(along_P3, [2, 98], axis=0) if len(along_P3) else np.array([[0.0] * 3, [1.0] * 3])
