# SPDX-License-Identifier: Apache-2.0
"""Stores of every format version that was ever released still read to the same values."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from store_builder import build_store

from ditr_cache.store import layout
from ditr_cache.store.reader import open_store
from ditr_cache.store.verify import verify_store
from ditr_cache.store.writer import StoreWriter

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "stores-v1.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def recipes():
    sys.path.insert(0, str(GOLDEN))
    import make_stores

    return make_stores


@pytest.mark.parametrize("name", ["f16", "int8"])
def test_version_1_reads_to_the_same_values(name, expected):
    with open_store(GOLDEN / f"store-v1-{name}") as store:
        assert store.digest == str(expected[f"{name}/digest"])
        assert len(store.samples) == {"f16": 1, "int8": 2}[name]
        for sample in store.samples:
            got = store.read(sample, rule="last")
            have = {"dense": got.features.dense(), "view": got.view, "patch": got.patch}
            if name == "f16":
                have |= {"coord": got.points.coord, "segment": got.points.segments["segment"]}
            for key, value in have.items():
                np.testing.assert_array_equal(value, expected[f"{name}/{sample}/{key}"])


@pytest.mark.parametrize("name", ["f16", "int8"])
def test_version_1_still_verifies(name):
    report = verify_store(GOLDEN / f"store-v1-{name}")
    assert (report.problems, report.notes, report.blocks) == ((), (), 1)


@pytest.mark.parametrize("name", ["f16", "int8"])
def test_todays_writer_gives_the_same_content(name, expected, recipes, tmp_path, monkeypatch):
    settings, block = recipes.STORES[name]
    for array, spec in recipes.short_chunks().items():
        monkeypatch.setitem(layout.ARRAYS, array, spec)
    build_store(tmp_path / "s", [block], settings)
    assert open_store(tmp_path / "s").digest == str(expected[f"{name}/digest"])


@pytest.mark.parametrize("name", ["f16", "int8"])
def test_version_1_can_be_finalised_again(name, tmp_path):
    shutil.copytree(GOLDEN / f"store-v1-{name}", tmp_path / "s")
    before = (tmp_path / "s" / "LATEST").read_bytes()
    StoreWriter(tmp_path / "s").finalize()
    assert (tmp_path / "s" / "LATEST").read_bytes() == before
