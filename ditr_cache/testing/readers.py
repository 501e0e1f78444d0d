# SPDX-License-Identifier: Apache-2.0
"""What every data set reader must keep to, as tests. Needs pytest.

A package that adds a reader runs them by a subclass with a `dataset` fixture over a small sample of its data:

    class TestMyReader(ReaderTests):
        @pytest.fixture
        def dataset(self, tmp_path):
            return MyReader(write_sample(tmp_path))
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from ditr_cache.config import config_names
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import SampleError
from ditr_cache.types import Scene, View

__all__ = ["ReaderTests"]

MAX_SAMPLES = 4
MAX_IMAGES = 3
MAX_SOURCE_BYTES = 4096


class ReaderTests:
    """Subclass it, override `dataset`, name the subclass `Test...`."""

    @pytest.fixture
    def dataset(self) -> Dataset:
        """The reader under test, over a few samples that are all intact."""
        raise NotImplementedError("override the fixture `dataset`")

    @pytest.fixture
    def scenes(self, dataset: Dataset) -> list[Scene]:
        """The first few samples, loaded."""
        ids = [sample.id for block in dataset.plan() for sample in block.samples]
        return [dataset.load(sample_id) for sample_id in ids[:MAX_SAMPLES]]

    def test_names_itself(self, dataset: Dataset) -> None:
        """Name and version go into a store's identity; the preset is installed."""
        assert isinstance(dataset.name, str)
        assert dataset.name
        assert isinstance(dataset.version, str)
        assert dataset.version
        assert dataset.preset in config_names("extract")

    def test_classes_are_distinct(self, dataset: Dataset) -> None:
        """A class index means one name, and label maps lead to existing classes."""
        for names in dataset.class_names.values():
            assert names
            assert len(set(names)) == len(names)
        for label_set, table in dataset.label_maps.items():
            assert label_set in dataset.class_names
            assert all(-1 <= label < len(dataset.class_names[label_set]) for label in table.values())

    def test_plan_has_unique_ids(self, dataset: Dataset) -> None:
        """Block ids differ even where case is ignored, as on some file systems; so do sample ids and view names."""
        blocks = dataset.plan()
        assert blocks
        assert len({block.id.casefold() for block in blocks}) == len(blocks)
        samples = [sample for block in blocks for sample in block.samples]
        assert all(block.samples for block in blocks)
        assert len({sample.id for sample in samples}) == len(samples)
        for sample in samples:
            assert sample.split
            assert len(set(sample.views)) == len(sample.views)
            assert ".." not in sample.id.split("/")

    def test_plan_is_stable(self, dataset: Dataset) -> None:
        """Two readers of the same data, one of them from another process, plan the same."""
        copy: Dataset = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own bytes
        assert dataset.plan() == dataset.plan() == copy.plan()

    def test_load_follows_the_plan(self, dataset: Dataset, scenes: list[Scene]) -> None:
        """A loaded sample has the planned id and the planned views in the planned order."""
        planned = [sample for block in dataset.plan() for sample in block.samples]
        for sample, scene in zip(planned, scenes, strict=False):
            assert scene.id == sample.id
            assert tuple(view.name for view in scene.views) == sample.views

    def test_points_are_well_formed(self, dataset: Dataset, scenes: list[Scene]) -> None:
        """Dtypes, shapes and label ranges."""
        for scene in scenes:
            points, count = scene.points, len(scene.points)
            assert count > 0
            assert _is(points.coord, np.float32, (count, 3))
            assert np.isfinite(points.coord).all()
            assert _is(points.origin, np.float64, (3,))
            for array, dtype, shape in (
                (points.color, np.uint8, (count, 3)),
                (points.normal, np.float32, (count, 3)),
                (points.strength, np.float32, (count,)),
                (points.instance, np.int32, (count,)),
                *((labels, np.int32, (count,)) for labels in points.segments.values()),
            ):
                assert array is None or _is(array, dtype, shape)
            for name, labels in points.segments.items():
                assert labels.min() >= -1
                assert name not in dataset.class_names or labels.max() < len(dataset.class_names[name])
            assert points.instance is None or points.instance.min() >= -1

    def test_cameras_are_well_formed(self, scenes: list[Scene]) -> None:
        """Float64 matrices of the right shapes; whether they make sense is not the reader's business."""
        for view in _views(scenes):
            camera = view.camera
            assert _is(camera.intrinsics, np.float64, (3, 3))
            assert _is(camera.world_to_camera, np.float64, (4, 4))
            assert _is(camera.distortion, np.float64, (8,))
            assert view.problem is None or view.problem.strip()
            assert view.problem is not None or (camera.height > 0 and camera.width > 0)

    def test_sources_are_lazy(self, scenes: list[Scene]) -> None:
        """Images and depth maps travel between processes as a few bytes."""
        for view in _views(scenes):
            assert len(pickle.dumps((view.image, view.depth))) < MAX_SOURCE_BYTES

    def test_images_have_the_size_of_the_camera(self, scenes: list[Scene]) -> None:
        """An image decodes to the camera's height and width, twice the same, also from a copy of its source."""
        for view in _usable(scenes):
            content = view.image.read()
            again = pickle.loads(pickle.dumps(view.image)).read()  # noqa: S301 - our own bytes
            if isinstance(content, bytes):
                assert content == again
                with Image.open(io.BytesIO(content)) as image:
                    assert (image.height, image.width) == (view.camera.height, view.camera.width)
            else:
                assert np.array_equal(content, again)
                assert _is(content, np.uint8, (view.camera.height, view.camera.width, 3))

    def test_depth_is_in_metres(self, scenes: list[Scene]) -> None:
        """A depth map is finite, float32 and not negative."""
        for view in _usable(scenes):
            if view.depth is not None:
                depth_hw = view.depth.read()
                assert depth_hw.ndim == 2
                assert _is(depth_hw, np.float32, depth_hw.shape)
                assert np.isfinite(depth_hw).all()
                assert depth_hw.min() >= 0

    def test_unknown_sample(self, dataset: Dataset) -> None:
        """Asking for what is not there is a SampleError, also for ids that look like paths."""
        for sample_id in ("no such sample", "", "../..", "/etc"):
            with pytest.raises(SampleError):
                dataset.load(sample_id)


def _is(array: NDArray[Any], dtype: DTypeLike, shape: tuple[int, ...]) -> bool:
    return array.dtype == np.dtype(dtype) and array.shape == shape


def _views(scenes: list[Scene]) -> list[View]:
    return [view for scene in scenes for view in scene.views]


def _usable(scenes: list[Scene]) -> list[View]:
    """The first few usable views of every scene."""
    return [view for scene in scenes for view in [v for v in scene.views if v.problem is None][:MAX_IMAGES]]
