# SPDX-License-Identifier: Apache-2.0
"""Small stores to pass on, and what a copy of one must be."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from store_builder import (
    DATASET,
    IDENTITY,
    BlockSpec,
    NoSync,
    build_store,
    fast_folder,
    random_block,
    write_block,
)

from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.manifest import Plan
from ditr_cache.store.reader import FeatureStore, open_store
from ditr_cache.store.verify import verify_store
from ditr_cache.store.writer import StoreWriter

__all__ = [
    "BLOCKS",
    "DATASET",
    "IDENTITY",
    "INT8",
    "SETTINGS",
    "BlockSpec",
    "add_block",
    "fast_folder",
    "features_of",
    "make",
    "random_block",
    "sound",
    "version_of",
]

SETTINGS = BlockSettings(8, "float16", class_token=True)
INT8 = BlockSettings(8, "int8", "zstd", class_token=True)
BLOCKS = [
    random_block(i, f"scène {i}", samples=2, points=(20, 60), views=4, variants=(0, 1), cls=True) for i in range(3)
]


def make(path: Path, blocks=BLOCKS, settings=SETTINGS, *, planned=(), **options) -> Path:
    """A store of some blocks; `planned` ones are not there."""
    fs = options.pop("fs", None) or NoSync()
    writer = build_store(path, blocks, settings, fs=fs, finalize=False, **options)
    if planned:
        writer.add_plan(Plan(dataset=DATASET, blocks=tuple(block.plan for block in planned)))
    writer.finalize()
    return path


def add_block(path: Path, block: BlockSpec, generation: int = 0, settings=SETTINGS) -> None:
    """One block more, or the next generation of one."""
    writer = StoreWriter(path, NoSync())
    writer.add_plan(Plan(dataset=DATASET, blocks=(block.plan,)))
    assert writer.commit(write_block(writer, block, settings, generation))
    writer.finalize()


def version_of(path) -> str:
    with open_store(path) as store:
        return store.version


def sound(path) -> None:
    """Nothing is wrong with a store, and nothing lies about that does not belong."""
    report = verify_store(path)
    assert (report.problems, report.notes) == ((), ())
    assert [p for p in Path(path).rglob(".*") if p.name not in {".lock", ".transfer.lock"}] == []


def features_of(store: FeatureStore, sample: str) -> dict[tuple[str, int], np.ndarray]:
    """Dense features of every view and variant, by view name."""
    names = store.samples[sample].view_names
    return {
        (name, variant): store.read(sample, views=[i], variant=variant).features.dense()
        for i, name in enumerate(names)
        for variant in store.variants(sample)
    }
