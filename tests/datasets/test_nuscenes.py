# SPDX-License-Identifier: Apache-2.0
import json
import pickle
import shutil

import numpy as np
import pytest

from ditr_cache.datasets.nuscenes import NuScenes
from ditr_cache.datasets.nuscenes_labels import CLASSES, LIDARSEG_TO_16, split_of
from ditr_cache.errors import DatasetError, FrameError, SampleError

OFFICIAL_ORDER = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")


@pytest.fixture(scope="module")
def expected(test_data):
    return json.loads((test_data / "nuscenes/expected.json").read_text())


@pytest.fixture(scope="module")
def sample_id(expected):
    return f"{expected['scene_name']}/{expected['sample_token']}"


@pytest.fixture(scope="module")
def dataset(test_data):
    return NuScenes(test_data / "nuscenes")


@pytest.fixture
def copy(test_data, tmp_path):
    root = tmp_path / "nuscenes"
    shutil.copytree(test_data / "nuscenes", root, copy_function=shutil.copyfile)
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    return root


@pytest.fixture
def edit(copy):
    """Apply a function to every record of a table, or replace the whole document."""

    def function(table, change):
        path = copy / "v1.0-mini" / f"{table}.json"
        records = json.loads(path.read_text())
        changed = [change(record) for record in records] if callable(change) else change
        path.write_text(json.dumps([r for r in changed if r is not None] if isinstance(changed, list) else changed))

    return function


@pytest.mark.real_data
def test_plan(dataset, expected, sample_id):
    assert dataset.version == expected["versions"][0]
    (block,) = dataset.plan()
    (sample,) = block.samples
    assert (block.id, sample.id) == (expected["scene_name"], sample_id)
    assert sample.split == expected["split_of_scene"][dataset.version]
    assert sample.views == OFFICIAL_ORDER


@pytest.mark.real_data
def test_expected_facts(dataset, expected, sample_id, project, counts):
    scene = dataset.load(sample_id)
    points = scene.points
    assert len(points) == expected["n_points"]
    np.testing.assert_array_equal(points.coord[0], np.float32(expected["point0"][:3]))
    np.testing.assert_array_equal(points.coord[-1], np.float32(expected["point_last"][:3]))
    assert (points.strength[0], points.strength[-1]) == (expected["point0"][3], expected["point_last"][3])
    assert [points.strength.min(), points.strength.max()] == expected["intensity_min_max"]
    np.testing.assert_allclose(points.coord.mean(0, dtype=np.float64), expected["xyz_mean"], atol=1e-9)
    seen = np.zeros(len(points), bool)
    for view in scene.views:
        facts = expected["cameras"][view.name]
        assert (view.camera.width, view.camera.height) == (facts["width"], facts["height"])
        np.testing.assert_allclose(view.camera.intrinsics, facts["K"], rtol=1e-12)
        np.testing.assert_allclose(view.camera.world_to_camera, facts["T_cam_from_lidar"], atol=1e-6)
        assert view.image.path.name == facts["image"]
        u, v, z, inside = project(points, view.camera)
        assert abs(int(inside.sum()) - facts["n_in_frustum"]) <= facts["n_within_0p05px_of_border"]
        assert z[inside].mean() == pytest.approx(facts["depth_mean_in_frustum"], abs=0.02)
        i = facts["example"]["index"]
        assert (u[i], v[i], z[i]) == pytest.approx([facts["example"][key] for key in ("u", "v", "depth")], abs=5e-3)
        seen |= inside
    assert abs(int(seen.sum()) - expected["n_points_seen_by_any_camera"]) <= 3
    raw = expected["lidarseg"]["counts_in_file"]
    by_class = {}
    for label, number in raw.items():
        mapped = str(LIDARSEG_TO_16[int(label)])
        by_class[mapped] = by_class.get(mapped, 0) + number
    assert counts(points.segments["segment"]) == by_class


