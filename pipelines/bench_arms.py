# SPDX-License-Identifier: Apache-2.0
"""The networks that `bench model` compares: PTv3, DITR from the store, and DITR with the ViT in every step.

N points, V views, P patches of one of them, D feature channels.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ditr_cache.models.random import draw_weights
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.pipelines.bench_scenes import BenchScene
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distributed import World
from ditr_cache.training.inference import Network
from ditr_cache.training.objective import SegmentationObjective
from ditr_cache.training.optim import build_optimizer
from ditr_cache.training.schedule import OneCycle
from ditr_cache.training.seeding import torch_generator_for
from ditr_cache.training.step import Precision, Step
from ditr_cache.types import FactoredFeatures, PointBatch

if TYPE_CHECKING:
    from ditr_cache.backbones import Backbone

__all__ = ["ARMS", "Arm", "ArmName", "ArmSettings", "vit_modules"]

ArmName = Literal["ptv3", "cached", "online"]
ARMS: tuple[ArmName, ...] = ("ptv3", "cached", "online")


@dataclass(frozen=True, slots=True)
class ArmSettings:
    """What decides a network."""

    name: ArmName
    config: TrainConfig
    classes: int
    dim: int
    """D."""
    device: str


class Arm:
    """One network, a training step of it and a pass of evaluation.

    The cached arm moves and decodes stored rows and injects by rows. The online one shows all views to the ViT, gathers
    one feature a point and injects by points, as upstream does; there is no gradient in the ViT.

    Args:
        settings: Which network.
        vit: For the online arm.
    """

    def __init__(self, settings: ArmSettings, vit: Backbone | None = None) -> None:
        config, device = settings.config, torch.device(settings.device)
        update: dict[ArmName, dict[str, Any]] = {
            "ptv3": {"injection": "none"},
            "cached": {"factored": True},
            "online": {"factored": False},
        }
        model_config = config.model.model_copy(update=update[settings.name])
        dim = None if settings.name == "ptv3" else settings.dim
        with torch.device("meta"):
            model = Segmentor(model_config, config.data.channels, settings.classes, dim)
        self.model = model.to_empty(device="cpu")
        draw_weights(self.model, torch_generator_for(0, "weights"))
        self.model.to(device)
        self.name = settings.name
        self.vit_s: list[float] = []
        """Seconds in the ViT, a number a call."""
        self._vit, self._device = vit, device
        self._network = Network(self.model, config.data.features, device, config.run.seed)
        precision = Precision(config.run.amp, device)
        self.amp = precision.name
        """Autocast of the training step."""
        self._step = Step(
            self.model,
            SegmentationObjective(config.loss, settings.classes, device),
            build_optimizer(self.model, config.optim),
            OneCycle.of(config.optim, 1000),
            precision,
            config,
            World(device),
        )

    @property
    def parameters(self) -> int:
        """Of the network that is trained."""
        return _size(self.model)[0]

    @property
    def weight_bytes(self) -> int:
        """Of the network and the ViT."""
        return sum(_size(module)[1] for module in (self.model, *vit_modules(self._vit)))

    def train(self, scene: BenchScene) -> None:
        """One training step on one cloud: features, forward, loss, backward, AdamW."""
        self.model.train()
        result = self._step([replace(scene.batch, image=self._features(scene))], 0, 0)
        float(result.loss)
        self._wait()

    def infer(self, scene: BenchScene) -> Tensor:
        """One pass of evaluation over one cloud, in float32; class scores `[N, K]`."""
        self.model.eval()
        image = self._features(scene)
        if image is not None:
            image = FactoredFeatures(image.to(self._device).dequantise().rows.float(), image.index)
        batch: PointBatch = replace(scene.batch, image=image).to(self._device)
        logits_NK = self._network(batch)
        self._wait()
        return logits_NK

    def _features(self, scene: BenchScene) -> FactoredFeatures | None:
        if self.name == "ptv3":
            return None
        if self.name == "cached":
            return scene.cached
        assert self._vit is not None
        start = time.perf_counter()
        rows = torch.cat([self._vit(images).rows.flatten(0, 1) for images in scene.images])
        self._wait()
        self.vit_s.append(time.perf_counter() - start)
        return FactoredFeatures(rows, scene.patch_N.to(self._device))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def vit_modules(vit: Backbone | None) -> list[nn.Module]:
    """What a backbone computes with."""
    return [] if vit is None else [value for value in vars(vit).values() if isinstance(value, nn.Module)]


def _size(model: nn.Module) -> tuple[int, int]:
    """Parameters, and bytes of them and of buffers."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(t.nbytes for t in (*parameters, *model.buffers()))
