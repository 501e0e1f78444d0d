# SPDX-License-Identifier: Apache-2.0
"""The dry run: numbers before the first byte."""

from dataclasses import replace

import numpy as np
import pytest

from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets.registry import open_dataset
from ditr_cache.errors import DatasetError
from ditr_cache.pipelines.extract import Extract

SOURCES = [
    "nerfstudio",
    "nerfstudio/redkitchen",
    "nerfstudio/shelf",
    "nuscenes",
    "scannet",
    "scannet_images",
    "scannet_pointcept",
    "semantickitti/dataset",
]


def job(tiny, source, store, *settings):
    dataset = open_dataset(source)
    config = load_config(ExtractConfig, [read_named_yaml("extract", dataset.preset)], list(settings))
    return Extract(dataset, store, config, backbone=tiny.PatchSums(14))


@pytest.mark.real_data
@pytest.mark.parametrize("source", SOURCES)
def test_every_data_set(tiny, test_data, tmp_path, source):
    extract = job(tiny, test_data / source, tmp_path / "store")
    estimate = extract.estimate()
    print(estimate)
    assert not (tmp_path / "store").exists()
    assert estimate.frames == estimate.images > 0
    assert estimate.points_estimate > 0
    assert 0 < estimate.bytes_int8 < estimate.bytes_f16 + estimate.images * 8 * 6 + 1
    assert estimate.seconds_per_image > 0
    assert estimate.free_bytes > 0
    assert estimate.grid[0] * estimate.grid[1] > 100


@pytest.mark.real_data
def test_the_size_is_about_right(tiny, test_data, tmp_path):
    estimate = job(tiny, test_data / "nuscenes", tmp_path / "store").estimate()
    report = job(tiny, test_data / "nuscenes", tmp_path / "store").run()
    print(estimate.bytes_f16, report.bytes)
    assert estimate.images == report.images
    assert estimate.points_estimate == report.points
    assert estimate.bytes_f16 == pytest.approx(report.bytes, rel=0.3)


def test_generated_rooms(tiny, tmp_path):
    estimate = job(tiny, "synthetic:rooms=3,views=2", tmp_path / "store", "variants.flip=true").estimate()
    assert (estimate.blocks, estimate.frames, estimate.images) == (3, 6, 12)


class TestDamage:
    """What extraction survives, the dry run survives."""

    def test_a_bad_frame_among_the_measured_ones(self, tiny, tmp_path):
        dataset = tiny.rooms(1, views=4)
        scene = dataset.blocks["r0"]["r0"]
        broken = replace(scene.views[0], image=tiny.Pixels(np.zeros((1, 1, 3), np.uint8)))
        dataset.blocks["r0"]["r0"] = replace(scene, views=(broken, *scene.views[1:]))
        assert tiny.extract(dataset, tmp_path / "store").estimate().frames == 4

    def test_images_of_several_sizes(self, tiny, tmp_path):
        dataset = tiny.rooms(1, views=0)
        views = tuple(tiny.view("r0", i, 20 + 4 * i, 28) for i in range(4))
        dataset.blocks["r0"]["r0"] = replace(dataset.blocks["r0"]["r0"], views=views)
        settings = ("images.size=null", "images.budget=36")
        assert tiny.extract(dataset, tmp_path / "store", *settings).estimate().frames == 4

    def test_the_first_samples_are_unusable(self, tiny, tmp_path):
        dataset = tiny.rooms(20)
        for i in range(20):
            if i != 13:
                scene = dataset.blocks[f"r{i}"][f"r{i}"]
                dataset.blocks[f"r{i}"][f"r{i}"] = replace(scene, points=tiny.room("x", points=0).points)
        assert tiny.extract(dataset, tmp_path / "store").estimate().samples == 20

    def test_nothing_is_usable(self, tiny, tmp_path):
        with pytest.raises(DatasetError, match="nothing could be measured"):
            tiny.extract(tiny.rooms(2, points=0), tmp_path / "store").estimate()
        with pytest.raises(DatasetError, match="nothing could be measured"):
            tiny.extract(tiny.rooms(2, views=0), tmp_path / "store").estimate()

    def test_nothing_is_seen(self, tiny, tmp_path):
        estimate = tiny.extract(tiny.rooms(2), tmp_path / "store", "visibility.min_depth=50").estimate()
        assert estimate.int8_cosine_error_p99 is None
