# SPDX-License-Identifier: Apache-2.0
import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ditr_cache.datasets.arrays import checked, labels, lookup, read_npy, read_raw, relative_to_origin
from ditr_cache.errors import SampleError
from ditr_cache.types import PointCloud


def test_raw(tmp_path):
    rows = np.arange(8, dtype="<f4").reshape(2, 4)
    (tmp_path / "a.bin").write_bytes(rows.tobytes())
    np.testing.assert_array_equal(read_raw(tmp_path / "a.bin", "<f4", 4), rows)
    (tmp_path / "b.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(SampleError, match="truncated"):
        read_raw(tmp_path / "b.bin", "<f4", 4)
    with pytest.raises(SampleError, match="missing"):
        read_raw(tmp_path / "c.bin", "<f4", 4)


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy", 3), np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "column.npy", np.arange(4).reshape(4, 1))
    np.testing.assert_array_equal(read_npy(tmp_path / "column.npy"), np.arange(4))
    np.save(tmp_path / "none.npy", np.empty((0, 3), np.float32))
    assert read_npy(tmp_path / "none.npy", 3).shape == (0, 3)


def test_npy_that_is_refused(tmp_path):
    np.save(tmp_path / "good.npy", np.arange(300.0).reshape(100, 3))
    data = (tmp_path / "good.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(data[:-1])
    (tmp_path / "huge.npy").write_bytes(data.replace(b"(100, 3)", b"(10**17,"[:8]))
    (tmp_path / "big.npy").write_bytes(data.replace(b"(100, 3), }    ", b"(99999999999, 3)"[:15]))
    (tmp_path / "text.npy").write_bytes(b"nonsense")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "pickle.npy", np.array([{}, {}], object), allow_pickle=True)
    np.save(tmp_path / "wide.npy", np.zeros((5, 4)))
    for name in ("cut", "huge", "big", "text", "empty", "pickle", "wide", "absent"):
        with pytest.raises(SampleError, match=name):
            read_npy(tmp_path / f"{name}.npy", 3)


def test_float32_coordinates_keep_their_bits():
    xyz = np.array([[4e5, 5.2e6, 1.5]], np.float32) / 1e5
    coord, origin = relative_to_origin(xyz, "x")
    assert coord.tobytes() == xyz.tobytes()
    np.testing.assert_array_equal(origin, 0)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (7, 3), elements=st.floats(-50, 50, width=32)), st.floats(-1e7, 1e7))
def test_float32_coordinates_keep_their_values(xyz, shift):
    """Where they are far away they count from an origin of their own, and then are as exact as before."""
    far = (xyz + shift).astype(np.float32)
    coord, origin = relative_to_origin(far, "x")
    np.testing.assert_array_equal((coord + origin).astype(np.float32), far)
    assert np.abs(coord).max() <= max(np.abs(far).max(), 110)
    if abs(shift) > 500:
        assert np.abs(coord).max() <= 110


def test_float32_coordinates_that_an_origin_would_change_stay():
    xyz = np.array([[1e6, 0, 0], [0.1, 0, 0]], np.float32)
    coord, origin = relative_to_origin(xyz, "x")
    assert coord.tobytes() == xyz.tobytes()
    np.testing.assert_array_equal(origin, 0)


@settings(deadline=None)
@given(hnp.arrays(np.float64, (7, 3), elements=st.floats(-50, 50)), st.floats(-1e7, 1e7))
def test_float64_coordinates_keep_millimetres(xyz, shift):
    coord, origin = relative_to_origin(xyz + shift, "x")
    assert coord.dtype == np.float32
    np.testing.assert_array_equal(origin, np.round(origin))
    assert np.abs(coord + origin - (xyz + shift)).max() < 1e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_coordinates_that_are_not_finite(bad):
    with pytest.raises(SampleError, match="finite"):
        relative_to_origin(np.array([[0, bad, 0]], np.float32), "x")


def test_labels():
    np.testing.assert_array_equal(labels(np.array([-100, -1, 0, 5], np.int64), "x", 6), [-1, -1, 0, 5])
    assert labels(np.zeros(0, np.uint8), "x").dtype == np.int32
    for bad, classes in ((np.array([6]), 6), (np.array([2**31]), None), (np.array([0.5]), None)):
        with pytest.raises(SampleError):
            labels(bad, "x", classes)


def test_lookup_ignores_what_it_does_not_know():
    np.testing.assert_array_equal(lookup({0: -1, 3: 7}, np.array([0, 3, 1, 4, 99], np.uint32)), [-1, 7, -1, -1, -1])
    np.testing.assert_array_equal(lookup({0: 2}, np.array([-1, -5, 0])), [-1, -1, 2])


def test_checked():
    coord = np.zeros((2, 3), np.float32)
    assert checked(PointCloud(coord), "x").coord is coord
    with pytest.raises(SampleError, match="no points"):
        checked(PointCloud(coord[:0]), "x")
    with pytest.raises(SampleError, match="segment has 1 entries for 2"):
        checked(PointCloud(coord, segments={"segment": np.zeros(1, np.int32)}), "x")
    for name in ("normal", "strength"):
        array = np.full((2, 3) if name == "normal" else 2, np.nan, np.float32)
        with pytest.raises(SampleError, match=f"some values of {name} are not finite"):
            checked(PointCloud(coord, **{name: array}), "x")


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@settings(deadline=None)
@given(data=st.data())
def test_any_damage_to_npy_is_a_sample_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    np.save(path, np.arange(6.0).reshape(2, 3))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 90))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(SampleError):
        read_npy(path, 3)
