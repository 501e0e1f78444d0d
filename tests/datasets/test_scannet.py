# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest

from ditr_cache.datasets.scannet import ScanNet
from ditr_cache.datasets.scannet_labels import CLASSES_20, CLASSES_200, RAW_TO_200
from ditr_cache.errors import DatasetError, FrameError, SampleError

SCENE = "scene9000_00"
# raw categories of the sample's annotation, with their ids in ScanNet's own table
TABLE = "id\traw_category\tcategory\n1\twall\twall\n3\tfloor\tfloor\n4\ttable\ttable\n1163\tobject\tobject\n"


@pytest.fixture(scope="module")
def expected(test_data):
    return json.loads((test_data / "scannet/scans" / SCENE / "expected.json").read_text())


@pytest.fixture(scope="module")
def raw(test_data):
    return ScanNet(test_data / "scannet")


@pytest.fixture(scope="module")
def prepared(test_data):
    return ScanNet(test_data / "scannet_pointcept")


@pytest.fixture
def copy(test_data, tmp_path):
    """Writable copies of the three folders."""
    for name in ("scannet", "scannet_pointcept", "scannet_images"):
        shutil.copytree(test_data / name, tmp_path / name, copy_function=shutil.copyfile)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    return tmp_path


@pytest.mark.real_data
def test_raw_facts(raw, expected, project, counts):
    assert (raw.version, raw.preset) == ("sens", "scannet_sens")
    scene = raw.load(SCENE)
    points = scene.points
    assert len(points) == expected["n_points"]
    np.testing.assert_array_equal(points.coord[0], np.float32(expected["point0_xyz"]))
    np.testing.assert_array_equal(points.color[0], expected["point0_rgb"])
    np.testing.assert_allclose(points.coord.min(0), expected["xyz_min"], atol=1e-6)
    np.testing.assert_allclose(points.coord.max(0), expected["xyz_max"], atol=1e-6)
    assert counts(points.segments["segment20"]) == expected["segment20_counts"]
    assert len(set(points.instance.tolist()) - {-1}) == expected["n_instances"]
    assert set(points.segments) == {"segment20"}
    assert set(raw.class_names) == set(raw.label_maps) == {"segment20"}
    for view, frame in zip(scene.views, expected["frames"], strict=True):
        found = int(project(points, view.camera)[3].sum())
        assert abs(found - frame["n_in_frustum"]) <= frame["n_within_0p05px_of_border"]


@pytest.mark.real_data
def test_prepared_facts(prepared, expected, project, counts):
    assert (prepared.version, prepared.preset, prepared.label_maps) == ("pointcept", "scannet", {})
    scene = prepared.load(SCENE)
    points = scene.points
    assert len(points) == expected["n_points"]
    np.testing.assert_array_equal(points.coord[0], np.float32(expected["point0_xyz"]))
    assert counts(points.segments["segment20"]) == expected["segment20_counts"]
    assert counts(points.segments["segment200"]) == expected["segment200_counts"]
    assert len(set(points.instance.tolist()) - {-1}) == expected["n_instances"]
    np.testing.assert_allclose(np.linalg.norm(points.normal, axis=1), 1, atol=1e-4)
    assert [view.name for view in scene.views] == [str(10 * frame["sens_index"]) for frame in expected["frames"]]
    for view, frame in zip(scene.views, expected["frames"], strict=True):
        camera = view.camera
        np.testing.assert_allclose(camera.intrinsics, expected["scannet_images"]["K"], atol=1e-6)
        assert (camera.width, camera.height) == tuple(expected["scannet_images"]["size_wh"])
        u, v, z, inside = project(points, camera)
        # poses are text with six digits here
        assert abs(int(inside.sum()) - frame["n_in_frustum"]) <= frame["n_within_0p05px_of_border"] + 1
        depth = view.depth.read()[v[inside].astype(int), u[inside].astype(int)]
        near = np.abs(z[inside] - depth)
        in_range = (z[inside] > 1) & (z[inside] < 4)
        seen = int((in_range & (near <= 0.2) & (depth > 0)).sum())
        assert abs(seen - frame["n_visible_depth_0p2m_range_1_4m_at_560x420"]) <= 5
        tight = int(((near <= 0.05) & (depth > 0)).sum())
        assert abs(tight - frame["n_visible_depth_0p05m_at_560x420"]) <= 5


