# SPDX-License-Identifier: Apache-2.0
"""Settings of stage two. Defaults are the official ScanNet recipe; `configs/train/` holds what differs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ditr_cache.config.model import ModelConfig
from ditr_cache.training.data_config import DataConfig

__all__ = ["InitConfig", "LossConfig", "OptimConfig", "RunConfig", "StageConfig", "StoreExpectation", "TrainConfig"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class LossConfig(_Model):
    """What is minimised."""

    cross_entropy: Weight = 1.0
    """Weight of the cross entropy."""
    lovasz: Weight = 1.0
    """Weight of the Lovasz-softmax loss, over the classes that a batch has."""
    class_weights: tuple[Weight, ...] | None = None
    """Weight of each class in the cross entropy; none by default."""
    global_normalisation: bool = False
    """Divide the cross entropy by the labelled points of the whole step, not by those of one process's batch. Several
    processes then do what one would with all of their clouds. The Lovasz loss stays one of a batch."""

    @model_validator(mode="after")
    def _something(self) -> LossConfig:
        if not (self.cross_entropy or self.lovasz):
            raise ValueError("cross_entropy and lovasz are both 0: there is nothing to minimise")
        return self


class OptimConfig(_Model):
    """AdamW on one cycle of the learning rate."""

    lr: Positive = 6e-3
    """Highest learning rate."""
    block_lr_factor: Positive = 0.1
    """What parameters in transformer blocks take of it."""
    block_pattern: str = "block"
    """Regular expression that finds their names."""
    backbone_lr_factor: Positive = 1.0
    """What the backbone's other parameters take of it; below one when the head alone is new."""
    weight_decay: Weight = 0.05
    """Of AdamW."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of AdamW; the first one only where `momentum` is null."""
    eps: Positive = 1e-8
    """Of AdamW."""
    pct_start: float = Field(0.05, ge=0, le=1)
    """Share of the run in which the learning rate goes up."""
    div_factor: float = Field(10.0, ge=1)
    """Highest learning rate over the first one."""
    final_div_factor: float = Field(1000.0, ge=1)
    """First learning rate over the last one."""
    momentum: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] | None = (0.85, 0.95)
    """Lowest and highest first beta, cycled against the learning rate; null: `betas`."""
    clip_grad: Positive | None = None
    """Largest norm of all gradients together; no limit by default."""


class RunConfig(_Model):
    """How long, on what, and what is kept."""

    epochs: int = Field(100, ge=1)
    """Passes over the training split; one of them sees every sample `data.loop` times."""
    batch_size: int = Field(12, ge=1)
    """Clouds a step, over all processes and accumulated batches."""
    accumulation: int = Field(1, ge=1)
    """Batches into which a process divides its part of a step, one after the other, to save memory."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the weights and of every random draw."""
    device: str = "auto"
    """`auto` takes CUDA where there is one."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Autocast: `auto` is bf16 on CUDA and off on the CPU; fp16 (official) comes with a gradient scaler."""
    sync_bn: bool = False
    """Batch statistics over all processes (official: each its own)."""
    deterministic: bool = False
    """Only operations that give the same bits each time; with the same number of threads, a resumed run then equals an
    unbroken one to the last digit."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads of a process; null: torch's choice."""
    workers: int = Field(8, ge=0, le=1024)
    """How many prepare data, over all training processes; 0: none, training waits."""
    worker_kind: Literal["process", "thread"] = "process"
    """What they are: processes share the work of transforms, threads save the way between processes and are enough
    where transforms are light or the store is far away."""
    prefetch: int = Field(2, ge=1, le=256)
    """Batches that each of them prepares ahead."""
    eval_every: int = Field(1, ge=1)
    """Epochs between evaluations; the last one is always evaluated."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Also save after every so many steps; null: after every epoch only."""
    log_every: int = Field(10, ge=1)
    """Steps between readings of the loss, each of which waits for the GPU."""
    weights: Path | None = None
    """Weights to start from: .safetensors, or an official checkpoint."""
    strict_weights: bool = True
    """Refuse weights that do not fit all of the model; otherwise what fits is taken."""

    @model_validator(mode="after")
    def _divides(self) -> RunConfig:
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}")
        return self


class InitConfig(_Model):
    """What training starts from, instead of weights that are drawn."""

    distilled: Path | None = None
    """Run folder of `ditr-cache distill`: its network without the regression (D-DITR)."""
    norms: str | None = None
    """Whose norm layers, where several data sets were distilled; null: those of the store's data set."""


class StoreExpectation(_Model):
    """What the store must be. Another one is refused, with the difference."""

    identity: dict[str, Any] = {}
    """Parts of its identity, e.g. {backbone: {dim: 1024}, images: {size: [420, 560]}}; see them with
    `ditr-cache info STORE --json`."""
    digest: str | None = None
    """Its content digest, for exactly these features."""
    coordinates: str | None = None
    """Digest over the coordinates of the samples that are read; a run's `run.json` has it."""


class TrainConfig(_Model):
    """All of stage two."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    init: InitConfig = InitConfig()
    store: StoreExpectation = StoreExpectation()

    @model_validator(mode="after")
    def _one_start(self) -> TrainConfig:
        if self.init.distilled is not None and self.run.weights is not None:
            raise ValueError("init.distilled and run.weights are both given: training starts from one of them")
        if self.init.norms is not None and self.init.distilled is None:
            raise ValueError("init.norms names norm layers of a distillation, and init.distilled is not given")
        return self


class StageConfig(Protocol):
    """What training and distillation have in common."""

    @property
    def model(self) -> ModelConfig: ...  # noqa: D102
    @property
    def data(self) -> DataConfig: ...  # noqa: D102
    @property
    def optim(self) -> OptimConfig: ...  # noqa: D102
    @property
    def run(self) -> RunConfig: ...  # noqa: D102
