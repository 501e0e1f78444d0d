# SPDX-License-Identifier: Apache-2.0
"""Two things that transformers leaves to be done for AIMv2: other image sizes, and Apple's own checkpoint layout."""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn import functional

__all__ = ["ResizablePositions", "from_original"]

_NAMES = (
    (r"^preprocessor\.patchifier\.proj\.", "embeddings.patch_embed."),
    (r"^preprocessor\.patchifier\.norm\.", "embeddings.rms_norm."),
    (r"^preprocessor\.pos_embed$", "embeddings.position_embedding.weight"),
    (r"^trunk\.post_trunk_norm\.", "rms_norm."),
    (r"^trunk\.blocks\.(\d+)\.norm_1\.", r"encoder.layers.\1.rms_norm1."),
    (r"^trunk\.blocks\.(\d+)\.norm_2\.", r"encoder.layers.\1.rms_norm2."),
    (r"^trunk\.blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.attention.out_proj."),
    (r"^trunk\.blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layers.\1.ffn.gate_proj."),
    (r"^trunk\.blocks\.(\d+)\.mlp\.fc3\.", r"encoder.layers.\1.ffn.up_proj."),
    (r"^trunk\.blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layers.\1.ffn.down_proj."),
)
_QKV = re.compile(r"^trunk\.blocks\.(\d+)\.attn\.qkv\.(.+)$")


class ResizablePositions(nn.Module):
    """Stands in for the table of learned positions, which transformers can only look up at its own size.

    Resized as timm does for this model: bicubic with antialiasing, to the size of the grid.

    Args:
        table: The trained `[side * side, D]` embedding.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight
        self.grid = (0, 0)
        """Rows and columns of the next forward pass."""

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """Positions `[1, P, D]` of the current grid; the argument (indices of the trained grid) is not used."""
        side = round(self.weight.shape[0] ** 0.5)
        if self.grid == (side, side):
            return self.weight[None]
        table_1Dss = self.weight.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resized_1Drc = functional.interpolate(
            table_1Dss, self.grid, mode="bicubic", antialias=True, align_corners=False
        )
        return resized_1Drc.flatten(2).transpose(1, 2)


def from_original(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Apple's names to those of transformers; None if they are that already."""
    if not any(key.startswith("trunk.") for key in state):
        return None
    converted = {}
    for key, value in state.items():
        fused = _QKV.match(key)
        if fused:
            for name, part in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                converted[f"encoder.layers.{fused[1]}.attention.{name}.{fused[2]}"] = part
            continue
        for pattern, replacement in _NAMES:
            key = re.sub(pattern, replacement, key)
        converted[key] = value[0] if key.endswith("position_embedding.weight") and value.ndim == 3 else value
    return converted
