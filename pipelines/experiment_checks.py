# SPDX-License-Identifier: Apache-2.0
"""What would stop an experiment's last arm is said before its first is trained for hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ditr_cache.config import load_config
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.experiment_plans import Plan
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.config import TrainConfig

__all__ = ["check_images", "check_settings"]


def check_settings(name: str, plan: Plan, layers: Sequence[Mapping[str, Any]], overrides: Sequence[str]) -> None:
    """Refuse settings that an arm cannot have, or that all arms set themselves.

    Raises:
        ConfigError: If there are such.
    """
    set_by_all = set.intersection(*({_key(text) for text in arm.settings} for arm in plan.arms)) | {"run.seed"}
    for text in overrides:
        if _key(text) in set_by_all:
            raise ConfigError(f"{name} sets it itself", where=_key(text))
    for arm in plan.arms:
        load_config(TrainConfig, layers, [*overrides, *arm.settings])


def check_images(source: Dataset, store: FeatureStore) -> None:
    """Refuse images of other samples than the store's.

    Raises:
        ConfigError: If there are none of a sample, or not all.
    """
    planned = {sample.id: set(sample.views) for block in source.plan() for sample in block.samples}
    for info in store.samples.values():
        if not set(info.view_names) <= planned.get(info.id, set()):
            raise ConfigError(
                f"has no images of {info.id}" if info.id not in planned else f"lacks images of {info.id}",
                where="--source",
                hint=f"Name the data set that {store.root} was made from.",
            )


def _key(override: str) -> str:
    """Which setting a `KEY=VALUE` sets."""
    return override.partition("=")[0].strip()
