# SPDX-License-Identifier: Apache-2.0
"""`open_store`: the public way to read a store."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from ditr_cache.errors import ConfigError, CorruptStoreError, SampleNotFoundError
from ditr_cache.store.block_reader import BlockReader
from ditr_cache.store.choose import Draw, draw_views, serve
from ditr_cache.store.locate import open_storage
from ditr_cache.store.manifest import Manifest
from ditr_cache.store.receipt import Receipt, SampleEntry
from ditr_cache.store.storage import Storage
from ditr_cache.store.versions import read_manifest, split_version
from ditr_cache.types import FactoredFeatures, PointFeatures

__all__ = ["FeatureStore", "SampleInfo", "open_store"]

_OPEN_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """What the manifest says of a sample."""

    id: str
    split: str
    points: int
    """N."""
    view_names: tuple[str, ...]
    """Its base views, in recording order; `views=` and `PointFeatures.view` index this."""
    coord_sha256: str
    """sha256 of the coordinates as stored (float32 bytes, then origin)."""
    coord_sha256_sorted: str
    """The same with the rows sorted: equal for a permuted copy."""
    block: str


def open_store(
    path_or_url: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int | None = None,
) -> FeatureStore:
    """Open a store for reading.

    Args:
        path_or_url: Folder of the store, or a URL: `file://`, `s3://`, `gs://`, `az://`, `http(s)://`, or any other
            that fsspec knows. With `@sha256:<version>` behind it, exactly that version or none.
        cache_dir: Where to keep what was fetched from a server, for later reads by any process; None: nowhere.
        cache_size: Bytes that the cache may take; None: 50 GiB.

    Raises:
        StoreNotFoundError: If there is no store, or none of its blocks has been finalised.
        MetadataError: If its manifest is damaged, unsafe or of a newer format.
        RemoteError: If a server cannot be reached, or refuses.
        ConfigError: If the URL is of a kind that cannot be read here.
    """
    location, version = split_version(path_or_url)
    storage = open_storage(location, cache_dir=cache_dir, cache_size=cache_size)
    return FeatureStore(storage, *read_manifest(storage, version))


class _Samples(Mapping[str, SampleInfo]):
    """Sample id -> info, in the order of blocks and samples."""

    def __init__(self, manifest: Manifest) -> None:
        self._found: dict[str, tuple[Receipt, int, SampleEntry]] = {
            sample.id: (receipt, i, sample)
            for receipt in manifest.blocks.values()
            for i, sample in enumerate(receipt.samples)
        }

    def __getitem__(self, key: str) -> SampleInfo:
        receipt, _, s = self._found[key]
        return SampleInfo(s.id, s.split, s.points, s.views, s.coord_sha256, s.coord_sha256_sorted, receipt.block)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def info(self, sample_id: str) -> SampleInfo:
        """The same as `self[sample_id]`, with an error that names what there is.

        Raises:
            SampleNotFoundError: If there is no such sample.
        """
        self.locate(sample_id)
        return self[sample_id]

    def locate(self, sample_id: str) -> tuple[Receipt, int]:
        """Receipt of a sample's block, and its position there."""
        if sample_id not in self._found:
            some = ", ".join(list(self._found)[:3]) or "none"
            raise SampleNotFoundError(
                f"no sample {sample_id!r}", hint=f"The store has {len(self._found)}: {some}{', ...' * (len(self) > 3)}"
            )
        receipt, position, _ = self._found[sample_id]
        return receipt, position


