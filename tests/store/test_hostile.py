# SPDX-License-Identifier: Apache-2.0
"""A store from a stranger: whatever it says, there is a clear error, and no memory is taken on its word."""

import contextlib
import copy
import hashlib
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc, Zstd
from store_builder import build_store, fast_folder, random_block

from ditr_cache.config import canonical_json
from ditr_cache.errors import CorruptStoreError, MetadataError, StoreError
from ditr_cache.pipelines.pull import Pull
from ditr_cache.store.documents import parse
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.manifest import Manifest, Plan
from ditr_cache.store.reader import open_store
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.shard import decode_chunk
from ditr_cache.store.subset import Selection
from ditr_cache.store.verify import VerifyReport, verify_store

MANY = 1 << 39
"""Half a tebi: any array of so many elements would be refused by the machine."""


@pytest.fixture
def store(tmp_path) -> Path:
    block = random_block(1, "a", samples=2, points=50, cls=True)
    build_store(tmp_path / "s", [block], BlockSettings(8, "int8", "zstd", class_token=True))
    return tmp_path / "s"


def manifest_of(store: Path) -> dict[str, Any]:
    return json.loads((store / (store / "LATEST").read_text().strip()).read_bytes())


def publish(store: Path, data: bytes) -> None:
    """Make these bytes the manifest, with a name that fits."""
    name = f"manifest-{hashlib.sha256(data).hexdigest()}.json"
    (store / name).write_bytes(data)
    (store / "LATEST").write_text(f"{name}\n")


