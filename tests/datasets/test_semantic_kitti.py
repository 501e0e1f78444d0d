# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from PIL import Image

from ditr_cache.datasets.semantic_kitti import CLASSES, LEARNING_MAP, SemanticKitti
from ditr_cache.errors import DatasetError, FrameError, SampleError

FRAMES = ["00/000000", "08/000000", "08/000001", "11/000000"]


@pytest.fixture(scope="module")
def expected(test_data):
    return json.loads((test_data / "semantickitti/expected.json").read_text())["sequences"]


@pytest.fixture(scope="module")
def dataset(test_data):
    return SemanticKitti(test_data / "semantickitti")


@pytest.fixture
def write(tmp_path):
    """A sequence of `scans` scans of two points with labels and 8 x 6 images."""

    def function(sequence="08", scans=1, images=None):
        folder = tmp_path / "kitti/dataset/sequences" / sequence
        images = folder if images is None else images / "dataset/sequences" / sequence
        for path in (folder / "velodyne", folder / "labels", images / "image_2"):
            path.mkdir(parents=True)
        (folder / "calib.txt").write_text("P2: 5 0 4 10 0 5 3 20 0 0 1 2\nTr: 1 0 0 0 0 1 0 0 0 0 1 0\n\n")
        for i in range(scans):
            np.array([[0, 0, 5, 0.5], [1, 1, 5, 0.25]], "<f4").tofile(folder / f"velodyne/{i:06d}.bin")
            np.array([10 | 3 << 16, 12345], "<u4").tofile(folder / f"labels/{i:06d}.label")
            Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(images / f"image_2/{i:06d}.png")
        return folder

    return function


@pytest.mark.real_data
def test_plan(dataset, expected):
    samples = [sample for block in dataset.plan() for sample in block.samples]
    assert [sample.id for sample in samples] == FRAMES
    assert [block.id for block in dataset.plan()] == ["00-000000", "08-000000", "11-000000"]
    for sample in samples:
        assert sample.split == expected[sample.id[:2]]["split_of_sequence"]
        assert sample.views == ("image_2",)


@pytest.mark.real_data
@pytest.mark.parametrize("sample_id", FRAMES)
def test_expected_facts(dataset, expected, sample_id, project, counts):
    sequence, scan = sample_id.split("/")
    facts = expected[sequence]["frames"][scan]
    scene = dataset.load(sample_id)
    points, (view,) = scene.points, scene.views
    assert len(points) == facts["n_points"]
    np.testing.assert_array_equal(points.coord[0], np.float32(facts["point0"][:3]))
    assert points.strength[0] == np.float32(facts["point0"][3])
    np.testing.assert_allclose([points.strength.min(), points.strength.max()], facts["remission_min_max"], atol=1e-7)
    assert (view.camera.width, view.camera.height) == (facts["width"], facts["height"])
    image = facts["image_2"]
    np.testing.assert_allclose(view.camera.intrinsics, image["K"], rtol=1e-9)
    if "T_cam2_from_velo" in image:
        np.testing.assert_allclose(view.camera.world_to_camera, image["T_cam2_from_velo"], atol=1e-9)
    u, v, z, inside = project(points, view.camera)
    assert abs(int(inside.sum()) - image["n_in_frustum"]) <= image["n_within_0p05px_of_border"]
    i = image["example"]["index"]
    assert (u[i], v[i], z[i]) == pytest.approx([image["example"][key] for key in ("u", "v", "depth")], abs=1e-4)
    if not expected[sequence]["has_labels"]:
        assert not points.segments
        assert points.instance is None
        return
    by_class = {}
    for label, number in facts["label"]["semantic_counts_in_file"].items():
        mapped = str(LEARNING_MAP[int(label)])
        by_class[mapped] = by_class.get(mapped, 0) + number
    assert counts(points.segments["segment"]) == by_class
    assert sorted(max(i, 0) for i in set(points.instance.tolist())) == facts["label"]["instance_ids"]


