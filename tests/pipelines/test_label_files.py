# SPDX-License-Identifier: Apache-2.0
"""Every format, read back by what reads the data sets."""

import io

import numpy as np
import pytest
from plyfile import PlyData

from ditr_cache.datasets.arrays import lookup
from ditr_cache.datasets.nuscenes_labels import CLASSES as NUSCENES
from ditr_cache.datasets.nuscenes_labels import LIDARSEG_TO_16
from ditr_cache.datasets.semantic_kitti import CLASSES as KITTI
from ditr_cache.datasets.semantic_kitti import LEARNING_MAP
from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.label_files import FORMATS, LabelSet, encoder, raw_ids
from ditr_cache.pipelines.palette import class_colours
from ditr_cache.types import PointCloud

KITTI_SET = LabelSet("segment", KITTI, {str(a): b for a, b in LEARNING_MAP.items()}, "semantic_kitti")
NUSCENES_SET = LabelSet("segment", NUSCENES, {str(a): b for a, b in LIDARSEG_TO_16.items()}, "nuscenes")
# learning_map_inv of semantic-kitti.yaml, without its class for unlabelled points
KITTI_OFFICIAL = [10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]


def cloud(n, origin=(0.0, 0.0, 0.0)):
    rng = np.random.default_rng(0)
    return PointCloud(rng.normal(size=(n, 3)).astype(np.float32), np.array(origin))


def labels(k, n=300):
    return np.random.default_rng(1).integers(0, k, n).astype(np.int32)


def test_semantic_kitti_ids_are_the_official_ones():
    assert raw_ids(KITTI_SET).tolist() == KITTI_OFFICIAL


def test_semantic_kitti_files_read_back():
    label_N = labels(len(KITTI))
    suffix, encode = encoder("label", KITTI_SET)
    raw_N = np.frombuffer(encode(label_N, cloud(len(label_N))), "<u4")
    assert suffix == ".label"
    np.testing.assert_array_equal(lookup(LEARNING_MAP, raw_N & 0xFFFF), label_N)


def test_nuscenes_files_read_back():
    label_N = labels(len(NUSCENES))
    suffix, encode = encoder("lidarseg", NUSCENES_SET)
    raw_N = np.frombuffer(encode(label_N, cloud(len(label_N))), "u1")
    assert suffix == "_lidarseg.bin"
    np.testing.assert_array_equal(lookup(LIDARSEG_TO_16, raw_N), label_N)


def test_the_nuscenes_benchmark_counts_from_one():
    _, encode = encoder("lidarseg-challenge", NUSCENES_SET)
    assert list(encode(np.arange(16, dtype=np.int32), cloud(16))) == list(range(1, 17))


def test_npy():
    label_N = labels(7)
    suffix, encode = encoder("npy", LabelSet("segment", ("x",) * 7, {}, "d"))
    back = np.load(io.BytesIO(encode(label_N, cloud(len(label_N)))), allow_pickle=False)
    assert (suffix, back.dtype) == (".npy", np.int32)
    np.testing.assert_array_equal(back, label_N)


@pytest.mark.parametrize(("origin", "dtype"), [((0, 0, 0), np.float32), ((4.2e5, 5.4e6, 100.5), np.float64)])
def test_ply(origin, dtype):
    label_N, points = labels(20), cloud(300, origin)
    suffix, encode = encoder("ply", LabelSet("segment", ("x",) * 20, {}, "d"))
    vertex = PlyData.read(io.BytesIO(encode(label_N, points)))["vertex"]
    assert suffix == ".ply"
    assert vertex["x"].dtype == dtype
    for i, axis in enumerate("xyz"):
        np.testing.assert_array_equal(vertex[axis], (points.coord[:, i] + points.origin[i]).astype(dtype))
    np.testing.assert_array_equal(vertex["label"], label_N)
    colours = np.stack([vertex[c] for c in ("red", "green", "blue")], 1)
    np.testing.assert_array_equal(colours, class_colours(20)[label_N])


@pytest.mark.parametrize("form", ["label", "lidarseg"])
@pytest.mark.parametrize(
    ("raw", "message"), [({}, "no raw ids"), ({"3": 0}, "stands for wall"), ({"3": 0, "70000": 1}, "does not fit")]
)
def test_formats_with_raw_ids_need_them(form, raw, message):
    with pytest.raises(ConfigError, match=message):
        encoder(form, LabelSet("segment", ("floor", "wall"), raw, "rooms"))


def test_too_many_classes_for_a_byte():
    with pytest.raises(ConfigError, match="does not fit"):
        encoder("lidarseg-challenge", LabelSet("segment", ("x",) * 256, {}, "d"))


def test_all_formats_are_tested():
    assert set(FORMATS) == {"npy", "ply", "label", "lidarseg", "lidarseg-challenge"}
