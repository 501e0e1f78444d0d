# SPDX-License-Identifier: Apache-2.0
"""What people look at: near things cover far ones, same features have the same colour, wrong names are named."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ditr_cache.backbones import load_backbone
from ditr_cache.config import BackboneConfig, ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.errors import ConfigError, SampleError, SampleNotFoundError
from ditr_cache.pipelines.components import Components
from ditr_cache.pipelines.extract import Extract
from ditr_cache.pipelines.picture import PANEL, Picture, _cloud
from ditr_cache.store.reader import open_store
from ditr_cache.types import Camera, ImageSource, PointCloud, Scene, View

SOURCE = "synthetic:rooms=1,views=3"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "store"
    dataset = open_dataset(SOURCE)
    config = load_config(ExtractConfig, [read_named_yaml("extract", dataset.preset)])
    Extract(dataset, path, config, backbone=load_backbone(BackboneConfig(name="rooms-vit-tiny"), "cpu")).run()
    with open_store(path) as store:
        yield store


def test_a_picture_shows_four_panels(store, tmp_path):
    report = Picture(open_dataset(SOURCE), store, tmp_path / "p.png").run()
    assert 0 < report.explained <= 1
    assert report.view in store.samples[report.sample].view_names
    with Image.open(tmp_path / "p.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[0] > 2 * PANEL[0]
    assert pixels.shape[1] > 2 * PANEL[1]
    half = pixels.shape[0] // 2, pixels.shape[1] // 2
    for panel in (pixels[: half[0], : half[1]], pixels[: half[0], half[1] :], pixels[half[0] :, half[1] :]):
        assert len(np.unique(panel.reshape(-1, 3), axis=0)) > 50


def test_wrong_names_are_named(store, tmp_path):
    with pytest.raises(SampleNotFoundError, match="kitchen"):
        Picture(open_dataset(SOURCE), store, tmp_path / "p.png", sample="kitchen").run()
    with pytest.raises(ConfigError, match="no view 7"):
        Picture(open_dataset(SOURCE), store, tmp_path / "p.png", view=7).run()


def test_other_points_are_refused(store, tmp_path):
    class Turned:
        """The same room with its points in another order."""

        def load(self, sample):
            scene = open_dataset(SOURCE).load(sample)
            return replace(scene, points=replace(scene.points, coord=scene.points.coord[::-1]))

    with pytest.raises(SampleError, match="not those that the features were made for"):
        Picture(Turned(), store, tmp_path / "p.png").run()
    assert not (tmp_path / "p.png").exists()


def test_near_points_cover_far_ones():
    # a camera that looks along y with z up: the picture is taken from above and behind it
    camera = Camera(np.eye(3), np.eye(4)[[0, 2, 1, 3]] * [[1], [-1], [1], [1]], 10, 10)
    views = (View("0", camera, Nothing()),)
    side = np.stack(np.meshgrid(np.linspace(0, 4, 120), np.linspace(0, 4, 120)), -1).reshape(-1, 2)
    floor = np.c_[side, np.zeros(len(side))]
    table = np.c_[side[::3] / 4 + 1.5, np.full(len(side[::3]), 1.0)]
    coord = np.concatenate([table, floor]).astype(np.float32)
    colour = np.repeat(np.array([[255, 0, 0], [0, 0, 255]], np.uint8), [len(table), len(floor)], axis=0)
    picture = _cloud(Scene("s", PointCloud(coord), views), colour, None)
    red = (picture == [255, 0, 0]).all(axis=2)
    rows, columns = np.nonzero(red)
    inside = red[rows.min() + 4 : rows.max() - 3, columns.min() + 4 : columns.max() - 3]
    assert inside.size > 500
    assert inside.mean() > 0.99


def test_equal_features_have_equal_colours():
    rows = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    colour = Components(rows)
    np.testing.assert_array_equal(colour(rows[[5, 9, 5]])[0], colour(rows[[5, 9, 5]])[2])
    assert len(np.unique(colour(rows), axis=0)) > 100


class Nothing(ImageSource):
    def read(self) -> bytes:
        return b""
