# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution: on the voxels that exist (submanifold; Graham et al., 2018), to coarser ones, and back."""

from ditr_cache.models.sparse_conv.layer import SubmanifoldConv3d
from ditr_cache.models.sparse_conv.neighbours import Backend, NeighbourTable, neighbours
from ditr_cache.models.sparse_conv.strided_layer import StridedConv3d, TransposedConv3d
from ditr_cache.models.sparse_conv.strides import StrideTable, strides

__all__ = [
    "Backend",
    "NeighbourTable",
    "StrideTable",
    "StridedConv3d",
    "SubmanifoldConv3d",
    "TransposedConv3d",
    "neighbours",
    "strides",
]
