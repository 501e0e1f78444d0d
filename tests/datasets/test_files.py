# SPDX-License-Identifier: Apache-2.0
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ditr_cache.datasets.files import (
    DepthPng,
    FileImage,
    Unavailable,
    image_size,
    inside,
    plain_name,
    read_json,
)
from ditr_cache.errors import DatasetError, FrameError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/images").mkdir(parents=True)
    (tmp_path / "root/images/a.jpg").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"s")
    return tmp_path / "root"


@pytest.mark.parametrize("relative", ["images/a.jpg", "./images/a.jpg", "images/../images/a.jpg"])
def test_inside(root, relative):
    assert inside(root, relative) == (root / "images/a.jpg").resolve()


@pytest.mark.parametrize(
    "relative",
    ["../secret", "images/../../secret", "/etc/passwd", "", ".." + "/.." * 30, "a\0b", "\ud800", None, 3, ["a"]],
)
def test_paths_that_lead_out(root, relative):
    with pytest.raises(DatasetError):
        inside(root, relative)


def test_links_that_lead_out(root):
    (root / "link").symlink_to(root.parent / "secret")
    (root / "images" / "folder").symlink_to(root.parent)
    (root / "fine").symlink_to("images/a.jpg")
    for relative in ("link", "images/folder/secret"):
        with pytest.raises(DatasetError, match="leads out"):
            inside(root, relative)
    assert inside(root, "fine") == (root / "images/a.jpg").resolve()


def test_top_level_folders_may_be_links(root):
    elsewhere = root.parent / "other-disk"
    elsewhere.mkdir()
    (elsewhere / "b.jpg").touch()
    (elsewhere / "out").symlink_to(root.parent)
    (root / "samples").symlink_to(elsewhere)
    assert inside(root, "samples/b.jpg") == (elsewhere / "b.jpg").resolve()
    for relative in ("samples/out/secret", "samples/../../secret"):
        with pytest.raises(DatasetError, match="leads out"):
            inside(root, relative)


def test_the_root_may_be_a_link(root):
    (root.parent / "alias").symlink_to(root)
    assert inside(root.parent / "alias", "images/a.jpg") == (root / "images/a.jpg").resolve()


@settings(deadline=None)
@given(st.text())
def test_inside_never_leaves(relative):
    root = os.path.realpath("/tmp/root-of-a-test")
    try:
        path = inside(root, relative)
    except DatasetError:
        return
    assert str(path) == root or str(path).startswith(root + "/")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "x" * 201, None, 7, "\ud800"])
def test_names_that_are_paths(name):
    with pytest.raises(DatasetError):
        plain_name(name, "scene.json")


def test_plain_name():
    assert plain_name("scene-0061", "scene.json") == "scene-0061"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"[" * 200_000])
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_json_records_are_reduced(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1, "b": 2}, {"a": 3}]')
    assert read_json(tmp_path / "a.json", lambda record: record["a"]) == [1, 3]
    with pytest.raises(DatasetError, match="no key 'b'"):
        read_json(tmp_path / "a.json", lambda record: record["b"])


def test_missing_and_special_files(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(FrameError):
            FileImage(path).read()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FrameError, match="ordinary"):
        FileImage(tmp_path / "pipe").read()
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(FrameError, match="empty"):
        FileImage(tmp_path / "empty.jpg").read()


def test_a_failing_medium_is_no_frame_error(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(5, "Input/output error")

    (tmp_path / "a.jpg").write_bytes(b"a")
    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        FileImage(tmp_path / "a.jpg").read()
    assert not isinstance(caught.value, FrameError)


def test_image_size(tmp_path):
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") == (6, 8)
    assert FileImage(tmp_path / "a.png").read() == (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(b"nonsense")
    for name in ("b.png", "c.png"):
        with pytest.raises(FrameError):
            image_size(tmp_path / name)


def test_size_behind_a_long_header(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    path = tmp_path / "a.jpg"
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path, exif=exif, comment=b"y" * 60_000)
    assert image_size(path) == (6, 8)


def test_depth(tmp_path):
    units = np.array([[0, 1500, 65_535]], np.uint16)
    Image.fromarray(units).save(tmp_path / "d.png")
    depth = DepthPng(tmp_path / "d.png", 0.001).read()
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, [[0, 1.5, 65.535]])


def test_depth_that_is_none(tmp_path):
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "grey8.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 9000, (60, 80)).astype(np.uint16)).save(tmp_path / "d.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "d.png").read_bytes()[:3000])
    for name in ("grey8.png", "cut.png", "none.png"):
        with pytest.raises(FrameError, match=name):
            DepthPng(tmp_path / name, 0.001).read()


def test_unavailable_travels():
    with pytest.raises(FrameError, match="because"):
        pickle.loads(pickle.dumps(Unavailable("because"))).read()
