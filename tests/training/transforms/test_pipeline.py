# SPDX-License-Identifier: Apache-2.0
"""Any chain of transforms keeps a point's arrays together, and writes into none of its input."""

import dataclasses

import numpy as np
import pytest
from clouds import cloud, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ditr_cache.errors import SampleError
from ditr_cache.training import transforms
from ditr_cache.training.data_config import DataConfig, TestConfig
from ditr_cache.training.transforms import GridSample, RandomDropout, SphereCrop, Transform, apply

# certain to happen, and small enough to do something to a small cloud
EVERY = [
    transforms.CenterShift(),
    transforms.ChromaticAutoContrast(p=1),
    transforms.ChromaticJitter(p=1),
    transforms.ChromaticTranslation(p=1),
    transforms.ElasticDistortion(p=1),
    GridSample(grid_size=0.3),
    GridSample(grid_size=0.3, keep="first"),
    GridSample(grid_size=0.3, keep="all"),
    transforms.NormalizeColor(),
    transforms.PointClip(point_cloud_range=(-1, -1, -1, 1, 1, 1)),
    RandomDropout(dropout_application_ratio=1),
    transforms.RandomFlip(p=1),
    transforms.RandomJitter(),
    transforms.RandomRotate(p=1),
    transforms.RandomRotateTargetAngle(p=1),
    transforms.RandomScale(),
    transforms.ScaleStrength(),
    SphereCrop(point_max=60),
    transforms.TanhStrength(),
]
UNION = TypeAdapter(Transform)


def arrays(sample):
    return {f.name: value for f in dataclasses.fields(sample) if (value := getattr(sample, f.name)) is not None}


def test_every_transform_is_tried():
    assert {type(t) for t in EVERY} == {type(t) for t in EVERY} & set(Transform.__origin__.__args__)
    assert len({type(t) for t in EVERY}) == len(Transform.__origin__.__args__)


@settings(deadline=None)
@given(chain=st.lists(st.sampled_from(EVERY), max_size=8), n=st.integers(1, 200), seed=st.integers(0, 9))
def test_arrays_stay_together(chain, n, seed):
    before = cloud(n, seed)
    kept = {name: value.copy() for name, value in arrays(before).items()}
    try:
        after = apply(chain, before, rng(seed))
    except SampleError as error:
        if "no points" not in str(error):
            raise
        return  # dropout took the last point of a tiny cloud
    for name, value in arrays(before).items():
        np.testing.assert_array_equal(value, kept[name], err_msg=f"{name} was written to")
    np.testing.assert_array_equal(after.index, before.index[after.point])
    np.testing.assert_array_equal(after.segment, before.segment[after.point])
    assert len(np.unique(after.point)) == len(after)
    for name, value in arrays(after).items():
        assert name in ("inverse", "full_segment") or len(value) == len(after), name
        assert value.dtype in (np.float32, np.int32, np.int64), name
    # what drops points drops those that stand for others, too
    drops = [t for t in chain if isinstance(t, RandomDropout | SphereCrop) or getattr(t, "keep", None) == "random"]
    if after.inverse is not None and not drops:
        assert (after.inverse >= 0).all()


@settings(deadline=None)
@given(n=st.integers(1, 100), seed=st.integers(0, 99))
def test_positions_follow_their_points(n, seed):
    """Without transforms that move points, coordinates are still those of `point`."""
    before = cloud(n, seed)
    drops = [RandomDropout(dropout_application_ratio=1), GridSample(grid_size=0.2), SphereCrop(point_max=30)]
    after = apply([t for t in drops if n > 1 or not isinstance(t, RandomDropout)], before, rng(seed))
    for name in ("coord", "color", "normal", "strength"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name)[after.point])


@settings(deadline=None)
@given(n=st.integers(2, 100), seed=st.integers(0, 99))
def test_dropped_points_stand_for_nothing(n, seed):
    before = cloud(n, seed)
    voxels = GridSample(grid_size=0.5, keep="first")(before, rng())
    after = RandomDropout(dropout_ratio=0.5, dropout_application_ratio=1)(voxels, rng(seed))
    gone = ~np.isin(voxels.point[voxels.inverse], after.point)
    np.testing.assert_array_equal(after.inverse < 0, gone)
    np.testing.assert_array_equal(after.point[after.inverse[~gone]], voxels.point[voxels.inverse[~gone]])


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: t.kind)
def test_same_seed_same_result_and_settings_survive_json(transform):
    again = UNION.validate_json(UNION.dump_json(transform))
    assert again == transform
    a, b = (arrays(t(cloud(), rng("same"))) for t in (transform, again))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: t.kind)
def test_arrays_that_are_not_there_are_not_needed(transform):
    bare = cloud().replace(color=None, normal=None, strength=None, segment=None)
    after = transform(bare, rng())
    assert after.color is after.normal is after.strength is after.segment is None


@settings(deadline=None)
@given(chain=st.permutations(range(8)))
def test_take_of_take_is_one_take(chain):
    sample = GridSample(grid_size=0.5, keep="first")(cloud(), rng())
    a, b = np.array(chain) % len(sample), np.array([3, 1, 2])
    twice, once = sample.take(a).take(b), sample.take(a[b])
    for name, value in arrays(once).items():
        np.testing.assert_array_equal(value, arrays(twice)[name])


def test_the_official_recipe_is_the_default():
    kinds = [t.kind for t in DataConfig().train]
    assert kinds[:2] == ["center_shift", "random_dropout"]
    assert kinds.count("random_rotate") == 3
    assert DataConfig().grid_size == 0.02
    assert DataConfig().channels == 6
    with pytest.raises(ValidationError, match="grid_sample"):
        DataConfig(train=())
    with pytest.raises(ValidationError, match=r"train has voxels of 0\.05 m, val of 0\.02 m"):
        DataConfig(train=(GridSample(grid_size=0.05),))
    with pytest.raises(ValidationError, match="features names one twice"):
        DataConfig(features=("color", "color"))
    with pytest.raises(ValidationError, match="no_such"):
        DataConfig.model_validate({"train": [{"kind": "no_such"}]})
    round_trip = DataConfig.model_validate_json(DataConfig().model_dump_json())
    assert round_trip == DataConfig()


@pytest.mark.parametrize(
    ("config", "copies", "distinct"),
    [
        # mirroring x and y is turning by 180 degrees: the official list has that copy twice
        (TestConfig(), 13, 12),
        (TestConfig(rotations=(0,), scales=(0.9, 0.95, 1, 1.05, 1.1), flip="each"), 10, 10),
        (TestConfig(scales=(1,), flip="none"), 4, 4),
    ],
)
def test_copies_of_the_test_protocol(config, copies, distinct):
    made = [apply(t, cloud(30), rng()).coord for t in config.augmentations()]
    assert len(made) == copies
    assert len({m.tobytes() for m in made}) == distinct
    np.testing.assert_array_equal(apply(config.augmentations()[0], cloud(30), rng(1)).coord, made[0])
    # whatever the random numbers are
    for t, expected in zip(config.augmentations(), made, strict=True):
        np.testing.assert_array_equal(apply(t, cloud(30), rng(2)).coord, expected)
