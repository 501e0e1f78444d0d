# SPDX-License-Identifier: Apache-2.0
"""int8 rows: per view and channel, x = offset + step * (q + 128) with q in [-128, 127] (DESIGN: store format)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["MAX_COSINE_ERROR_P99", "cosine_error", "quantise"]

MAX_COSINE_ERROR_P99 = 1e-4
"""What the format allows, per block."""


def quantise(rows_RD: torch.Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Rows of one view to int8.

    Exact minimum and maximum a channel: clipping a calibrated range cost 30 times the error at the 99th percentile.

    Args:
        rows_RD: `[R, D]` float32, finite.

    Returns:
        q `[R, D]`, affine `[2, D]` (offset, step) and the cosine error of each row `[R]`.
    """
    if len(rows_RD) == 0:
        d = rows_RD.shape[1]
        return np.empty((0, d), np.int8), np.zeros((2, d), np.float32), np.empty(0, np.float32)
    low_D, high_D = torch.aminmax(rows_RD, dim=0)
    step_D = (high_D - low_D) / 255
    scale_D = torch.where(step_D > 0, 1 / step_D, torch.zeros_like(step_D))
    code_RD = ((rows_RD - low_D) * scale_D).round_().clamp_(0, 255)
    q_RD = (code_RD - 128).to(torch.int8)
    decoded_RD = code_RD.mul_(step_D).add_(low_D)
    return q_RD.numpy(), torch.stack([low_D, step_D]).numpy(), cosine_error(rows_RD, decoded_RD).numpy()


def cosine_error(a_RD: torch.Tensor, b_RD: torch.Tensor) -> torch.Tensor:
    """1 - cos of each row `[R]`, without the cancellation of computing it so: |a/|a| - b/|b||^2 / 2. Zero rows: 0."""
    a = torch.nn.functional.normalize(a_RD, dim=1)
    b = torch.nn.functional.normalize(b_RD, dim=1)
    return a.sub_(b).square_().sum(dim=1).mul_(0.5)
