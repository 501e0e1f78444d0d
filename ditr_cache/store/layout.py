# SPDX-License-Identifier: Apache-2.0
"""The store format, version 1, in code: names, shapes, dtypes and codecs. docs/format.md is the same in prose.

Shape letters: V views, S samples, N points, R rows, H hits, D channels.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

from ditr_cache.errors import MetadataError

__all__ = [
    "ARRAYS",
    "BLOSC_LEVEL",
    "BLOSC_NAME",
    "FORMAT_VERSION",
    "POINT_ARRAYS",
    "VIEW_ARRAYS",
    "ArraySpec",
    "Codec",
    "array_document",
    "array_spec",
    "block_file_name",
    "data_object",
    "group_document",
    "is_block_folder",
    "shard_index_bytes",
]

FORMAT_VERSION: Final = 1

Codec = Literal["none", "zstd", "blosc"]
"""What stands between `bytes` and `crc32c` in a chunk."""

FEATURE_CHUNK_ROWS: Final = 128
"""Padding is 3.6 % of the redkitchen store; 64 rows would make it 2.3 %, and checked reads 0 to 5 % slower."""
HIT_CHUNK: Final = 16_384
POINT_CHUNK: Final = 16_384
BLOSC_NAME: Final = "lz4hc"
BLOSC_LEVEL: Final = 3
"""Of what is written; readers do not mind. Decodes three times faster than zstd-1 (benchmarks/reading.py). The 36,000
hits of a redkitchen view take 0.4, 0.9, 1.4 and 3.9 ms to write with levels 1, 3, 5 and 9; 3 decodes 9 % faster than 1
and takes 11 % fewer bytes, 9 decodes 17 % faster and takes 16 % fewer."""
MAX_CHUNK_BYTES: Final = 1 << 28
MAX_SIDE: Final = 1 << 40
MAX_DOCUMENT_BYTES: Final = 1 << 30
MAX_POINTS: Final = 1 << 28
"""Points of one sample. A reader takes memory for them on the word of the manifest alone where none are stored."""
MAX_CHANNELS: Final = 1 << 14
MAX_VIEW_ROWS: Final = 1 << 16
"""`row_patch` and `hit_row` are 16 bits wide."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a block."""

    dtypes: tuple[str, ...]
    """NumPy names of the allowed dtypes."""
    shape: str
    """Letters of the legend, or numbers."""
    chunk_rows: int | None = None
    """Rows of an inner chunk where the array is sharded; None: the whole array is one chunk."""
    codecs: tuple[Codec, ...] = ("none",)
    """Allowed codecs."""


_POINTS: Final = {
    "coord": ArraySpec(("float32",), "N 3", POINT_CHUNK),
    "color": ArraySpec(("uint8",), "N 3", POINT_CHUNK),
    "normal": ArraySpec(("float32",), "N 3", POINT_CHUNK),
    "strength": ArraySpec(("float32",), "N", POINT_CHUNK),
    "instance": ArraySpec(("int32",), "N", POINT_CHUNK),
}
_SEGMENT: Final = ArraySpec(("int32",), "N", POINT_CHUNK)
POINT_ARRAYS: Final = frozenset(_POINTS)

ARRAYS: Final[dict[str, ArraySpec]] = {
    "features": ArraySpec(("float16", "int8"), "R D", FEATURE_CHUNK_ROWS, ("none", "zstd")),
    "affine": ArraySpec(("float32",), "V 2 D"),
    "row_patch": ArraySpec(("uint16",), "R", HIT_CHUNK),
    "hit_step": ArraySpec(("int32",), "H", HIT_CHUNK, ("blosc",)),
    "hit_row": ArraySpec(("uint16",), "H", HIT_CHUNK, ("blosc",)),
    "view_rows": ArraySpec(("int64",), "V 2"),
    "view_hits": ArraySpec(("int64",), "V 2"),
    "view_sample": ArraySpec(("int32",), "V"),
    "view_index": ArraySpec(("int32",), "V"),
    "view_variant": ArraySpec(("int16",), "V"),
    "view_sha256": ArraySpec(("uint8",), "V 32"),
    "intrinsics": ArraySpec(("float64",), "V 3 3"),
    "world_to_camera": ArraySpec(("float64",), "V 4 4"),
    "distortion": ArraySpec(("float64",), "V 8"),
    "image_size": ArraySpec(("int32",), "V 2"),
    "grid": ArraySpec(("int32",), "V 2"),
    "cls": ArraySpec(("float16",), "V D"),
    "origin": ArraySpec(("float64",), "S 3"),
    "sample_points": ArraySpec(("int64",), "S 2"),
    **_POINTS,
}

