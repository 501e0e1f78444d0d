# SPDX-License-Identifier: Apache-2.0
import json
import math
import re

import numpy as np
import pytest

from ditr_cache.datasets.nerfstudio import Nerfstudio
from ditr_cache.errors import DatasetError, FrameError, SampleError


@pytest.mark.real_data
@pytest.mark.parametrize("scene", ["redkitchen", "shelf"])
def test_expected_facts(test_data, project, counts, scene):
    folder = test_data / "nerfstudio" / scene
    expected = json.loads((folder / "expected.json").read_text())
    loaded = Nerfstudio(folder).load(scene)
    assert len(loaded.points) == expected["points"]
    assert len(loaded.views) == expected["frames"]
    first = loaded.views[0].camera
    np.testing.assert_allclose(first.intrinsics, expected["intrinsics"], rtol=1e-12)
    np.testing.assert_allclose(
        np.linalg.inv(first.world_to_camera), expected["first_opencv_camera_to_world"], atol=1e-9
    )
    found = [int(project(loaded.points, view.camera)[3].sum()) for view in loaded.views]
    assert np.abs(np.subtract(found, expected["in_frustum"])).max() <= expected["tolerance_points"]
    assert counts(loaded.points.segments.get("segment", [])) == expected.get("labels", {})
    depth = loaded.views[0].depth.read()
    assert depth.shape == (480, 640)
    assert 0.1 < np.median(depth[depth > 0]) < 5
    np.testing.assert_array_equal(loaded.points.origin, 0)


@pytest.mark.real_data
def test_parent_folder(test_data):
    dataset = Nerfstudio(test_data / "nerfstudio")
    assert [block.id for block in dataset.plan()] == ["redkitchen", "shelf"]
    assert dataset.plan()[1].samples[0].views[0] == "images/frame_00001.png"


def test_small_capture(write_capture):
    scene = Nerfstudio(write_capture(k1=0.1, p2=0.2)).load("room")
    assert [view.name for view in scene.views] == ["images/0.jpg", "images/1.jpg", "images/2.jpg"]
    view = scene.views[1]
    assert view.problem is None
    np.testing.assert_array_equal(view.camera.intrinsics, [[5, 0, 4], [0, 6, 3], [0, 0, 1]])
    np.testing.assert_array_equal(view.camera.world_to_camera, np.diag([1, -1, -1, 1]))
    np.testing.assert_array_equal(view.camera.distortion, [0.1, 0, 0, 0.2, 0, 0, 0, 0])
    np.testing.assert_allclose(view.depth.read(), 1.001)
    np.testing.assert_array_equal(scene.points.segments["segment"], [0, 1])


def test_a_frame_overrides_the_camera(write_capture):
    own = {"fl_x": 50, "w": 80, "h": 60, "depth_file_path": ..., "k1": 0.5}
    views = Nerfstudio(write_capture(frames={1: own}, depth_unit_scale_factor=0.01)).load("room").views
    assert views[1].camera.intrinsics[0, 0] == 50
    assert (views[1].camera.height, views[1].camera.width) == (60, 80)
    assert views[1].depth is None
    assert views[0].camera.intrinsics[0, 0] == 5
    assert views[0].camera.distortion[0] == 0
    np.testing.assert_allclose(views[0].depth.read(), 10.0)


def test_three_row_poses(write_capture):
    rows = [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3]]
    view = Nerfstudio(write_capture(frames={0: {"transform_matrix": rows}})).load("room").views[0]
    np.testing.assert_allclose(view.camera.world_to_camera[:3, 3], [-1, 2, 3])


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE"),
        ({"camera_model": 7}, "camera model"),
        ({"file_path": ...}, "file_path"),
        ({"file_path": "images/0.jpg"}, "repeated"),
        ({"file_path": "../../escape.jpg"}, "leads out"),
        ({"file_path": "/etc/passwd"}, "relative"),
        ({"depth_file_path": "../../escape.png"}, "leads out"),
        ({"transform_matrix": ...}, "transform_matrix|numbers|matrix"),
        ({"transform_matrix": [[1, 2], [3, 4]]}, "matrix"),
        ({"transform_matrix": [["a"] * 4] * 4}, "numbers"),
        ({"fl_x": None}, "fl_x is missing"),
        ({"fl_x": "5"}, "fl_x is not a number"),
        ({"fl_x": 10**400}, "fl_x is not a number"),
        ({"cx": True}, "cx is not a number"),
        ({"w": 0}, "image size"),
        ({"w": 8.5}, "image size"),
        ({"h": 1e300}, "image size"),
        ({"k4": 0.1}, "k4"),
        ({"depth_unit_scale_factor": "mm"}, "depth_unit_scale_factor"),
    ],
)
def test_a_bad_frame_keeps_its_place_with_a_reason(write_capture, frame, reason):
    dataset = Nerfstudio(write_capture(frames={1: frame}))
    scene = dataset.load("room")
    assert [view.name for view in scene.views] == list(dataset.plan()[0].samples[0].views)
    good, bad, last = scene.views
    assert good.problem is None
    assert last.problem is None
    with pytest.raises(FrameError, match=reason):
        bad.image.read()
    assert re.search(reason, bad.problem)
    assert np.isnan(bad.camera.intrinsics).all()


