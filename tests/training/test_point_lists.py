# SPDX-License-Identifier: Apache-2.0
"""Lists of points in every form that is read, and none that could run code."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from ditr_cache.errors import ConfigError
from ditr_cache.training.point_lists import read_point_lists

LISTS = {"scene0000_00": np.array([3, 1, 4, 1, 5]), "scene0001_00": np.array([], np.int64)}


def write_folder(path, lists):
    path.mkdir()
    for name, points in lists.items():
        (path / f"{name}.txt").write_text("".join(f"{point}\n" for point in points))


def write_as_published(path, lists):
    """torch 1.5 saved without a zip around it."""
    torch.save(lists, path, _use_new_zipfile_serialization=False)


WRITERS = {
    "points20": write_as_published,
    "arrays.pth": lambda path, lists: torch.save(lists, path),
    "tensors.pth": lambda path, lists: torch.save({n: torch.from_numpy(p) for n, p in lists.items()}, path),
    "plain.pth": lambda path, lists: torch.save({n: p.tolist() for n, p in lists.items()}, path),
    "arrays.npz": lambda path, lists: np.savez(path, **lists),
    "folder": write_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_says_the_same(name, tmp_path):
    WRITERS[name](tmp_path / name, LISTS)
    found = read_point_lists(tmp_path / name)
    assert found.keys() == LISTS.keys()
    for scene, points in LISTS.items():
        assert found[scene].dtype == np.int64
        np.testing.assert_array_equal(found[scene], points)


@pytest.mark.parametrize("dtype", ["<i8", ">i8", "<i4", "<u2", ">u4"])
def test_types_of_arrays(dtype, tmp_path):
    torch.save({"a": np.array([7, 260, 2], dtype)}, tmp_path / "lists")
    np.testing.assert_array_equal(read_point_lists(tmp_path / "lists")["a"], [7, 260, 2])


def test_as_numpy_1_names_its_constructors(tmp_path):
    """The published files are older than numpy._core."""
    torch.save(LISTS, tmp_path / "new")
    older = _pickle_of(tmp_path / "new").replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    with zipfile.ZipFile(tmp_path / "new") as before, zipfile.ZipFile(tmp_path / "old", "w") as after:
        for name in before.namelist():
            after.writestr(name, older if name.endswith("data.pkl") else before.read(name))
    assert b"numpy.core" in older
    np.testing.assert_array_equal(read_point_lists(tmp_path / "old")["scene0000_00"], LISTS["scene0000_00"])


def _pickle_of(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_nothing_is_run(write, tmp_path):
    write({"a": [1], "b": Bomb(tmp_path / "ran")}, tmp_path / "lists")
    with pytest.raises(ConfigError, match=r"never loaded, because that can run any code\n.*an \.npz"):
        read_point_lists(tmp_path / "lists")
    np.savez(tmp_path / "lists.npz", a=np.array([Bomb(tmp_path / "ran")]))
    with pytest.raises(ConfigError, match=r"is no \.npz of arrays of numbers"):
        read_point_lists(tmp_path / "lists.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [np.array([0.5]), np.array([[1, 2]]), np.array(["a"]), np.array([1j]), [0.5], [True], "123", 7, {"b": [1]}, None],
    ids=str,
)
def test_what_is_no_list_of_whole_numbers(value, tmp_path):
    torch.save({"a": value}, tmp_path / "lists")
    with pytest.raises(ConfigError, match="no list of whole numbers for a"):
        read_point_lists(tmp_path / "lists")


@pytest.mark.parametrize("value", [[1, 2], {}, {1: [2]}, torch.zeros(3)], ids=str)
def test_what_is_no_dict_of_scenes(value, tmp_path):
    torch.save(value, tmp_path / "lists")
    with pytest.raises(ConfigError, match="no dict of scenes and their points"):
        read_point_lists(tmp_path / "lists")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no such file or folder"):
        read_point_lists(tmp_path / "nowhere")
    for name in ("damaged", "damaged.npz"):
        (tmp_path / name).write_bytes(b"\x80\x02damaged")
        with pytest.raises(ConfigError, match="damaged"):
            read_point_lists(tmp_path / name)
    buffer = io.BytesIO()
    torch.save(LISTS, buffer)
    (tmp_path / "cut").write_bytes(buffer.getvalue()[:200])
    with pytest.raises(ConfigError, match=r"cut is not what torch\.save makes"):
        read_point_lists(tmp_path / "cut")
    write_folder(tmp_path / "folder", {"a": ["one"]})
    with pytest.raises(ConfigError, match=r"a\.txt has a line that is no whole number"):
        read_point_lists(tmp_path / "folder")
    write_folder(tmp_path / "empty", {})
    with pytest.raises(ConfigError, match="no dict of scenes"):
        read_point_lists(tmp_path / "empty")