def test_small_scan(write):
    folder = write()
    scene = SemanticKitti(folder.parents[2]).load("08/000000")
    assert scene.points.segments["segment"].tolist() == [CLASSES.index("car"), -1]
    assert scene.points.instance.tolist() == [3, -1]
    assert scene.points.strength.tolist() == [0.5, 0.25]
    # K^-1 (10, 20, 2) with K = ((5, 0, 4), (0, 5, 3), (0, 0, 1))
    np.testing.assert_allclose(scene.views[0].camera.world_to_camera[:3, 3], [0.4, 2.8, 2])


def test_blocks_of_fifty(write):
    blocks = SemanticKitti(write("03", scans=101).parents[2]).plan()
    assert [(block.id, len(block.samples)) for block in blocks] == [
        ("03-000000", 50),
        ("03-000050", 50),
        ("03-000100", 1),
    ]


def test_official_tables():
    assert len(CLASSES) == len(set(CLASSES)) == 19
    assert len(LEARNING_MAP) == 34
    names = {raw: CLASSES[label] for raw, label in LEARNING_MAP.items() if label >= 0}
    assert {raw for raw in LEARNING_MAP if raw not in names} == {0, 1, 52, 99}
    assert (names[10], names[252], names[13], names[60], names[81]) == (
        "car",
        "car",
        "other-vehicle",
        "road",
        "traffic-sign",
    )


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_images_below_a_second_root(write, tmp_path, depth):
    images = tmp_path / "kitti_color"
    folder = write(images=images)
    source = [folder.parents[2], folder.parents[1], folder.parents[0]][depth]
    (view,) = SemanticKitti(source).load("08/000000").views
    assert view.problem is None
    assert view.image.path.is_relative_to(images)


def test_missing_and_damaged_images(write):
    folder = write(scans=2)
    (folder / "image_2/000000.png").unlink()
    (folder / "image_2/000001.png").write_bytes(b"nonsense")
    dataset = SemanticKitti(folder.parents[2])
    for sample_id, reason in (("08/000000", "missing"), ("08/000001", "header")):
        (view,) = dataset.load(sample_id).views
        assert reason in view.problem
    with pytest.raises(FrameError):
        dataset.load("08/000000").views[0].image.read()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("velodyne/000000.bin", b"\0" * 31),
        ("velodyne/000000.bin", b""),
        ("velodyne/000000.bin", np.full((2, 4), np.nan, "<f4").tobytes()),
        ("labels/000000.label", b"\0" * 7),
        ("labels/000000.label", b"\0" * 4),
        ("labels/000000.label", None),
        ("calib.txt", b"P2: 1 2 3\nTr: 1 0 0 0 0 1 0 0 0 0 1 0"),
        ("calib.txt", b"P2: 1 0 0 0 0 1 0 0 0 0 1 zero\nTr: 1 0 0 0 0 1 0 0 0 0 1 0"),
        ("calib.txt", b"P0: 1 0 0 0 0 1 0 0 0 0 1 0\n"),
        ("calib.txt", b"\xff\xfe"),
        ("calib.txt", None),
    ],
)
def test_damaged_scans(write, name, content):
    folder = write()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(SampleError):
        SemanticKitti(folder.parents[2]).load("08/000000")


@pytest.mark.parametrize("projection", ["0 0 0 1 0 0 0 1 0 0 1 1", "5 0 4 inf 0 5 3 20 0 0 1 2", "nan " * 12])
def test_singular_calibration_is_left_to_the_check(write, projection):
    folder = write()
    (folder / "calib.txt").write_text(f"P2: {projection}\nTr: 1 0 0 0 0 1 0 0 0 0 1 0\n")
    (view,) = SemanticKitti(folder.parents[2]).load("08/000000").views
    assert view.problem is None
    assert not np.isfinite(view.camera.world_to_camera).all()


def test_no_sequences(tmp_path):
    assert SemanticKitti.evidence(tmp_path) is None
    with pytest.raises(DatasetError, match="sequences"):
        SemanticKitti(tmp_path)