def forge(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and all the names that depend on its bytes."""
    manifest = manifest_of(store)
    change(manifest["blocks"]["a"])
    publish(store, canonical_json(manifest).encode())


def read_all(store: Path) -> None:
    """Every public way to data."""
    opened = open_store(store)
    with opened:
        for sample in opened.samples:
            for variant in opened.variants(sample):
                opened.read(sample, variant=variant).features.dense()


def refused(store: Path, error: type[Exception] = StoreError, match: str | None = None, memory: int = 50 << 20) -> None:
    """Reading and taking over fail with an error of ours, in little memory, and verification lists it."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match):
            read_all(store)
        with pytest.raises(StoreError):
            Pull(store, store.parent / "part", Selection(views=2)).run()
        # bytes that the manifest calls right are copied, whatever they mean: reading the copy is refused like this
        with contextlib.suppress(StoreError):
            Pull(store, store.parent / "whole").run()
        report = verify_store(store)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.problems
    assert most < memory


def grow(array: str, rows: int, size: int | None = None) -> Callable[[dict[str, Any]], None]:
    def change(receipt: dict[str, Any]) -> None:
        entry = receipt["arrays"][array]
        entry["shape"][0] = rows
        if size is not None:
            entry["data"]["size"] = size

    return change


@pytest.mark.parametrize(
    ("array", "rows"),
    [
        *((a, MANY) for a in ("features", "row_patch", "hit_step", "hit_row", "view_rows", "coord", "cls", "origin")),
        *(("features", rows) for rows in (1 << 41, -1, 10**30)),
    ],
)
def test_huge_shapes_are_refused_before_anything_is_allocated(store, array, rows):
    forge(store, grow(array, rows))
    refused(store, MetadataError)


def test_huge_numbers_of_hits_cost_a_chunk_at_most(store):
    """A compressed object may claim any length: 2^28 bytes decoded a chunk, and 20 bytes stored."""
    chunks = 1024

    def change(receipt):
        for name, width in (("hit_step", 4), ("hit_row", 2)):
            entry = receipt["arrays"][name]
            entry["chunk_rows"] = (1 << 28) // width
            entry["shape"] = [chunks * (1 << 26)]

    forge(store, change)
    for name in ("hit_step", "hit_row"):
        write_shard(store, name, [bytes(16)] * chunks)
    refused(store, CorruptStoreError, memory=600 << 20)


def test_views_that_claim_more_hits_than_points_are_refused(store):
    folder = next((store / "blocks").iterdir())
    hits = np.array([[0, 60], *[[60, 60]] * 5], "<i8")
    write_chunk(folder / "view_hits" / "c" / "0" / "0", hits.tobytes())
    forge(store, lambda receipt: None)
    refused(store, MetadataError)


@pytest.mark.parametrize("points", [MANY, (1 << 28) + 1])
def test_points_that_are_not_stored_are_bounded_too(tmp_path, points):
    build_store(tmp_path / "s", [random_block(1, "a", points=50)], BlockSettings(8, "float16", points=False))

    def change(receipt):
        receipt["samples"][0]["points"] = points

    forge(tmp_path / "s", change)
    refused(tmp_path / "s", MetadataError)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a["features"].update(dtype="float64"),
        lambda a: a["features"].update(dtype="object"),
        lambda a: a["features"].update(dtype="S100000000"),
        lambda a: a["features"].update(dtype="<f2"),
        lambda a: a["features"].update(codec="blosc"),
        lambda a: a["hit_step"].update(codec="none"),
        lambda a: a["features"].update(chunk_rows=0),
        lambda a: a["features"].update(chunk_rows=1 << 30),
        lambda a: a["features"].update(shape=[3]),
        lambda a: a["features"].update(shape=[3, 8, 1]),
        lambda a: a["features"].update(shape=[]),
        lambda a: a["affine"].update(shape=[6, 3, 8]),
        lambda a: a["view_rows"].update(shape=[5, 2]),
        lambda a: a["features"].update(data=None),
        lambda a: a["features"]["data"].update(size=3),
        lambda a: a["view_rows"].update(chunk_rows=1),
        lambda a: a.update(evil=a["features"]),
        lambda a: a.update({"../features": a["features"]}),
        lambda a: a.update({"segment/../../x": a["instance"]}),
        lambda a: a.pop("features"),
        lambda a: a.pop("sample_points"),
        lambda a: a.pop("affine"),
        lambda a: a.pop("origin"),
        lambda a: a.pop("coord"),
        lambda a: a["features"].update(surprise=1),
    ],
)
def test_arrays_that_are_not_in_the_format_are_refused(store, change):
    forge(store, lambda receipt: change(receipt["arrays"]))
    refused(store, MetadataError)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(block="../../x"),
        lambda r: r.update(uuid="../../../etc/passwd/" + "0" * 12),
        lambda r: r.update(uuid="0" * 31),
        lambda r: r.update(format_version=2),
        lambda r: r.update(format_version="1"),
        lambda r: r.update(generation=-1),
        lambda r: r["samples"].append(r["samples"][0]),
        lambda r: r["samples"].pop(),
        lambda r: r["samples"][0].update(id=r["samples"][1]["id"]),
        lambda r: r["samples"][0].update(id=""),
        lambda r: r["samples"][0].update(points=51),
        lambda r: r["samples"][0].update(views=["v", "v", "w"]),
        lambda r: r["samples"][0].update(views="v" * 3),
        lambda r: r["coverage"].update(seen="many"),
        lambda r: r.update(provenance={"a": {"b": 1}}),
        lambda r: r.update(int8_cosine_error_p99="nan"),
    ],
)
def test_receipts_that_contradict_themselves_are_refused(store, change):
    forge(store, change)
    refused(store, MetadataError)


def test_a_block_of_another_store_is_missing_not_found_elsewhere(store, tmp_path):
    """The block's place follows from its name and uuid alone, and lies inside."""
    outside = tmp_path / f"x-{'0' * 32}"
    next((store / "blocks").iterdir()).rename(outside)

    def change(manifest):
        receipt = manifest["blocks"].pop("a")
        receipt.update(block="../../x", uuid="0" * 32)
        manifest["blocks"]["../../x"] = receipt

    manifest = manifest_of(store)
    change(manifest)
    publish(store, canonical_json(manifest).encode())
    refused(store, CorruptStoreError, "%2E.%2F..%2Fx-")


@pytest.mark.parametrize(
    "latest",
    [
        "../x",
        "/etc/passwd",
        "",
        "\n",
        "manifest-" + "0" * 64 + ".json",
        "manifest-" + "0" * 63 + "/.json\n",
        "../s/manifest-" + "0" * 64 + ".json\n",
        "manifest-" + "0" * 64 + ".json\n\n",
        "manifest-" + "ä" * 64 + ".json\n",
        "manifest-" + "0" * 64 + ".json\n" + "x" * 1_000_000,
    ],
)
def test_latest_names_nothing_else_than_a_manifest(store, latest):
    (store / "LATEST").write_text(latest)
    refused(store, MetadataError, "does not name a manifest|too many for a document")
    (store / "LATEST").write_text(f"manifest-{'0' * 64}.json\n")
    refused(store, CorruptStoreError, "missing")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"format_version":NaN}',
        b"\xff\xfe\x00",
        b'{"format_version": 1, "format_version": 1}',
    ],
)
def test_manifests_that_are_none(store, data):
    publish(store, data)
    refused(store, MetadataError)


