# SPDX-License-Identifier: Apache-2.0
"""How fast samples come out of a store, here and now, and how fast its bytes alone could come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.bench_reads import RawReads, Recorder, evict
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.store.locate import DEFAULT_CACHE_SIZE, open_storage
from ditr_cache.store.reader import FeatureStore
from ditr_cache.store.versions import read_manifest, split_version
from ditr_cache.training.sampler import BatchSampler, Draw
from ditr_cache.training.seeding import seed_for
from ditr_cache.types import PointFeatures

__all__ = ["Bench", "BenchReport", "Speed"]


@dataclass(frozen=True, slots=True)
class Speed:
    """One way of reading the same samples."""

    name: str
    """`cold`, `warm`, `loader`."""
    reader: Literal["store", "raw"]
    """`raw`: the byte ranges that the store read, without it."""
    samples_per_s: float
    bytes_per_s: float
    """Of stored bytes."""
    p50_s: float
    """Half of the samples took no longer. For the loader: the wait for the next one."""
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured."""

    store: str
    manifest: str
    """sha256 of the manifest."""
    remote: bool
    samples: int
    """Reads of each way."""
    distinct: int
    """Different samples among them."""
    count: int | None
    """Views drawn for each; None: all."""
    bytes_per_sample: float
    """Stored bytes that a warm read asks for, on average."""
    workers: int
    kind: str
    prefetch: int
    speeds: tuple[Speed, ...]
    warm_over_raw: float | None
    """Median time of a warm read over that of its bytes alone; None where raw reads were not measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Bench:
    """Reads samples in the order of training: drawn from the whole store, views drawn anew each time.

    Cold reads come first, with what the system holds of a sample's block evicted before each; a server, a disk or a
    host below may hold it still. Then everything is read once, and once more for the warm numbers. Raw reads follow
    right behind each read of the store, and so find what is below the system's own cache filled: they are a bound.

    Args:
        store: Folder or URL.
        samples: How many reads of each way.
        count: Views drawn for each; None: all.
        workers: Who prepares samples for the loader's numbers; 0: no such numbers.
        kind: What they are.
        prefetch: Samples that each of them prepares ahead.
        seed: Of samples and views.
        cache_dir: Where to keep what a server gave; None: nowhere.
        cache_size: Bytes that it may take.
        progress: Who listens; counts samples.

    Raises:
        ConfigError: If the store has no samples.
        StoreError: If there is no store, or its manifest is damaged.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        samples: int = 100,
        count: int | None = 10,
        workers: int = 0,
        kind: Literal["process", "thread"] = "process",
        prefetch: int = 2,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_size: int = DEFAULT_CACHE_SIZE,
        progress: Progress | None = None,
    ) -> None:
        location, version = split_version(store)
        self._storage = open_storage(location, cache_dir=cache_dir, cache_size=cache_size)
        self._manifest, self._version = read_manifest(self._storage, version)
        self._count, self._seed = count, seed
        self._workers, self._kind, self._prefetch = workers, kind, prefetch
        self._progress: Progress = progress or Silent()
        ids = [s.id for receipt in self._manifest.blocks.values() for s in receipt.samples]
        if not ids:
            raise ConfigError("the store has no samples", where=self._storage.location)
        self._keys = _in_training_order(ids, seed, samples)

    def run(self) -> BenchReport:
        """Measure.

        Raises:
            StoreError: If something cannot be read.
        """
        recorder = Recorder(self._storage)
        store = FeatureStore(recorder, self._manifest, self._version)
        root = None if self._storage.remote else Path(self._storage.location)
        loaded = self._workers > 0
        self._progress.begin((3 + loaded) * len(self._keys))
        try:
            cold, _ = self._pass("cold", store, recorder, root, evicted=True)
            for key in self._keys:
                self._read(store, key)
            self._progress.advance(len(self._keys))
            recorder.take()
            warm, read = self._pass("warm", store, recorder, root)
            size = read / len(self._keys)
            speeds = [*cold, *warm, *([self._loader(size)] if loaded else [])]
        finally:
            self._progress.end()
            store.close()
        medians = {speed.reader: speed.p50_s for speed in warm}
        return BenchReport(
            store=str(self._storage.location),
            manifest=self._version,
            remote=self._storage.remote,
            samples=len(self._keys),
            distinct=len({key.sample_id for key in self._keys}),
            count=self._count,
            bytes_per_sample=size,
            workers=self._workers,
            kind=self._kind,
            prefetch=self._prefetch,
            speeds=tuple(speeds),
            warm_over_raw=medians["store"] / medians["raw"] if medians.get("raw") else None,
        )

    def _pass(
        self, name: str, store: FeatureStore, recorder: Recorder, root: Path | None, *, evicted: bool = False
    ) -> tuple[list[Speed], int]:
        """Every sample, and where the store is a folder the same bytes once more; and how many bytes they were."""
        times: dict[Literal["store", "raw"], list[float]] = {"store": [], "raw": []}
        raw, read = RawReads(root) if root is not None else None, 0
        for key in self._keys:
            objects = store.samples.locate(key.sample_id)[0].objects if evicted and root is not None else []
            self._forget(root, objects)
            times["store"].append(_timed(self._read, store, key))
            ranges = recorder.take()
            read += sum(found.stop - found.start for found in ranges)
            if raw is not None:
                self._forget(root, objects)
                raw.reserve(ranges)
                times["raw"].append(_timed(raw.read, ranges))
            self._progress.advance(1)
        if raw is not None:
            raw.close()
        return [_speed(name, reader, seconds, read) for reader, seconds in times.items() if seconds], read

    @staticmethod
    def _forget(root: Path | None, objects: Sequence[str]) -> None:
        if root is not None:
            evict(root, objects)

    def _read(self, store: FeatureStore, key: Draw) -> PointFeatures:
        return ReadSample(store, self._count, self._seed).read(key)

    def _loader(self, size: float) -> Speed:
        """As training gets them: prepared ahead, by others."""
        from ditr_cache.training.workers import LoaderConfig, load

        ahead = self._workers * (self._prefetch + 1)
        make = ReadSample(FeatureStore(self._storage, self._manifest, self._version), self._count, self._seed)
        # the first ones wait for workers to start, and open what stays open
        keys = [*islice(_endless(self._keys), ahead), *self._keys]
        stream = load(make, keys, LoaderConfig(self._workers, self._prefetch, self._kind))
        for _ in range(ahead):
            next(stream)
        waits = []
        for _ in self._keys:
            waits.append(_timed(next, stream))
            self._progress.advance(1)
        make.store.close()
        return _speed("loader", "store", waits, size * len(self._keys))


