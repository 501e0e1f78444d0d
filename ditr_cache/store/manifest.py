# SPDX-License-Identifier: Apache-2.0
"""Plans, receipts and the manifest: what the JSON documents of a store hold, checked as they are read.

All of them may come from strangers. pydantic refuses unknown fields, wrong types and negative sizes. No path is ever
read from a document: paths are functions of block names, uuids and array names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from ditr_cache.config import canonical_json
from ditr_cache.errors import MetadataError
from ditr_cache.store.layout import (
    FORMAT_VERSION,
    MAX_CHANNELS,
    MAX_CHUNK_BYTES,
    MAX_POINTS,
    MAX_SIDE,
    VIEW_ARRAYS,
    Codec,
    array_spec,
    block_file_name,
    shard_index_bytes,
)

__all__ = [
    "ArrayEntry",
    "Coverage",
    "DatasetEntry",
    "FrameNote",
    "Manifest",
    "ObjectEntry",
    "Plan",
    "PlannedBlock",
    "PlannedSample",
    "Receipt",
    "SampleEntry",
    "build_manifest",
    "construct",
    "content_digest",
    "parse",
]

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=MAX_SIDE)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.model_dump(mode="json")).encode()


class ObjectEntry(_Document):
    """One stored object."""

    size: Count
    sha256: Sha256


class ArrayEntry(_Document):
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


class SampleEntry(_Document):
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


class Coverage(_Document):
    """What a block's views see, variant 0 only."""

    points: Count
    seen: Count
    hits: Count
    rows: Count
    views: Count


class FrameNote(_Document):
    """A frame, or a whole sample (`view` None), that is not in the store."""

    sample: Name
    view: Name | None
    reason: str


class Receipt(_Document):
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
    def size(self) -> int:
        """Bytes of all its objects."""
        entries = self.arrays.values()
        return self.metadata.size + sum(e.metadata.size + (e.data.size if e.data else 0) for e in entries)


class PlannedSample(_Document):
    """A sample that a run intends to store."""

    id: Name
    split: Name
    views: tuple[Name, ...]


class PlannedBlock(_Document):
    """A block that a run intends to store."""

    id: Name
    samples: tuple[PlannedSample, ...]


class DatasetEntry(_Document):
    """What the labels mean."""

    class_names: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    ignore_index: Literal[-1] = -1
    label_maps: dict[str, dict[str, int]] = Field(default_factory=dict)


class Plan(_Document):
    """What one run intends: written before the first block."""

    format_version: Literal[1] = 1
    dataset: DatasetEntry
    blocks: tuple[PlannedBlock, ...]


class Manifest(_Document):
    """A pure function of identity, plans and receipts; its sha256 is the version of the store."""

    format_version: Literal[1]
    identity: dict[str, Any]
    digest: Sha256
    """Content digest: equal for stores of equal content, however they came about."""

    @field_validator("identity")
    @classmethod
    def _finite(cls, identity: dict[str, Any]) -> dict[str, Any]:
        canonical_json(identity)
        return identity

    dataset: DatasetEntry
    planned: tuple[PlannedBlock, ...]
    """Blocks that are planned but not present."""
    blocks: dict[str, Receipt]
    superseded: dict[Name, Sha256]
    """Receipts that a newer generation replaced: `<block>.<g>` and the sha256 of their bytes."""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        seen: set[str] = set()
        for key, receipt in self.blocks.items():
            if key != receipt.block:
                raise MetadataError(f"block {key} is listed under another name than its own, {receipt.block}")
            for sample in receipt.samples:
                if sample.id in seen:
                    raise MetadataError(f"sample {sample.id} is in two blocks")
                seen.add(sample.id)
        return self


D = TypeVar("D", bound=_Document)


def parse(kind: type[D], data: bytes, where: str) -> D:
    """Read an untrusted document.

    Raises:
        MetadataError: If it is not what it should be.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise MetadataError(
            _first(kind, error), where=where, hint="The store is damaged, or of a newer format version."
        ) from None


def construct(kind: type[D], **fields: Any) -> D:
    """A document out of values of our own.

    Raises:
        MetadataError: If the format does not allow them.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        raise MetadataError(_first(kind, error)) from None


def _first(kind: type[_Document], error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(map(str, first["loc"])) or kind.__name__
    return f"{path[:200]}: {first['msg'].removeprefix('Value error, ')[:300]}"


def content_digest(identity: Mapping[str, Any], receipts: Iterable[Receipt]) -> str:
    """sha256 over the identity and, by sorted block id, every array's name, dtype, shape and decoded bytes' sha256."""
    digest = hashlib.sha256(canonical_json(identity).encode())
    for receipt in sorted(receipts, key=lambda r: r.block):
        digest.update(canonical_json(receipt.block).encode())
        for name, entry in sorted(receipt.arrays.items()):
            digest.update(canonical_json([name, entry.dtype, list(entry.shape), entry.sha256]).encode())
    return digest.hexdigest()


def build_manifest(identity: Mapping[str, Any], plans: Iterable[Plan], receipts: Iterable[Receipt]) -> Manifest:
    """The manifest of what is there. Order of the arguments does not matter."""
    receipts = list(receipts)
    newest: dict[str, Receipt] = {}
    for receipt in receipts:
        if receipt.block not in newest or receipt.generation > newest[receipt.block].generation:
            newest[receipt.block] = receipt
    planned: dict[str, PlannedBlock] = {}
    class_names: dict[str, tuple[str, ...]] = {}
    label_maps: dict[str, dict[str, int]] = {}
    for plan in sorted(plans, key=lambda p: p.model_dump_json()):
        class_names |= plan.dataset.class_names
        label_maps |= plan.dataset.label_maps
        planned |= {block.id: block for block in plan.blocks}
    return construct(
        Manifest,
        format_version=FORMAT_VERSION,
        identity=dict(identity),
        digest=content_digest(identity, newest.values()),
        dataset=DatasetEntry(
            class_names=dict(sorted(class_names.items())), label_maps=dict(sorted(label_maps.items()))
        ),
        planned=tuple(planned[b] for b in sorted(planned) if b not in newest),
        blocks={block: newest[block] for block in sorted(newest)},
        superseded={
            f"{block_file_name(r.block)}.{r.generation}": hashlib.sha256(r.to_bytes()).hexdigest()
            for r in sorted(receipts, key=lambda r: (r.block, r.generation))
            if r.generation != newest[r.block].generation
        },
    )
