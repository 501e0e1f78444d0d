# SPDX-License-Identifier: Apache-2.0
"""Batches of a training run and clouds of an evaluation, in an order that does not depend on who prepares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ditr_cache.errors import DitrCacheError, SampleError
from ditr_cache.training.collate import collate, mixes
from ditr_cache.training.dataset import FeatureStoreDataset, Item
from ditr_cache.training.sampler import Draw, MicroBatch
from ditr_cache.training.workers import LoaderConfig, load
from ditr_cache.types import PointBatch

__all__ = ["EvaluationClouds", "LoaderConfig", "MakeBatch", "MakeCloud", "TrainBatches"]

V = TypeVar("V")


class MakeBatch:
    """From a micro-batch's keys to the batch itself.

    Args:
        dataset: Of the role `train`.
        images: Whether batches carry image features.
        condition: Name of the data set, for norm layers of its own.
    """

    def __init__(self, dataset: FeatureStoreDataset, *, images: bool = True, condition: str | None = None) -> None:
        self._dataset, self._images, self._condition = dataset, images, condition

    def __call__(self, key: MicroBatch) -> PointBatch:  # noqa: D102
        config, seed = self._dataset.config, self._dataset.seed
        items = [_named(draw.sample_id, self._dataset.__getitem__, draw) for draw in key.draws]
        mix = mixes(config.mix_prob, seed, key.epoch, key.step, key.number)
        ids = ", ".join(draw.sample_id for draw in key.draws)
        return _named(
            ids,
            lambda: collate(items, config.features, images=self._images, mix=mix, condition=self._condition),
        )


class MakeCloud:
    """From a draw to the cloud itself.

    Args:
        dataset: Any.
    """

    def __init__(self, dataset: FeatureStoreDataset) -> None:
        self._dataset = dataset

    def __call__(self, key: Draw) -> Item:  # noqa: D102
        return _named(key.sample_id, self._dataset.__getitem__, key)


class Keys(Protocol):
    """An endless, repeatable stream of what batches are made from."""

    @property
    def steps(self) -> int:
        """Of an epoch."""
        ...

    @property
    def accumulation(self) -> int:
        """Micro-batches of this process in a step."""
        ...

    def stream(self, epoch: int, start: int = 0, epochs: int | None = None) -> Iterator[Any]:
        """From step `start` of an epoch on, up to `epochs` in all; None: for ever."""
        ...


class TrainBatches:
    """All batches of a training run, for one process; any step can be the first.

    One stream runs through all epochs, so that workers do not pause between two. It starts anew only where it is asked
    for another step than the next.

    Args:
        make: Makes a batch.
        sampler: Says of what.
        loader: Who makes it.
        epochs: Where the stream ends; None: never.
    """

    def __init__(
        self, make: Callable[[Any], PointBatch], sampler: Keys, loader: LoaderConfig, epochs: int | None = None
    ) -> None:
        self._make, self._sampler, self._loader, self._epochs = make, sampler, loader, epochs
        self._next: tuple[int, int] | None = None
        self._stream: Iterator[tuple[Any, PointBatch]] = iter(())

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self._sampler.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Sequence[PointBatch]]:
        """The accumulated batches of this process, for every step of an epoch from step `start` on.

        Raises:
            DitrCacheError: If a sample cannot be read or used; it names the sample.
            TrainingError: If a worker died.
        """
        if self._next != (epoch, start):
            self._stream = load(self._make, _Keys(self._sampler, epoch, start, self._epochs), self._loader)
        for step in range(start, self.steps):
            self._next = None
            some = [next(self._stream)[1] for _ in range(self._sampler.accumulation)]
            self._next = (epoch, step + 1) if step + 1 < self.steps else (epoch + 1, 0)
            yield some

    def close(self) -> None:
        """Stop the workers."""
        self._stream, self._next = iter(()), None


class EvaluationClouds:
    """Every sample of a list once, in its order, as read and transformed.

    Args:
        dataset: Of the role `eval`.
        loader: Who reads.
        sample_ids: Some of the data set's samples; None: all.
    """

    def __init__(
        self, dataset: FeatureStoreDataset, loader: LoaderConfig, sample_ids: Sequence[str] | None = None
    ) -> None:
        self._dataset, self._loader = dataset, loader
        self._ids = dataset.sample_ids if sample_ids is None else tuple(sample_ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[tuple[str, Item]]:
        keys = [Draw(0, i, sample_id) for i, sample_id in enumerate(self._ids)]
        for key, item in load(MakeCloud(self._dataset), keys, self._loader):
            yield key.sample_id, item


@dataclass(frozen=True, slots=True)
class _Keys:
    """The sampler's stream from one step on."""

    sampler: Keys
    epoch: int
    start: int
    epochs: int | None

    def __iter__(self) -> Iterator[Any]:
        return self.sampler.stream(self.epoch, self.start, self.epochs)


def _named(sample_id: str, function: Callable[..., V], *args: Any) -> V:
    """`function(*args)`, whose errors name the sample."""
    try:
        return function(*args)
    except DitrCacheError as error:
        where = sample_id if error.where in (None, sample_id) else f"{sample_id}: {error.where}"
        raise type(error)(error.what, where=where, hint=error.hint) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        raise SampleError(f"{type(error).__name__}: {reason}", where=sample_id) from error
