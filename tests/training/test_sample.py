# SPDX-License-Identifier: Apache-2.0
"""What a sample does by itself; chains of transforms are in transforms/test_pipeline.py."""

import numpy as np
import pytest

from ditr_cache.training.sample import Sample


def sample(n=6):
    return Sample(
        coord=np.arange(3 * n, dtype=np.float32).reshape(n, 3),
        point=np.arange(n),
        index=np.arange(n, dtype=np.int32)[::-1].copy(),
        segment=np.arange(n, dtype=np.int32) * 10,
    )


@pytest.mark.parametrize("keep", [[4, 0, 5], [], [True, False, False, False, True, True]])
def test_take_takes_all_arrays(keep):
    keep = np.array(keep, np.int64 if not keep or keep[0] is not True else bool)
    before = sample()
    after = before.take(keep)
    for name in ("coord", "point", "index", "segment"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name)[keep])
        assert getattr(after, name).dtype == getattr(before, name).dtype
    assert after.color is None
    assert len(after) == len(after.coord)


def test_take_keeps_track_of_who_stands_for_whom():
    voxels = sample(3).replace(inverse=np.array([0, 0, 1, 2, 2, -1]), full_segment=np.arange(6, dtype=np.int32))
    after = voxels.take(np.array([2, 0]))
    np.testing.assert_array_equal(after.inverse, [1, 1, -1, 0, 0, -1])
    np.testing.assert_array_equal(after.full_segment, np.arange(6))


def test_a_sample_cannot_be_changed():
    with pytest.raises(AttributeError):
        sample().coord = None
