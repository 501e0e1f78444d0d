# SPDX-License-Identifier: Apache-2.0
"""Encoded images to RGB pixels, the same ones whichever decoder is installed.

EXIF orientation is ignored on purpose: poses and intrinsics refer to the pixels as stored.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin

from ditr_cache.errors import FrameError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

__all__ = ["decode", "decoder_name"]

UInt8 = NDArray[np.uint8]

_JPEG = b"\xff\xd8\xff"
# The plug-ins themselves, not Image.open: it would try every format there is, and judges a declared size by a
# process-wide limit of its own, while we know the size to expect.
_READERS: tuple[tuple[re.Pattern[bytes], Any], ...] = (
    (re.compile(re.escape(_JPEG)), JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"P[56]\s"), PpmImagePlugin.PpmImageFile),
)
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def decoder_name() -> str:
    """Which library decodes JPEG here: `simplejpeg <version>` or `Pillow <version>`."""
    if simplejpeg is not None:
        return f"simplejpeg {simplejpeg.__version__}"
    return f"Pillow {PIL.__version__}"


def decode(data: bytes | UInt8, height: int, width: int) -> UInt8:
    """RGB pixels of an image whose size is known beforehand.

    Grey is repeated, alpha is dropped, palettes are resolved, of 16 bits the upper 8 are kept. Heavy work runs with the
    GIL released.

    Args:
        data: A JPEG, PNG, WebP, BMP or PPM file, or RGB `[H, W, 3]` that a reader has decoded already.
        height: H the camera's intrinsics refer to, pixels.
        width: W the camera's intrinsics refer to, pixels.

    Returns:
        `[H, W, 3]`, contiguous and writable.

    Raises:
        FrameError: If it cannot be decoded, is truncated, or declares another size; the size is read from the header,
            before any pixel is allocated.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
            raise FrameError(f"decoded images are uint8 [H, W, 3], this one is {data.dtype} {list(data.shape)}")
        _check_size(data.shape[0], data.shape[1], height, width)
        return np.require(data, requirements=["C", "W"])
    image_HW3 = _decode_fast(data, height, width)
    return _decode_pillow(data, height, width) if image_HW3 is None else image_HW3


def _check_size(height: int, width: int, expected_height: int, expected_width: int) -> None:
    if (height, width) != (expected_height, expected_width):
        raise FrameError(
            f"is {width}x{height}, expected {expected_width}x{expected_height} (width x height)",
            hint="The camera's intrinsics are for another size of this image, or the file is not the right one.",
        )


def _decode_fast(data: bytes, height: int, width: int) -> UInt8 | None:
    """A plain JPEG through simplejpeg; None for everything that Pillow has to judge."""
    if simplejpeg is None or not data.startswith(_JPEG):
        return None
    try:
        found_height, found_width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray"):
        return None
    _check_size(found_height, found_width, height, width)
    try:
        # without the fast DCT the pixels are Pillow's, bit for bit
        image_HW3: UInt8 = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError:
        # libjpeg complained: Pillow decides, so that the verdict does not depend on what is installed
        return None
    return image_HW3


def _decode_pillow(data: bytes, height: int, width: int) -> UInt8:
    reader = next((reader for magic, reader in _READERS if magic.match(data)), None)
    if reader is None:
        raise FrameError("is not a JPEG, PNG, WebP, BMP or PPM file" if data else "is empty")
    _silence_pillow()
    try:
        with reader(io.BytesIO(data)) as image:
            _check_size(image.height, image.width, height, width)
            return _rgb(image)
    except (FrameError, MemoryError):
        raise
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything, SyntaxError included
        raise FrameError(f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})") from error


def _rgb(image: Image.Image) -> UInt8:
    if image.mode in _SIXTEEN_BIT:
        grey_HW = np.clip(np.asarray(image), 0, 65_535) >> 8
        return np.repeat(grey_HW.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise FrameError("holds floating-point values, not colours")
    image.load()
    if image.mode == "RGB":
        return np.array(image)
    # a palette's transparency would only earn a warning: alpha is dropped anyway
    image.info.pop("transparency", None)
    return np.array(image.convert("RGB"))


def _silence_pillow() -> None:
    """Ignore Pillow's warnings (damaged EXIF and the like): a frame is either usable or a FrameError.

    `warnings.catch_warnings` swaps process-wide state and races between threads; a filter that is added once does not.
    """
    quiet = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if quiet not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
