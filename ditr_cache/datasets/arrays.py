# SPDX-License-Identifier: Apache-2.0
"""Point arrays from files, with every declared size checked against the file before anything is allocated."""

from __future__ import annotations

import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.files import ordinary_file
from ditr_cache.errors import SampleError
from ditr_cache.types import Float32, Float64, Int32, PointCloud

__all__ = ["checked", "labels", "lookup", "read_npy", "read_raw", "relative_to_origin"]


# NumPy parses the header as Python source.
_UNREADABLE_NPY = (
    *(ValueError, TypeError, KeyError, OverflowError, EOFError, MemoryError, RecursionError),
    *(SyntaxError, tokenize.TokenError),
)


def read_raw(path: Path, dtype: str, columns: int) -> NDArray[Any]:
    """A headerless binary file as `[N, columns]`.

    Raises:
        SampleError: If the file is missing or does not hold whole rows.
        OSError: If the medium fails.
    """
    row_bytes = np.dtype(dtype).itemsize * columns
    with ordinary_file(SampleError, path):
        data = path.read_bytes()
    if len(data) % row_bytes:
        raise SampleError(f"truncated: {len(data)} bytes are not whole rows of {row_bytes}", where=path)
    return np.frombuffer(data, dtype).reshape(-1, columns)


def read_npy(path: Path, columns: int | None = None) -> NDArray[Any]:
    """A NumPy file as `[N, columns]`, or `[N]` without `columns`; never unpickles.

    Raises:
        SampleError: If the file is missing, truncated, pickled or of another shape.
        OSError: If the medium fails.
    """
    with ordinary_file(SampleError, path):
        try:
            # A memory map checks the declared shape against the file's size before anything is allocated.
            array = np.asarray(np.lib.format.open_memmap(path, mode="r"))
        except _UNREADABLE_NPY as error:
            raise SampleError(f"not a readable .npy array: {error}", where=path) from error
    if columns is None and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    shape_is_right = array.ndim == 1 if columns is None else array.ndim == 2 and array.shape[1] == columns
    if not shape_is_right or array.dtype.kind not in "fiub":
        expected = "[N]" if columns is None else f"[N, {columns}]"
        raise SampleError(f"numbers {expected} were expected, found {array.dtype} {array.shape}", where=path)
    return array.copy()


_FAR_M = 256
"""From here on the steps of float32 coordinates are no longer far below what decides on a patch."""


def relative_to_origin(xyz_N3: NDArray[Any], where: object) -> tuple[Float32, Float64]:
    """Coordinates as float32 and the origin they count from.

    float32 sources keep their bits and get origin 0; wider ones, and those that lie further away than 256 m, count from
    their mean rounded to whole metres, so that georeferenced clouds keep millimetres and are projected as exactly as
    others. No float32 coordinate is changed by that: one that would be keeps the origin 0.

    Raises:
        SampleError: If a coordinate is not finite.
    """
    if not np.isfinite(xyz_N3).all():
        raise SampleError("some coordinates are not finite", where=where)
    if not len(xyz_N3):
        return np.zeros((0, 3), np.float32), np.zeros(3)
    origin = np.round(xyz_N3.mean(0, dtype=np.float64))
    near = np.abs(origin).max() <= _FAR_M
    if xyz_N3.dtype == np.float32 and near:
        return np.ascontiguousarray(xyz_N3), np.zeros(3)
    coord_N3 = (xyz_N3 - origin).astype(np.float32)
    if xyz_N3.dtype == np.float32 and not np.array_equal(coord_N3 + origin, xyz_N3):
        return np.ascontiguousarray(xyz_N3), np.zeros(3)
    return coord_N3, origin


def labels(values_N: NDArray[Any], where: object, classes: int | None = None) -> Int32:
    """Labels as int32, every negative one as -1.

    Raises:
        SampleError: If they are no integers, or above `classes` or int32.
    """
    if values_N.dtype.kind not in "iub":
        raise SampleError(f"labels must be integers, found {values_N.dtype}", where=where)
    limit = np.iinfo(np.int32).max if classes is None else classes - 1
    if len(values_N) and values_N.max() > limit:
        raise SampleError(f"label {values_N.max()} exceeds {limit}", where=where)
    return np.maximum(values_N.astype(np.int64), -1).astype(np.int32)


def lookup(raw_to_train: Mapping[int, int], raw_N: NDArray[Any]) -> Int32:
    """Training label of every raw label; -1 where the table has none."""
    table = np.full(max(raw_to_train) + 2, -1, np.int32)  # the last entry serves whatever is out of range
    table[list(raw_to_train)] = list(raw_to_train.values())
    return table[np.clip(raw_N.astype(np.int64), -1, len(table) - 1)]


def checked(points: PointCloud, where: object) -> PointCloud:
    """`points`, if there are any, and all their arrays are equally long and finite.

    Raises:
        SampleError: Otherwise.
    """
    count = len(points.coord)
    if not count:
        raise SampleError("no points", where=where)
    arrays = {"color": points.color, "normal": points.normal, "strength": points.strength, "instance": points.instance}
    for name, array in {**arrays, **points.segments}.items():
        if array is not None and len(array) != count:
            raise SampleError(f"{name} has {len(array)} entries for {count} points", where=where)
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise SampleError(f"some values of {name} are not finite", where=where)
    return points
