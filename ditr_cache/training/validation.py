# SPDX-License-Identifier: Apache-2.0
"""Evaluation during training: one pass over one point a voxel, whose class all points of the voxel get.

M points of the stored cloud.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from ditr_cache.errors import ConfigError
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.training.dataset import FeatureStoreDataset, Item
from ditr_cache.training.distributed import World
from ditr_cache.training.inference import Network
from ditr_cache.training.loader import EvaluationClouds, LoaderConfig
from ditr_cache.training.metrics import ConfusionMatrix, SegmentationScores

__all__ = ["NoValidation", "Validation"]


class NoValidation:
    """For runs without a validation split."""

    def __call__(self, stopped: threading.Event) -> SegmentationScores | None:
        """Nothing."""
        return None


class Validation:
    """Scores of a network on samples, over all processes.

    Args:
        model: The network itself, not wrapped; left in training mode.
        dataset: With the role `eval`.
        names: Of the classes.
        world: Processes share the samples.
        loader: Who reads.
        seed: Of the one draw of curves that serves all passes.
        condition: Name of the data set, for norm layers of its own.
        sample_ids: Some of the data set's samples; None: all.
    """

    def __init__(
        self,
        model: Segmentor,
        dataset: FeatureStoreDataset,
        names: Sequence[str],
        world: World,
        loader: LoaderConfig,
        seed: int,
        condition: str | None = None,
        sample_ids: Sequence[str] | None = None,
    ) -> None:
        self._model, self._dataset, self._names, self._world = model, dataset, names, world
        self._loader, self._seed, self._condition = loader, seed, condition
        self._ids = dataset.sample_ids if sample_ids is None else tuple(sample_ids)

    def __call__(self, stopped: threading.Event) -> SegmentationScores | None:
        """Evaluate; one cloud a pass, without autocast, as the official code does.

        Returns:
            Scores; None if `stopped` was set meanwhile, in any process.
        """
        confusion = ConfusionMatrix(len(self._names))
        features = self._dataset.config.features
        network = Network(self._model, features, self._world.device, self._seed, self._condition)
        mine = self._ids[self._world.rank :: self._world.size]
        try:
            for _, item in EvaluationClouds(self._dataset, self._loader, mine):
                if stopped.is_set():
                    break
                self._count(network, item, confusion)
        finally:
            self._model.train()
        if self._world.any(stopped.is_set()):
            return None
        confusion.all_reduce()
        return confusion.scores(self._names)

    @staticmethod
    def _count(network: Network, item: Item, confusion: ConfusionMatrix) -> None:
        sample = item.sample
        batch = network.batch([sample], network.hold(item.features, item.cls))
        label_N = network(batch).argmax(1).cpu()
        if sample.inverse is None or sample.full_segment is None or (sample.inverse < 0).any():
            raise ConfigError(
                "the transforms of validation lose points",
                where="data.val",
                hint="Let grid_sample keep the first point of a voxel, and leave out what drops or crops: "
                "{kind: grid_sample, keep: first}",
            )
        confusion.update(label_N[torch.from_numpy(sample.inverse)], torch.from_numpy(sample.full_segment))
