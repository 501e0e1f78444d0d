# SPDX-License-Identifier: Apache-2.0
import importlib
import io
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ditr_cache.errors import FrameError
from ditr_cache.images import decode as decode_image
from ditr_cache.images import decoder_name

module = importlib.import_module("ditr_cache.images.decode")  # the package exports a function of that name


def smooth(height=48, width=64, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind, **options):
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(params=["fast", "pillow"])
def either_decoder(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(module, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "PPM"])
def test_lossless_formats_come_back_exactly(kind):
    image_HW3 = smooth()
    out = decode_image(encoded(image_HW3, kind, **({"lossless": True} if kind == "WEBP" else {})), 48, 64)
    np.testing.assert_array_equal(out, image_HW3)
    assert out.flags.c_contiguous
    assert out.flags.writeable


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 20}]
)
@pytest.mark.parametrize("size", [(48, 64), (49, 67), (1, 1), (97, 16)])
def test_jpeg_is_bit_identical_to_pillow(either_decoder, options, size):
    data = encoded(smooth(*size), "JPEG", **options)
    np.testing.assert_array_equal(decode_image(data, *size), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_other_colour_spaces(either_decoder, mode):
    data = encoded(Image.fromarray(smooth()).convert(mode), "JPEG")
    np.testing.assert_array_equal(decode_image(data, 48, 64), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.real_data
def test_real_photographs_are_bit_identical_to_pillow(either_decoder, test_data):
    paths = [
        *sorted((test_data / "nuscenes" / "samples").glob("CAM_*/*.jpg"))[:3],
        *sorted((test_data / "nerfstudio" / "redkitchen" / "images").iterdir())[:2],
        *sorted((test_data / "scannet_images").rglob("color/*.jpg"))[:2],
    ]
    assert len(paths) >= 5
    for path in paths:
        with Image.open(path) as image:
            expected = np.array(image.convert("RGB"))
        np.testing.assert_array_equal(decode_image(path.read_bytes(), *expected.shape[:2]), expected)


def test_grey_alpha_and_palette():
    image = Image.fromarray(smooth())
    grey = np.array(image.convert("L"))
    np.testing.assert_array_equal(decode_image(encoded(image.convert("L"), "PNG"), 48, 64), np.stack([grey] * 3, -1))
    rgba = image.copy()
    rgba.putalpha(Image.fromarray(255 - grey))
    np.testing.assert_array_equal(decode_image(encoded(rgba, "PNG"), 48, 64), np.array(image))
    palette = image.quantize(32)
    data = encoded(palette, "PNG", transparency=bytes(range(32)))
    np.testing.assert_array_equal(decode_image(data, 48, 64), np.array(palette.convert("RGB")))
    bilevel = image.convert("1")
    np.testing.assert_array_equal(decode_image(encoded(bilevel, "PNG"), 48, 64), np.array(bilevel.convert("RGB")))


def test_sixteen_bits_keep_the_upper_eight():
    deep_HW = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    out = decode_image(encoded(Image.fromarray(deep_HW), "PNG"), 48, 64)
    np.testing.assert_array_equal(out, np.stack([deep_HW >> 8] * 3, -1))


def test_exif_orientation_is_ignored(either_decoder):
    image = Image.fromarray(smooth())
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    data = encoded(image, "JPEG", exif=exif)
    assert decode_image(data, 48, 64).shape == (48, 64, 3)


def test_wrong_size_says_both(either_decoder):
    for kind in ("JPEG", "PNG"):
        with pytest.raises(FrameError, match=r"is 64x48, expected 1296x968"):
            decode_image(encoded(smooth(), kind), 968, 1296)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "WEBP"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.9])
def test_truncated_files_are_refused(either_decoder, kind, keep):
    data = encoded(smooth(), kind)
    with pytest.raises(FrameError):
        decode_image(data[: int(len(data) * keep)], 48, 64)


def test_other_files_are_refused():
    for data in (b"", b"hello", b"GIF89a" + bytes(100), b"%!PS-Adobe", encoded(smooth(), "TIFF")):
        with pytest.raises(FrameError, match=r"is not a JPEG|is empty"):
            decode_image(data, 48, 64)


def png_header(height, width):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused_from_the_header(either_decoder):
    jpeg = bytearray(encoded(smooth(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    for data in (png_header(100_000, 100_000), bytes(jpeg)):
        with pytest.raises(FrameError, match="expected 64x48"):
            decode_image(data, 48, 64)


def test_large_images_that_are_expected_earn_no_warning():
    with pytest.raises(FrameError, match="cannot be decoded"):  # the header passes, the pixels are missing
        decode_image(png_header(10_000, 10_000)[:60], 10_000, 10_000)


def test_damaged_exif_leaks_no_warning(either_decoder):
    data = encoded(smooth(), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_image(data, 48, 64)
    assert caught == []


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bytes_never_raise_anything_else(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]))
    broken = bytearray(encoded(smooth(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    verdicts = []
    for fast in (module.simplejpeg, None):
        before, module.simplejpeg = module.simplejpeg, fast
        try:
            verdicts.append(decode_image(bytes(broken), 48, 64))
        except FrameError:
            verdicts.append(None)
        finally:
            module.simplejpeg = before
    # what is installed must not decide what is stored
    assert (verdicts[0] is None) == (verdicts[1] is None)
    if verdicts[0] is not None:
        assert verdicts[0].shape == (48, 64, 3)
        np.testing.assert_array_equal(verdicts[0], verdicts[1])


def test_decoded_arrays_pass_through():
    image_HW3 = smooth()
    assert decode_image(image_HW3, 48, 64) is image_HW3
    readonly = image_HW3.copy()
    readonly.flags.writeable = False
    assert decode_image(readonly, 48, 64).flags.writeable
    for bad in (image_HW3[:, :, 0], image_HW3.astype(np.float32), image_HW3[:, :, [0, 1, 2, 0]]):
        with pytest.raises(FrameError, match="uint8"):
            decode_image(bad, 48, 64)
    with pytest.raises(FrameError, match="expected 64x49"):
        decode_image(image_HW3, 49, 64)


def test_decoding_releases_the_gil(either_decoder):
    data = encoded(smooth(1200, 1600), "JPEG", quality=95)
    ticks, stop = 0, threading.Event()

    def count():
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0)

    counter = threading.Thread(target=count)
    counter.start()
    meanwhile = []
    try:
        for _ in range(25):
            before = ticks
            decode_image(data, 1200, 1600)
            meanwhile.append(ticks - before)
    finally:
        stop.set()
        counter.join()
    assert np.median(meanwhile) > 10  # with the lock held it is 1 or 2


def test_decoder_name(monkeypatch):
    monkeypatch.setattr(module, "simplejpeg", None)
    assert decoder_name().startswith("Pillow ")
