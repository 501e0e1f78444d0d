# SPDX-License-Identifier: Apache-2.0
"""What the JSON documents of a store have in common: they are checked as they are read.

All of them may come from strangers. pydantic refuses unknown fields, wrong types and negative sizes. No path is ever
read from a document: paths are functions of block names, uuids and array names.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ditr_cache.config import canonical_json
from ditr_cache.errors import MetadataError
from ditr_cache.store.layout import MAX_SIDE

__all__ = ["Count", "Document", "Name", "Sha256", "construct", "parse"]

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=MAX_SIDE)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class Document(BaseModel):
    """Frozen, strict, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.model_dump(mode="json")).encode()


D = TypeVar("D", bound=Document)


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


def _first(kind: type[Document], error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(map(str, first["loc"])) or kind.__name__
    return f"{path[:200]}: {first['msg'].removeprefix('Value error, ')[:300]}"
