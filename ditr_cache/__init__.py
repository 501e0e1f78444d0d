# SPDX-License-Identifier: Apache-2.0
"""DITR without the ViT in the loop: frozen patch features for 3D points, extracted once into a store.

>>> import ditr_cache
>>> store = ditr_cache.open_store("rooms.store")
>>> sample = store.read("room-a-0000-0000", count=10, seed=0)
>>> sample.features.rows.shape, sample.features.index.shape
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditr_cache.store.reader import FeatureStore
    from ditr_cache.types import FactoredFeatures, PointCloud, PointFeatures

__all__ = ["FactoredFeatures", "PointCloud", "PointFeatures", "__version__", "open_store"]

__version__ = "0.1.0"


def open_store(
    path_or_url: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int | None = None,
) -> FeatureStore:
    """Open a feature store for reading; see `ditr_cache.store.reader.open_store`."""
    # the store needs numcodecs and pydantic, which `ditr-cache --help` should not wait for
    from ditr_cache.store.reader import open_store as open_

    return open_(path_or_url, cache_dir=cache_dir, cache_size=cache_size)


def __getattr__(name: str) -> Any:
    # `ditr-cache --help` should not wait for NumPy either
    if name in ("FactoredFeatures", "PointCloud", "PointFeatures"):
        from ditr_cache import types

        return getattr(types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
