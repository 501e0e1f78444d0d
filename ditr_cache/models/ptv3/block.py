# SPDX-License-Identifier: Apache-2.0
"""The stem, and the block of Point Transformer V3: xCPE, attention, MLP (section 4.3).

N points, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from ditr_cache.config.model import ModelConfig
from ditr_cache.models.ptv3.attention import SerialisedAttention
from ditr_cache.models.ptv3.compiled import compiled
from ditr_cache.models.ptv3.context import Context
from ditr_cache.models.ptv3.layers import Chain, DropPath, batch_norm, layer_norm, residual, run
from ditr_cache.models.ptv3.level import Level
from ditr_cache.models.sparse_conv import SubmanifoldConv3d

__all__ = ["Block", "Embedding"]

_STEM_KERNEL, _BLOCK_KERNEL = 5, 3


class Embedding(nn.Module):
    """The stem: a sparse convolution of the input channels, batch norm, GELU.

    Args:
        in_channels: Of the input.
        config: Width of the first stage, norm layers, back end.
    """

    def __init__(self, in_channels: int, config: ModelConfig) -> None:
        super().__init__()
        width = config.enc_channels[0]
        self.stem = Chain(
            conv=SubmanifoldConv3d(in_channels, width, _STEM_KERNEL, bias=False, backend=config.sparse_conv),
            norm=batch_norm(width, config.norm_conditions),
            act=nn.GELU(),
        )

    def forward(self, feat: Tensor, level: Level, context: Context) -> Tensor:
        """`[N, C_in]` to `[N, C]`."""
        conv, *dense = self.stem.children()
        return run(dense, conv(feat, level.table(_STEM_KERNEL)), context.condition)


class MLP(nn.Module):
    """Two layers on every point, GELU between.

    Args:
        channels: C.
        hidden: Width between the layers.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x_NC: Tensor) -> Tensor:
        """Apply both."""
        out_NC: Tensor = self.fc2(self.act(self.fc1(x_NC)))
        return out_NC


class Block(nn.Module):
    """xCPE, attention along one curve, MLP; each with its residual.

    Args:
        channels: C.
        heads: Of the attention.
        patch_size: Points that attend to each other.
        curve: Which of the level's curves, modulo their number.
        drop_path: Probability that a point loses the attention branch, and then that it loses the MLP branch.
        config: What all blocks share.
    """

    def __init__(
        self, channels: int, heads: int, patch_size: int, curve: int, drop_path: float, config: ModelConfig
    ) -> None:
        super().__init__()
        conditions = config.norm_conditions
        self.curve = curve
        self.cpe = Chain(
            SubmanifoldConv3d(channels, channels, _BLOCK_KERNEL, backend=config.sparse_conv),
            nn.Linear(channels, channels),
            layer_norm(channels, conditions),
        )
        self.norm1 = Chain(layer_norm(channels, conditions))
        self.attn = SerialisedAttention(
            channels, heads, patch_size, config.qkv_bias, config.upcast_attention, config.enable_rpe
        )
        self.norm2 = Chain(layer_norm(channels, conditions))
        self.mlp = Chain(MLP(channels, config.mlp_ratio * channels))
        self.drop_path = DropPath(drop_path)
        # functions of the class, not of the object: blocks of one width share what is compiled
        self._ask = compiled(Block.ask) if config.compile else Block.ask
        self._digest = compiled(Block.digest) if config.compile else Block.digest

    def forward(self, x_NC: Tensor, level: Level, context: Context, conv_input: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x_NC: `[N, C]`.
            level: Of these points.
            context: Of this pass.
            conv_input: `[N, C]` what the convolution sees, where that is not x (upstream's stale sparse tensor).

        Returns:
            `[N, C]`.
        """
        conv, *_ = self.cpe.children()
        near_NC = conv(x_NC if conv_input is None else conv_input, level.table(_BLOCK_KERNEL))
        x_NC, qkv_NC = self._ask(self, x_NC, near_NC, context.condition)
        keys = context.tokens.keys(lambda token_VC: self._qkv(token_VC, context.condition), self.attn.heads)
        attended_NC = self.attn.attend(qkv_NC, level, self.curve, keys)
        keep_attention, keep_mlp = (self.drop_path(x_NC, context) for _ in range(2))
        return self._digest(self, x_NC, attended_NC, keep_attention, keep_mlp, context.condition)

    def ask(self, x_NC: Tensor, near_NC: Tensor, condition: str | None) -> tuple[Tensor, Tensor]:
        """The dense half before attention: where a point is, from the convolution; then queries, keys and values."""
        _, *dense = self.cpe.children()
        x_NC = x_NC + run(dense, near_NC, condition)
        return x_NC, self._qkv(x_NC, condition)

    def _qkv(self, x_NC: Tensor, condition: str | None) -> Tensor:
        qkv_NC: Tensor = self.attn.qkv(self.norm1(x_NC, condition))
        return qkv_NC

    def digest(
        self,
        x_NC: Tensor,
        attended_NC: Tensor,
        keep_attention: Tensor | None,
        keep_mlp: Tensor | None,
        condition: str | None,
    ) -> Tensor:
        """The dense half after attention: its projection, then the MLP, each dropped at some points."""
        x_NC = residual(x_NC, self.attn.proj(attended_NC), keep_attention)
        return residual(x_NC, self.mlp(self.norm2(x_NC, condition), condition), keep_mlp)