@pytest.mark.real_data
def test_both_arrangements_hold_the_same_points(raw, prepared):
    ours, theirs = raw.load(SCENE).points, prepared.load(SCENE).points
    np.testing.assert_array_equal(ours.coord, theirs.coord)
    np.testing.assert_array_equal(ours.color, theirs.color)
    np.testing.assert_array_equal(ours.segments["segment20"], theirs.segments["segment20"])
    np.testing.assert_array_equal(ours.instance, theirs.instance)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("source", "version", "split"),
    [
        ("", "pointcept", "val"),
        ("scannet_pointcept", "pointcept", "val"),
        ("scannet_images", "pointcept", "val"),
        ("scannet", "sens", "train"),
        ("scannet/scans", "sens", "train"),
        (f"scannet/scans/{SCENE}", "sens", "train"),
    ],
)
def test_where_it_may_be_pointed_at(test_data, source, version, split):
    dataset = ScanNet(test_data / source)
    assert dataset.version == version
    (block,) = dataset.plan()
    assert (block.id, block.samples[0].split, len(block.samples[0].views)) == (SCENE, split, 46)


@pytest.mark.real_data
def test_200_classes_need_the_table(copy, expected, counts, prepared):
    (copy / "scannet/scannetv2-labels.combined.tsv").write_text(TABLE)
    dataset = ScanNet(copy / "scannet/scans")
    points = dataset.load(SCENE).points
    assert counts(points.segments["segment200"]) == expected["segment200_counts"]
    np.testing.assert_array_equal(points.segments["segment200"], prepared.load(SCENE).points.segments["segment200"])
    assert set(dataset.class_names) == {"segment20", "segment200"}
    (copy / "scannet/scannetv2-labels.combined.tsv").write_text("nonsense\n1\n")
    with pytest.raises(DatasetError, match="combined"):
        ScanNet(copy / "scannet/scans")


@pytest.mark.real_data
def test_exported_frames_beside_a_mesh(copy, raw):
    folder = copy / "scannet/scans" / SCENE
    for name in ("color", "depth", "pose", "intrinsic"):
        shutil.move(copy / "scannet_images" / SCENE / name, folder / name)
    assert ScanNet(copy / "scannet").version == "sens"
    (folder / f"{SCENE}.sens").unlink()
    dataset = ScanNet(copy / "scannet")
    assert (dataset.version, dataset.preset) == ("exported", "scannet")
    scene = dataset.load(SCENE)
    np.testing.assert_array_equal(scene.points.coord, raw.load(SCENE).points.coord)
    assert [view.name for view in scene.views][:3] == ["0", "10", "20"]


@pytest.mark.real_data
def test_split_lists(copy):
    (copy / "scannet/scannetv2_val.txt").write_text(f"scene0000_00\n{SCENE}\n")
    assert ScanNet(copy / "scannet").plan()[0].samples[0].split == "val"
    shutil.move(copy / "scannet/scans", copy / "scannet/scans_test")
    (copy / "scannet/scannetv2_val.txt").unlink()
    assert ScanNet(copy / "scannet").plan()[0].samples[0].split == "test"


@pytest.mark.real_data
def test_frames_with_a_problem(copy):
    folder = copy / "scannet_images" / SCENE
    (folder / "pose/10.txt").write_text("1 2 three")
    (folder / "pose/20.txt").unlink()
    (folder / "pose/30.txt").write_text("-inf " * 16)
    (folder / "pose/40.txt").write_text("1 " * 15)
    (folder / "color/50.jpg").unlink()
    (folder / "depth/60.png").unlink()
    (folder / "color/0.jpg").write_bytes(b"damaged")
    (folder / "color/Thumbs.db").touch()
    dataset = ScanNet(copy / "scannet_pointcept")
    views = {view.name: view for view in dataset.load(SCENE).views}
    assert tuple(views) == dataset.plan()[0].samples[0].views
    assert len(views) == 45
    assert {name for name, view in views.items() if view.problem} == {"10", "20", "40"}
    assert "not a number" in views["10"].problem
    assert "missing" in views["20"].problem
    assert "found 15" in views["40"].problem
    assert np.isnan(views["30"].camera.world_to_camera).all()
    assert views["30"].camera.width == 560
    with pytest.raises(FrameError, match="missing"):
        views["60"].depth.read()
    (folder / "intrinsic/intrinsic_color.txt").unlink()
    with pytest.raises(SampleError, match="intrinsic_color"):
        dataset.load(SCENE)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["coord", "color", "normal", "segment20", "segment200", "instance"])
