# SPDX-License-Identifier: Apache-2.0
"""ScanNet's `.sens` recordings (version 4), indexed by seeking and read frame by frame.

Layout, little-endian: version u32, sensor name (u64 length, bytes), four 4x4 f32 matrices (intrinsics and extrinsics of
colour, then of depth), compression of colour and of depth i32, width and height u32 of colour, then of depth, depth
units a metre f32, number of frames u64; then a frame at a time camera-to-world 4x4 f32, two time stamps u64, the sizes
of colour and depth u64, and both.

The depth-to-colour extrinsics are ignored, as in the official code: depth counts as registered to colour.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditr_cache.datasets.cameras import inverse, unusable_view
from ditr_cache.datasets.files import ordinary_file
from ditr_cache.errors import FrameError, SampleError
from ditr_cache.types import Camera, Float32, Float64, View

__all__ = ["SensDepth", "SensHeader", "SensImage", "read_header", "read_views"]

_START = struct.Struct("<IQ")
_REST = struct.Struct("<64fiiIIIIfQ")
_FRAME = struct.Struct("<16f4Q")
_ENCODED_COLOUR = {1, 2}  # PNG, JPEG
_RAW_DEPTH, _ZLIB_DEPTH = 0, 1
_MAX_SIDE = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class SensHeader:
    """What is the same for all frames."""

    intrinsics: Float64
    """`[3, 3]` K of the colour camera."""
    color_size: tuple[int, int]
    """Height, width."""
    depth_size: tuple[int, int]
    """Height, width."""
    depth_is_compressed: bool
    depth_shift: float
    """Depth units a metre."""
    frames: int
    """Promised number of frames."""
    start: int
    """Offset of the first frame."""


@dataclass(frozen=True, slots=True)
class SensImage:
    """An encoded colour image inside a `.sens` file."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            FrameError: If the file is missing or shorter than it was.
            OSError: If the medium fails.
        """
        return _read_at(self.path, self.offset, self.size)


@dataclass(frozen=True, slots=True)
class SensDepth:
    """A depth map inside a `.sens` file."""

    path: Path
    offset: int
    size: int
    shape: tuple[int, int]
    """Height, width."""
    is_compressed: bool
    shift: float
    """Units a metre."""

    def read(self) -> Float32:
        """Depth `[h, w]` in metres, 0 where there is none.

        Raises:
            FrameError: If the map is truncated or damaged.
            OSError: If the medium fails.
        """
        data = _read_at(self.path, self.offset, self.size)
        expected = self.shape[0] * self.shape[1] * 2
        if self.is_compressed:
            try:
                # one byte more than expected shows a map that is too large without inflating all of it
                data = zlib.decompressobj().decompress(data, expected + 1)
            except zlib.error as error:
                raise FrameError(f"the depth map at {self.offset} is damaged: {error}", where=self.path) from error
        if len(data) != expected:
            raise FrameError(f"the depth map at {self.offset} is not {expected} bytes long", where=self.path)
        units_hw = np.frombuffer(data, "<u2").reshape(self.shape)
        depth_hw: Float32 = np.divide(units_hw, np.float32(self.shift), dtype=np.float32)
        return depth_hw


def read_header(path: Path) -> SensHeader:
    """The header of a recording.

    Raises:
        SampleError: If the file is missing, truncated, of another version, or promises the impossible.
        OSError: If the medium fails.
    """
    with ordinary_file(SampleError, path), path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            version, name_bytes = _START.unpack(file.read(_START.size))
            if version != 4:
                raise SampleError(f".sens version {version} is not supported (4 is)", where=path)
            file.seek(_START.size + min(name_bytes, size))
            (*matrices, color, depth, cw, ch, dw, dh, shift, frames) = _REST.unpack(file.read(_REST.size))
            start = file.tell()
        except struct.error as error:
            raise SampleError("truncated: the header is incomplete", where=path) from error
    if color not in _ENCODED_COLOUR or depth not in {_RAW_DEPTH, _ZLIB_DEPTH}:
        raise SampleError(f"compression {color} of colour or {depth} of depth is not supported", where=path)
    if max(cw, ch, dw, dh) > _MAX_SIDE:
        raise SampleError(f"image sizes {cw} x {ch} and {dw} x {dh} are impossible", where=path)
    if not (np.isfinite(shift) and shift > 0):
        raise SampleError(f"depth shift {shift} is impossible", where=path)
    if frames * _FRAME.size > size - start:
        raise SampleError(f"truncated: {frames} frames cannot fit into {size} bytes", where=path)
    intrinsics = np.array(matrices[:16], np.float64).reshape(4, 4)[:3, :3]
    return SensHeader(intrinsics, (ch, cw), (dh, dw), depth == _ZLIB_DEPTH, shift, frames, start)


def read_views(path: Path) -> tuple[View, ...]:
    """All frames, named by their number; those behind a truncation are marked unusable.

    Raises:
        SampleError: If the header is unusable.
        OSError: If the medium fails.
    """
    header = read_header(path)
    views: list[View] = []
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        offset = header.start
        while len(views) < header.frames:
            head = os.pread(file.fileno(), _FRAME.size, offset)
            if len(head) < _FRAME.size:
                break
            *pose, _, _, color_bytes, depth_bytes = _FRAME.unpack(head)
            offset += _FRAME.size
            if color_bytes + depth_bytes > size - offset:
                break
            views.append(_view(path, header, str(len(views)), pose, offset, color_bytes, depth_bytes))
            offset += color_bytes + depth_bytes
    lost = range(len(views), header.frames)
    return (*views, *(unusable_view(str(i), f"{path.name} is truncated before frame {i}") for i in lost))


def _view(
    path: Path, header: SensHeader, name: str, pose: list[float], offset: int, color_bytes: int, depth_bytes: int
) -> View:
    if not color_bytes or not depth_bytes:
        return unusable_view(name, f"frame {name} of {path.name} has no {'depth' if color_bytes else 'colour'}")
    world_to_camera = inverse(np.array(pose, np.float64).reshape(4, 4))
    return View(
        name,
        Camera(header.intrinsics, world_to_camera, *header.color_size),
        SensImage(path, offset, color_bytes),
        SensDepth(
            path,
            offset + color_bytes,
            depth_bytes,
            header.depth_size,
            is_compressed=header.depth_is_compressed,
            shift=header.depth_shift,
        ),
    )


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with ordinary_file(FrameError, path), path.open("rb", buffering=0) as file:
        file.seek(offset)
        parts: list[bytes] = []
        while size:
            # read(2) may return less than asked for; the kernel caps a call at 2 GiB
            part = file.read(size)
            if not part:
                raise FrameError(f"truncated at {offset}", where=path)
            parts.append(part)
            size -= len(part)
    return b"".join(parts)
