# SPDX-License-Identifier: Apache-2.0
"""Clouds become a batch: arrays one after the other, factored features with their indices shifted, Mix3D.

B clouds, N points of all of them, P rows of one cloud, D feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ditr_cache.errors import SampleError
from ditr_cache.training.data_config import Feature
from ditr_cache.training.dataset import Item
from ditr_cache.training.sample import Sample
from ditr_cache.training.seeding import rng_for
from ditr_cache.types import FactoredFeatures, Float32, PointBatch

__all__ = ["collate", "input_channels", "mixes"]


def collate(
    items: Sequence[Item],
    features: Sequence[Feature],
    *,
    images: bool = True,
    mix: bool = False,
    condition: str | None = None,
) -> PointBatch:
    """One batch of some clouds.

    Rows that no point refers to any more (later views cover earlier ones, crops and voxels drop points) stay behind:
    the rows that are needed are gathered in the copy that a batch takes anyway.

    Args:
        items: At least one cloud.
        features: Input channels, in this order.
        images: Whether the batch carries image features.
        mix: Merge clouds two by two (Mix3D): a pair keeps its voxels and shares an offset.
        condition: Name of the data set.

    Raises:
        SampleError: If a sample lacks an input channel, voxels, or points.
    """
    samples = [item.sample for item in items]
    if any(len(sample) == 0 or sample.grid_coord is None for sample in samples):
        raise SampleError("a cloud has no points or no voxels after its transforms", hint="They need a grid_sample.")
    labelled = [sample.segment for sample in samples if sample.segment is not None]
    classes = [item.cls for item in items if item.cls is not None]
    return PointBatch(
        grid_coord=_join([sample.grid_coord for sample in samples]),
        coord=_join([sample.coord for sample in samples]),
        feat=_join([input_channels(sample, features) for sample in samples]),
        offset=_ends(samples, mix),
        image=_join_features(items) if images else None,
        cls=_join(classes) if classes else None,
        cls_offset=_ends(classes, mix) if classes else None,
        segment=_join(labelled).long() if len(labelled) == len(samples) else None,
        condition=condition,
    )


def mixes(probability: float, seed: int, epoch: int, step: int, number: int) -> bool:
    """Whether the clouds of micro-batch `number` of a step are merged."""
    return bool(rng_for(seed, "mix", epoch, step, number).random() < probability)


def input_channels(sample: Sample, features: Sequence[Feature]) -> Float32:
    """`[N, C]` float32: the named arrays side by side.

    Raises:
        SampleError: If the sample lacks one.
    """
    columns = []
    for name in features:
        column = getattr(sample, name)
        if column is None:
            raise SampleError(f"no {name}", hint="Choose others with -s data.features=[...]")
        columns.append(column.reshape(len(sample), -1))
    return np.concatenate(columns, 1, dtype=np.float32)


def _join(arrays: Sequence[Any]) -> torch.Tensor:
    return torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))


def _ends(clouds: Sequence[Any], mix: bool) -> torch.Tensor:
    ends_B = torch.from_numpy(np.cumsum([len(cloud) for cloud in clouds]))
    if not mix:
        return ends_B
    # every second end, and the last where their number is odd
    return torch.cat([ends_B[1::2], ends_B[-1:]]) if len(ends_B) % 2 else ends_B[1::2]


def _join_features(items: Sequence[Item]) -> FactoredFeatures:
    """Rows that are in use, cloud after cloud; indices count through all of them, -1 stays."""
    # converted once: NumPy indexes with any other integers three times slower
    seats = [item.sample.index.astype(np.intp) for item in items]
    kept = [_rows_in_use(seat_N, len(item.features.rows)) for seat_N, item in zip(seats, items, strict=True)]
    starts = np.cumsum([0, *(len(used_p) for used_p, _ in kept)])
    rows_PD = np.empty((starts[-1], items[0].features.rows.shape[1]), items[0].features.rows.dtype)
    index, affine, row_view, views = [], [], [], 0
    for item, seat_N, (used_p, moved_P), start in zip(items, seats, kept, starts[:-1].tolist(), strict=True):
        # clip: with the default mode NumPy gathers into a buffer first
        item.features.rows.take(used_p, axis=0, out=rows_PD[start : start + len(used_p)], mode="clip")
        moved_P[:-1] += start
        index.append(moved_P[seat_N])
        if item.features.affine is not None:
            affine.append(item.features.affine)
            row_view.append(item.features.row_view[used_p] + np.int32(views))
            views += len(item.features.affine)
    quantised = bool(affine)
    return FactoredFeatures(
        torch.from_numpy(rows_PD),
        _join(index),
        _join(affine) if quantised else None,
        _join(row_view) if quantised else None,
    )


def _rows_in_use(index_N: NDArray[np.intp], rows: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Rows that some point refers to `[p]`, and where each of all rows goes among them `[P + 1]`; -1 at the end."""
    # one entry more, so that -1 marks and finds nothing else
    used_P = np.zeros(rows + 1, bool)
    used_P[index_N] = True
    used_P[-1] = False
    moved_P = np.cumsum(used_P, dtype=np.int32)
    moved_P -= 1
    moved_P[-1] = -1
    return np.flatnonzero(used_P), moved_P
