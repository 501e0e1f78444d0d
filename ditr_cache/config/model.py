# SPDX-License-Identifier: Apache-2.0
"""Settings of the 3D network. Defaults are the official PTv3 + DITR (45.7 M parameters in its blocks)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from ditr_cache.config.minkunet import MinkUNetConfig

__all__ = ["Injection", "ModelConfig", "Order"]

Order = Literal["z", "z-trans", "hilbert", "hilbert-trans"]
Injection = Literal["none", "before", "between", "decoder", "decoder_last", "after", "cls"]


class ModelConfig(BaseModel):
    """The network, which is Point Transformer V3 unless `network` says otherwise, and how image features enter it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    network: Literal["ptv3", "minkunet"] = "ptv3"
    """`minkunet` is the sparse U-Net of section `minkunet`. Of the other settings it takes `compatibility`,
    `norm_conditions`, `injection`, `factored` and `sparse_conv`; the rest is Point Transformer V3's."""
    order: tuple[Order, ...] = ("z", "z-trans", "hilbert", "hilbert-trans")
    """Space-filling curves; block i of a stage attends along curve i modulo their number."""
    shuffle_orders: bool = True
    """Permute the curves at the start and after every pooling."""
    stride: tuple[int, ...] = (2, 2, 2, 2)
    """Voxel size ratio of each pooling; powers of two."""
    enc_depths: tuple[NonNegativeInt, ...] = (2, 2, 2, 6, 2)
    """Blocks of each encoder stage."""
    enc_channels: tuple[PositiveInt, ...] = (32, 64, 128, 256, 512)
    """Width of each encoder stage."""
    enc_num_head: tuple[PositiveInt, ...] = (2, 4, 8, 16, 32)
    """Attention heads of each encoder stage."""
    enc_patch_size: tuple[PositiveInt, ...] = (1024, 1024, 1024, 1024, 1024)
    """Points that attend to each other in each encoder stage."""
    dec_depths: tuple[NonNegativeInt, ...] = (2, 2, 2, 2)
    """Blocks of each decoder stage, finest first."""
    dec_channels: tuple[PositiveInt, ...] = (64, 64, 128, 256)
    """Width of each decoder stage, finest first."""
    dec_num_head: tuple[PositiveInt, ...] = (4, 4, 8, 16)
    """Attention heads of each decoder stage, finest first."""
    dec_patch_size: tuple[PositiveInt, ...] = (1024, 1024, 1024, 1024)
    """Points that attend to each other in each decoder stage, finest first."""
    mlp_ratio: int = Field(4, ge=1)
    """Hidden width of a block's MLP over its width."""
    qkv_bias: bool = True
    """Bias of the query, key and value projection."""
    drop_path: float = Field(0.3, ge=0, lt=1)
    """Stochastic depth of the deepest block; the others lie evenly between 0 and it."""
    enable_rpe: bool = False
    """Relative position bias, and with it the official rule of one patch length for the whole batch."""
    upcast_attention: bool = False
    """Attention in float32 under autocast."""
    compatibility: Literal["official", "fixed"] = "official"
    """`official` emulates upstream's quirks, so that its checkpoints fit; `fixed` is without them."""
    norm_conditions: tuple[str, ...] = ()
    """Data sets with norm layers of their own; none: shared ones."""
    injection: Injection = "decoder"
    """Where image features enter (paper Table 5)."""
    factored: bool = True
    """Inject by distinct rows; False: by points, which gives the same numbers and costs memory."""
    sparse_conv: Literal["auto", "torch", "spconv"] = "auto"
    """Back end of the sparse convolutions; `auto` takes spconv on CUDA where it is installed."""
    segment: Literal["auto", "torch", "torch_scatter"] = "auto"
    """Back end of the pooling; `auto` takes torch."""
    compile: bool = False
    """torch.compile the dense parts of every block."""
    minkunet: MinkUNetConfig = MinkUNetConfig()
    """Where `network` is `minkunet`."""

    @property
    def width(self) -> int:
        """Channels of the features that the network gives a point."""
        return (self.minkunet if self.network == "minkunet" else self).dec_channels[0]

    @property
    def decoder_stages(self) -> int:
        """How many the network has."""
        return len((self.minkunet if self.network == "minkunet" else self).dec_channels)

    @model_validator(mode="after")
    def _fits_minkunet(self) -> ModelConfig:
        if self.network == "minkunet":
            if self.injection in ("cls", "between"):
                what = "has no attention" if self.injection == "cls" else "is one network, and not two"
                raise ValueError(f"injection {self.injection} is for ptv3: minkunet {what}")
            if self.compile:
                raise ValueError("compile is for the blocks of ptv3: minkunet has none of them")
        return self

    @model_validator(mode="after")
    def _stages(self) -> ModelConfig:
        stages = len(self.enc_depths)
        if stages < 2:
            raise ValueError("enc_depths needs two stages at least, for the decoder starts from the second")
        if len(self.stride) != stages - 1 or any(s < 2 or s & (s - 1) for s in self.stride):
            raise ValueError(f"stride needs {stages - 1} powers of two, one for each pooling between encoder stages")
        for name in ("channels", "num_head", "patch_size"):
            if len(getattr(self, f"enc_{name}")) != stages or len(getattr(self, f"dec_{name}")) != stages - 1:
                raise ValueError(f"enc_{name} needs {stages} values and dec_{name} {stages - 1}, one for each stage")
        if len(self.dec_depths) != stages - 1:
            raise ValueError(f"dec_depths needs {stages - 1} values, one for each decoder stage")
        for side in ("enc", "dec"):
            for width, heads in zip(getattr(self, f"{side}_channels"), getattr(self, f"{side}_num_head"), strict=True):
                if width % heads:
                    raise ValueError(f"{side}_channels: {width} is not a multiple of its {heads} heads")
        if not self.order:
            raise ValueError("order needs at least one curve")
        return self
