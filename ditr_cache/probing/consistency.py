# SPDX-License-Identifier: Apache-2.0
"""Whether one point has like features in different views, against pairs of different points.

S pairs of one point, R pairs of two points, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Consistency", "Cosines", "consistency", "pair_cosines"]


@dataclass(frozen=True, slots=True)
class Cosines:
    """How cosines are distributed."""

    pairs: int
    mean: float
    p05: float
    p25: float
    p50: float
    p75: float
    p95: float

    @classmethod
    def of(cls, cosine_S: Tensor) -> Cosines:
        """Mean and quantiles of at least one cosine."""
        # NumPy's: torch.quantile takes 16 million values at most
        values = np.quantile(cosine_S.double().numpy(), (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
        return cls(len(cosine_S), float(cosine_S.double().mean()), *values)


@dataclass(frozen=True, slots=True)
class Consistency:
    """Cosines of pairs of features from different views."""

    same: Cosines
    """One point, two views."""
    random: Cosines
    """Two points of one sample: what cosines are like where nothing but the scene is shared."""
    separation: float
    """How often a pair of one point has a higher cosine than a random pair: 1 always, 0.5 features say nothing of it.
    Unlike the means it depends little on what all features share, as those of ViTs do."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def pair_cosines(a_ND: Tensor, b_ND: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Cosines of each point's two features, and of each point's first and another point's second one.

    Args:
        a_ND: Features of the points of one sample, from one view each.
        b_ND: Of the same points from another view.
        shift: Which other point: the one so many further on, round the end; brought into 1..N - 1.

    Returns:
        `[N]` of one point, and `[N]` of two points; `[0]` where there is only one point.
    """
    a_ND, b_ND = functional.normalize(a_ND.float()), functional.normalize(b_ND.float())
    same_N = (a_ND * b_ND).sum(1)
    if len(a_ND) < 2:
        return same_N, same_N[:0]
    return same_N, (a_ND * b_ND.roll(1 + shift % (len(a_ND) - 1), 0)).sum(1)


def consistency(same: Sequence[Tensor], random: Sequence[Tensor]) -> Consistency | None:
    """Sum up the cosines of all samples.

    Args:
        same: Of one point, a tensor a sample.
        random: Of two points.

    Returns:
        None where there is no pair of one kind or the other.
    """
    same_S, random_R = (torch.cat([*cosines, torch.zeros(0)]).cpu() for cosines in (same, random))
    if not len(same_S) or not len(random_R):
        return None
    sorted_R = random_R.sort().values
    below_S, upto_S = (torch.searchsorted(sorted_R, same_S, right=right).double() for right in (False, True))
    separation = float((below_S + upto_S).mean() / (2 * len(sorted_R)))
    return Consistency(Cosines.of(same_S), Cosines.of(random_R), separation)
