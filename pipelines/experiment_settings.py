# SPDX-License-Identifier: Apache-2.0
"""What every arm of an experiment is trained with, and what its distillation has of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditr_cache.config import load_config, merge
from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.experiment_plans import Arm, Plan
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distill_config import DistillConfig, without_labels

__all__ = ["ExperimentSettings"]


class ExperimentSettings:
    """Settings of the command, with those of an arm on top.

    Args:
        layers: As `load_config` has them.
        overrides: As `load_config` has them.
    """

    def __init__(self, layers: Sequence[Mapping[str, Any]], overrides: Sequence[str]) -> None:
        self._layers, self._overrides = tuple(layers), tuple(overrides)

    @property
    def common(self) -> TrainConfig:
        """Without any arm's."""
        return load_config(TrainConfig, self._layers, self._overrides)

    def of(self, arm: Arm, seed: int, distilled: Path | None = None, more: Sequence[str] = ()) -> TrainConfig:
        """Of one run.

        Args:
            arm: Which.
            seed: Of the run.
            distilled: What it starts from.
            more: Further overrides.
        """
        start = [] if distilled is None else [f"init.distilled={distilled}"]
        return load_config(
            TrainConfig, self._layers, [*self._overrides, *arm.settings, f"run.seed={seed}", *start, *more]
        )

    def distillation(self, seed: int) -> DistillConfig:
        """What arms start from: the same data, network and schedule, without labels."""
        return load_config(DistillConfig, [without_labels(merge(self._layers, self._overrides))], [f"run.seed={seed}"])

    def check(self, name: str, plan: Plan) -> None:
        """Refuse settings that an arm cannot have, or that all arms set themselves.

        Raises:
            ConfigError: If there are such.
        """
        distilled = any(arm.distilled for arm in plan.arms)
        set_by_all = set.intersection(*({_key(text) for text in arm.settings} for arm in plan.arms)) | {"run.seed"}
        for text in self._overrides:
            if _key(text) in set_by_all:
                raise ConfigError(f"{name} sets it itself", where=_key(text))
        if distilled and self.common.init.distilled is not None:
            raise ConfigError(f"{name} sets it itself", where="init.distilled")
        for arm in plan.arms:
            self.of(arm, 0, Path("distilled") if arm.distilled else None)
        if distilled:
            self.distillation(0)


def _key(override: str) -> str:
    """Which setting a `KEY=VALUE` sets."""
    return override.partition("=")[0].strip()
