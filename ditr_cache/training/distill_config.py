# SPDX-License-Identifier: Apache-2.0
"""Settings of distillation (D-DITR).

Network, data, optimiser and run mean what they mean in training, and the recipe of a data set is that of its training
without the labels, as upstream has it: the same schedule and augmentation.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from ditr_cache.config.model import ModelConfig
from ditr_cache.training.config import OptimConfig, Positive, RunConfig
from ditr_cache.training.data_config import DataConfig

__all__ = ["DistillConfig", "TargetConfig", "without_labels"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class TargetConfig(_Model):
    """From which stores, and through what, image features are regressed."""

    names: tuple[str, ...] = ()
    """What each store is called, in the order of the command; none: as its data set. Stores of the same name share norm
    layers, and the head."""
    weights: tuple[Positive, ...] = ()
    """How often each store is gone through in an epoch; none: once."""
    separate_norms: bool = True
    """Norm layers of its own for every name, where there are several (paper section 3.2)."""
    separate_heads: bool = False
    """A regression of its own for every name."""
    global_normalisation: bool = False
    """Divide by the visible points of the whole step, not by those of one process's batch."""


class DistillConfig(_Model):
    """All of distillation."""

    model: ModelConfig = ModelConfig(injection="none")
    data: DataConfig = DataConfig()
    distill: TargetConfig = TargetConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="before")
    @classmethod
    def _nothing_injected(cls, values: Any) -> Any:
        # settings that say something of the network, and nothing of this, mean a network without images
        model = values.get("model") if isinstance(values, dict) else None
        return {**values, "model": {"injection": "none", **model}} if isinstance(model, dict) else values

    @model_validator(mode="after")
    def _points_only(self) -> DistillConfig:
        if self.model.injection != "none":
            raise ValueError("model.injection must be none: the network would be shown what it is to regress")
        if self.model.norm_conditions:
            raise ValueError("model.norm_conditions follow from the stores: leave them out")
        if self.data.annotations is not None:
            raise ValueError("data.annotations says whose labels are known, and none are read: leave it out")
        return self


def without_labels(layer: dict[str, Any]) -> dict[str, Any]:
    """A recipe of training as one of distillation: no loss on labels, and nothing injected."""
    kept = {key: value for key, value in layer.items() if key not in ("loss", "init", "store")}
    if "model" in kept:
        kept["model"] = {key: value for key, value in kept["model"].items() if key != "injection"}
    if "data" in kept:
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "annotations"}
    return kept