def test_arrays_that_do_not_fit(copy, name):
    path = copy / "scannet_pointcept/val" / SCENE / f"{name}.npy"
    dataset = ScanNet(copy / "scannet_pointcept")
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    with pytest.raises(SampleError, match=name):
        dataset.load(SCENE)
    np.save(path, np.zeros((29_999, 3), np.uint8) if name in {"coord", "color", "normal"} else np.zeros(29_999, int))
    with pytest.raises(SampleError):
        dataset.load(SCENE)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "suffix", ["_vh_clean_2.ply", "_vh_clean_2.labels.ply", ".aggregation.json", "_vh_clean_2.0.010000.segs.json"]
)
def test_truncated_raw_files(copy, suffix):
    path = copy / "scannet/scans" / SCENE / f"{SCENE}{suffix}"
    dataset = ScanNet(copy / "scannet")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 8])
    with pytest.raises(SampleError):
        dataset.load(SCENE)


@pytest.mark.real_data
def test_unlabelled_scan(copy):
    folder = copy / "scannet/scans" / SCENE
    for suffix in ("_vh_clean_2.labels.ply", ".aggregation.json"):
        (folder / f"{SCENE}{suffix}").unlink()
    points = ScanNet(copy / "scannet").load(SCENE).points
    assert not points.segments
    assert points.instance is None


@pytest.mark.real_data
def test_annotation_with_impossible_objects(copy):
    path = copy / "scannet/scans" / SCENE / f"{SCENE}.aggregation.json"
    for objects in ([{"objectId": 2**40, "label": "wall", "segments": [0]}], [{"objectId": 0}], 5, None):
        path.write_text(json.dumps({"segGroups": objects}))
        with pytest.raises(SampleError, match="aggregation"):
            ScanNet(copy / "scannet").load(SCENE)


@pytest.mark.real_data
def test_unreadable_recording_is_planned_and_fails_when_loaded(copy):
    path = copy / "scannet/scans" / SCENE / f"{SCENE}.sens"
    path.write_bytes(path.read_bytes()[:100])
    dataset = ScanNet(copy / "scannet")
    assert dataset.plan()[0].samples[0].views == ()
    with pytest.raises(SampleError, match="incomplete"):
        dataset.load(SCENE)


@pytest.mark.real_data
def test_points_without_frames(copy):
    shutil.rmtree(copy / "scannet_images")
    dataset = ScanNet(copy / "scannet_pointcept")
    assert dataset.plan()[0].samples[0].views == ()
    with pytest.raises(SampleError, match="no exported frames"):
        dataset.load(SCENE)


@pytest.mark.real_data
def test_a_scene_in_two_splits(copy):
    shutil.copytree(copy / "scannet_pointcept/val", copy / "scannet_pointcept/train")
    with pytest.raises(DatasetError, match="twice"):
        ScanNet(copy / "scannet_pointcept")


def test_label_tables():
    assert len(CLASSES_20) == 20
    assert len(CLASSES_200) == len(RAW_TO_200) == len(set(CLASSES_200)) == 200
    pairs = {1: "wall", 2: "chair", 3: "floor", 4: "table", 1163: "object", 1191: "mattress"}
    assert {raw: CLASSES_200[RAW_TO_200[raw]] for raw in pairs} == pairs


def test_no_scenes(tmp_path):
    assert ScanNet.evidence(tmp_path) is None
    with pytest.raises(DatasetError, match="no ScanNet scenes"):
        ScanNet(tmp_path)
