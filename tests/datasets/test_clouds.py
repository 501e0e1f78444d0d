# SPDX-License-Identifier: Apache-2.0
"""Clouds in files: what each suffix means, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.datasets.clouds import read_cloud
from ditr_cache.errors import SampleError

XYZ = np.array([[0, 1, 2], [3.5, -1, 0.25]], np.float32)
RGB = np.array([[0, 128, 255], [1, 2, 3]], np.float32)
NORMAL = np.array([[0, 0, 1], [1, 0, 0]], np.float32)


def save(path, *columns):
    np.save(path, np.concatenate(columns, 1))
    return path


def ply(path, names, rows):
    kinds = {"red": "uchar", "green": "uchar", "blue": "uchar"}
    head = ["ply", "format ascii 1.0", f"element vertex {len(rows)}"]
    head += [f"property {kinds.get(name, 'float')} {name}" for name in names.split()]
    path.write_text("\n".join([*head, "end_header", *(" ".join(map(str, row)) for row in rows), ""]))
    return path


def test_npy_by_its_columns(tmp_path):
    assert read_cloud(save(tmp_path / "3.npy", XYZ)).color is None
    with_strength = read_cloud(save(tmp_path / "4.npy", XYZ, RGB[:, :1]))
    assert with_strength.strength.tolist() == [0, 1]
    coloured = read_cloud(save(tmp_path / "6.npy", XYZ, RGB))
    assert coloured.color.dtype == np.uint8
    np.testing.assert_array_equal(coloured.color, RGB)
    full = read_cloud(save(tmp_path / "9.npy", XYZ, RGB, NORMAL))
    np.testing.assert_array_equal(full.normal, NORMAL)
    np.testing.assert_array_equal(full.coord, XYZ)


def test_bin_of_lidars(tmp_path):
    rows = np.arange(20, dtype="<f4").reshape(4, 5)
    (tmp_path / "a.bin").write_bytes(rows.tobytes())
    found = read_cloud(tmp_path / "a.bin", 5)
    np.testing.assert_array_equal(found.coord, rows[:, :3])
    np.testing.assert_array_equal(found.strength, rows[:, 3])
    assert len(read_cloud(tmp_path / "a.bin", 4)) == 5


@pytest.mark.parametrize("name", ["strength", "intensity"])
def test_ply(tmp_path, name):
    rows = [(*xyz, *map(int, rgb), *n, 0.5) for xyz, rgb, n in zip(XYZ.tolist(), RGB, NORMAL.tolist(), strict=True)]
    found = read_cloud(ply(tmp_path / "a.PLY", f"x y z red green blue nx ny nz {name}", rows))
    np.testing.assert_array_equal(found.coord, XYZ)
    np.testing.assert_array_equal(found.color, RGB)
    np.testing.assert_array_equal(found.normal, NORMAL)
    assert found.strength.tolist() == [0.5, 0.5]


def test_far_away_points_keep_their_millimetres(tmp_path):
    far = XYZ.astype(np.float64) + [4.0e5, 5.0e6, 0] + 0.001
    found = read_cloud(save(tmp_path / "far.npy", far))
    np.testing.assert_allclose(found.coord + found.origin, far, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"1 2 3", "no point cloud"),
        ("a.bin", b"12345", "not whole rows"),
        ("a.bin", b"", "no points"),
        ("a.ply", b"solid", "not a PLY file"),
        ("a.npy", b"\x93NUMPY", "not a readable .npy"),
    ],
)
def test_refused(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SampleError, match=words):
        read_cloud(tmp_path / name)


def test_refused_arrays(tmp_path):
    for columns, words in (((XYZ[:, :2],), "not a table of points"), ((XYZ, RGB + 1), "between 0 and 255")):
        with pytest.raises(SampleError, match=words):
            read_cloud(save(tmp_path / "a.npy", *columns))
    with pytest.raises(SampleError, match="these are between 0 and 1"):
        read_cloud(save(tmp_path / "a.npy", XYZ, RGB / 255))
    with pytest.raises(SampleError, match="not finite"):
        read_cloud(save(tmp_path / "a.npy", XYZ * np.nan))
    with pytest.raises(SampleError, match="missing"):
        read_cloud(tmp_path / "none.npy")
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(SampleError):
        read_cloud(tmp_path / "object.npy")


@settings(deadline=None)
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".ply", ".npy", ".bin"]))
def test_whatever_a_file_holds_there_is_a_cloud_or_a_sentence(tmp_path_factory, data, suffix):
    path = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    path.write_bytes(data)
    try:
        found = read_cloud(path)
    except SampleError as error:
        refused = str(error)
    else:
        refused = str(path)
        assert len(found) > 0
    assert str(path) in refused
