# SPDX-License-Identifier: Apache-2.0
import contextlib
import hashlib
import io
import json
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ditr_cache.datasets.sens import read_header, read_views
from ditr_cache.errors import FrameError, SampleError


@pytest.fixture(scope="module")
def scene_folder(test_data):
    return test_data / "scannet/scans/scene9000_00"


@pytest.mark.real_data
def test_expected_frames(scene_folder):
    expected = json.loads((scene_folder / "expected.json").read_text())
    header = read_header(scene_folder / "scene9000_00.sens")
    assert header.frames == expected["n_frames"]
    assert header.color_size[::-1] == tuple(expected["color_size_wh"])
    assert header.depth_size[::-1] == tuple(expected["depth_size_wh"])
    assert header.depth_shift == expected["depth_shift"]
    np.testing.assert_allclose(header.intrinsics, expected["K_color"], rtol=1e-7)
    views = read_views(scene_folder / "scene9000_00.sens")
    assert len(views) == len(expected["frames"])
    for view, frame in zip(views, expected["frames"], strict=True):
        assert view.name == str(frame["sens_index"])
        assert hashlib.sha256(view.image.read()).hexdigest() == frame["color_jpeg_sha256"]
        millimetres = np.round(view.depth.read() * 1000).astype("<u2")
        assert hashlib.sha256(millimetres.tobytes()).hexdigest() == frame["depth_sha256"]
        assert int((millimetres > 0).sum()) == frame["n_valid_depth"]
        assert millimetres[millimetres > 0].mean() == pytest.approx(frame["mean_valid_depth_mm"])
    for view, pose in ((views[0], "pose_frame0"), (views[-1], "pose_last")):
        np.testing.assert_allclose(
            np.linalg.inv(view.camera.world_to_camera), expected[f"{pose}_camera_to_world"], atol=1e-6
        )


def write(tmp_path, data):
    path = tmp_path / "a.sens"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("depth_code", [0, 1])
def test_small_recording(tmp_path, sens_bytes, depth_code):
    views = read_views(write(tmp_path, sens_bytes(depth_code=depth_code)))
    assert [view.name for view in views] == ["0", "1", "2"]
    view = pickle.loads(pickle.dumps((views[2].image, views[2].depth)))
    assert Image.open(io.BytesIO(view[0].read())).size == (4, 2)
    np.testing.assert_allclose(view[1].read(), [[0, 1.502]])


def test_lost_poses_are_left_to_the_check(tmp_path, sens_bytes):
    views = read_views(write(tmp_path, sens_bytes(poses=[np.eye(4), np.full((4, 4), -np.inf), np.zeros((4, 4))])))
    assert all(view.problem is None for view in views)
    assert np.isnan(views[1].camera.world_to_camera).all()
    assert np.isnan(views[2].camera.world_to_camera).all()
    assert np.isfinite(views[0].camera.world_to_camera).all()


def test_frames_behind_a_truncation_have_a_reason(tmp_path, sens_bytes):
    data = sens_bytes()
    views = read_views(write(tmp_path, data[: len(data) - 9]))
    assert [view.problem is None for view in views] == [True, True, False]
    assert "truncated before frame 2" in views[2].problem
    with pytest.raises(FrameError, match="truncated"):
        views[2].image.read()


def test_a_file_that_shrinks_or_goes_after_indexing(tmp_path, sens_bytes):
    path = write(tmp_path, sens_bytes())
    views = read_views(path)
    path.write_bytes(path.read_bytes()[: views[1].image.offset + 5])
    views[0].image.read()
    with pytest.raises(FrameError, match="truncated"):
        views[1].image.read()
    path.unlink()
    with pytest.raises(FrameError, match="missing"):
        views[0].depth.read()


@pytest.mark.parametrize("raw", [b"", b"\0\0\0", b"\0" * 100_000])
def test_depth_of_another_size(tmp_path, sens_bytes, raw):
    view = read_views(write(tmp_path, sens_bytes(depth=raw)))[0]
    with pytest.raises(FrameError, match="4 bytes"):
        view.depth.read()


def test_depth_that_does_not_inflate(tmp_path, sens_bytes):
    path = write(tmp_path, sens_bytes())
    depth = read_views(path)[0].depth
    data = bytearray(path.read_bytes())
    data[depth.offset] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(FrameError, match="damaged"):
        depth.read()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"color_code": 0},
        {"depth_code": 2},
        {"shift": 0.0},
        {"shift": float("nan")},
        {"promised": 2**60},
    ],
)
def test_headers_that_are_refused(tmp_path, sens_bytes, change):
    with pytest.raises(SampleError, match=r"a\.sens"):
        read_header(write(tmp_path, sens_bytes(**change)))


def test_header_names_and_sizes_are_not_believed(tmp_path, sens_bytes):
    data = bytearray(sens_bytes())
    struct.pack_into("<Q", data, 4, 2**63)
    with pytest.raises(SampleError, match="incomplete"):
        read_header(write(tmp_path, bytes(data)))
    for content in (b"", sens_bytes()[:100]):
        with pytest.raises(SampleError, match="incomplete"):
            read_header(write(tmp_path, content))
    with pytest.raises(SampleError, match="missing"):
        read_header(tmp_path / "none.sens")


def test_frame_sizes_are_not_believed(tmp_path, sens_bytes):
    path = write(tmp_path, sens_bytes())
    first = read_views(path)[0].image
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, first.offset - 16, 2**62)
    path.write_bytes(data)
    assert all("truncated" in view.problem for view in read_views(path))


@settings(deadline=None)
@given(data=st.data())
def test_any_damage_is_one_of_our_errors(tmp_path_factory, sens_bytes, data):
    content = bytearray(sens_bytes(frames=2))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.sens"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(SampleError, FrameError):
        for view in read_views(path):
            view.image.read()
            assert view.depth is not None
            view.depth.read()