@pytest.mark.parametrize(
    "text", ['"x":NaN', '"x":Infinity', '"x":-Infinity', f'"x":{"[" * 500}{"]" * 500}', '"x":"\\ud800"']
)
def test_identities_that_json_cannot_hold(store, text):
    manifest = canonical_json(manifest_of(store)).replace('"backbone":{', '"backbone":{' + text + ",", 1)
    publish(store, manifest.encode())
    refused(store, MetadataError)
    root = (store / "zarr.json").read_text().replace('"backbone": {', '"backbone": {' + text + ",", 1)
    (store / "zarr.json").write_text(root)
    assert any(p.path == "zarr.json" for p in verify_store(store).problems)


def test_a_newer_format_says_upgrade(store):
    manifest = manifest_of(store)
    manifest["format_version"] = 2
    publish(store, canonical_json(manifest).encode())
    refused(store, MetadataError, "newer format version")


# chunks


def array_object(store: Path, name: str) -> Path:
    return next((store / "blocks").glob(f"a-*/{name}/c/0*"))


def write_chunk(path: Path, body: bytes) -> None:
    """An array of one chunk, with a checksum that is right."""
    path.write_bytes(body + google_crc32c.value(body).to_bytes(4, "little"))


def write_shard(store: Path, name: str, chunks: list[bytes], index: list[tuple[int, int]] | None = None) -> None:
    """A shard of such chunks, all checksums right, and a manifest that knows its size."""
    path = array_object(store, name)
    path = path / "0" if path.is_dir() else path
    stored = [body + google_crc32c.value(body).to_bytes(4, "little") for body in chunks]
    offsets = np.cumsum([0, *map(len, stored)]).tolist()
    index = index or [(offset, len(body)) for offset, body in zip(offsets, stored, strict=False)]
    raw = b"".join(struct.pack("<QQ", a & (2**64 - 1), b & (2**64 - 1)) for a, b in index)
    data = b"".join(stored) + raw + google_crc32c.value(raw).to_bytes(4, "little")
    path.write_bytes(data)

    def change(receipt):
        receipt["arrays"][name]["data"].update(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    forge(store, change)


def chunks_of(store: Path, name: str) -> tuple[list[bytes], int]:
    """The encoded chunks of a shard, and the decoded size of one."""
    entry = manifest_of(store)["blocks"]["a"]["arrays"][name]
    path = array_object(store, name)
    data = (path / "0" if path.is_dir() else path).read_bytes()
    n = -(-entry["shape"][0] // entry["chunk_rows"])
    index = np.frombuffer(data[-16 * n - 4 : -4], "<u8").reshape(n, 2).tolist()
    size = entry["chunk_rows"] * int(np.prod(entry["shape"][1:])) * np.dtype(entry["dtype"]).itemsize
    return [data[a : a + b - 4] for a, b in index], size


def zstd_frame(declared: int | None, blocks: int) -> bytes:
    """Run-length blocks of 128 KiB each out of 4 bytes."""
    head = b"\x28\xb5\x2f\xfd" + (b"\x00\x58" if declared is None else b"\xa0" + struct.pack("<I", declared))
    block = (128 * 1024) << 3 | 1 << 1
    return head + b"".join((block | (i == blocks - 1)).to_bytes(3, "little") + b"\0" for i in range(blocks))


def bombs(size: int) -> dict[str, bytes]:
    honest = Zstd(1).encode(bytes(size))
    return {
        "zstd larger than declared": zstd_frame(size, 8000),
        "zstd without a size": zstd_frame(None, 8000),
        "zstd of a gigabyte": zstd_frame(1 << 30, 8192),
        "zstd too short": Zstd(1).encode(bytes(size // 2)),
        "zstd too long": Zstd(1).encode(bytes(size * 2)),
        "zstd twice": honest + honest,
        "zstd and a bomb": honest + zstd_frame(None, 8000),
        "empty": b"",
        "four bytes": b"\x28\xb5\x2f\xfd",
    }


@pytest.mark.parametrize("bomb", list(bombs(100)))
def test_zstd_bombs_do_not_go_off(store, bomb):
    _, size = chunks_of(store, "features")
    chunks, _ = chunks_of(store, "features")
    write_shard(store, "features", [bombs(size)[bomb], *chunks[1:]])
    refused(store, CorruptStoreError)


def blosc_bombs(size: int) -> dict[str, bytes]:
    def encode(n: int) -> bytearray:
        return bytearray(Blosc("lz4hc", 3, Blosc.SHUFFLE, 0).encode(np.zeros(n, "<i4")))

    honest = encode(size // 4)
    reads_on = bytearray(honest)
    reads_on[12:16] = struct.pack("<I", 1 << 30)
    larger = bytearray(honest)
    larger[4:8] = struct.pack("<I", 1 << 31)
    offsets = bytearray(honest)
    offsets[16:20] = struct.pack("<I", 1 << 30)
    blocks = bytearray(honest)
    blocks[8:12] = struct.pack("<I", 1)
    return {
        "claims more stored bytes than there are": bytes(reads_on),
        "claims two gigabytes": bytes(larger),
        "a block outside": bytes(offsets),
        "blocks of one byte": bytes(blocks),
        "too short": bytes(encode(size // 8)),
        "too long": bytes(encode(size // 2)),
        "header alone": bytes(honest[:16]),
        "half a header": bytes(honest[:8]),
        "empty": b"",
    }


@pytest.mark.parametrize("bomb", list(blosc_bombs(1 << 16)))
@pytest.mark.parametrize("name", ["hit_step", "hit_row"])
def test_blosc_bombs_do_not_go_off(store, bomb, name):
    chunks, size = chunks_of(store, name)
    write_shard(store, name, [blosc_bombs(size)[bomb], *chunks[1:]])
    refused(store, CorruptStoreError)


@settings(max_examples=300, deadline=None)
@given(
    codec=st.sampled_from(["blosc", "zstd"]),
    edits=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 40),
)
def test_decoding_never_does_worse_than_refusing(codec, edits, cut):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 4, 5000).astype("<i4")
    body = bytearray((Blosc("lz4hc", 3, Blosc.SHUFFLE, 0) if codec == "blosc" else Zstd(1)).encode(data))
    for position, value in edits:
        body[position] = value
    out = np.empty_like(data)
    try:
        decode_chunk(codec, np.frombuffer(bytes(body[: len(body) - cut]) + bytes(4), np.uint8), out)
    except ValueError:
        return
    assert out.shape == data.shape


@pytest.mark.parametrize(
    "index",
    [
        lambda i: [(10**9, 50), *i[1:]],
        lambda i: [(0, 10**9), *i[1:]],
        lambda i: [(-1, -1), *i[1:]],
        lambda i: [(-(2**63), 2**63 - 1), *i[1:]],
        lambda i: [(0, 3), *i[1:]],
        lambda i: [(4, i[0][1] - 4), *i[1:]],
        lambda i: [i[0]] * len(i),
        lambda i: i[::-1],
        lambda i: [(a, b - 4) for a, b in i],
    ],
)
@pytest.mark.parametrize("name", ["features", "hit_step", "coord"])
def test_shard_indexes_point_at_the_chunks_and_nothing_else(tmp_path, index, name):
    block = random_block(1, "a", points=17_000, views=3)
    build_store(tmp_path / "s", [block], BlockSettings(8, "int8", "zstd"))
    chunks, _ = chunks_of(tmp_path / "s", name)
    offsets = np.cumsum([0, *(len(c) + 4 for c in chunks)]).tolist()
    sound = [(offset, len(c) + 4) for offset, c in zip(offsets, chunks, strict=False)]
    forged = index(sound)
    if forged == sound:
        # an array of one chunk has no order
        return
    write_shard(tmp_path / "s", name, chunks, forged)
    refused(tmp_path / "s", CorruptStoreError)


def test_an_absent_chunk_is_loss_not_zeros(store):
    chunks, _ = chunks_of(store, "features")
    offsets = np.cumsum([0, *(len(c) + 4 for c in chunks)]).tolist()
    index = [(-1, -1), *((o, len(c) + 4) for o, c in zip(offsets[1:], chunks[1:], strict=False))]
    write_shard(store, "features", chunks, index)
    refused(store, CorruptStoreError)


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("view_rows", [[0, 10**12]] * 6),
        ("view_rows", [[-5, 3]] * 6),
        ("view_rows", [[-(2**63), 2**63 - 1]] * 6),
        ("view_hits", [[0, -1]] * 6),
        ("view_hits", [[2**62, 2**62 + 1]] * 6),
        ("sample_points", [[0, 100], [0, 100]]),
        ("sample_points", [[0, 40], [40, 100]]),
        ("view_sample", [-1] * 6),
        ("view_sample", [2] * 6),
        ("view_index", [-1] * 6),
        ("view_index", [99] * 6),
        ("view_variant", [-1] * 6),
        ("view_variant", [0] * 5 + [1]),
    ],
)
def test_tables_that_point_outside_are_refused(store, table, values):
    entry = manifest_of(store)["blocks"]["a"]["arrays"][table]
    data = np.array(values, entry["dtype"]).tobytes()
    path = array_object(store, table)
    write_chunk(path / "0" if path.is_dir() else path, data)
    if table == "view_variant" and values[-1] == 1:
        # legal by itself: the last view is another one than the sample's list says
        assert verify_store(store).problems
        return
    refused(store, MetadataError)


# links


@pytest.mark.parametrize("what", ["block", "features", "features/c", "features/c/0", "features/c/0/0"])
def test_links_out_of_the_store_are_not_followed(store, tmp_path, what):
    block = next((store / "blocks").iterdir())
    path = block if what == "block" else block / what
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    refused(store, MetadataError, "symbolic link")


def test_a_manifest_is_no_link(store, tmp_path):
    path = store / (store / "LATEST").read_text().strip()
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    refused(store, MetadataError, "symbolic link")


def test_a_sparse_manifest_is_not_read(store):
    name = f"manifest-{'0' * 64}.json"
    with (store / name).open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    (store / "LATEST").write_text(f"{name}\n")
    refused(store, MetadataError, "too many")


# fuzzing


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        found += paths_of(child, (*path, key))
    return found


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([2**31, 2**40, 2**63, 2**64, -(2**63), 10**400]),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.sampled_from(["..", "/", "0" * 64, "features", "float64", "zstd", "x" * 1000]),
    st.just([]),
    st.just({}),
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_mutation_of_a_manifest_raises_anything_but_our_errors(data):
    with fast_folder() as folder:
        store = folder / "s"
        build_store(store, [random_block(1, "a", points=20, views=2)], BlockSettings(8, "int8", "zstd"))
        manifest = manifest_of(store)
        for _ in range(data.draw(st.integers(1, 3))):
            path = data.draw(st.sampled_from(paths_of(manifest)[1:]))
            parent: Any = manifest
            for key in path[:-1]:
                parent = parent[key]
            how = data.draw(st.sampled_from(["replace", "remove", "add", "copy"]))
            if how == "remove":
                del parent[path[-1]]
            elif how == "replace":
                parent[path[-1]] = data.draw(JUNK)
            elif how == "copy":
                parent[path[-1]] = copy.deepcopy(data.draw(st.sampled_from([manifest["blocks"], manifest["identity"]])))
            elif isinstance(parent, dict):
                parent[data.draw(st.text(max_size=3))] = data.draw(JUNK)
            else:
                parent.append(data.draw(JUNK))
            if not isinstance(manifest.get("blocks"), dict | list) or not isinstance(manifest.get("identity"), dict):
                break
        publish(store, json.dumps(manifest).encode())
        with contextlib.suppress(StoreError):
            read_all(store)
        report = verify_store(store)
        assert isinstance(report, VerifyReport)
        assert report.problems


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from([Manifest, Receipt, Plan]), data=st.binary(max_size=200))
def test_no_bytes_at_all_raise_anything_but_metadata_errors(kind, data):
    with pytest.raises(MetadataError):
        parse(kind, data, "somewhere")
