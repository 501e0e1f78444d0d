# SPDX-License-Identifier: Apache-2.0
"""Vertices of a PLY file. Faces are not read; the header is not believed before the file's size confirms it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.arrays import relative_to_origin
from ditr_cache.datasets.files import ordinary_file
from ditr_cache.errors import SampleError
from ditr_cache.types import Float32, PointCloud, UInt8

__all__ = ["cloud", "read_vertices"]

_MAX_HEADER = 65_536
_BYTE_ORDER = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_TYPES = {
    word: code
    for words, code in (
        (("char", "int8"), "i1"),
        (("uchar", "uint8"), "u1"),
        (("short", "int16"), "i2"),
        (("ushort", "uint16"), "u2"),
        (("int", "int32"), "i4"),
        (("uint", "uint32"), "u4"),
        (("float", "float32"), "f4"),
        (("double", "float64"), "f8"),
    )
    for word in words
}


@dataclass(slots=True)
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]] = field(default_factory=list)
    has_lists: bool = False


def read_vertices(path: Path) -> NDArray[np.void]:
    """The vertex element as a structured array `[N]` in native byte order.

    Raises:
        SampleError: If the file is missing, truncated or not PLY.
        OSError: If the medium fails.
    """
    with ordinary_file(SampleError, path), path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        form, elements, start = _header(file, path)
        for element in elements:
            dtype = _dtype(element, form, path)
            if element.name == "vertex":
                break
            if element.has_lists or form == "ascii":
                raise SampleError(f"element {element.name!r} before the vertices is not supported", where=path)
            start += element.count * dtype.itemsize
        else:
            raise SampleError("no vertex element", where=path)
        if element.has_lists:
            raise SampleError("vertices with list properties are not supported", where=path)
        row_bytes = 2 * len(element.properties) if form == "ascii" else dtype.itemsize
        if element.count * row_bytes > size - start + 1:
            raise SampleError(f"truncated: the header promises {element.count} vertices", where=path)
        file.seek(start)
        return (
            _ascii(file, element.count, dtype, path) if form == "ascii" else _binary(file, element.count, dtype, path)
        )


def cloud(vertices_N: NDArray[np.void], where: object) -> PointCloud:
    """Coordinates, colours (`red green blue`) and normals (`nx ny nz`) of the vertices, without labels.

    Raises:
        SampleError: If x, y or z is absent or not finite, or colours are not uchar.
    """
    coord_N3, origin = relative_to_origin(_columns(vertices_N, ("x", "y", "z"), where), where)
    names = vertices_N.dtype.names or ()
    color_N3: UInt8 | None = None
    if {"red", "green", "blue"} <= set(names):
        color_N3 = _columns(vertices_N, ("red", "green", "blue"), where)
        if color_N3.dtype != np.uint8:
            raise SampleError(f"colours must be uchar, found {color_N3.dtype}", where=where)
    normal_N3: Float32 | None = None
    if {"nx", "ny", "nz"} <= set(names):
        normal_N3 = _columns(vertices_N, ("nx", "ny", "nz"), where).astype(np.float32)
    return PointCloud(coord_N3, origin, color_N3, normal_N3)


def _columns(vertices_N: NDArray[np.void], names: tuple[str, ...], where: object) -> NDArray[Any]:
    absent = [name for name in names if name not in (vertices_N.dtype.names or ())]
    if absent:
        raise SampleError(f"vertices have no property {', '.join(absent)}", where=where)
    return np.stack([vertices_N[name] for name in names], axis=1)


def _header(file: BinaryIO, path: Path) -> tuple[str, list[_Element], int]:
    head = file.read(_MAX_HEADER)
    body = head.find(b"end_header")
    end = head.find(b"\n", body)
    if not head.startswith(b"ply") or body < 0 or end < 0:
        raise SampleError("not a PLY file", where=path)
    form, elements = "", list[_Element]()
    for line in head[:body].decode("ascii", "replace").splitlines()[1:]:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                continue
            case ["format", word, _]:
                form = word
            case ["element", name, count] if count.isdecimal():
                elements.append(_Element(name, int(count)))
            case ["property", "list", _, _, _] if elements:
                elements[-1].has_lists = True
            case ["property", kind, name] if elements:
                elements[-1].properties.append((name, kind))
            case _:
                raise SampleError(f"PLY header line {line[:80]!r} is not understood", where=path)
    if form not in _BYTE_ORDER:
        raise SampleError(f"PLY format {form[:80]!r} is not supported", where=path)
    return form, elements, end + 1


def _dtype(element: _Element, form: str, path: Path) -> np.dtype[np.void]:
    try:
        return np.dtype([(name, _BYTE_ORDER[form] + _TYPES[kind]) for name, kind in element.properties])
    except (KeyError, ValueError) as error:
        raise SampleError(f"PLY properties of {element.name!r}: {error}", where=path) from error


def _binary(file: BinaryIO, count: int, dtype: np.dtype[np.void], path: Path) -> NDArray[np.void]:
    data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise SampleError(f"truncated: the header promises {count} vertices", where=path)
    return np.frombuffer(data, dtype, count).astype(dtype.newbyteorder("="))


def _ascii(file: BinaryIO, count: int, dtype: np.dtype[np.void], path: Path) -> NDArray[np.void]:
    out_N = np.empty(count, dtype)
    if not count:
        return out_N
    try:
        columns = np.loadtxt(file, np.float64, comments=None, max_rows=count, ndmin=2)
    except ValueError as error:
        raise SampleError(f"not the numbers that were expected: {error}", where=path) from error
    if columns.shape != (count, len(dtype.names or ())):
        raise SampleError(f"truncated: the header promises {count} vertices, found {columns.shape}", where=path)
    for name, column in zip(dtype.names or (), columns.T, strict=True):
        if dtype[name].kind in "iu" and not (np.isfinite(column).all() and (column == np.trunc(column)).all()):
            raise SampleError(f"property {name!r} must be an integer", where=path)
        if dtype[name].kind in "iu":
            limits = np.iinfo(dtype[name])
            if not ((column >= limits.min) & (column <= limits.max)).all():
                raise SampleError(f"property {name!r} does not fit its type, {dtype[name].name}", where=path)
        out_N[name] = column
    return out_N
