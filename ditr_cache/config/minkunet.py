# SPDX-License-Identifier: Apache-2.0
"""Settings of MinkUNet. Defaults are MinkUNet34C (37.9 M parameters)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

__all__ = ["MinkUNetConfig"]


class MinkUNetConfig(BaseModel):
    """Widths and depths of the U-Net; its first level has the stem alone, and every further one halves resolution."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    stem_channels: PositiveInt = 32
    """Width of the stem."""
    stem_kernel: int = Field(5, ge=1)
    """Kernel size of the stem, odd."""
    enc_channels: tuple[PositiveInt, ...] = (32, 64, 128, 256)
    """Width of each encoder stage after the stem."""
    enc_depths: tuple[PositiveInt, ...] = (2, 3, 4, 6)
    """Residual blocks of each encoder stage."""
    dec_channels: tuple[PositiveInt, ...] = (96, 96, 128, 256)
    """Width of each decoder stage, finest first."""
    dec_depths: tuple[PositiveInt, ...] = (2, 2, 2, 2)
    """Residual blocks of each decoder stage, finest first."""

    @model_validator(mode="after")
    def _stages(self) -> MinkUNetConfig:
        stages = len(self.enc_channels)
        if not stages:
            raise ValueError("enc_channels needs one stage at least")
        for name in ("enc_depths", "dec_channels", "dec_depths"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"{name} needs {stages} values, as many as enc_channels")
        if self.stem_kernel % 2 == 0:
            raise ValueError(f"stem_kernel must be odd, not {self.stem_kernel}")
        return self
