# SPDX-License-Identifier: Apache-2.0
"""Are these the points that features were made for, and if so, in which order?

A store without points keeps two hashes of a sample's coordinates: as stored, and with the rows sorted. The first proves
that a cloud is the right one in the right order. The second proves that it is the right one in some order; hits count
points in an order that no hash gives back. So a permuted copy can be joined only if the order is one that can be tried:
the first hash then proves that it is the one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import DatasetError
from ditr_cache.store.digests import coordinate_digests
from ditr_cache.store.receipt import SampleEntry
from ditr_cache.types import PointCloud

__all__ = ["in_store_order"]


def in_store_order(points: PointCloud, sample: SampleEntry) -> PointCloud:
    """The points of a copy of the data set, in the order in which the store counts them.

    Args:
        points: Of the copy.
        sample: What the store says of the sample.

    Raises:
        DatasetError: If they are other points, or in an order that cannot be undone.
    """
    exact, order_free = coordinate_digests(points)
    if exact == sample.coord_sha256:
        return points
    if order_free != sample.coord_sha256_sorted:
        count = f" ({len(points):,}, the store has {sample.points:,})" if len(points) != sample.points else ""
        raise DatasetError(
            f"its points are not those that the features were made for{count}",
            where=sample.id,
            hint="Use the data set as it is distributed, in the version that `ditr-cache info STORE` names.",
        )
    if len(np.unique(points.coord, axis=0)) == len(points):
        for order in _orders(points.coord):
            candidate = _permuted(points, order)
            if coordinate_digests(candidate)[0] == sample.coord_sha256:
                return candidate
    raise DatasetError(
        "its points are the right ones in another order, and the store, which has no points, cannot tell which",
        where=sample.id,
        hint="Use the data set as it is distributed: features must not meet the points of others.",
    )


def _orders(coord_N3: NDArray[np.float32]) -> Iterator[NDArray[np.intp]]:
    """Orders in which clouds are stored now and then: backwards, and sorted by either end of the axes."""
    n = len(coord_N3)
    yield np.arange(n)[::-1]
    x, y, z = coord_N3.T
    for keys in ((z, y, x), (x, y, z)):
        order = np.lexsort(keys)
        yield order
        yield order[::-1]


def _permuted(points: PointCloud, order: NDArray[np.intp]) -> PointCloud:
    def take(array: NDArray[Any] | None) -> Any:
        return None if array is None else array[order]

    return replace(
        points,
        coord=points.coord[order],
        color=take(points.color),
        normal=take(points.normal),
        strength=take(points.strength),
        segments={name: array[order] for name, array in points.segments.items()},
        instance=take(points.instance),
    )
