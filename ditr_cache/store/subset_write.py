# SPDX-License-Identifier: Apache-2.0
"""A part of a block as a block of its own: a pure function of the source and of what is wanted of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ditr_cache.errors import CorruptStoreError, QuantisationError
from ditr_cache.store.receipt import FrameNote, Receipt, SampleEntry
from ditr_cache.store.storage import Storage
from ditr_cache.store.subset import part_of
from ditr_cache.store.subset_read import PartReader, StoredView
from ditr_cache.store.transfer_objects import ATTEMPTS, Tally
from ditr_cache.store.writer import StoreWriter
from ditr_cache.types import PointCloud

if TYPE_CHECKING:
    from ditr_cache.store.block import BlockWriter
    from ditr_cache.store.encode import BlockSettings, EncodedView

__all__ = ["TAKEN_FROM", "Rewrite"]

TAKEN_FROM = "taken_from"
"""Provenance of a block that was made from one of another store: its uuid there."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A block that is made from one of another store."""

    source: Storage
    receipt: Receipt
    """What the source says of it."""
    wanted: Mapping[str, tuple[str, ...]]
    """Sample id -> its base views."""
    generation: int
    """Of the block that is made."""
    dataset: Mapping[str, Any]
    """What labels mean."""
    points: bool
    """Whether it keeps points."""
    dtype: str | None = None
    """`int8` converts; None leaves features as they are."""
    own_points: Callable[[SampleEntry], PointCloud] | None = None
    """Where points come from, already compared with the digests, if not from the source."""

    @property
    def size(self) -> int:
        """Bytes that it will take from the source, about."""
        have = sum(len(sample.views) for sample in self.receipt.samples)
        views = sum(len(names) for names in self.wanted.values())
        return self.receipt.size * views // max(have, 1)

    def run(self, writer: StoreWriter, tally: Tally) -> Receipt:
        """Write it; the receipt is not committed.

        Raises:
            CorruptStoreError: If the source gives other bytes than its manifest says, every time.
            MetadataError: If what it says makes no sense.
            QuantisationError: If int8 would lose too much.
            Stopped: If another thread failed.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._run(writer, tally)
            except CorruptStoreError as error:
                if attempt == ATTEMPTS:
                    raise CorruptStoreError(
                        f"{error.what} ({ATTEMPTS} times)",
                        where=f"{self.source.location}/{error.where}",
                        hint="The source is damaged, or the way from it; nothing of this block was kept.",
                    ) from error
                self.source.forget(self.receipt.folder)
        raise AssertionError

    def _run(self, writer: StoreWriter, tally: Tally) -> Receipt:
        with closing(PartReader(self.source, self.receipt, tally)) as reader:
            whole = self.wanted == part_of(self.receipt)
            out = writer.start_block(self.receipt.block, self._settings(reader.aligned if whole else None))
            try:
                self._fill(out, reader)
                receipt = self._finish(out)
            except BaseException:
                writer.abandon(out)
                tally.moved(-reader.bytes)
                raise
            tally.add(objects=len(receipt.object_entries), copied=reader.bytes)
            tally.moved(self.size - reader.bytes)
            return receipt

    def _fill(self, out: BlockWriter, reader: PartReader) -> None:
        samples = [(i, sample) for i, sample in enumerate(self.receipt.samples) if sample.id in self.wanted]
        own = self.own_points
        stored = reader.points([i for i, _ in samples]) if self.points and own is None else {}
        for position, sample in samples:
            out.add_known_sample(sample, own(sample) if own else stored.pop(position, None))
            for view in reader.views(position, self.wanted[sample.id]):
                out.add_view(_encode(view, out.settings))
        out.dropped += [note for note in self.receipt.dropped if self._concerns(note)]
        out.skipped += [note for note in self.receipt.skipped if self._concerns(note)]
        out.known_error = self.receipt.int8_cosine_error_p99

    def _finish(self, out: BlockWriter) -> Receipt:
        provenance = {**self.receipt.provenance, TAKEN_FROM: self.receipt.uuid}
        try:
            return out.finish(self.generation, self.dataset, provenance)
        except QuantisationError as error:
            raise QuantisationError(
                error.what, where=error.where, hint="Leave out --dtype: the features stay float16 (f16) then."
            ) from error

    def _concerns(self, note: FrameNote) -> bool:
        # samples that were dropped as a whole are in no list of samples
        have = {sample.id for sample in self.receipt.samples}
        return note.sample in self.wanted or (note.sample not in have and self.wanted.keys() == have)

    def _settings(self, aligned: bool | None) -> BlockSettings:
        """How it is laid out: as the block that it is made from, if it is the whole of it, else as extraction would."""
        # torch, for which `pull --help` should not wait
        from ditr_cache.store.encode import DRAWN_VIEWS, BlockSettings

        features = self.receipt.arrays["features"]
        most = max(map(len, self.wanted.values()), default=0)
        return BlockSettings(
            dim=features.shape[1],
            dtype=self.dtype or features.dtype,
            compress=features.codec,
            points=self.points,
            class_token="cls" in self.receipt.arrays,
            align_views=most > DRAWN_VIEWS if aligned is None else aligned,
        )


def _encode(view: StoredView, settings: BlockSettings) -> EncodedView:
    import torch

    from ditr_cache.store.encode import EncodedView, encode_view

    if view.affine is None:
        rows_RD = torch.from_numpy(view.rows.astype(np.float32))
        cls_D = None if view.cls is None else torch.from_numpy(view.cls.astype(np.float32))
        hits = (view.row_patch, view.hit_point, view.hit_row)
        return encode_view(view.name, view.variant, view.camera, view.grid, rows_RD, cls_D, hits, settings)
    return EncodedView(
        name=view.name,
        variant=view.variant,
        camera=view.camera,
        grid=view.grid,
        rows=view.rows,
        affine=view.affine,
        row_patch=view.row_patch,
        hit_point=view.hit_point,
        hit_row=view.hit_row,
        cls=view.cls,
        cosine_error=None,
        sha256=view.sha256,
        hit_step=np.diff(view.hit_point, prepend=np.int32(0)),
    )
