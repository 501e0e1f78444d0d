# SPDX-License-Identifier: Apache-2.0
"""The image features X_l^2D of a level: by distinct rows, or one row a point.

N points of a level, M of the next coarser one, D image channels, C channels of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.models.factored import Compatibility, compact, pool
from ditr_cache.models.injection import ImageInjection
from ditr_cache.models.ptv3.level import Clusters
from ditr_cache.models.segment import segment_reduce
from ditr_cache.types import FactoredFeatures

__all__ = ["DenseImage", "FactoredImage", "LevelImage", "NoImage", "pool_images"]


class LevelImage(Protocol):
    """Image features of one level."""

    def pooled(self, clusters: Clusters) -> LevelImage:
        """Those of the next coarser level: the maximum over each cluster."""
        ...

    def injected(self, injection: ImageInjection, condition: str | None) -> Tensor:
        """`[N, C]` f_l^2D."""
        ...


@dataclass(frozen=True, slots=True)
class NoImage:
    """A level that nothing is injected into."""

    def pooled(self, clusters: Clusters) -> NoImage:
        """Nothing."""
        return self

    def injected(self, injection: ImageInjection, condition: str | None) -> Tensor:
        """Never asked for."""
        raise AssertionError("a layer that injects has been given no image features")


@dataclass(frozen=True, slots=True, eq=False)
class FactoredImage:
    """By distinct rows: no tensor of points x D."""

    features: FactoredFeatures
    compatibility: Compatibility

    def pooled(self, clusters: Clusters) -> FactoredImage:
        """Rows of the next level: the distinct ones of each cluster, or their maximum."""
        return FactoredImage(
            pool(self.features, clusters.cluster_N, len(clusters), self.compatibility), self.compatibility
        )

    def injected(self, injection: ImageInjection, condition: str | None) -> Tensor:
        """Linear, batch norm and GELU on rows, then one gather of the narrow result."""
        out_NC: Tensor = injection(self.features, condition)
        return out_NC


@dataclass(frozen=True, slots=True, eq=False)
class DenseImage:
    """One row a point, as upstream does it; for comparison."""

    image_ND: Tensor
    seen_N: Tensor
    """`[N]` bool; unseen points have a zero row."""
    compatibility: Compatibility

    @classmethod
    def of(cls, features: FactoredFeatures, compatibility: Compatibility) -> DenseImage:
        """Gather one row a point."""
        index_N = features.index.long()
        seen_N = index_N >= 0
        image_ND = features.rows.new_zeros(len(index_N), features.rows.shape[1])
        image_ND[seen_N] = features.rows.index_select(0, index_N[seen_N])
        return cls(image_ND, seen_N, compatibility)

    def pooled(self, clusters: Clusters) -> DenseImage:
        """Maximum over each cluster; upstream's includes the zeros of unseen points, `fixed` leaves them out."""
        seen_N = self.seen_N.index_select(0, clusters.order_N)
        image_ND = self.image_ND.index_select(0, clusters.order_N)
        seen_M = segment_reduce(seen_N[:, None].float(), clusters.pointers_M, "max", "torch")[:, 0] > 0
        if self.compatibility == "fixed":
            image_ND = image_ND.masked_fill(~seen_N[:, None], torch.finfo(image_ND.dtype).min)
        image_MD = segment_reduce(image_ND, clusters.pointers_M, "max", "torch")
        return DenseImage(image_MD.masked_fill(~seen_M[:, None], 0), seen_M, self.compatibility)

    def injected(self, injection: ImageInjection, condition: str | None) -> Tensor:
        """Linear, batch norm and GELU on points."""
        return injection.forward_dense(self.image_ND, condition)


def pool_images(
    features: FactoredFeatures | None, clusters: Sequence[Clusters], levels: int, config: ModelConfig
) -> list[LevelImage]:
    """X_l^2D of every stage of the decoder, by repeated max-pooling over what the encoder pools.

    Args:
        features: Of the batch.
        clusters: From each level to the next.
        levels: How many, from the finest on, need them.
        config: Compatibility, and whether to go by rows.

    Raises:
        ConfigError: If they are needed, and the batch has none.
    """
    images: list[LevelImage] = [NoImage()] * len(clusters)
    if levels == 0:
        return images
    if features is None:
        raise ConfigError(
            f"injection {config.injection!r} needs image features, and the batch has none",
            hint="Set model.injection=none, or batch.image.",
        )
    kind = FactoredImage if config.factored else DenseImage.of
    # after sampling and cropping many rows serve no point: those need not be decoded
    images[0] = kind(compact(features).dequantise(), config.compatibility)
    for s in range(1, levels):
        images[s] = images[s - 1].pooled(clusters[s - 1])
    return images
