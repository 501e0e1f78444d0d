# SPDX-License-Identifier: Apache-2.0
"""One view of float32 rows to what is stored of it. Pure functions: they run in any thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ditr_cache.errors import FrameError
from ditr_cache.store.digests import view_digest
from ditr_cache.store.layout import Codec
from ditr_cache.store.quantize import quantise
from ditr_cache.types import Camera

__all__ = ["DRAWN_VIEWS", "BlockSettings", "EncodedView", "encode_view"]

DRAWN_VIEWS = 10
"""Views that the official training draws of a scene. Samples with more are read view by view, the others whole."""


@dataclass(frozen=True, slots=True)
class BlockSettings:
    """What all blocks of a store share."""

    dim: int
    """D."""
    dtype: str
    """`float16` or `int8`."""
    compress: Codec = "none"
    points: bool = True
    class_token: bool = False
    align_views: bool = True
    """Every view starts on a chunk. False: every sample does, for samples whose views are always read together."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedView:
    """One view, ready to be appended."""

    name: str
    variant: int
    camera: Camera
    grid: tuple[int, int]
    rows: NDArray[Any]
    """`[R, D]` float16 or int8."""
    affine: NDArray[np.float32] | None
    """`[2, D]`, int8 only."""
    row_patch: NDArray[np.uint16]
    """`[R]` ascending."""
    hit_point: NDArray[np.int32]
    """`[H]` ascending."""
    hit_row: NDArray[np.uint16]
    """`[H]`."""
    cls: NDArray[np.float16] | None
    """`[D]`."""
    cosine_error: NDArray[np.float32] | None
    """`[R]`, int8 only."""
    sha256: bytes
    """Over rows, row_patch, hit_point steps and hit_row as stored."""
    hit_step: NDArray[np.int32]
    """`[H]`."""


def encode_view(
    name: str,
    variant: int,
    camera: Camera,
    grid: tuple[int, int],
    rows_RD: torch.Tensor,
    cls_D: torch.Tensor | None,
    hits: tuple[NDArray[np.uint16], NDArray[np.int32], NDArray[np.uint16]],
    settings: BlockSettings,
) -> EncodedView:
    """Narrow one view's rows to what is stored. Pure; runs in any thread.

    Args:
        name: Base view name.
        variant: `view_variant`.
        camera: Its camera.
        grid: Patch rows, columns.
        rows_RD: `[R, D]` float32 on the CPU, the seen rows in the order of `row_patch`.
        cls_D: `[D]` class token.
        hits: row_patch `[R]`, hit_point `[H]`, hit_row `[H]`.
        settings: The store's.

    Raises:
        FrameError: If a feature is not finite, or beyond the range of float16.
    """
    row_patch, hit_point, hit_row = hits
    half_RD = rows_RD.to(torch.float16)
    bits = half_RD.numpy().view(np.uint16)
    # exponent of infinity or NaN; torch.isfinite takes ten times as long on float16
    if bits.size and (bits & 0x7FFF).max() >= 0x7C00:
        raise FrameError("features are not finite, or exceed 65,504, the range of float16", where=name)
    cls = None if cls_D is None else cls_D.to(torch.float16)
    if cls is not None and not bool(torch.isfinite(cls).all()):
        raise FrameError("the class token is not finite in float16", where=name)
    affine, error = None, None
    if settings.dtype == "int8":
        rows, affine, error = quantise(rows_RD)
    else:
        rows = half_RD.numpy()
    hit_step = np.diff(hit_point, prepend=np.int32(0))
    return EncodedView(
        name=name,
        variant=variant,
        camera=camera,
        grid=grid,
        rows=rows,
        affine=affine,
        row_patch=row_patch,
        hit_point=hit_point,
        hit_row=hit_row,
        cls=None if cls is None else cls.numpy(),
        cosine_error=error,
        sha256=view_digest(rows, row_patch, hit_step, hit_row),
        hit_step=hit_step,
    )
