# SPDX-License-Identifier: Apache-2.0
"""Some scenes only, and the labels of some points only."""

import pickle

import numpy as np
import pytest
from data_world import config, dataset, make_store

from ditr_cache.errors import ConfigError
from ditr_cache.training.dataset import FeatureStoreDataset
from ditr_cache.training.limited import ListedPoints, limit_scenes
from ditr_cache.training.sampler import Draw

SAMPLES = ("scene0000_00", "scene0000_01", "08/000000", "08/000001", "09/000000")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("limited") / "store")


def write_scenes(tmp_path, *lines):
    path = tmp_path / "scenes.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_points(tmp_path, **lists):
    """`b0` stands for `b0/s0`."""
    path = tmp_path / "points.npz"
    np.savez(path, **{f"{name}/s0": np.array(points, np.int64) for name, points in lists.items()})
    return path


def test_scenes_keep_the_order_of_the_store(tmp_path):
    path = write_scenes(tmp_path, "08/000001 ", "", "scene0000_00")
    assert limit_scenes(SAMPLES, path) == ("scene0000_00", "08/000001")
    assert limit_scenes(SAMPLES, write_scenes(tmp_path, "08")) == ("08/000000", "08/000001")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["scene0000_00", "scene9999_00"], r"names scene9999_00, and no training sample is called so"),
        (["a", "b", "c", "d", "e"], r"names a, b, c and 2 more, and no training sample"),
        ([""], "names no scene"),
    ],
)
def test_scenes_that_are_not_there(lines, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        limit_scenes(SAMPLES, write_scenes(tmp_path, *lines))


def test_scenes_in_no_text_file(tmp_path):
    with pytest.raises(ConfigError, match="nowhere is no readable text file"):
        limit_scenes(SAMPLES, tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="binary is no readable text file"):
        limit_scenes(SAMPLES, tmp_path / "binary")


def test_all_labels_but_those_of_listed_points_are_unknown(store, tmp_path):
    listed = {"b0": [5, 17, 5, 399], "b1": []}
    ids = [f"{name}/s0" for name in listed]
    limits = ListedPoints.read(write_points(tmp_path, b4=[0], **listed), store, ids)
    data = pickle.loads(
        pickle.dumps(FeatureStoreDataset(store, ids, config(), "train", transforms=(), annotations=limits))
    )
    plain = dataset(store, transforms=())
    for name, points in zip(ids, listed.values(), strict=True):
        limited, every = data[Draw(0, 0, name)].sample, plain[Draw(0, 0, name)].sample
        assert every.listed is None
        expected = np.full(len(every), -1)
        expected[points] = every.segment[points]
        np.testing.assert_array_equal(limited.segment, expected)
        assert limited.segment.dtype == every.segment.dtype
        np.testing.assert_array_equal(np.flatnonzero(limited.listed), np.unique(points))


def test_transforms_carry_them_and_do_not_thin_them_out(store, tmp_path):
    points = list(range(0, 400, 40))
    limits = ListedPoints.read(write_points(tmp_path, b0=points), store, ["b0/s0"])
    settings = config(train=[t for t in config().train if t.kind != "sphere_crop"])
    limited = FeatureStoreDataset(store, ["b0/s0"], settings, "train", annotations=limits)
    labels = dataset(store, transforms=())[Draw(0, 0, "b0/s0")].sample.segment
    seen = set()
    for epoch in range(20):
        sample = limited[Draw(epoch, 0, "b0/s0")].sample
        kept = sample.point[sample.listed]
        np.testing.assert_array_equal(sample.segment[sample.listed], labels[kept])
        assert (sample.segment[~sample.listed] == -1).all()
        seen.update(kept.tolist())
        # all but those that share a voxel with another listed one
        assert len(kept) >= 8
    assert seen == set(points)


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"b0": [1]}, r"lists no points of b1/s0\nIt has b0/s0\. Leave samples out"),
        ({"b0": [1, 400], "b1": []}, "lists point 400 of b0/s0, which has points 0 to 399"),
        ({"b0": [1], "b1": [-1, 3]}, "lists point -1 of b1/s0, which has points 0 to 399"),
    ],
)
def test_lists_that_do_not_fit(lists, said, store, tmp_path):
    with pytest.raises(ConfigError, match=said):
        ListedPoints.read(write_points(tmp_path, **lists), store, ["b0/s0", "b1/s0"])


def test_the_digest_is_that_of_the_points(store, tmp_path):
    def digest(**lists):
        return ListedPoints.read(write_points(tmp_path, **lists), store, ["b0/s0"]).digest()

    assert digest(b0=[3, 1, 3]) == digest(b0=[1, 3], b1=[7])
    assert digest(b0=[3, 1]) != digest(b0=[3, 2])
