# SPDX-License-Identifier: Apache-2.0
"""Attention within patches along a curve (Point Transformer V3, section 4.1).

N points, R rows of all patches, P patches, K points a patch, H heads, E channels a head, C = H E channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from ditr_cache.models.ptv3.level import Level
from ditr_cache.models.ptv3.tokens import Keys, NoKeys

__all__ = ["RelativePositionBias", "SerialisedAttention"]


_NO_KEYS = NoKeys()


class SerialisedAttention(nn.Module):
    """Multi-head self-attention within patches, by exact softmax attention on every device.

    Args:
        channels: C.
        heads: H.
        patch_size: K.
        qkv_bias: Whether query, key and value have a bias.
        upcast: Compute in float32 whatever autocast says.
        relative: Add a learned bias of the relative position of two voxels.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        patch_size: int,
        qkv_bias: bool = True,
        upcast: bool = False,
        relative: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.patch_size, self.upcast = heads, patch_size, upcast
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.rpe: nn.Module = RelativePositionBias(patch_size, heads) if relative else NoBias()

    def forward(self, x: Tensor, level: Level, curve: int) -> Tensor:
        """Attend.

        Args:
            x: `[N, C]`.
            level: Of these points.
            curve: Which of the level's curves to follow.

        Returns:
            `[N, C]`.
        """
        out_NC: Tensor = self.proj(self.attend(self.qkv(x), level, curve))
        return out_NC

    def attend(self, qkv_NC: Tensor, level: Level, curve: int, keys: Keys = _NO_KEYS) -> Tensor:
        """Between the two projections: `[N, 3 C]` to `[N, C]`; `keys` are what patches attend to besides."""
        patches = level.patches(curve, self.patch_size)
        qkv_RC = qkv_NC.index_select(0, patches.gather_R)
        sizes = [count * length for count, length in patches.groups]
        parts = zip(patches.groups, torch.split(qkv_RC, sizes), torch.split(patches.gather_R, sizes), strict=True)
        out = [
            self._patch_attention(qkv_C.view(*group, 3, self.heads, -1), point.view(group), level, keys)
            for group, qkv_C, point in parts
        ]
        out_RC = out[0] if len(out) == 1 else torch.cat(out)
        return out_RC.index_select(0, patches.own_N)

    def _patch_attention(self, qkv_PK3HE: Tensor, point_PK: Tensor, level: Level, keys: Keys) -> Tensor:
        qkv_3PHKE = qkv_PK3HE.permute(2, 0, 3, 1, 4)
        dtype = qkv_3PHKE.dtype
        if self.upcast and dtype in (torch.float16, torch.bfloat16):
            qkv_3PHKE = qkv_3PHKE.float()
        with torch.autocast(qkv_3PHKE.device.type, enabled=False):
            q_PHKE, k_PHKE, v_PHKE = qkv_3PHKE.unbind(0)
            bias = self.rpe(level.grid_coord, point_PK, q_PHKE.dtype)
            k, v, bias = keys.join(k_PHKE, v_PHKE, bias, level.batch, point_PK[:, 0])
            out_PHKE = scaled_dot_product_attention(q_PHKE, k, v, bias)
        return out_PHKE.transpose(1, 2).flatten(2).flatten(0, 1).to(dtype)


class NoBias(nn.Module):
    """Attention that knows of no positions."""

    def forward(self, grid_N3: Tensor, point_PK: Tensor, dtype: torch.dtype) -> None:
        """None, which is what the kernel takes for no bias."""
        return


class RelativePositionBias(nn.Module):
    """A learned bias for every relative voxel position: one table row an axis and a clamped difference.

    Args:
        patch_size: K as configured; it decides how far the table reaches.
        heads: H.
    """

    def __init__(self, patch_size: int, heads: int) -> None:
        super().__init__()
        self.reach = int((4 * patch_size) ** (1 / 3) * 2)
        self.rpe_table = nn.Parameter(torch.empty(3 * (2 * self.reach + 1), heads))
        nn.init.trunc_normal_(self.rpe_table, std=0.02)

    def forward(self, grid_N3: Tensor, point_PK: Tensor, dtype: torch.dtype) -> Tensor:
        """`[P, H, K, K]` bias of a query (first K) for a key (second K)."""
        grid_PK3 = grid_N3[point_PK]
        bias_PKKH = torch.zeros((), dtype=dtype, device=grid_PK3.device)
        for axis, grid_PK in enumerate(grid_PK3.unbind(-1)):
            step_PKK = (grid_PK[:, :, None] - grid_PK[:, None, :]).clamp(-self.reach, self.reach)
            row_PKK = step_PKK + (self.reach + axis * (2 * self.reach + 1))
            bias_PKKH = bias_PKKH + embedding(row_PKK, self.rpe_table).to(dtype)
        return bias_PKKH.permute(0, 3, 1, 2)