_SEGMENT_NAME = re.compile(r"segment[0-9a-z_]{0,32}")
_BLOCK_FOLDER = re.compile(r"[A-Za-z0-9._%-]{1,100}-[0-9a-f]{32}")


VIEW_ARRAYS: Final = frozenset({"features", "row_patch", "hit_step", "hit_row"})
"""Arrays whose content `view_sha256` covers view by view; their entries have no hash of the whole."""


def array_spec(name: str) -> ArraySpec:
    """The specification of an array, label sets (`segment*`) included.

    Raises:
        MetadataError: If the format has no array of that name.
    """
    if name in ARRAYS:
        return ARRAYS[name]
    if _SEGMENT_NAME.fullmatch(name):
        return _SEGMENT
    raise MetadataError(f"the format has no array {name[:60]!r}")


def block_file_name(block: str) -> str:
    """A block id as a file name: `[A-Za-z0-9._-]`, everything else percent-encoded, no leading dot.

    One of more than 100 bytes is its first 67, a hyphen, and the first 32 digits of the id's sha256.

    Raises:
        MetadataError: If it is empty, or no Unicode text.
    """
    try:
        name = quote(block, safe="._-").replace("~", "%7E")
    except UnicodeEncodeError as error:
        raise MetadataError("a block id must be Unicode text", where=ascii(block)) from error
    if name.startswith("."):
        name = "%2E" + name[1:]
    if not name:
        raise MetadataError("a block id must not be empty")
    if len(name) > 100:
        return f"{name[:67]}-{hashlib.sha256(block.encode()).hexdigest()[:32]}"
    return name


def is_block_folder(name: str) -> bool:
    """Whether a name under `blocks/` is `<block>-<uuid>`."""
    return _BLOCK_FOLDER.fullmatch(name) is not None


def data_object(shape: tuple[int, ...]) -> str:
    """Key of an array's only data object, relative to the array."""
    return "c/" + "/".join("0" for _ in shape)


def shard_index_bytes(chunks: int) -> int:
    """Size of a shard's index: (offset, size) as u64 a chunk, and a crc32c."""
    return 16 * chunks + 4


def _codec_chain(codec: Codec, itemsize: int, blosc_level: int) -> list[dict[str, Any]]:
    little: dict[str, Any] = {"name": "bytes"}
    if itemsize > 1:
        little["configuration"] = {"endian": "little"}
    chain = [little]
    if codec == "zstd":
        chain.append({"name": "zstd", "configuration": {"level": 1, "checksum": False}})
    elif codec == "blosc":
        chain.append(
            {
                "name": "blosc",
                "configuration": {
                    "cname": BLOSC_NAME,
                    "clevel": blosc_level,
                    "shuffle": "shuffle",
                    "typesize": itemsize,
                    "blocksize": 0,
                },
            }
        )
    return [*chain, {"name": "crc32c"}]


def array_document(
    name: str, dtype: str, shape: tuple[int, ...], chunk_rows: int, codec: Codec, blosc_level: int = BLOSC_LEVEL
) -> dict[str, Any]:
    """The `zarr.json` of one array (Zarr v3 core specification)."""
    import numpy as np

    itemsize = np.dtype(dtype).itemsize
    chain = _codec_chain(codec, itemsize, blosc_level)
    tail = [max(1, n) for n in shape[1:]]
    chunk = [max(1, chunk_rows), *tail]
    if array_spec(name).chunk_rows is not None:
        outer = [max(1, math.ceil(shape[0] / chunk[0])) * chunk[0], *tail]
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        chain = [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": chunk,
                    "codecs": chain,
                    "index_codecs": index,
                    "index_location": "end",
                },
            }
        ]
        chunk = outer
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.startswith("float") else 0,
        "codecs": chain,
        "attributes": {},
    }


def group_document(attributes: dict[str, Any]) -> dict[str, Any]:
    """The `zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}
