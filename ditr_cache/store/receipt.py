# SPDX-License-Identifier: Apache-2.0
"""The receipt of a committed block: which samples and arrays it has, and the hashes of all of it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, StringConstraints, model_validator

from ditr_cache.errors import MetadataError
from ditr_cache.store.documents import Count, Document, Name, Sha256
from ditr_cache.store.layout import (
    MAX_CHANNELS,
    MAX_CHUNK_BYTES,
    MAX_POINTS,
    MAX_SIDE,
    VIEW_ARRAYS,
    Codec,
    array_spec,
    block_file_name,
    data_object,
    shard_index_bytes,
)

__all__ = ["ArrayEntry", "Coverage", "FrameNote", "ObjectEntry", "Receipt", "SampleEntry"]


class ObjectEntry(Document):
    """One stored object."""

    size: Count
    sha256: Sha256


class ArrayEntry(Document):
    """One array of a block, enough to read it without its `zarr.json`."""

    dtype: str
    shape: tuple[Count, ...]
    chunk_rows: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    codec: Codec
    sha256: Sha256 | None
    """Of the decoded little-endian bytes; None where `view_sha256` covers them."""
    metadata: ObjectEntry
    data: ObjectEntry | None
    """None where the array has no elements."""

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return math.ceil(self.shape[0] / self.chunk_rows) if math.prod(self.shape) else 0

    @property
    def chunk_bytes(self) -> int:
        """Decoded size of one chunk."""
        return self.chunk_rows * math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    def check(self, name: str, letters: dict[str, int]) -> None:
        """Compare with the format: dtype, codec, shape (letters must agree between arrays) and object size.

        Raises:
            MetadataError: On any difference, before anything is allocated.
        """
        spec = array_spec(name)
        symbols = spec.shape.split()
        if self.dtype not in spec.dtypes or self.codec not in spec.codecs or len(self.shape) != len(symbols):
            raise MetadataError(
                f"array {name}: {self.dtype}{list(self.shape)} with codec {self.codec} is not in the format"
            )
        for symbol, n in zip(symbols, self.shape, strict=True):
            expected = int(symbol) if symbol.isdigit() else letters.setdefault(symbol, n)
            if n != expected:
                raise MetadataError(f"array {name}: {symbol} is {n}, but {expected} elsewhere in the block")
        if (self.sha256 is None) != (name in VIEW_ARRAYS):
            raise MetadataError(
                f"array {name}: a hash of its content is {'missing' if self.sha256 is None else 'unexpected'}"
            )
        if self.chunk_bytes > MAX_CHUNK_BYTES:
            raise MetadataError(f"array {name}: a chunk of {self.chunk_bytes:,} bytes exceeds {MAX_CHUNK_BYTES:,}")
        if (self.data is None) != (self.chunks == 0):
            raise MetadataError(f"array {name}: shape {list(self.shape)} does not go with its objects")
        if spec.chunk_rows is None and self.chunks > 1:
            raise MetadataError(f"array {name} must be one chunk")
        if self.data is not None:
            overhead = 4 * self.chunks + (shard_index_bytes(self.chunks) if spec.chunk_rows is not None else 0)
            exact = self.chunks * self.chunk_bytes + overhead
            if self.data.size < overhead or (self.codec == "none" and self.data.size != exact):
                raise MetadataError(
                    f"array {name}: an object of {self.data.size:,} bytes cannot hold {list(self.shape)}"
                )


class SampleEntry(Document):
    """One stored sample."""

    id: Name
    split: Name
    points: Annotated[int, Field(ge=0, le=MAX_POINTS)]
    views: tuple[Name, ...]
    """Names of its stored base views, in recording order."""
    coord_sha256: Sha256
    """Over the stored `coord` bytes, then `origin`."""
    coord_sha256_sorted: Sha256
    """The same with the rows of `coord` sorted: equal for a permuted copy."""


class Coverage(Document):
    """What a block's views see, variant 0 only."""

    points: Count
    seen: Count
    hits: Count
    rows: Count
    views: Count


class FrameNote(Document):
    """A frame, or a whole sample (`view` None), that is not in the store."""

    sample: Name
    view: Name | None
    reason: str


class Receipt(Document):
    """A committed block."""

    format_version: Literal[1]
    block: Name
    generation: Count
    uuid: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    metadata: ObjectEntry
    """The block's group `zarr.json`."""
    arrays: dict[str, ArrayEntry]
    samples: tuple[SampleEntry, ...]
    coverage: Coverage
    dropped: tuple[FrameNote, ...] = ()
    """Frames and samples that failed: the run ends with exit code 3."""
    skipped: tuple[FrameNote, ...] = ()
    """Frames without a valid pose: expected, exit code 0."""
    int8_cosine_error_p99: float | None = None
    provenance: dict[str, str | int | float | bool | None]

    @model_validator(mode="after")
    def _consistent(self) -> Receipt:
        letters: dict[str, int] = {}
        for name, entry in self.arrays.items():
            entry.check(name, letters)
        if letters.get("D", 0) > MAX_CHANNELS:
            raise MetadataError(f"block {self.block}: {letters['D']:,} channels, at most {MAX_CHANNELS:,}")
        required = {
            "sample_points",
            "features",
            "row_patch",
            "hit_step",
            "hit_row",
            "view_rows",
            "view_hits",
            "view_sample",
            "view_index",
        }
        required |= {"view_variant", "view_sha256", "intrinsics", "world_to_camera", "distortion", "image_size", "grid"}
        if self.arrays.keys() & {"features"} and self.arrays["features"].dtype == "int8":
            required.add("affine")
        elif "affine" in self.arrays:
            raise MetadataError(f"block {self.block}: affine belongs to int8 features")
        if "N" in letters or "origin" in self.arrays:
            required |= {"coord", "origin"}
        missing = required - self.arrays.keys()
        if missing:
            raise MetadataError(f"block {self.block}: no array {', '.join(sorted(missing))}")
        if letters.get("S", len(self.samples)) != len(self.samples):
            raise MetadataError(f"block {self.block}: {len(self.samples)} samples, but arrays for {letters['S']}")
        points = sum(s.points for s in self.samples)
        if letters.get("N", points) != points:
            raise MetadataError(f"block {self.block}: its samples have {points} points, its arrays {letters['N']}")
        if len({s.id for s in self.samples}) != len(self.samples):
            raise MetadataError(f"block {self.block}: a sample id appears twice")
        if any(len(set(s.views)) != len(s.views) for s in self.samples):
            raise MetadataError(f"block {self.block}: a sample has two views of one name")
        return self

    @property
    def folder(self) -> str:
        """Path of the block, relative to the store."""
        return f"blocks/{block_file_name(self.block)}-{self.uuid}"

    @property
    def objects(self) -> list[str]:
        """Paths of all its objects, relative to the store."""
        return list(self.object_entries)

    @property
    def object_entries(self) -> dict[str, ObjectEntry]:
        """All its objects: path, relative to the store, to size and hash."""
        folder = self.folder
        found = {f"{folder}/zarr.json": self.metadata}
        found |= {f"{folder}/{name}/zarr.json": entry.metadata for name, entry in self.arrays.items()}
        for name, entry in self.arrays.items():
            if entry.data is not None:
                found[f"{folder}/{name}/{data_object(entry.shape)}"] = entry.data
        return found

    @property
    def size(self) -> int:
        """Bytes of all its objects."""
        entries = self.arrays.values()
        return self.metadata.size + sum(e.metadata.size + (e.data.size if e.data else 0) for e in entries)
