# SPDX-License-Identifier: Apache-2.0
"""Writes `store-v1-f16` and `store-v1-int8`, two tiny stores of format version 1, and what they must read as.

Run once for a format version, never again: the stores are there to show that later programs still read them. Chunks are
shorter than those that are written today (readers take their length from the manifest), which keeps the files small.

    python tests/golden/make_stores.py
"""

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "store"))

from store_builder import NoSync, build_store, random_block  # noqa: E402

from ditr_cache.store import layout  # noqa: E402
from ditr_cache.store.block import BlockSettings  # noqa: E402
from ditr_cache.store.reader import open_store  # noqa: E402

STORES = {
    "f16": (
        BlockSettings(4, "float16", class_token=True),
        random_block(1, "scene ä", points=90, views=3, variants=(0, 1), dim=4, cls=True),
    ),
    "int8": (
        BlockSettings(8, "int8", "zstd", points=False, align_views=False),
        random_block(2, "drive-7", samples=2, points=(1, 40), views=2),
    ),
}
CHUNK_ROWS = 64


def short_chunks() -> dict[str, layout.ArraySpec]:
    """The arrays of the format with chunks of 64 rows, but for those whose chunks decide on padding."""
    names = {**layout.ARRAYS, "segment": layout.array_spec("segment"), "segment20": layout.array_spec("segment20")}
    kept = {"features", "hit_step", "hit_row"}
    return {
        name: spec if spec.chunk_rows is None or name in kept else replace(spec, chunk_rows=CHUNK_ROWS)
        for name, spec in names.items()
    }


def main() -> None:
    """Write both stores and `stores-v1.npz`."""
    expected: dict[str, np.ndarray] = {}
    for name, (settings, block) in STORES.items():
        path = HERE / f"store-v1-{name}"
        shutil.rmtree(path, ignore_errors=True)
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.dict(layout.ARRAYS, short_chunks()),
            patch("uuid.uuid4", side_effect=_Uuids()),
            patch("time.time", return_value=1_700_000_000.0),
        ):
            build_store(Path(folder) / "s", [block], settings, fs=NoSync())
            (Path(folder) / "s" / ".lock").unlink()
            shutil.copytree(Path(folder) / "s", path)
        # git keeps no empty folders
        (path / "failures").rmdir()
        with open_store(path) as store:
            expected[f"{name}/digest"] = np.array(store.digest)
            for sample in store.samples:
                got = store.read(sample, rule="last")
                expected[f"{name}/{sample}/dense"] = got.features.dense()
                expected[f"{name}/{sample}/view"] = got.view
                expected[f"{name}/{sample}/patch"] = got.patch
                if got.points is not None:
                    expected[f"{name}/{sample}/coord"] = got.points.coord
                    expected[f"{name}/{sample}/segment"] = got.points.segments["segment"]
    np.savez_compressed(HERE / "stores-v1.npz", **expected)


class _Uuids:
    """Names that are the same in every run."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> "_Uuids":
        self.n += 1
        self.hex = f"{self.n:032x}"
        return self


if __name__ == "__main__":
    main()