@pytest.mark.parametrize("value", [math.nan, -math.inf, 0.0])
def test_impossible_poses_are_left_to_the_check(write_capture, value):
    view = Nerfstudio(write_capture(frames={0: {"transform_matrix": [[value] * 4] * 4}})).load("room").views[0]
    assert view.problem is None
    assert np.isnan(view.camera.world_to_camera).all()


def test_singular_intrinsics_are_left_to_the_check(write_capture):
    view = Nerfstudio(write_capture(fl_x=0)).load("room").views[0]
    assert view.problem is None
    assert view.camera.intrinsics[0, 0] == 0


def test_missing_images(write_capture):
    folder = write_capture()
    (folder / "images/1.jpg").unlink()
    (folder / "depths/2.png").unlink()
    views = Nerfstudio(folder).load("room").views
    for source in (views[1].image, views[2].depth):
        with pytest.raises(FrameError, match="missing"):
            source.read()


def test_float64_points_get_an_origin(write_capture, vertices):
    folder = write_capture(points=vertices([[4e5, 5.2e6, 10.25], [4e5, 5.2e6, 11.75]], dtype=np.float64))
    points = Nerfstudio(folder).load("room").points
    np.testing.assert_array_equal(points.origin, [4e5, 5.2e6, 11])
    np.testing.assert_allclose(points.coord[:, 2], [-0.75, 0.75])


def test_other_names_for_labels(write_capture, vertices):
    points = vertices([[0, 0, 0]], segment=np.array([3], np.int32), instance=np.array([9], np.int32))
    loaded = Nerfstudio(write_capture(points=points)).load("room").points
    assert loaded.segments["segment"].tolist() == [3]
    assert loaded.instance.tolist() == [9]


@pytest.mark.parametrize("key", ["label", "instance"])
def test_labels_must_be_integers(write_capture, vertices, key):
    folder = write_capture(points=vertices([[0, 0, 0]], **{key: np.array([0.5], np.float32)}))
    with pytest.raises(SampleError, match="integers"):
        Nerfstudio(folder).load("room")


def test_class_names(write_capture):
    folder = write_capture()
    assert Nerfstudio(folder).class_names == {}
    (folder / "classes.txt").write_text("background\nbox\n\n")
    assert Nerfstudio(folder).class_names == {"segment": ("background", "box")}
    (folder / "classes.txt").write_text("background\n")
    with pytest.raises(SampleError, match="label 1"):
        Nerfstudio(folder).load("room")


def test_splits(write_capture):
    lists = {"train_filenames": ["a"], "val_filenames": ["b", "c"], "test_filenames": "x"}
    write_capture("one")
    parent = write_capture("two", **lists).parent
    assert [block.samples[0].split for block in Nerfstudio(parent).plan()] == ["train", "val"]


def test_empty_cloud(write_capture, vertices):
    with pytest.raises(SampleError, match="no points"):
        Nerfstudio(write_capture(points=vertices([]))).load("room")


@pytest.mark.parametrize("path", [..., "../other.ply", "none.ply", 5])
def test_points_that_are_not_there(write_capture, path):
    folder = write_capture(ply_file_path=None if path is ... else path)
    (folder.parent / "other.ply").write_bytes((folder / "points.ply").read_bytes())
    with pytest.raises(SampleError):
        Nerfstudio(folder).load("room")


def test_truncated_points(write_capture):
    folder = write_capture()
    path = folder / "points.ply"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SampleError, match="truncated"):
        Nerfstudio(folder).load("room")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"frames": 5}', '{"frames": []}', '{"frames": [1]}'])
def test_one_broken_scene_does_not_stop_the_others(write_capture, text):
    write_capture("good")
    broken = write_capture("broken")
    (broken / "transforms.json").write_text(text)
    dataset = Nerfstudio(broken.parent)
    assert [(block.id, len(block.samples[0].views)) for block in dataset.plan()] == [("broken", 0), ("good", 3)]
    with pytest.raises(SampleError, match=r"transforms\.json"):
        dataset.load("broken")
    assert len(dataset.load("good").views) == 3
    with pytest.raises(DatasetError, match=r"transforms\.json"):
        Nerfstudio(broken).plan()


def test_no_capture(tmp_path):
    with pytest.raises(DatasetError, match=r"no transforms\.json"):
        Nerfstudio(tmp_path)
    assert Nerfstudio.evidence(tmp_path) is None