class ReadSample:
    """Reads the sample of a draw. Pickles into workers.

    Args:
        store: Where from.
        count: Views drawn; None: all.
        seed: With the draw, decides which.
    """

    def __init__(self, store: FeatureStore, count: int | None, seed: int) -> None:
        self.store, self._count, self._seed = store, count, seed

    def read(self, key: Draw) -> PointFeatures:
        """The sample as it is read."""
        seed = seed_for(self._seed, "bench", key.epoch, key.position)
        return self.store.read(key.sample_id, count=self._count, rule="last", seed=seed)

    def __call__(self, key: Draw) -> list[Any]:
        """What training takes of it, as tensors: they travel through shared memory, arrays through a pipe."""
        import torch

        read = self.read(key)
        arrays = [read.features.rows, read.features.index, read.features.affine, read.features.row_view]
        if read.points is not None:
            arrays += [read.points.coord, read.points.color, read.points.normal, read.points.strength]
            arrays += read.points.segments.values()
        return [torch.from_numpy(array) for array in arrays if array is not None]


def _in_training_order(ids: Sequence[str], seed: int, samples: int) -> list[Draw]:
    """The first draws of a training run on all samples; epochs follow each other."""
    sampler = BatchSampler(ids, seed, 1)
    return list(islice((draw for epoch in count() for draw in sampler.order(epoch)), samples))


def _endless(keys: Sequence[Draw]) -> Iterator[Draw]:
    while True:
        yield from keys


def _timed(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def _speed(name: str, reader: Literal["store", "raw"], seconds: Sequence[float], read: float) -> Speed:
    total = sum(seconds)
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99]).tolist()
    return Speed(name, reader, len(seconds) / total, read / total, p50, p90, p99)