@pytest.mark.real_data
def test_label_map_follows_the_category_names(test_data):
    records = json.loads((test_data / "nuscenes/v1.0-mini/category.json").read_text())
    assert {record["index"] for record in records} == set(LIDARSEG_TO_16) == set(range(32))
    names = {record["name"]: CLASSES[LIDARSEG_TO_16[record["index"]]] for record in records} | {
        record["name"]: None for record in records if LIDARSEG_TO_16[record["index"]] < 0
    }
    assert names["vehicle.bus.bendy"] == names["vehicle.bus.rigid"] == "bus"
    assert names["human.pedestrian.police_officer"] == "pedestrian"
    assert names["movable_object.trafficcone"] == "traffic_cone"
    assert names["flat.driveable_surface"] == "driveable_surface"
    assert names["flat.other"] == "other_flat"
    assert [names[name] for name in ("noise", "animal", "static.other", "vehicle.ego")] == [None] * 4
    same = {
        "barrier",
        "bicycle",
        "car",
        "motorcycle",
        "trailer",
        "truck",
        "sidewalk",
        "terrain",
        "manmade",
        "vegetation",
    }
    assert {name.split(".")[-1] for name, mapped in names.items() if mapped == name.split(".")[-1]} >= same


def test_splits():
    scenes = [f"scene-{i:04d}" for i in range(1, 1111)]
    val = {scene for scene in scenes if split_of("v1.0-trainval", scene) == "val"}
    assert len(val) == 150
    assert {"scene-0003", "scene-0105", "scene-0221", "scene-0802", "scene-0931", "scene-1073"} <= val
    assert not {"scene-0001", "scene-0061", "scene-0918", "scene-1110"} & val
    assert [s for s in scenes if split_of("v1.0-mini", s) == "mini_val"] == ["scene-0103", "scene-0916"]
    assert split_of("v1.0-test", "scene-0077") == "test"


@pytest.mark.real_data
def test_versions(copy, sample_id):
    shutil.copytree(copy / "v1.0-mini", copy / "v1.0-trainval")
    with pytest.raises(DatasetError, match=r"several versions: v1\.0-mini, v1\.0-trainval"):
        NuScenes(copy)
    dataset = NuScenes(copy / "v1.0-trainval")
    assert (dataset.version, dataset.plan()[0].samples[0].split) == ("v1.0-trainval", "train")
    assert len(dataset.load(sample_id).points)


@pytest.mark.real_data
def test_a_loaded_reader_travels(dataset, sample_id):
    dataset.plan()
    assert len(pickle.loads(pickle.dumps(dataset)).load(sample_id).views) == 6


@pytest.mark.real_data
def test_sweeps_and_other_sensors_are_dropped(copy, edit, dataset):
    path = copy / "v1.0-mini/sample_data.json"
    records = json.loads(path.read_text())
    sweeps = [record | {"token": f"s{i}", "is_key_frame": False} for i, record in enumerate(records)]
    path.write_text(json.dumps(sweeps + records))
    assert NuScenes(copy).plan() == dataset.plan()


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("table", "change", "reason"),
    [
        (
            "sample_data",
            lambda r: r | {"filename": r["filename"].replace("samples/CAM_BACK/", "../CAM_BACK/")},
            "leads out",
        ),
        ("sample_data", lambda r: r | {"filename": 7} if "CAM_BACK/" in r["filename"] else r, "not a relative path"),
        (
            "sample_data",
            lambda r: r | {"ego_pose_token": "none"} if "CAM_BACK/" in r["filename"] else r,
            "no ego pose",
        ),
    ],
)
def test_one_bad_camera(copy, edit, sample_id, table, change, reason):
    edit(table, change)
    views = {view.name: view for view in NuScenes(copy).load(sample_id).views}
    assert reason in views["CAM_BACK"].problem
    assert [name for name, view in views.items() if view.problem] == ["CAM_BACK"]


