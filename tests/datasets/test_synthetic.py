# SPDX-License-Identifier: Apache-2.0
"""Generated rooms: the same every time, consistent with their images, and honest about what tells classes apart."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditr_cache.datasets import synthetic
from ditr_cache.datasets.rooms import STYLES, RoomKey, build_room, camera_poses, label_map
from ditr_cache.datasets.rooms.cast import cast
from ditr_cache.datasets.rooms.materials import material
from ditr_cache.datasets.rooms.solids import enter, spread, surface
from ditr_cache.datasets.rooms.textures import PATTERNS, TWO_TONE
from ditr_cache.datasets.synthetic import SyntheticRooms
from ditr_cache.errors import DatasetError, SampleError
from ditr_cache.testing.readers import ReaderTests

ROOMS = [RoomKey(3, style, index) for style in STYLES for index in range(6)]


class TestStyleA(ReaderTests):
    @pytest.fixture
    def dataset(self):
        return SyntheticRooms("synthetic:rooms=2,views=3")


class TestStyleB(ReaderTests):
    @pytest.fixture
    def dataset(self):
        return SyntheticRooms("synthetic:rooms=1,views=2,style=b,val=1")


@pytest.fixture(scope="module", params=["a", "b"])
def dataset(request):
    return SyntheticRooms(f"synthetic:rooms=3,views=4,style={request.param}")


@pytest.fixture(scope="module")
def scene(dataset):
    return dataset.load(dataset.plan()[1].id)


def test_defaults():
    blocks = SyntheticRooms("synthetic:").plan()
    assert [block.id for block in blocks[:2]] == ["room-a-0000-0000", "room-a-0000-0001"]
    assert [block.samples[0].split for block in blocks] == ["train"] * 6 + ["val"] * 2
    assert len(blocks[0].samples[0].views) == 12


@pytest.mark.parametrize("rooms", range(1, 12))
def test_a_quarter_is_for_validation(rooms):
    splits = [block.samples[0].split for block in SyntheticRooms(f"synthetic:rooms={rooms}").plan()]
    assert splits.count("val") == max(rooms // 4, int(rooms > 1))
    assert splits == sorted(splits)


@pytest.mark.parametrize(
    "settings",
    [
        "rooms=0", "rooms=-1", "rooms=99999999999999999999", "rooms=1e3", "rooms=", "rooms", "rooms=²", "style=c",
        "style=", "seed=1.5", "seed=10000", "val=9", "rooms=4,val=5", "rooms=2,rooms=2", "size=3", "=1", "views=0",
        "../x",
    ],
)  # fmt: skip
def test_bad_settings_are_explained(settings):
    with pytest.raises(DatasetError, match="For example: synthetic:") as caught:
        SyntheticRooms(f"synthetic:{settings}")
    assert caught.value.where == f"synthetic:{settings}"


@pytest.mark.parametrize("source", ["", "rooms=3", "/data/synthetic:", "synthetics:"])
def test_other_sources_are_refused(source):
    with pytest.raises(DatasetError, match="starts with"):
        SyntheticRooms(source)


@given(st.integers(1, 9999), st.integers(1, 999), st.integers(0, 9999), st.sampled_from("ab"), st.data())
def test_version_names_every_parameter(rooms, views, seed, style, data):
    val = data.draw(st.integers(0, rooms))
    items = [f"rooms={rooms}", f"views={views}", f"seed={seed}", f"style={style}", f"val={val}"]
    shuffled = data.draw(st.permutations(items))
    version = SyntheticRooms("synthetic:" + ",".join(shuffled)).version
    assert version == ",".join(items) + f",generator={synthetic.GENERATOR}"
    assert SyntheticRooms("synthetic:" + version.rpartition(",")[0]).version == version


@given(st.text(max_size=30))
def test_any_text_is_a_source_or_an_error(text):
    try:
        assert SyntheticRooms(f"synthetic:{text}").version
    except DatasetError as error:
        hint = error.hint
        assert hint


@pytest.mark.parametrize("sample", ["room-a-0000-0003", "room-b-0000-0000", "room-a-0001-0000", "room-a-0000-000"])
def test_rooms_of_other_sources_are_not_found(sample):
    with pytest.raises(SampleError, match="no such room"):
        SyntheticRooms("synthetic:rooms=3").load(sample)


def content(scene):
    points = scene.points
    views = [(v.camera.intrinsics, v.camera.world_to_camera, v.image.read(), v.depth.read()) for v in scene.views]
    cloud = (points.coord, points.color, points.normal, points.segments["segment"], points.instance)
    return [array.tobytes() for array in (*cloud, *(array for view in views for array in view))]


def test_two_loads_are_bit_equal(dataset, scene):
    before = content(scene)
    copy = pickle.loads(pickle.dumps(dataset))
    synthetic._rendered.cache_clear()
    synthetic._furnished.cache_clear()
    assert content(copy.load(scene.id)) == before


def test_threads_render_the_same(scene):
    expected = [view.depth.read() for view in scene.views]
    synthetic._rendered.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda view: view.depth.read(), scene.views * 2))
    assert all(np.array_equal(a, b) for a, b in zip(expected * 2, found, strict=True))


def test_what_is_read_may_be_written_to(scene):
    image = scene.views[0].image.read()
    before = image.copy()
    image[:] = 0
    assert np.array_equal(scene.views[0].image.read(), before)


def test_a_room_does_not_depend_on_how_many_there_are():
    few, many = (SyntheticRooms(f"synthetic:rooms={n},views=2") for n in (2, 40))
    assert content(few.load("room-a-0000-0001")) == content(many.load("room-a-0000-0001"))


def test_seed_style_and_index_change_the_room():
    clouds = [
        SyntheticRooms("synthetic:rooms=2").load("room-a-0000-0000"),
        SyntheticRooms("synthetic:rooms=2").load("room-a-0000-0001"),
        SyntheticRooms("synthetic:rooms=2,seed=1").load("room-a-0001-0000"),
        SyntheticRooms("synthetic:rooms=2,style=b").load("room-b-0000-0000"),
    ]
    assert len({scene.points.coord.tobytes() for scene in clouds}) == len(clouds)


def test_families_partition_the_classes(dataset):
    names = dataset.class_names["segment"]
    assert 12 <= len(names) <= 16
    assert list(dataset.families) == ["structure", "shape", "texture", "typical"]
    assert [name for family in dataset.families.values() for name in family] == list(names)


def test_styles_are_two_data_sets():
    a, b = (set(STYLES[style].class_names) for style in "ab")
    assert {"floor", "wall", "ball", "table"} == a & b
    assert STYLES["a"].families["typical"]["table"].patterns != STYLES["b"].families["typical"]["table"].patterns
    assert not set(STYLES["a"].families["texture"]) & set(STYLES["b"].families["texture"])


def test_points_are_a_scan(dataset, scene):
    points = scene.points
    assert 20_000 <= len(points) <= 80_000
    assert (points.origin == 0).all()
    np.testing.assert_allclose(np.linalg.norm(points.normal, axis=1), 1, atol=1e-5)
    labels = points.segments["segment"]
    structure = labels < 2
    assert ((points.instance < 0) == structure).all()
    for instance in np.unique(points.instance[~structure]):
        assert len(np.unique(labels[points.instance == instance])) == 1
    # about 2 to 2.5 cm apart: so many points a square metre of floor
    middle = points.coord[(labels == 0)]
    cells = np.unique(np.floor(middle[:, :2] / 0.1).astype(int), axis=0, return_counts=True)[1]
    assert 14 <= np.median(cells) <= 25


def test_normals_face_the_room(scene):
    points = scene.points
    labels = points.segments["segment"]
    assert (points.normal[labels == 0] == [0, 0, 1]).all()
    middle = points.coord[labels < 2].mean(0)
    wall = labels == 1
    assert (((middle - points.coord[wall]) * points.normal[wall]).sum(1) > 0).all()
    # nothing is seen from inside: from every point, some camera lies on the side of its normal
    eyes = np.array([-v.camera.world_to_camera[:3, :3].T @ v.camera.world_to_camera[:3, 3] for v in scene.views])
    facing = np.einsum("vnc,nc->vn", eyes[:, None] - points.coord, points.normal) > 0
    for view, faces in zip(scene.views, facing, strict=True):
        z, depth, inside = seen(points.coord, view)
        visible = inside & (np.abs(z - depth) < 0.004)
        assert faces[visible].mean() > 0.99


def seen(coord, view):
    """Depth of points, of the depth map where they project, and whether they project into the image."""
    camera = view.camera
    xyz = coord @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
    uvw = xyz @ camera.intrinsics.T
    u, v = uvw[:, 0] / uvw[:, 2], uvw[:, 1] / uvw[:, 2]
    inside = (xyz[:, 2] > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    depth = np.zeros(len(coord), np.float32)
    depth[inside] = view.depth.read()[v[inside].astype(int), u[inside].astype(int)]
    return xyz[:, 2], depth, inside


def test_depth_agrees_with_points(dataset, scene):
    index = [block.id for block in dataset.plan()].index(scene.id)
    key = RoomKey(0, scene.id[5], index)
    room = build_room(key)
    for view, pose in zip(scene.views, camera_poses(room, key, len(scene.views)), strict=True):
        points = scene.points
        z, depth, inside = seen(points.coord, view)
        close = inside & (np.abs(z - depth) <= 0.05)
        assert close.sum() > 1500
        xyz = ((points.coord[close] - pose.position) @ pose.rotation).astype(np.float32)
        exact = cast(room, pose, xyz[:, 0] / xyz[:, 2], xyz[:, 1] / xyz[:, 2])
        things = np.array([*(solid.instance for solid in room.solids), -1])[exact.solid]
        assert (things == points.instance[close]).mean() >= 0.99
        # thin boards have their far side within the margin as well: of the near side, the very place is hit
        sight = points.coord[close] - pose.position
        cosine = (sight * points.normal[close]).sum(1) / xyz[:, 2]
        off_surface = np.abs(exact.depth - xyz[:, 2]) * np.abs(cosine)
        assert (off_surface[cosine < 0] < 0.01).mean() >= 0.98


def test_labels_agree_with_images(dataset, scene):
    index = [block.id for block in dataset.plan()].index(scene.id)
    key = RoomKey(0, scene.id[5], index)
    room = build_room(key)
    for view, pose in zip(scene.views, camera_poses(room, key, len(scene.views)), strict=True):
        z, depth, inside = seen(scene.points.coord, view)
        close = np.flatnonzero(inside & (np.abs(z - depth) <= 0.01))
        uv = scene.points.coord[close] @ view.camera.world_to_camera[:3, :3].T + view.camera.world_to_camera[:3, 3]
        uv = uv @ view.camera.intrinsics.T
        column, row = (uv[:, :2] / uv[:, 2:]).astype(int).T
        labels = label_map(room, pose)
        assert (labels[row, column] == scene.points.segments["segment"][close]).mean() > 0.97


@pytest.mark.parametrize("key", ROOMS)
def test_things_stand_in_the_room_apart_from_each_other(key):
    room = build_room(key)
    corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
    things = {}
    for solid in room.solids:
        world = (corners * solid.half) @ solid.axes.T + solid.center
        assert (world > -1e-5).all()
        assert (world < room.size + 1e-5).all()
        grid = spread(solid.kind, solid.half, 0.05, np.random.default_rng(0))
        things.setdefault(solid.instance, []).append((solid, (grid * solid.half) @ solid.axes.T + solid.center))
    assert len(things) >= 6
    for instance, solids in things.items():
        for solid, points in solids:
            inside = [other.contains(points, -1e-3).any() for other in room.solids if other.instance != instance]
            assert not any(inside), solid


@pytest.mark.parametrize("key", ROOMS)
def test_cameras_are_at_eye_height_and_clear_of_everything(key):
    room = build_room(key)
    for pose in camera_poses(room, key, 12):
        assert 1.3 < pose.position[2] < 1.7
        assert (pose.position > 0.1).all()
        assert (pose.position < room.size - 0.1).all()
        assert not any(solid.contains(pose.position[None].astype(np.float32), 0.2)[0] for solid in room.solids)
        np.testing.assert_allclose(pose.rotation.T @ pose.rotation, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose.rotation) == pytest.approx(1)


def test_every_class_occurs():
    for style, spec in STYLES.items():
        rooms = [build_room(RoomKey(0, style, index)) for index in range(8)]
        assert {solid.label for room in rooms for solid in room.solids} == set(range(2, len(spec.class_names)))


@pytest.mark.parametrize("kind", ["box", "cylinder", "ball", "cone"])
def test_rays_meet_the_surface_that_points_are_spread_on(kind):
    rng = np.random.default_rng(0)
    half = np.array([0.3, 0.3, 0.5], np.float32)
    unit = spread(kind, half, 0.02, rng)
    normal, uv = surface(kind, half, unit)
    assert uv.shape == (len(unit), 2)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-5)
    eye = np.array([3, -4, 2.5], np.float32)
    # towards the eye in metres, not in unit coordinates
    cosine = ((eye * half - unit * half) * normal).sum(1)
    t = enter(kind, eye, tuple((unit - eye).T))
    assert np.abs(t[cosine > 0.02] - 1).max() < 1e-3
    assert (t[cosine < -0.02] < 1).mean() > 0.999  # a ray may slip past a rim


@pytest.mark.parametrize("name", TWO_TONE)
def test_two_tone_patterns_halve_the_area(name):
    uv = np.random.default_rng(0).uniform(0, 96, (2, 400_000)).astype(np.float32)
    value = PATTERNS[name](*uv)
    assert set(np.unique(value)) == {0, 1}
    assert value.mean() == pytest.approx(0.5, abs=0.004)


def nearest_neighbour_accuracy(features, labels, k=9):
    features = (features - features.mean(0)) / features.std(0)
    distance = ((features[:, None] - features[None]) ** 2).sum(2)
    np.fill_diagonal(distance, np.inf)
    votes = labels[np.argsort(distance, axis=1)[:, :k]]
    guess = np.array([np.bincount(v).argmax() for v in votes])
    return (guess == labels).mean()


def test_color_does_not_tell_texture_classes_apart():
    rng = np.random.default_rng(0)
    half = np.array([0.4, 0.06, 0.5], np.float32)
    features, labels = [], []
    for _ in range(100):
        for label, name in enumerate(TWO_TONE):
            _, uv = surface("box", half, spread("box", half, 0.03, rng))
            color = material(name, rng).color(uv)
            features.append([*color.mean(0), *color.std(0)])
            labels.append(label)
    accuracy = nearest_neighbour_accuracy(np.array(features), np.array(labels))
    assert accuracy < 1 / len(TWO_TONE) + 0.05


def test_far_patterns_fade_instead_of_aliasing():
    texture = material("stripes", np.random.default_rng(0))
    uv = np.random.default_rng(1).uniform(0, 1, (5000, 2)).astype(np.float32)
    spreads = [
        texture.color(uv, np.full(len(uv), footprint, np.float32)).std() for footprint in (0.001, 0.02, 0.03, 0.05)
    ]
    gray = np.abs(texture.high - texture.low).max()
    assert spreads[0] > spreads[1] > spreads[3]
    assert np.ptp(texture.color(uv, np.full(len(uv), 0.05, np.float32)), axis=0).max() < 0.01 * gray + 1e-6
