# SPDX-License-Identifier: Apache-2.0
"""From genuine files to `read(rule="last")`: the official visibility and last-view lookup, at least 99.98 % equal."""

from pathlib import Path

import numpy as np
import pytest

from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets.registry import open_dataset
from ditr_cache.pipelines.extract import Extract
from ditr_cache.store.reader import open_store

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
REQUIRED = 0.9998

pytestmark = pytest.mark.real_data


def extracted(tiny, source, store, *settings):
    """A store with the data set's own preset, and patches of 14 that cost nothing."""
    dataset = open_dataset(source)
    config = load_config(ExtractConfig, [read_named_yaml("extract", dataset.preset)], list(settings))
    report = Extract(dataset, store, config, backbone=tiny.PatchSums(14)).run()
    assert report.failures == 0
    return report, open_store(store)


def shares(store, sample, names, golden, visible_NV):
    """Shares of equal entries: visible in a view, last view, last patch."""
    views = [store.samples[sample].view_names.index(name) for name in names]
    read = store.read(sample, views=views, rule="last")
    place = np.full(max(views) + 2, -1)
    place[views] = np.arange(len(views))
    seen_NV = np.stack([store.read(sample, views=[v]).view == v for v in views], axis=1)
    equal = {
        "visible": (seen_NV == visible_NV).mean(),
        "last_view": (place[read.view] == golden["last_view"]).mean(),
        "last_patch": (read.patch == golden["last_patch"]).mean(),
    }
    print(equal, "worst view", (seen_NV == visible_NV).mean(axis=0).min())
    assert np.abs(seen_NV.sum(0) / golden["per_view_count"] - 1).max() < 1e-3
    # what is seen has a row, what is not has none
    np.testing.assert_array_equal(read.features.index >= 0, read.view >= 0)
    return equal


def test_nuscenes_keyframe(tiny, test_data, tmp_path):
    golden = np.load(GOLDEN / "projection_nuscenes.npz")
    report, store = extracted(tiny, test_data / "nuscenes", tmp_path / "store")
    (sample,) = store.samples
    assert store.samples[sample].points == report.points == len(golden["last_view"]) == 34_688
    assert sorted(store.samples[sample].view_names) == sorted(golden["views"].tolist())
    assert report.hits == pytest.approx(golden["visible"].sum(), rel=1e-4)
    assert report.points_seen == pytest.approx(golden["visible"].any(1).sum(), rel=1e-4)
    equal = shares(store, sample, golden["views"].tolist(), golden, golden["visible"])
    assert min(equal.values()) >= REQUIRED


def test_7scenes_with_depth(tiny, test_data, tmp_path):
    golden = np.load(GOLDEN / "projection_7scenes.npz")
    near, far, margin = golden["params"].tolist()
    visibility = [f"visibility.min_depth={near}", f"visibility.max_depth={far}", f"visibility.depth_margin={margin}"]
    report, store = extracted(
        tiny,
        test_data / "nerfstudio" / "redkitchen",
        tmp_path / "store",
        *visibility,
        "images.size=[420,560]",
        "images.filter=bilinear",
    )
    (sample,) = store.samples
    assert report.images == len(store.samples[sample].view_names) == 50
    visible_NV = np.unpackbits(golden["visible"], axis=0)[: golden["n"]].astype(bool)
    equal = shares(store, sample, golden["frames"].tolist(), golden, visible_NV)
    assert min(equal.values()) >= REQUIRED
    # the rows of a draw are those of its views, the stored points those of the file
    read = store.read(sample, views=[0, 3], rule="last")
    assert len(read.features.rows) == sum(len(store.read(sample, views=[v]).features.rows) for v in (0, 3))
    assert len(read.points) == golden["n"]
