# SPDX-License-Identifier: Apache-2.0
"""How alike a point's regressed feature and the image feature that it looks up are (DITR, equation 1), by rows.

With regressed features W h_n + b and unit rows r_p, both parts of the cosine are forms in h_n of the network's narrow
width: the numerator is (h_n, 1) . [W b]^T r_p, one small vector a row, and the squared length of the prediction is
(h_n, 1) [W b]^T [W b] (h_n, 1)^T, one small matrix a layer. So neither predictions nor targets of N x D ever exist.
Where W h_n and -b nearly cancel, the squared length has lost digits that a dense prediction would still have; with D in
the hundreds no prediction comes near that.

N points, P rows, D image channels, C channels of the network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ditr_cache.models.factored import compact
from ditr_cache.models.narrow import narrow_linear
from ditr_cache.types import FactoredFeatures

__all__ = ["cosine_to_rows"]

_ROWS_AT_ONCE = 1 << 14
"""Rows that are widened to float32 in one go: 64 MB at D = 1024."""
_SHORTEST = 1e-8
"""Length that a feature has at least, as in torch's cosine similarity."""


def cosine_to_rows(x: Tensor, layer: nn.Linear, features: FactoredFeatures) -> tuple[Tensor, Tensor]:
    """Cosine of `layer(x)` and each point's image feature.

    Args:
        x: `[N, C]` features of the network.
        layer: The regression, C to D.
        features: `rows` `[P, D]` floating or quantised, `index` `[N]`.

    Returns:
        `[N]` cosine, in the wider of float32 and the layer's type, 0 for points that are not visible; and `[N]` bool,
        which are: the ones that look up a row that is not all zero. Gradients reach `x` and `layer`, never the rows.
    """
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    # autocast would narrow lengths and products that the cosine divides by each other
    with torch.autocast(x.device.type, enabled=False):
        joint_DC = torch.cat([layer.weight, layer.bias[:, None]], 1).to(dtype)
        in_use = compact(features)
        along_PC, length_P = _project(in_use.dequantise().rows, joint_DC)
        seat_N = in_use.index.long()
        visible_N = seat_N >= 0
        visible_N[visible_N.clone()] = length_P[seat_N[visible_N]] > 0
        seen = visible_N.nonzero()[:, 0]
        x_nC = torch.cat([x.index_select(0, seen).to(dtype), x.new_ones(len(seen), 1, dtype=dtype)], 1)
        product_n = (x_nC * along_PC.index_select(0, seat_N[seen])).sum(1)
        square_n = ((x_nC @ (joint_DC.T @ joint_DC)) * x_nC).sum(1)
        # the form is a square; rounding may make a tiny one negative
        cosine_n = product_n / square_n.clamp(min=_SHORTEST**2).sqrt()
        return x.new_zeros(len(x), dtype=dtype).index_copy(0, seen, cosine_n), visible_N


def _project(rows_PD: Tensor, joint_DC: Tensor) -> tuple[Tensor, Tensor]:
    """`[P, C]` unit rows times the layer, and `[P]` lengths of the rows."""
    no_bias = joint_DC.new_zeros(joint_DC.shape[1])
    along, lengths = [], []
    for part_pD in torch.split(rows_PD, _ROWS_AT_ONCE):
        length_p = torch.linalg.vector_norm(part_pD, dim=1, dtype=joint_DC.dtype)
        along.append(
            narrow_linear(part_pD, joint_DC.T, no_bias, joint_DC.dtype) / length_p.clamp(min=_SHORTEST)[:, None]
        )
        lengths.append(length_p)
    return torch.cat(along), torch.cat(lengths)
