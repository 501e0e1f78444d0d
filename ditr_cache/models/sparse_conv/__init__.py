# SPDX-License-Identifier: Apache-2.0
"""Submanifold sparse convolution: outputs exist exactly where inputs do (Graham et al., 2018)."""

from ditr_cache.models.sparse_conv.layer import SubmanifoldConv3d
from ditr_cache.models.sparse_conv.neighbours import Backend, NeighbourTable, neighbours

__all__ = ["Backend", "NeighbourTable", "SubmanifoldConv3d", "neighbours"]