class FeatureStore:
    """A store, as its manifest describes it. Cheap to open and to pickle; files open lazily, once a process."""

    def __init__(self, storage: Storage, manifest: Manifest, version: str) -> None:
        self._storage = storage
        self.manifest = manifest
        self.version = version
        """sha256 of the manifest: names this exact state of the store."""
        self.samples = _Samples(manifest)
        """Mapping of sample id to `SampleInfo`."""
        self._blocks: OrderedDict[str, BlockReader] = OrderedDict()
        self._pid = os.getpid()
        self._lock = threading.Lock()

    @property
    def root(self) -> Path | str:
        """Where the store is: a path, or a URL without credentials."""
        return self._storage.location

    @property
    def identity(self) -> Mapping[str, Any]:
        """The settings that decide what the features are."""
        return self.manifest.identity

    @property
    def provenance(self) -> Mapping[str, Mapping[str, Any]]:
        """By block: versions, device, times and the measured int8 error. Recorded, never compared."""
        return {
            block: {**receipt.provenance, "int8_cosine_error_p99": receipt.int8_cosine_error_p99}
            for block, receipt in self.manifest.blocks.items()
        }

    @property
    def digest(self) -> str:
        """Content digest: equal for stores of equal content, however they came about."""
        return self.manifest.digest

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Class names by label set."""
        return self.manifest.dataset.class_names

    def __reduce__(self) -> tuple[Any, ...]:
        return (FeatureStore, (self._storage, self.manifest, self.version))

    def close(self) -> None:
        """Release all files."""
        with self._lock:
            for block in self._blocks.values():
                block.close()
            self._blocks.clear()
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def grid(self, sample_id: str, view: int) -> tuple[int, int]:
        """Patch rows and columns of a base view.

        Raises:
            ConfigError: If there is no such view.
        """
        receipt, position = self.samples.locate(sample_id)
        self._check_views(receipt.samples[position], [view])
        block = self.block(receipt)
        rows, columns = block.array("grid").read_all()[block.view(position, view, 0)].tolist()
        return rows, columns

    def variants(self, sample_id: str) -> tuple[int, ...]:
        """The `view_variant` values of a sample: bit 0 = flipped, value >> 1 = colour-jitter draw."""
        receipt, position = self.samples.locate(sample_id)
        return self.block(receipt).variants(position)

    def read(
        self,
        sample_id: str,
        views: Sequence[int] | None = None,
        count: int | None = None,
        pick: Literal["random", "strided"] = "random",
        variant: int | Literal["random"] = 0,
        rule: Literal["random", "last", "first"] = "random",
        seed: int | None = None,
        cls: bool = False,
    ) -> PointFeatures:
        """Draw views of a sample and give every point the feature of one that sees it.

        Args:
            sample_id: Key of `samples`.
            views: Base views to draw from, in this order; None: all, in recording order.
            count: How many of them; None, or more than there are: all.
            pick: `random` draws without replacement and in random order, `strided` evenly as the official evaluation.
            variant: Image variant of the drawn views; `random` draws one for each.
            rule: Which drawn view serves a point: `random` one (the paper), the `last` or the `first` of the order in
                which they were given or drawn (`last` is the official code).
            seed: The same seed gives the same draw in every version.
            cls: Read the class tokens of the drawn views, too.

        Returns:
            Rows of the drawn views and the index of each point's row among them.

        Raises:
            SampleNotFoundError: If there is no such sample.
            ConfigError: If a view, variant or option does not exist, or class tokens are asked for and there are none.
            CorruptStoreError: If stored bytes are missing or damaged.
        """
        draw = Draw(seed)
        try:
            return self._read(sample_id, views, count, pick, variant, rule, draw, cls)
        except CorruptStoreError:
            # bytes that a server, or the way from it, has damaged once may come whole the next time
            if not self._storage.remote:
                raise
            self._forget(sample_id)
            return self._read(sample_id, views, count, pick, variant, rule, Draw(seed), cls)

    def _read(
        self,
        sample_id: str,
        views: Sequence[int] | None,
        count: int | None,
        pick: str,
        variant: int | Literal["random"],
        rule: str,
        draw: Draw,
        cls: bool,
    ) -> PointFeatures:
        receipt, position = self.samples.locate(sample_id)
        entry, block = receipt.samples[position], self.block(receipt)
        base = draw_views(self._check_views(entry, views), count, pick, draw)
        tables = [self._table(block, position, entry, v, variant, draw) for v in base]
        with block.fetched(tables, position, cls=cls):
            return _point_features(block, position, base, tables, rule, draw, cls=cls)

    def block(self, receipt: Receipt) -> BlockReader:
        """The open block, from a small cache that a forked process does not inherit."""
        with self._lock:
            if self._pid != os.getpid():
                self._blocks, self._pid = OrderedDict(), os.getpid()
            block = self._blocks.get(receipt.block)
            if block is None:
                block = self._blocks[receipt.block] = BlockReader(self._storage, receipt)
                if len(self._blocks) > _OPEN_BLOCKS:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(receipt.block)
            return block

    def _forget(self, sample_id: str) -> None:
        """Open a sample's block anew at its next use."""
        receipt, _ = self.samples.locate(sample_id)
        with self._lock:
            block = self._blocks.pop(receipt.block, None)
        if block is not None:
            block.close()
        self._storage.forget(receipt.folder)

    @staticmethod
    def _check_views(entry: SampleEntry, views: Sequence[int] | None) -> list[int]:
        n = len(entry.views)
        if views is None:
            return list(range(n))
        bad = [v for v in views if not 0 <= v < n]
        if bad:
            raise ConfigError(f"view {bad[0]} of {n}", where=entry.id)
        return list(views)

    @staticmethod
    def _table(block: BlockReader, position: int, entry: SampleEntry, base: int, variant: int | str, draw: Draw) -> int:
        have = block.variants(position)
        if variant == "random":
            # a variant can be missing for one view if its features were not finite
            here = [v for v in have if block.has_view(position, base, v)]
            return block.view(position, base, here[draw.below(len(here))])
        if not isinstance(variant, int | np.integer) or not block.has_view(position, base, variant):
            raise ConfigError(
                f"variant {variant!r} of view {entry.views[base]}; the sample has {list(have)}", where=entry.id
            )
        return block.view(position, base, variant)


def _point_features(
    block: BlockReader, position: int, base: list[int], tables: list[int], rule: str, draw: Draw, *, cls: bool
) -> PointFeatures:
    """Rows of the drawn views, and one of them for every point.

    Args:
        block: Where the sample is.
        position: Of the sample in its block.
        base: Its drawn views, in the order in which the rule applies them.
        tables: Their rows in the view tables.
        rule: See `FeatureStore.read`.
        draw: Where the rule takes its numbers from.
        cls: Read class tokens, too.
    """
    points = block.receipt.samples[position].points
    hits, offset = [], 0
    lengths = (block.view_rows[tables, 1] - block.view_rows[tables, 0]).tolist() if tables else []
    for (point_H, row_H), n in zip(block.read_hits_many(tables, points), lengths, strict=True):
        hits.append((point_H, row_H.astype(np.int32) + np.int32(offset)))
        offset += n
    index_N = serve(points, hits, rule, draw)

    # one entry more than there are rows, so that index -1 finds the -1 of an unseen point
    view_P, patch_P = np.full((2, offset + 1), -1, np.int32)
    view_P[:-1] = np.repeat(np.array(base, np.int32), lengths)
    patch_P[:-1] = block.read_row_patches(tables)
    affine, row_view = None, None
    if block.affine is not None:
        affine = block.affine[tables]
        row_view = np.repeat(np.arange(len(tables), dtype=np.int32), lengths)
    features = FactoredFeatures(block.read_rows(tables), index_N, affine, row_view)
    # converted once: NumPy indexes with any other integers three times slower
    seat_N = index_N.astype(np.intp)
    tokens = block.read_class_tokens(tables) if cls else None
    return PointFeatures(features, view_P[seat_N], patch_P[seat_N], block.read_points(position), tokens)
