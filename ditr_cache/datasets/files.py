# SPDX-License-Identifier: Apache-2.0
"""Files of a data set: where they may lie, and images that are read only when asked for."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from ditr_cache.errors import DatasetError, FrameError
from ditr_cache.types import Float32

__all__ = [
    "DepthPng",
    "FileImage",
    "Unavailable",
    "image_size",
    "inside",
    "ordinary_file",
    "plain_name",
    "read_file",
    "read_json",
]

# Pillow warns from 89 million pixels on and refuses at twice that; no depth camera comes near it.
_MAX_PIXELS = 64_000_000
_HOPELESS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_UNDECODABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error, MemoryError),
    Image.DecompressionBombError,
)


@contextmanager
def ordinary_file(kind: type[DatasetError], path: Path) -> Iterator[None]:
    """Raise `kind` if `path` can never be read; every other OSError passes, because trying again may help."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise kind("not an ordinary file", where=path)
        yield
    except OSError as error:
        if error.errno not in _HOPELESS:
            raise
        raise kind("the file is missing", where=path) from None


def inside(root: Path, relative: object) -> Path:
    """`root / relative` with all links resolved, for a `relative` that was read from a file.

    The folders directly below `root` may themselves be links: large data sets are spread over disks that way.

    Raises:
        DatasetError: If it is no relative path, or leads out of `root` (`..`, a symbolic link further down).
    """
    if not isinstance(relative, str) or not relative or os.path.isabs(relative):
        raise DatasetError(f"{relative!r:.200} is not a relative path", where=root)
    base = os.path.realpath(root)
    try:
        path = os.path.normpath(os.path.join(base, relative))
        target = os.path.realpath(path)
        top = os.path.realpath(os.path.join(base, os.path.relpath(path, base).split(os.sep)[0]))
    except ValueError:
        raise DatasetError(f"{relative!r:.200} is not a path", where=root) from None
    linked = os.path.isdir(top) and os.path.commonpath([top, target]) == top
    if os.path.commonpath([base, path]) != base or not (linked or os.path.commonpath([base, target]) == base):
        raise DatasetError(
            f"{relative!r:.200} leads out of the data set",
            where=root,
            hint="Paths named in a data set's files must stay inside its folder, symbolic links included.",
        )
    return Path(target)


def plain_name(value: object, where: object) -> str:
    """A name from a file that is used in sample ids: one path component, nothing else.

    Raises:
        DatasetError: If it is anything else.
    """
    if not isinstance(value, str) or not 0 < len(value) <= 200 or value in {".", ".."} or not value.isprintable():
        raise DatasetError(f"{value!r:.200} is not usable as a name", where=where)
    if "/" in value or "\\" in value:
        raise DatasetError(f"{value!r:.200} is not usable as a name: it holds a path separator", where=where)
    return value


def read_json(path: Path, keep: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """A JSON document; `keep` maps every object in it to what is kept of it.

    Raises:
        DatasetError: If the file is missing, is not JSON, or `keep` misses a key or finds a wrong type.
        OSError: If the medium fails.
    """
    try:
        with ordinary_file(DatasetError, path):
            text = path.read_text("utf-8-sig")
        return json.loads(text, object_hook=keep)
    except KeyError as error:
        raise DatasetError(f"a record has no key {error}", where=path) from error
    except DatasetError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise DatasetError(f"not the JSON that was expected: {error}", where=path) from error


def read_file(path: Path) -> bytes:
    """The bytes of one frame's file.

    Raises:
        FrameError: If it is missing, empty or no ordinary file.
        OSError: If the medium fails.
    """
    with ordinary_file(FrameError, path):
        data = path.read_bytes()
    if not data:
        raise FrameError("the file is empty", where=path)
    return data


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from an image's header.

    Raises:
        FrameError: If the file is missing or its header is damaged.
        OSError: If the medium fails.
    """
    with ordinary_file(FrameError, path), path.open("rb") as file:
        # 64 KiB hold the size of every camera's JPEG; the whole file only where a header is longer.
        head = file.read(65_536)
        try:
            width, height = Image.open(io.BytesIO(head)).size
        except _UNDECODABLE:
            head += file.read()
            try:
                width, height = Image.open(io.BytesIO(head)).size
            except _UNDECODABLE as error:
                raise FrameError("the image header is damaged", where=path) from error
    return height, width


@dataclass(frozen=True, slots=True)
class FileImage:
    """An encoded image in a file of its own."""

    path: Path

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            FrameError: If the file is missing or empty.
            OSError: If the medium fails.
        """
        return read_file(self.path)


@dataclass(frozen=True, slots=True)
class DepthPng:
    """A 16-bit depth map along z."""

    path: Path
    scale: float
    """Metres a unit."""

    def read(self) -> Float32:
        """Depth `[h, w]` in metres, 0 where there is none.

        Raises:
            FrameError: If the file is missing, damaged or not a 16-bit grey image.
            OSError: If the medium fails.
        """
        data = read_file(self.path)
        try:
            with Image.open(io.BytesIO(data)) as image:
                found = f"{image.mode} {image.width} x {image.height}"
                is_depth = image.mode.startswith("I") and image.width * image.height <= _MAX_PIXELS
                units_hw = np.asarray(image) if is_depth else None
        except _UNDECODABLE as error:
            raise FrameError(f"the depth map cannot be decoded: {error}", where=self.path) from error
        if units_hw is None:
            raise FrameError(f"a 16-bit grey depth map was expected, found {found}", where=self.path)
        depth_hw: Float32 = np.multiply(units_hw, np.float32(self.scale), dtype=np.float32)
        return depth_hw


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Stands for the image or depth map of a frame that is known to be unusable."""

    reason: str

    def read(self) -> NoReturn:
        """Always fails.

        Raises:
            FrameError: With the reason.
        """
        raise FrameError(self.reason)
