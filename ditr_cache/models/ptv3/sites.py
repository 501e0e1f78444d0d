# SPDX-License-Identifier: Apache-2.0
"""Where image features enter the network: the rows of the paper's Table 5.

N points, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.models.injection import ImageInjection
from ditr_cache.models.ptv3.context import Context
from ditr_cache.models.ptv3.images import LevelImage

__all__ = ["ImageSum", "NoSum", "Sites", "image_sum", "sites"]


@dataclass(frozen=True, slots=True)
class Sites:
    """Where image features enter one network."""

    before: bool = False
    """Summed with the output of the stem."""
    decoder: frozenset[int] = frozenset()
    """Stages of the decoder whose skip connections they are summed with."""
    after: bool = False
    """Summed with the output of the decoder."""
    second: bool = False
    """A second encoder-decoder takes that sum."""
    cls: bool = False
    """Class tokens are keys and values in the decoder's attention."""

    @property
    def levels(self) -> int:
        """Levels of the pyramid, from the finest on, whose image features are needed."""
        return 1 + max(self.decoder) if self.decoder else int(self.before or self.after)

    def __bool__(self) -> bool:
        return self.levels > 0 or self.cls


def sites(config: ModelConfig, image_channels: int | None) -> Sites:
    """Of one row of Table 5.

    Args:
        config: Its `injection`.
        image_channels: D.

    Raises:
        ConfigError: If image features shall be injected and D is missing.
    """
    chosen = _of_table_5(config)
    if chosen and image_channels is None:
        raise ConfigError(
            f"injection {config.injection!r} needs to know how many channels an image feature has",
            hint="Pass image_channels, or set model.injection=none for the network without images.",
        )
    return chosen


def _of_table_5(config: ModelConfig) -> Sites:
    match config.injection:
        case "none":
            return Sites()
        case "before":
            return Sites(before=True)
        case "between":
            return Sites(after=True, second=True)
        case "decoder":
            return Sites(decoder=frozenset(range(config.decoder_stages)))
        case "decoder_last":
            return Sites(decoder=frozenset({0}))
        case "after":
            return Sites(after=True)
        case "cls":
            return Sites(cls=True)


class ImageSum(nn.Module):
    """Adds image features to those of points: linear, batch norm, GELU, sum.

    Args:
        image_channels: D.
        channels: C.
        conditions: Data sets with norm layers of their own.
    """

    def __init__(self, image_channels: int, channels: int, conditions: tuple[str, ...]) -> None:
        super().__init__()
        self.proj_image_feat = ImageInjection(image_channels, channels, conditions)

    def forward(self, x: Tensor, image: LevelImage, context: Context) -> Tensor:
        """`[N, C]` to `[N, C]`."""
        return x + image.injected(self.proj_image_feat, context.condition)


class NoSum(nn.Module):
    """A place where nothing enters."""

    def forward(self, x: Tensor, image: LevelImage, context: Context) -> Tensor:
        """Nothing."""
        return x


def image_sum(image_channels: int | None, channels: int, conditions: tuple[str, ...]) -> ImageSum | NoSum:
    """A place where features of D channels enter, or nothing does (None)."""
    return NoSum() if image_channels is None else ImageSum(image_channels, channels, conditions)
