# SPDX-License-Identifier: Apache-2.0
"""From a level to the next coarser one and back (Point Transformer V3, section 4.3; DITR, section 3).

N points of the fine level, M of the coarse one, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from ditr_cache.models.injection import ImageInjection
from ditr_cache.models.ptv3.context import Context
from ditr_cache.models.ptv3.images import LevelImage
from ditr_cache.models.ptv3.layers import Chain, batch_norm, project
from ditr_cache.models.ptv3.level import Clusters
from ditr_cache.models.segment import SegmentBackend, segment_reduce

__all__ = ["SerialisedPooling", "SerialisedUnpooling"]


class SerialisedPooling(nn.Module):
    """Linear, maximum over each cluster, then batch norm and GELU: the maximum is taken of raw values.

    Args:
        channels_in: Of the fine level.
        channels_out: Of the coarse level.
        conditions: Data sets with norm layers of their own.
        backend: Of the segment maximum.
    """

    def __init__(
        self, channels_in: int, channels_out: int, conditions: tuple[str, ...] = (), backend: SegmentBackend = "auto"
    ) -> None:
        super().__init__()
        self.backend = backend
        self.proj = nn.Linear(channels_in, channels_out)
        self.norm = Chain(batch_norm(channels_out, conditions))
        self.act = nn.GELU()

    def forward(self, x: Tensor, clusters: Clusters, context: Context) -> Tensor:
        """`[N, C_in]` to `[M, C_out]`."""
        sorted_NC = self.proj(x).index_select(0, clusters.order_N)
        pooled_MC = segment_reduce(sorted_NC, clusters.pointers_M, "max", self.backend)
        out_MC: Tensor = self.act(self.norm(pooled_MC, context.condition))
        return out_MC


class SerialisedUnpooling(nn.Module):
    """Sum of the skip connection, of the coarse level, and (DITR) of the image features f_l^2D of the fine level.

    Args:
        channels_in: Of the coarse level.
        channels_skip: Of the encoder's stage at the fine level.
        channels_out: Of the decoder's stage at the fine level.
        conditions: Data sets with norm layers of their own.
    """

    def __init__(
        self, channels_in: int, channels_skip: int, channels_out: int, conditions: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.proj = project(channels_in, channels_out, conditions)
        self.proj_skip = project(channels_skip, channels_out, conditions)

    def forward(
        self, x_MC: Tensor, skip_NC: Tensor, clusters: Clusters, image: LevelImage, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Unpool.

        Args:
            x_MC: `[M, C_in]` of the coarse level.
            skip_NC: `[N, C_skip]` of the encoder at the fine level.
            clusters: How the fine level was pooled.
            image: X_l^2D, the image features of the fine level.
            context: Of this pass.

        Returns:
            The sum `[N, C_out]`, and its skip part alone, which is all that upstream's next convolution sees.
        """
        up_NC = self.proj(x_MC, context.condition).index_select(0, clusters.cluster_N)
        skip_NC = self.proj_skip(skip_NC, context.condition)
        return self.inject(skip_NC + up_NC, image, context), skip_NC

    def inject(self, x_NC: Tensor, image: LevelImage, context: Context) -> Tensor:
        """Without images: nothing."""
        return x_NC


class ImageUnpooling(SerialisedUnpooling):
    """An unpooling that adds image features.

    Args:
        image_channels: D.
    """

    def __init__(
        self,
        channels_in: int,
        channels_skip: int,
        channels_out: int,
        image_channels: int,
        conditions: tuple[str, ...] = (),
    ) -> None:
        super().__init__(channels_in, channels_skip, channels_out, conditions)
        self.proj_image_feat = ImageInjection(image_channels, channels_out, conditions)

    def inject(self, x_NC: Tensor, image: LevelImage, context: Context) -> Tensor:
        """Add f_l^2D."""
        return x_NC + image.injected(self.proj_image_feat, context.condition)
