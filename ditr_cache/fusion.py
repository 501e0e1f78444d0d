# SPDX-License-Identifier: Apache-2.0
"""Patch maps and hits to factored rows: of a view's patches, keep those that a point sees.

H hits and R rows of one view, P patches, D feature channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ditr_cache.errors import ConfigError
from ditr_cache.geometry import Hits
from ditr_cache.types import Int32

__all__ = ["MAX_PATCHES", "ViewHits", "factor", "seen_rows"]

MAX_PATCHES = 65_536
"""Patches a grid may have: the store numbers them in 16 bits."""

UInt16 = NDArray[np.uint16]


@dataclass(frozen=True, slots=True, eq=False)
class ViewHits:
    """Who sees what in one view; the dense feature of point `hit_point[i]` is row `hit_row[i]`."""

    row_patch: UInt16
    """`[R]` patches that at least one point sees, ascending."""
    hit_point: Int32
    """`[H]` points, ascending."""
    hit_row: UInt16
    """`[H]` row of each: `row_patch[hit_row]` is the patch it falls into."""


def factor(hits: Hits, grid: tuple[int, int], flipped: bool = False) -> ViewHits:
    """Renumber the patches of a view to the ones that are seen.

    Args:
        hits: Of the view as it was recorded.
        grid: Rows and columns of patches.
        flipped: Whether the patch map is that of the mirrored image: column c becomes columns - 1 - c.

    Returns:
        Rows and hits of the view.

    Raises:
        ConfigError: If the grid has more patches than the store can number.
    """
    rows, columns = grid
    if rows * columns > MAX_PATCHES:
        raise ConfigError(
            f"a grid of {rows}x{columns} patches is above the {MAX_PATCHES:,} that the store can number",
            hint="Give a smaller images.size.",
        )
    # as NumPy indexes, once for both uses: with any other integers the first one takes three times as long
    patch_H = hits.patch.astype(np.intp)
    seen = np.zeros((rows, columns), np.bool_)
    seen.reshape(-1)[patch_H] = True
    # a table of the grid: no sort of the hits, as np.unique would do
    row_of_patch = np.empty((rows, columns), np.uint16)
    patches = seen[:, ::-1] if flipped else seen
    (row_of_patch[:, ::-1] if flipped else row_of_patch)[...] = (patches.cumsum() - 1).reshape(rows, columns)
    row_patch = np.flatnonzero(patches).astype(np.uint16)
    return ViewHits(row_patch, hits.point, row_of_patch.reshape(-1).take(patch_H))


def seen_rows(patch_map_PD: torch.Tensor, row_patch: UInt16) -> torch.Tensor:
    """Gather the seen rows `[R, D]` of a patch map `[P, D]`, on its device."""
    index_R = torch.from_numpy(row_patch.astype(np.int64)).to(patch_map_PD.device, non_blocking=True)
    return patch_map_PD.index_select(0, index_R)
