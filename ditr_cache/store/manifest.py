# SPDX-License-Identifier: Apache-2.0
"""Plans and the manifest, which is a pure function of identity, plans and receipts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from ditr_cache.config import canonical_json
from ditr_cache.errors import MetadataError
from ditr_cache.store.documents import Document, Name, Sha256, construct
from ditr_cache.store.layout import FORMAT_VERSION, block_file_name
from ditr_cache.store.receipt import Receipt

__all__ = [
    "DatasetEntry",
    "Manifest",
    "Plan",
    "PlannedBlock",
    "PlannedSample",
    "SourceEntry",
    "block_items",
    "build_manifest",
    "content_digest",
    "receipt_name",
]

ReceiptName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_%-][A-Za-z0-9._%-]{0,99}\.(0|[1-9][0-9]{0,12})$")]
"""`<block file name>.<generation>`: whoever copies a store makes a path of it."""


class PlannedSample(Document):
    """A sample that a run intends to store."""

    id: Name
    split: Name
    views: tuple[Name, ...]


class PlannedBlock(Document):
    """A block that a run intends to store."""

    id: Name
    samples: tuple[PlannedSample, ...]


class DatasetEntry(Document):
    """What the labels mean."""

    class_names: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    ignore_index: Literal[-1] = -1
    label_maps: dict[str, dict[str, int]] = Field(default_factory=dict)


class SourceEntry(Document):
    """Another store that some of this one was taken from, and what was taken. No place: those change, and have keys."""

    version: Sha256
    """Of its manifest."""
    digest: Sha256
    """Its content digest."""
    samples: tuple[Name, ...] = ()
    """Patterns of sample ids; none: all samples."""
    views: Annotated[int, Field(ge=1)] | None = None
    """At most so many base views of a sample."""
    points: bool = True
    """False: points were left behind."""
    attached: bool = False
    """True: points were added from a copy of the data set."""
    dtype: Literal["int8"] | None = None
    """What features were converted to."""


class _Sourced(Document):
    """A document with `sources`, which is left out where it is empty: stores that were extracted have none."""

    sources: tuple[SourceEntry, ...] = ()

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = handler(self)
        if not self.sources:
            del plain["sources"]
        return plain


class Plan(_Sourced):
    """What one run intends: written before the first block."""

    format_version: Literal[1] = 1
    dataset: DatasetEntry
    blocks: tuple[PlannedBlock, ...]


class Manifest(_Sourced):
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
    superseded: dict[ReceiptName, Sha256]
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


def receipt_name(receipt: Receipt) -> str:
    """`<block>.<g>`: a receipt's name in `receipts/`, and in `superseded` once a newer generation replaced it."""
    return f"{block_file_name(receipt.block)}.{receipt.generation}"


def block_items(receipt: Receipt) -> dict[str, str]:
    """Every array's name and its dtype, shape and decoded bytes' sha256: equal for blocks of equal content."""
    return {
        name: canonical_json([name, entry.dtype, list(entry.shape), entry.sha256])
        for name, entry in sorted(receipt.arrays.items())
    }


def content_digest(identity: Mapping[str, Any], receipts: Iterable[Receipt]) -> str:
    """sha256 over the identity and, by sorted block id, every array's name, dtype, shape and decoded bytes' sha256."""
    digest = hashlib.sha256(canonical_json(identity).encode())
    for receipt in sorted(receipts, key=lambda r: r.block):
        digest.update(canonical_json(receipt.block).encode())
        for item in block_items(receipt).values():
            digest.update(item.encode())
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
    sources: dict[str, SourceEntry] = {}
    for plan in sorted(plans, key=lambda p: p.model_dump_json()):
        class_names |= plan.dataset.class_names
        label_maps |= plan.dataset.label_maps
        planned |= {block.id: block for block in plan.blocks}
        sources |= {canonical_json(source.model_dump(mode="json")): source for source in plan.sources}
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
            receipt_name(r): hashlib.sha256(r.to_bytes()).hexdigest()
            for r in sorted(receipts, key=lambda r: (r.block, r.generation))
            if r.generation != newest[r.block].generation
        },
        sources=tuple(sources[key] for key in sorted(sources)),
    )