@pytest.mark.real_data
def test_missing_images_and_cameras(copy, edit, sample_id):
    next(copy.glob("samples/CAM_FRONT/*")).unlink()
    edit("sample_data", lambda r: None if "CAM_BACK/" in r["filename"] else r)
    dataset = NuScenes(copy)
    views = dataset.load(sample_id).views
    assert tuple(view.name for view in views) == dataset.plan()[0].samples[0].views
    assert len(views) == 5
    with pytest.raises(FrameError, match="missing"):
        views[0].image.read()


@pytest.mark.real_data
def test_impossible_poses_are_left_to_the_check(copy, edit, sample_id):
    tokens = {}
    edit("sample_data", lambda r: tokens.setdefault(r["filename"].split("/")[1], r["ego_pose_token"]) and r)
    bad = {tokens["CAM_FRONT"]: {"rotation": [0, 0, 0, 0]}, tokens["CAM_BACK"]: {"translation": [float("inf"), 0, 0]}}
    edit("ego_pose", lambda r: r | bad.get(r["token"], {}))
    views = {view.name: view for view in NuScenes(copy).load(sample_id).views}
    assert all(view.problem is None for view in views.values())
    finite = {name for name, view in views.items() if np.isfinite(view.camera.world_to_camera).all()}
    assert finite == set(OFFICIAL_ORDER) - {"CAM_FRONT", "CAM_BACK"}


@pytest.mark.real_data
@pytest.mark.parametrize("cut", [1, 3])
def test_truncated_points_and_labels(copy, sample_id, cut):
    for pattern in ("samples/LIDAR_TOP/*.bin", "lidarseg/v1.0-mini/*.bin"):
        path = next(copy.glob(pattern))
        data = path.read_bytes()
        path.write_bytes(data[:-cut])
        with pytest.raises(SampleError):
            NuScenes(copy).load(sample_id)
        path.write_bytes(data)
    path.write_bytes(b"\x20" * len(data))
    with pytest.raises(SampleError, match="32"):
        NuScenes(copy).load(sample_id)
    path.unlink()
    with pytest.raises(SampleError, match="missing"):
        NuScenes(copy).load(sample_id)
    next(copy.glob("samples/LIDAR_TOP/*.bin")).write_bytes(b"")
    (copy / "v1.0-mini/lidarseg.json").unlink()
    with pytest.raises(SampleError, match="no points"):
        NuScenes(copy).load(sample_id)


@pytest.mark.real_data
def test_no_lidarseg(copy, sample_id):
    (copy / "v1.0-mini/lidarseg.json").unlink()
    assert not NuScenes(copy).load(sample_id).points.segments


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("scene", lambda r: r | {"name": "../escape"}),
        ("scene", lambda r: r | {"name": None}),
        ("sample", lambda r: r | {"token": "a/b"}),
        ("sample", lambda r: r | {"timestamp": "soon"}),
        ("sample", lambda r: r | {"scene_token": "none"}),
        ("sample_data", lambda r: {"token": "x"}),
        ("sample_data", lambda r: r | {"calibrated_sensor_token": {}}),
        ("calibrated_sensor", lambda r: r | {"rotation": [1, 0, 0]}),
        ("calibrated_sensor", lambda r: r | {"camera_intrinsic": "K"}),
        ("ego_pose", lambda r: r | {"translation": None}),
        ("ego_pose", {"a": 1}),
        ("sensor", 5),
        ("sensor", [5]),
    ],
)
def test_damaged_tables(copy, edit, table, change):
    edit(table, change)
    with pytest.raises(DatasetError):
        NuScenes(copy).plan()


@pytest.mark.real_data
def test_missing_tables(copy):
    (copy / "v1.0-mini/ego_pose.json").unlink()
    with pytest.raises(DatasetError, match=r"ego_pose\.json.*missing"):
        NuScenes(copy).plan()


def test_no_version(tmp_path):
    assert NuScenes.evidence(tmp_path) is None
    with pytest.raises(DatasetError, match="sample_data"):
        NuScenes(tmp_path)
