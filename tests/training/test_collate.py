# SPDX-License-Identifier: Apache-2.0
"""A batch is the clouds one after the other: against concatenation of what each cloud means."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.errors import SampleError
from ditr_cache.training.collate import collate, input_channels, mixes
from ditr_cache.training.dataset import Item
from ditr_cache.training.sample import Sample
from ditr_cache.types import FactoredFeatures

D = 5


def item(seed, n=None, rows=None, int8=False, cls=0):
    r = np.random.default_rng(seed)
    n = int(r.integers(1, 12)) if n is None else n
    rows = int(r.integers(0, 8)) if rows is None else rows
    index = r.integers(-1, rows, n).astype(np.int32)
    sample = Sample(
        coord=r.normal(size=(n, 3)).astype(np.float32),
        point=np.arange(n),
        index=index,
        color=r.random((n, 3)).astype(np.float32),
        strength=r.random(n).astype(np.float32),
        segment=r.integers(-1, 9, n).astype(np.int32),
        grid_coord=r.integers(0, 99, (n, 3)).astype(np.int32),
    )
    if int8:
        views = 3
        affine = r.normal(size=(views, 2, D)).astype(np.float32)
        row_view = np.sort(r.integers(0, views, rows)).astype(np.int32)
        features = FactoredFeatures(r.integers(-128, 128, (rows, D)).astype(np.int8), index, affine, row_view)
    else:
        features = FactoredFeatures(r.normal(size=(rows, D)).astype(np.float16), index)
    return Item(sample, features, r.normal(size=(cls, D)).astype(np.float16) if cls else None)


def dense(features):
    """`[N, D]` float32, zeros for unseen points."""
    rows = torch.as_tensor(features.dequantise().rows).float().numpy()
    index = np.asarray(features.index)
    out = np.zeros((len(index), D), np.float32)
    out[index >= 0] = rows[index[index >= 0]]
    return out


@settings(deadline=None)
@given(seeds=st.lists(st.integers(0, 999), min_size=1, max_size=6), int8=st.booleans(), mix=st.booleans())
def test_a_batch_is_its_clouds(seeds, int8, mix):
    items = [item(seed, int8=int8) for seed in seeds]
    batch = collate(items, ("color", "strength"), mix=mix)
    samples = [i.sample for i in items]
    for name in ("coord", "grid_coord", "segment"):
        np.testing.assert_array_equal(getattr(batch, name), np.concatenate([getattr(s, name) for s in samples]))
    feat = np.concatenate([np.concatenate([s.color, s.strength[:, None]], 1) for s in samples])
    np.testing.assert_array_equal(batch.feat, feat)
    assert [t.dtype for t in (batch.coord, batch.feat)] == [torch.float32] * 2
    assert [t.dtype for t in (batch.grid_coord, batch.segment, batch.offset)] == [torch.int32, torch.int64, torch.int64]
    assert batch.image.rows.dtype == (torch.int8 if int8 else torch.float16)
    np.testing.assert_array_equal(dense(batch.image), np.concatenate([dense(i.features) for i in items]))
    unseen = np.concatenate([s.index for s in samples]) < 0
    np.testing.assert_array_equal(batch.image.index.numpy() < 0, unseen)
    ends = np.cumsum([len(s) for s in samples]).tolist()
    assert batch.offset.tolist() == (sorted({*ends[1::2], ends[-1]}) if mix else ends)
    # only rows that are in use
    assert sorted(set(batch.image.index[batch.image.index >= 0].tolist())) == list(range(len(batch.image.rows)))


def test_mix3d_drops_every_second_offset():
    sizes = [3, 4, 5, 6, 7]
    items = [item(i, n) for i, n in enumerate(sizes)]
    assert collate(items, ("coord",), mix=True).offset.tolist() == [7, 18, 25]
    assert collate(items[:4], ("coord",), mix=True).offset.tolist() == [7, 18]
    assert collate(items[:1], ("coord",), mix=True).offset.tolist() == [3]


def test_class_tokens_follow_their_clouds_through_mix3d():
    items = [item(i, cls=2 + i) for i in range(4)]
    batch = collate(items, ("coord",))
    np.testing.assert_array_equal(batch.cls, np.concatenate([i.cls for i in items]))
    assert batch.cls_offset.tolist() == [2, 5, 9, 14]
    assert collate(items, ("coord",), mix=True).cls_offset.tolist() == [5, 14]
    assert collate([item(0)], ("coord",)).cls is None


def test_a_batch_without_images_or_labels():
    bare = item(3)
    bare = bare._replace(sample=bare.sample.replace(segment=None))
    batch = collate([bare, item(4)], ("coord",), images=False, condition="rooms")
    assert batch.image is None
    assert batch.segment is None
    assert batch.condition == "rooms"


def test_clouds_that_no_view_sees():
    batch = collate([item(0, 4, 0), item(1, 3, 0)], ("coord",))
    assert batch.image.rows.shape == (0, D)
    assert batch.image.index.tolist() == [-1] * 7


def test_mix3d_happens_with_its_probability_and_by_its_keys():
    drawn = [mixes(0.8, 0, e, s, m) for e in range(10) for s in range(100) for m in range(2)]
    assert abs(np.mean(drawn) - 0.8) < 6 * math.sqrt(0.16 / 2000)
    assert drawn == [mixes(0.8, 0, e, s, m) for e in range(10) for s in range(100) for m in range(2)]
    assert not any(mixes(0.0, 0, e, 0, 0) for e in range(100))
    assert all(mixes(1.0, 0, e, 0, 0) for e in range(100))


def test_missing_channels_and_empty_clouds_are_named():
    with pytest.raises(SampleError, match=r"no normal[^?]*data.features"):
        input_channels(item(0).sample, ("color", "normal"))
    for broken in (item(0).sample.replace(grid_coord=None), item(0).sample.take(np.zeros(0, int))):
        with pytest.raises(SampleError, match="grid_sample"):
            collate([item(1), item(0)._replace(sample=broken)], ("coord",))
