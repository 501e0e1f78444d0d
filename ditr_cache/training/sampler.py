# SPDX-License-Identifier: Apache-2.0
"""Which sample is trained on when, and by which process.

A pass (epoch) is a permutation of all draws, cut into steps; a step is cut into micro-batches, numbered through all
processes. Micro-batch m is the (m // processes)-th of process m mod processes, so two processes see what one that
accumulates two micro-batches sees. Everything follows from (seed, epoch): any step can be the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ditr_cache.errors import ConfigError
from ditr_cache.training.seeding import rng_for

__all__ = ["BatchSampler", "Draw", "MicroBatch"]


@dataclass(frozen=True, slots=True)
class Draw:
    """One visit to one sample; names its random numbers."""

    epoch: int
    position: int
    """In the order of the epoch."""
    sample_id: str


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The clouds of one forward and backward pass."""

    epoch: int
    step: int
    """In the epoch."""
    number: int
    """In the step, counted over all processes."""
    draws: tuple[Draw, ...]


class BatchSampler:
    """The micro-batches of one process.

    Args:
        sample_ids: What to train on.
        seed: The run's seed.
        batch_size: Clouds of a step, over all processes and micro-batches.
        loop: How often an epoch visits every sample.
        accumulation: Micro-batches of a process in a step.
        rank: This process.
        world: How many processes.

    Raises:
        ConfigError: If a step cannot be divided evenly, or an epoch has not enough draws for one step.
    """

    def __init__(
        self,
        sample_ids: Sequence[str],
        seed: int,
        batch_size: int,
        *,
        loop: int = 1,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._ids, self._seed, self._batch_size, self._loop = tuple(sample_ids), seed, batch_size, loop
        self.accumulation = accumulation
        """Micro-batches of this process in a step."""
        self._rank, self._world = rank, world
        if not 0 <= rank < world:
            raise ConfigError(f"process {rank} of {world}")
        if batch_size < 1 or batch_size % (world * accumulation):
            raise ConfigError(
                f"{batch_size} clouds a step cannot be divided among {world} x {accumulation} batches "
                "(processes x accumulation)",
                where="run.batch_size",
            )
        if self.steps == 0:
            raise ConfigError(
                f"an epoch has {len(self._ids) * loop} draws ({len(self._ids)} samples, data.loop={loop}), "
                f"a step takes {batch_size}",
                where="run.batch_size",
                hint="Raise data.loop or lower run.batch_size.",
            )

    @property
    def steps(self) -> int:
        """Steps of an epoch; draws that do not fill a step are left out, as in the official training."""
        return len(self._ids) * self._loop // self._batch_size

    def order(self, epoch: int) -> list[Draw]:
        """All draws of an epoch, of all processes."""
        n = len(self._ids)
        order = rng_for(self._seed, "order", epoch).permutation(n * self._loop)
        return [Draw(epoch, position, self._ids[i % n]) for position, i in enumerate(order.tolist())]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[MicroBatch]:
        """Micro-batches of this process, from step `start` of an epoch to its end."""
        order = self.order(epoch)
        size = self._batch_size // (self._world * self.accumulation)
        for step in range(start, self.steps):
            for i in range(self.accumulation):
                number = i * self._world + self._rank
                first = step * self._batch_size + number * size
                yield MicroBatch(epoch, step, number, tuple(order[first : first + size]))

    def stream(self, epoch: int, start: int = 0, epochs: int | None = None) -> Iterator[MicroBatch]:
        """The same, and then of the epochs after it, up to `epochs` in all; None: for ever."""
        while epochs is None or epoch < epochs:
            yield from self.epoch(epoch, start)
            epoch, start = epoch + 1, 0
