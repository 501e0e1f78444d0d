# SPDX-License-Identifier: Apache-2.0
"""A linear layer of many narrow numbers that come from a frozen network.

P rows, D input channels, C output channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["narrow_linear"]


def narrow_linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T + bias`, computed in `dtype`; `x` gets no gradient.

    Args:
        x: `[P, D]` floating point, as narrow as it came.
        weight: `[C, D]`.
        bias: `[C]`.
        dtype: Of the result `[P, C]`.
    """
    out_PC: Tensor = _NarrowLinear.apply(x, weight, bias, dtype)  # type: ignore[no-untyped-call]
    return out_PC


class _NarrowLinear(torch.autograd.Function):
    """`linear` in another type than its input's, which keeps the input as narrow as it came for the backward pass.

    `nn.Linear` would keep the converted copy: of all four levels, at D = 1024, 120 MB for an indoor scene. The input
    gets no gradient; it comes from a frozen network.
    """

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, weight_CD: Tensor, bias_C: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x_PD)
        ctx.kept = weight_CD.dtype
        return nn.functional.linear(x_PD.to(dtype), weight_CD.to(dtype), bias_C.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None]:
        (grad_PC,), (x_PD,) = grads, ctx.saved_tensors
        weight_CD = grad_PC.T @ x_PD.to(grad_PC.dtype)
        return None, weight_CD.to(ctx.kept), grad_PC.sum(0).to(ctx.kept), None
