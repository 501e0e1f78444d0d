# SPDX-License-Identifier: Apache-2.0
"""From a stored cloud to a class for each of its points: the plain pass, and the official test protocol.

Shape letters: N points of the stored cloud, M points after voxelisation before the copies are made (M = N without),
n points of a fragment, K classes.

Both read a cloud's image features once. The official code shows its images to the ViT again for every fragment of
every copy (upstream resizes and normalises them in `post_transform`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ditr_cache.errors import ConfigError
from ditr_cache.training.data_config import TestConfig
from ditr_cache.training.inference import Clock, Held, Network
from ditr_cache.training.sample import Sample
from ditr_cache.training.seeding import rng_for
from ditr_cache.training.transforms import Transform, apply, fragments
from ditr_cache.types import FactoredFeatures, Int32

__all__ = ["Labelling", "PlainPass", "TestProtocol"]


class Labelling(Protocol):
    """How labels are made."""

    def __call__(self, sample_id: str, sample: Sample, features: FactoredFeatures, cls: Any, clock: Clock) -> Int32:
        """Classes `[N]` of all points of a stored cloud.

        Args:
            sample_id: Names the random numbers, should a transform draw any.
            sample: As read, before any transform.
            features: The rows that `sample.index` counts through.
            cls: `[V, D]` class tokens of the drawn views, or None.
            clock: Counts passes and adds up times.

        Raises:
            ConfigError: If the transforms lose points.
        """
        ...


class PlainPass:
    """Validation as in training: one pass over one point a voxel, whose class all points of the voxel get.

    Args:
        network: What labels.
        transforms: `data.val`.
        seed: For transforms that draw, should there be any.
    """

    def __init__(self, network: Network, transforms: Sequence[Transform], seed: int = 0) -> None:
        self._network, self._transforms, self._seed = network, tuple(transforms), seed

    def __call__(  # noqa: D102
        self, sample_id: str, sample: Sample, features: FactoredFeatures, cls: Any, clock: Clock
    ) -> Int32:
        with clock.measure("transform"):
            voxels = apply(self._transforms, sample, rng_for(self._seed, "evaluation", sample_id))
            held = self._network.hold(features, cls)
            batch = self._network.batch([voxels], held)
        with clock.measure("forward"):
            label_M = self._network(batch).argmax(1).to(torch.int32).cpu().numpy()
        clock.count(clouds=1, copies=1, fragments=1, forwards=1)
        return _to_points(label_M, voxels, len(sample))


class TestProtocol:
    """The official test: classes by the sum of the softmax over all fragments of all copies of a cloud.

    A copy is turned, scaled or mirrored; its fragments have one point of every voxel each, and together all points.

    Args:
        network: What labels.
        config: `data.test`.
        fragments_a_pass: Fragments of one copy that share a forward pass; 1 is official. More is faster on a large GPU,
            and changes results slightly where the serialisation depth or the patch length depends on the batch.
        seed: For transforms that draw, should there be any.
    """

    __test__ = False  # pytest takes it for tests by its name

    def __init__(self, network: Network, config: TestConfig, fragments_a_pass: int = 1, seed: int = 0) -> None:
        if fragments_a_pass < 1:
            raise ConfigError(f"{fragments_a_pass} fragments a pass: at least one is needed")
        self._network, self._config, self._seed = network, config, seed
        self._at_once = fragments_a_pass

    def __call__(  # noqa: D102
        self, sample_id: str, sample: Sample, features: FactoredFeatures, cls: Any, clock: Clock
    ) -> Int32:
        with clock.measure("transform"):
            rng = rng_for(self._seed, "evaluation", sample_id)
            base = apply(self._config.before, sample, rng)
            held = self._network.hold(features, cls)
            sum_MK = torch.zeros((len(base), self._network.classes), device=self._network.device)
        for copy in self._config.augmentations():
            self._add(sum_MK, base, (*copy, *self._config.voxelize), held, rng, clock)
        clock.count(clouds=1, copies=len(self._config.augmentations()))
        with clock.measure("forward"):
            label_M = sum_MK.argmax(1).to(torch.int32).cpu().numpy()
        return _to_points(label_M, base, len(sample))

    def _add(
        self,
        sum_MK: Tensor,
        base: Sample,
        transforms: Sequence[Transform],
        held: Held,
        rng: np.random.Generator,
        clock: Clock,
    ) -> None:
        """Add the softmax of one copy, in place."""
        with clock.measure("transform"):
            copy = apply(transforms, base, rng)
            if len(copy) != len(base):
                raise ConfigError(
                    f"a transform of the test protocol leaves {len(copy):,} of {len(base):,} points",
                    hint="Those of data.test.voxelize must keep all; data.test.before may choose one a voxel.",
                )
            parts = fragments(copy)
        for some in _batched(parts, self._at_once):
            with clock.measure("transform"):
                samples = [apply(self._config.after, copy.take(seat_n), rng) for seat_n in some]
                batch = self._network.batch(samples, held)
            with clock.measure("forward"):
                share_nK = self._network(batch).softmax(1)
                # a fragment has no point twice, two of them may
                for seat_n, part_nK in zip(some, torch.split(share_nK, [len(s) for s in samples]), strict=True):
                    sum_MK[torch.from_numpy(seat_n).to(sum_MK.device)] += part_nK
            clock.count(fragments=len(some), forwards=1)


def _to_points(label_M: Int32, voxels: Sample, points: int) -> Int32:
    """Classes of the stored points from those of the points that stand for them."""
    if voxels.inverse is not None and len(voxels.inverse) == points and (voxels.inverse >= 0).all():
        return label_M[voxels.inverse]
    if voxels.inverse is None and len(voxels) == points:
        label_N = np.empty(points, np.int32)
        label_N[voxels.point] = label_M
        return label_N
    raise ConfigError(
        f"the transforms of evaluation lose points: {len(voxels):,} of {points:,} are left, and stand for no others",
        hint="Leave out what drops or crops, and let grid_sample keep the first point of a voxel (keep: first).",
    )


def _batched(parts: Sequence[np.ndarray], n: int) -> list[Sequence[np.ndarray]]:
    return [parts[i : i + n] for i in range(0, len(parts), n)]
