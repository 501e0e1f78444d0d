# SPDX-License-Identifier: Apache-2.0
import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.datasets.ply import cloud, read_vertices
from ditr_cache.errors import SampleError

XYZ = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("order", ["little", "big"])
def test_binary(tmp_path, vertices, ply_bytes, order):
    given_N = vertices(XYZ, red=np.array([1, 2], np.uint8), label=np.array([7, -1], np.int32))
    (tmp_path / "a.ply").write_bytes(ply_bytes(given_N, order=order))
    read_N = read_vertices(tmp_path / "a.ply")
    assert read_N.dtype == given_N.dtype
    np.testing.assert_array_equal(read_N, given_N)


def test_ascii(tmp_path):
    text = (
        "ply\r\nformat ascii 1.0\r\nelement vertex 2\r\nproperty float x\r\nproperty double y\r\nproperty float z\r\n"
    )
    text += "property int label\r\nend_header\r\n1 2.5 3 4\r\n5 6 7 -1\r\n"
    (tmp_path / "a.ply").write_bytes(text.encode())
    read_N = read_vertices(tmp_path / "a.ply")
    assert read_N["y"].tolist() == [2.5, 6]
    assert read_N["label"].tolist() == [4, -1]
    for damaged in (text[:-12], text.replace("-1", "-1.5"), text.replace("5 6", "five 6"), text.replace("7 -1", "7")):
        (tmp_path / "b.ply").write_bytes(damaged.encode())
        with pytest.raises(SampleError):
            read_vertices(tmp_path / "b.ply")
    for value in ("300", "-1"):
        small = text.replace("property int", "property uchar").replace("-1", value)
        (tmp_path / "b.ply").write_bytes(small.encode())
        with pytest.raises(SampleError, match="does not fit its type, uint8"):
            read_vertices(tmp_path / "b.ply")


def test_cloud(vertices):
    columns = {name: np.array([1, 2], np.uint8) for name in ("red", "green", "blue")}
    columns |= {name: np.array([0, 1], np.float32) for name in ("nx", "ny", "nz")}
    points = cloud(vertices(XYZ, **columns), "x")
    np.testing.assert_array_equal(points.coord, XYZ)
    np.testing.assert_array_equal(points.color, [[1, 1, 1], [2, 2, 2]])
    np.testing.assert_array_equal(points.normal, [[0, 0, 0], [1, 1, 1]])
    wide = cloud(vertices([[4e5, 5.2e6, 0.123]], dtype=np.float64), "x")
    np.testing.assert_array_equal(wide.origin, [4e5, 5.2e6, 0])
    np.testing.assert_allclose(wide.coord, [[0, 0, 0.123]])


def test_cloud_that_is_refused(vertices):
    floats = {name: np.array([0.5, 1], np.float32) for name in ("red", "green", "blue")}
    with pytest.raises(SampleError, match="uchar"):
        cloud(vertices(XYZ, **floats), "x")
    with pytest.raises(SampleError, match="no property z"):
        cloud(vertices(XYZ)[["x", "y"]], "x")


@pytest.mark.parametrize("count", [3, 10**9, 10**40])
def test_a_header_that_promises_too_much(tmp_path, vertices, ply_bytes, count):
    (tmp_path / "a.ply").write_bytes(ply_bytes(vertices(XYZ), count=count))
    with pytest.raises(SampleError, match="truncated"):
        read_vertices(tmp_path / "a.ply")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"ply", b"plx"),
        (b"end_header", b"end_headache"),
        (b"binary_little_endian", b"binary_middle_endian"),
        (b"property float x", b"property quad x"),
        (b"property float y", b"property float x"),
        (b"element vertex", b"element edge"),
        (b"element vertex 2", b"element vertex -2"),
        (b"property float x", b"property list uchar float x"),
        (b"comment made", b"command made"),
    ],
)
def test_headers_that_are_refused(tmp_path, vertices, ply_bytes, old, new):
    (tmp_path / "a.ply").write_bytes(ply_bytes(vertices(XYZ)).replace(old, new, 1))
    with pytest.raises(SampleError, match=r"a\.ply"):
        read_vertices(tmp_path / "a.ply")


def test_elements_before_the_vertices(tmp_path, vertices, ply_bytes):
    data = ply_bytes(vertices(XYZ)).replace(b"element vertex", b"element extra 1\nproperty int id\nelement vertex")
    head, body = data.split(b"end_header\n")
    (tmp_path / "a.ply").write_bytes(head + b"end_header\n\1\0\0\0" + body)
    assert read_vertices(tmp_path / "a.ply")["z"].tolist() == [3, 6]


@settings(deadline=None)
@given(data=st.data())
def test_any_damage_is_a_sample_error(tmp_path_factory, vertices, ply_bytes, data):
    content = bytearray(ply_bytes(vertices(XYZ)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.ply"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(SampleError):
        cloud(read_vertices(path), path)
