# SPDX-License-Identifier: Apache-2.0
"""A trained network that is shown many copies of one cloud, whose image features are read and moved once.

Shape letters: N points of a forward pass, P rows, D feature channels, V views, K classes, B clouds of a forward pass,
O curves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.models.random import draw_permutations
from ditr_cache.training.collate import input_channels
from ditr_cache.training.data_config import Feature
from ditr_cache.training.sample import Sample
from ditr_cache.training.seeding import torch_generator_for
from ditr_cache.types import FactoredFeatures, PointBatch

if TYPE_CHECKING:
    from ditr_cache.models.segmentor import Segmentor

__all__ = ["Clock", "Cost", "Held", "Network", "evaluation_permutations"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What predictions took."""

    clouds: int = 0
    """Samples."""
    copies: int = 0
    """Turned, scaled and mirrored copies of them; one each in the plain protocol."""
    fragments: int = 0
    """Parts that the copies were cut into."""
    forwards: int = 0
    """Passes through the network."""
    images: int = 0
    """Images that the official code would have shown to the ViT: every view again for every fragment."""
    read_s: float = 0.0
    """Seconds spent reading the store."""
    transform_s: float = 0.0
    """Seconds spent turning, voxelising, cutting and collating."""
    forward_s: float = 0.0
    """Seconds spent in the network and in summing up what it said."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Clock:
    """Adds up where the time goes.

    Args:
        device: Work on it is waited for, so that it is counted where it was asked for.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self.cost = Cost()

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Time what happens within as `<what>_s`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.count(**{f"{what}_s": time.perf_counter() - start})

    def count(self, **more: Any) -> None:
        """Add to fields of the cost."""
        self.cost += Cost(**more)


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """The image features of one cloud, decoded and on the device: every copy only brings its index."""

    rows: Tensor | None
    """`[P, D]` floating point; None where the network takes no images."""
    cls: Tensor | None
    """`[V, D]` class tokens; None where the network takes none."""


def evaluation_permutations(config: ModelConfig, seed: int) -> Tensor | None:
    """How the curves are permuted in all passes of an evaluation; None where they are not.

    Args:
        config: Of the network.
        seed: Of the run.
    """
    if not config.shuffle_orders:
        return None
    return draw_permutations(len(config.stride), len(config.order), torch_generator_for(seed, "evaluation", "curves"))


class Network:
    """A segmentation network in evaluation: without autocast, and with the same curves in every pass.

    The order of the curves is random in the official evaluation too (PTv3 issue 76), so that its results change from
    run to run. Here one draw serves all passes.

    Args:
        model: On `device`; put into evaluation mode.
        features: Input channels (`data.features`).
        device: Where it runs.
        seed: Of the order of the curves.
        condition: Name of the data set, for norm layers of its own.
    """

    def __init__(
        self,
        model: Segmentor,
        features: Sequence[Feature],
        device: torch.device | str = "cpu",
        seed: int = 0,
        condition: str | None = None,
    ) -> None:
        self.model, self.features = model.eval(), tuple(features)
        self.device = torch.device(device)
        self.classes = model.seg_head.out_features
        self._config = model.backbone.config
        self._condition = condition
        self._permutations = evaluation_permutations(self._config, seed)

    def hold(self, features: FactoredFeatures, cls: Any = None) -> Held:
        """Move the features of a cloud to the device and decode them, once for all copies.

        Args:
            features: As read.
            cls: `[V, D]` class tokens of the drawn views, if the network takes them.

        Raises:
            ConfigError: If the network needs class tokens and there are none.
        """
        if self._config.injection == "none":
            return Held(None, None)
        if self._config.injection == "cls" and cls is None:
            raise ConfigError("the network takes class tokens, and none were read")
        rows_PD = features.to(self.device).dequantise().rows.float()
        return Held(rows_PD, None if cls is None else torch.as_tensor(cls).to(self.device))

    def batch(self, samples: Sequence[Sample], held: Held) -> PointBatch:
        """Copies or fragments of one cloud, one after the other; all of them index the same rows.

        Raises:
            SampleError: If a sample lacks an input channel.
        """
        ends = np.cumsum([len(sample) for sample in samples])
        image = None
        if held.rows is not None:
            index_N = torch.from_numpy(np.concatenate([sample.index for sample in samples]))
            image = FactoredFeatures(held.rows, index_N)
        cls, cls_offset = None, None
        if held.cls is not None:
            cls = held.cls.repeat(len(samples), 1)
            cls_offset = torch.arange(1, len(samples) + 1) * len(held.cls)
        return PointBatch(
            grid_coord=torch.from_numpy(np.concatenate([_voxels(sample) for sample in samples])),
            coord=torch.from_numpy(np.concatenate([sample.coord for sample in samples])),
            feat=torch.from_numpy(np.concatenate([input_channels(s, self.features) for s in samples])),
            offset=torch.from_numpy(ends),
            image=image,
            cls=cls,
            cls_offset=cls_offset,
            condition=self._condition,
        ).to(self.device)

    def __call__(self, batch: PointBatch) -> Tensor:
        """Class scores `[N, K]` float32 before the softmax."""
        with torch.inference_mode():
            logits_NK: Tensor = self.model(batch, permutations=self._permutations)
        return logits_NK.float()


def _voxels(sample: Sample) -> Any:
    if sample.grid_coord is None:
        raise ConfigError("the transforms of evaluation give no voxels", hint="They need a grid_sample.")
    return sample.grid_coord
