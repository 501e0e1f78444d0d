# SPDX-License-Identifier: Apache-2.0
"""Several data sets in one run: every step is of one of them, and which one follows from (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ditr_cache.training.loader import MakeBatch
from ditr_cache.training.sampler import BatchSampler, MicroBatch
from ditr_cache.training.seeding import rng_for
from ditr_cache.types import PointBatch

__all__ = ["MakeMixed", "MixedSampler", "Sourced"]


@dataclass(frozen=True, slots=True)
class Sourced:
    """A micro-batch of one of several data sets."""

    source: int
    batch: MicroBatch


class MixedSampler:
    """Steps of all data sets, shuffled; each goes through its own epochs, however long those are.

    Args:
        samplers: One a data set, of the same batch size and process.
        weights: How often an epoch goes through each; it takes that part of its steps, one at least.
        seed: The run's seed.
    """

    def __init__(self, samplers: Sequence[BatchSampler], weights: Sequence[float], seed: int) -> None:
        self._samplers, self._seed = tuple(samplers), seed
        self._shares = [max(1, round(w * s.steps)) for w, s in zip(weights, samplers, strict=True)]
        self.accumulation = samplers[0].accumulation
        """Micro-batches of this process in a step."""

    @property
    def steps(self) -> int:
        """Steps of an epoch, of all data sets together."""
        return sum(self._shares)

    def order(self, epoch: int) -> list[int]:
        """The data set of every step of an epoch."""
        order = np.repeat(np.arange(len(self._shares)), self._shares)
        rng_for(self._seed, "sources", epoch).shuffle(order)
        return [int(source) for source in order]

    def stream(self, epoch: int, start: int = 0, epochs: int | None = None) -> Iterator[Sourced]:
        """Micro-batches of this process from step `start` of an epoch on, up to `epochs` in all; None: for ever."""
        before = self.order(epoch)[:start]
        done = [epoch * share + before.count(source) for source, share in enumerate(self._shares)]
        own = [s.stream(*divmod(n, s.steps)) for s, n in zip(self._samplers, done, strict=True)]
        while epochs is None or epoch < epochs:
            for source in self.order(epoch)[start:]:
                for batch in islice(own[source], self.accumulation):
                    yield Sourced(source, batch)
            epoch, start = epoch + 1, 0


class MakeMixed:
    """From a key to the batch itself.

    Args:
        makes: One a data set.
    """

    def __init__(self, makes: Sequence[MakeBatch]) -> None:
        self._makes = tuple(makes)

    def __call__(self, key: Sourced) -> PointBatch:  # noqa: D102
        return self._makes[key.source](key.batch)
