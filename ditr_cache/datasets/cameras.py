# SPDX-License-Identifier: Apache-2.0
"""Matrices from files to cameras. Whether a pose makes sense is checked later, in one place for all data sets."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np

from ditr_cache.datasets.files import Unavailable, ordinary_file
from ditr_cache.errors import DatasetError, FrameError
from ditr_cache.types import Camera, Float64, ImageSource, View

__all__ = ["chain", "inverse", "matrix", "matrix_from_text", "rigid", "unusable_view"]


def matrix(value: object, shape: tuple[int, ...], where: object) -> Float64:
    """Numbers from JSON or text as float64 of this shape, whatever their values.

    Raises:
        DatasetError: If they are no numbers, or of another shape.
    """
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DatasetError("numbers were expected", where=where) from None
    if array.shape != shape:
        raise DatasetError(f"a matrix {shape} was expected, found {array.shape}", where=where)
    return array


def matrix_from_text(path: Path) -> Float64:
    """A 4x4 matrix from a text file of sixteen numbers.

    Raises:
        FrameError: If the file is missing or holds anything else.
        OSError: If the medium fails.
    """
    with ordinary_file(FrameError, path), path.open("rb") as file:
        words = file.read(65_536).split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise FrameError("holds something that is not a number", where=path) from None
    if len(numbers) != 16:
        raise FrameError(f"16 numbers were expected, found {len(numbers)}", where=path)
    return np.array(numbers).reshape(4, 4)


def inverse(pose: Float64) -> Float64:
    """`pose` inverted; all NaN where it has no inverse (ScanNet marks lost frames with -inf)."""
    try:
        return np.asarray(np.linalg.inv(pose), np.float64) if np.isfinite(pose).all() else np.full(pose.shape, np.nan)
    except np.linalg.LinAlgError:
        return np.full(pose.shape, np.nan)


def chain(*transforms: Float64) -> Float64:
    """The matrix product; transforms that are not finite give one that is not, without a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(reduce(np.matmul, transforms), np.float64)


def rigid(rotation_wxyz: Float64, translation: Float64) -> Float64:
    """4x4 transform from a quaternion (w, x, y, z; normalised here) and a translation in metres."""
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.linalg.norm(rotation_wxyz)
        w, x, y, z = rotation_wxyz / norm if norm > 0 else np.full(4, np.nan)
    out = np.eye(4)
    out[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    out[:3, 3] = translation
    return out


def unusable_view(name: str, reason: str, image: ImageSource | None = None) -> View:
    """A view that keeps its place in the scene, with the reason why nobody can use it."""
    nothing = Camera(np.full((3, 3), np.nan), np.full((4, 4), np.nan), height=0, width=0)
    return View(name, nothing, image or Unavailable(reason), problem=reason)
