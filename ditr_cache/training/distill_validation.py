# SPDX-License-Identifier: Apache-2.0
"""How alike regressed and image features are on validation samples: the mean cosine over visible points."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ditr_cache.models.distiller import NOT_VISIBLE, Distiller
from ditr_cache.training.collate import collate
from ditr_cache.training.dataset import FeatureStoreDataset
from ditr_cache.training.distributed import World
from ditr_cache.training.inference import evaluation_permutations
from ditr_cache.training.loader import EvaluationClouds, LoaderConfig
from ditr_cache.types import PointBatch

__all__ = ["SimilarityScores", "SimilarityValidation"]


@dataclass(frozen=True, slots=True)
class SimilarityScores:
    """Of a distilled network: how alike regressed and image features are."""

    cosine: float
    """Mean over visible points."""
    points: int
    """Visible ones."""

    @property
    def main(self) -> float:
        """The cosine."""
        return self.cosine

    def curves(self) -> dict[str, float]:
        """The cosine."""
        return {"val/cosine": self.cosine}

    def __str__(self) -> str:
        return f"mean cosine {self.cosine:.4f}"


class SimilarityValidation:
    """Over all validation samples of all sources and all processes; one point a voxel, the evaluation's views.

    Args:
        model: The network itself, not wrapped; left in training mode.
        datasets: Each with the role `eval`, and what its batches are called.
        world: Processes share the samples.
        loader: Who reads.
        seed: Of the one draw of curves that serves all passes.
        most: Samples of each data set; None: all.
    """

    def __init__(
        self,
        model: Distiller,
        datasets: list[tuple[FeatureStoreDataset, str | None]],
        world: World,
        loader: LoaderConfig,
        seed: int,
        most: int | None = None,
    ) -> None:
        self._model, self._datasets, self._world, self._loader, self._most = model, datasets, world, loader, most
        self._permutations = evaluation_permutations(model.backbone.config, seed)

    def __call__(self, stopped: threading.Event) -> SimilarityScores | None:
        """Evaluate.

        Returns:
            Scores; None if there is no visible point, or `stopped` was set meanwhile, in any process.
        """
        total, points = 0.0, 0
        self._model.eval()
        try:
            for batch in self._batches():
                if stopped.is_set():
                    break
                with torch.inference_mode():
                    cosine_N = self._model(batch.to(self._world.device), self._permutations)
                cosine_n = cosine_N[cosine_N != NOT_VISIBLE].double()
                total, points = total + float(cosine_n.sum()), points + len(cosine_n)
        finally:
            self._model.train()
        if self._world.any(stopped.is_set()):
            return None
        total, everywhere = self._world.sum(total), round(self._world.sum(points))
        return SimilarityScores(total / everywhere, everywhere) if everywhere else None

    def _batches(self) -> Iterator[PointBatch]:
        for dataset, condition in self._datasets:
            mine = dataset.sample_ids[: self._most][self._world.rank :: self._world.size]
            for _, item in EvaluationClouds(dataset, self._loader, mine):
                yield collate([item], dataset.config.features, condition=condition)
