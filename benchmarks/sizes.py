# SPDX-License-Identifier: Apache-2.0
"""Claims on size at D = 384, all of a store's arrays but the points counted, with their indexes, checksums and padding:

- ALL 50 views of 7-Scenes RedKitchen take at most 0.38 of one dense float16 `[N, D]` draw;
- the nuScenes keyframe, six views on a 27 x 48 grid, takes at most a sixth of it;
- int8 takes at most 0.55 of float16.

    python benchmarks/sizes.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from _harness import write_results
from _stores import NUSCENES, REDKITCHEN, build_store, work_folder

from ditr_cache.store.layout import POINT_ARRAYS, array_spec, shard_index_bytes
from ditr_cache.store.reader import FeatureStore
from ditr_cache.store.receipt import ArrayEntry

TARGETS = {"redkitchen": 0.38, "nuscenes": 1 / 6}
INT8 = 0.55


def is_points(name: str) -> bool:
    return name in POINT_ARRAYS or name == "origin" or name.startswith("segment")


def part_of(name: str) -> str:
    return name if name in ("features", "row_patch", "hit_step", "hit_row", "affine") else "view tables"


def overhead(name: str, entry: ArrayEntry) -> int:
    """Bytes of checksums and of the shard index."""
    sharded = array_spec(name).chunk_rows is not None
    return 4 * entry.chunks + (shard_index_bytes(entry.chunks) if sharded and entry.chunks else 0)


def measure(store: FeatureStore) -> dict[str, Any]:
    (receipt,) = store.manifest.blocks.values()
    parts: dict[str, int] = {}
    for name, entry in receipt.arrays.items():
        if entry.data is None or is_points(name):
            continue
        extra = overhead(name, entry)
        parts["indexes and checksums"] = parts.get("indexes and checksums", 0) + extra
        parts[part_of(name)] = parts.get(part_of(name), 0) + entry.data.size - extra
    features = receipt.arrays["features"]
    padding = (features.chunks * features.chunk_rows - receipt.coverage.rows) * features.chunk_bytes
    parts["features"] -= padding // features.chunk_rows
    parts["padding of features"] = padding // features.chunk_rows
    total = sum(parts.values())
    dense = receipt.coverage.points * features.shape[1] * 2
    coverage = receipt.coverage.model_dump()
    return {"bytes": total, "of_one_dense_draw": total / dense, "dense_bytes": dense, "parts": parts, **coverage}


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="sizes-", dir=work_folder()))
    results: dict[str, Any] = {"targets": {**TARGETS, "int8_of_float16": INT8}}
    holds = True
    try:
        for source in (REDKITCHEN, NUSCENES):
            found = {
                dtype: measure(build_store(source, folder / f"{source.name}-{dtype}", dtype))
                for dtype in ("float16", "int8")
            }
            share = found["int8"]["bytes"] / found["float16"]["bytes"]
            results[source.name] = {**found, "int8_of_float16": share}
            holds &= found["float16"]["of_one_dense_draw"] <= TARGETS[source.name] and share <= INT8
            for dtype, size in found.items():
                print(f"{source.name}, {size['views']} views, {dtype}: {size['of_one_dense_draw']:.4f} of a dense draw")
                for part, n in sorted(size["parts"].items(), key=lambda item: -item[1]):
                    print(f"  {part:22s} {n:12,d}  {n / size['bytes']:7.2%}")
            print(f"  int8 / float16: {share:.4f}")
    finally:
        shutil.rmtree(folder)
    write_results("sizes", results)
    print("all claims hold" if holds else "a claim does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
