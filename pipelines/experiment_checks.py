# SPDX-License-Identifier: Apache-2.0
"""What would stop an experiment's last arm is said before its first is trained for hours."""

from __future__ import annotations

from collections.abc import Sequence

from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.experiment_plans import Plan
from ditr_cache.pipelines.experiment_settings import ExperimentSettings
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.dataset import split_samples
from ditr_cache.training.store_check import coordinates
from ditr_cache.training.task import Task

__all__ = ["check_images", "check_stores"]


def check_stores(plan: Plan, settings: ExperimentSettings, stores: Sequence[FeatureStore]) -> list[Task]:
    """Refuse stores that some arm could not be trained or scored on.

    Returns:
        What its arms find in each.

    Raises:
        ConfigError: If one lacks points, labels, an array or a split.
    """
    tasks = []
    for index, store in enumerate(stores):
        config = settings.of(next(arm for arm in plan.arms if arm.store == index), 0)
        # training would go without a split for validation, and a score is the point here
        split_samples(store, config.data.val_splits)
        found = coordinates(store, (*config.data.train_splits, *config.data.val_splits))
        tasks.append(Task.of(store, config, found))
    return tasks


def check_images(source: Dataset, store: FeatureStore) -> None:
    """Refuse images of other samples than the store's, or seen from elsewhere.

    Cameras are compared for the first sample; for the others, once they are trained on.

    Raises:
        ConfigError: If there are none of a sample, not all, or others.
    """
    planned = {sample.id: set(sample.views) for block in source.plan() for sample in block.samples}
    for info in store.samples.values():
        if not set(info.view_names) <= planned.get(info.id, set()):
            raise ConfigError(
                f"has no images of {info.id}" if info.id not in planned else f"lacks images of {info.id}",
                where="--source",
                hint=f"Name the data set that {store.root} was made from.",
            )
    # not at the top: it brings the ViT, which other experiments do not need
    from ditr_cache.pipelines.online import check_scene

    first = next(iter(store.samples))
    check_scene(store, source.load(first))
