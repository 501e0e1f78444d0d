# SPDX-License-Identifier: Apache-2.0
"""Whatever a store's bytes are, reading, verifying, comparing and copying it ends well or in an error of ours."""

import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_builder import build_store, fast_folder, random_block

from ditr_cache.config import canonical_json
from ditr_cache.errors import DitrCacheError
from ditr_cache.pipelines.diff import Diff
from ditr_cache.pipelines.merge import Merge
from ditr_cache.pipelines.pull import Pull
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.manifest import Manifest, content_digest
from ditr_cache.store.reader import open_store
from ditr_cache.store.subset import Selection
from ditr_cache.store.verify import verify_store

NASTY: list[Any] = [
    *(None, True, "", "..", "../../x", "/etc/passwd", "x" * 600, "\ud800", "\0", "ä/ö", "float64", "object", "blosc"),
    *(-1, 0, 1, 3, 7, 127, 65535, 65536, 2**28 + 1, 2**31, 2**40, 2**63, 10**30, 0.5, 1e308, float("nan")),
    *([], [[]], {}, {"a": 1}, [0] * 9, "0" * 64, "0" * 32),
]
"""What may stand where something else is expected. Numbers between 2^24 and 2^28 are legal, and take memory."""

Path_ = tuple[Any, ...]


@pytest.fixture(scope="module")
def original() -> Iterator[Path]:
    """A store of two blocks, one of them done again."""
    with fast_folder() as folder:
        blocks = [random_block(i, f"b{i}", samples=2, points=30, views=2, variants=(0, 1), cls=True) for i in range(2)]
        build_store(folder / "s", blocks, BlockSettings(8, "int8", "zstd", class_token=True))
        yield folder / "s"


def places(value: Any, at: Path_ = ()) -> list[Path_]:
    """Where something stands in a document."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*at, key))
    return found


def changed(document: Any, place: Path_, how: str, value: Any) -> Any:
    document = copy.deepcopy(document)
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    if how == "replace":
        parent[place[-1]] = value
    elif how == "remove":
        del parent[place[-1]]
    elif isinstance(parent, list):
        parent.insert(place[-1], copy.deepcopy(parent[place[-1]]))
    else:
        parent[f"{place[-1]}x"] = copy.deepcopy(parent[place[-1]])
    return document


def write(path: Path, data: bytes) -> None:
    """In place of a link to the original."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def manifest_path(store: Path) -> Path:
    return store / (store / "LATEST").read_text().strip()


def publish(store: Path, data: bytes) -> None:
    name = f"manifest-{hashlib.sha256(data).hexdigest()}.json"
    write(store / name, data)
    write(store / "LATEST", f"{name}\n".encode())


def honest(data: bytes) -> bytes:
    """With the content digest that belongs to it, where it can be had: what is wrong is then found further on."""
    try:
        manifest = Manifest.model_validate_json(data)
    except ValueError:
        return data
    digest = content_digest(manifest.identity, manifest.blocks.values())
    return manifest.model_copy(update={"digest": digest}).to_bytes()


def survives(store: Path, folder: Path) -> None:
    """Everything that can be done with somebody's store."""

    def read() -> None:
        with open_store(store) as opened:
            for sample in list(opened.samples)[:3]:
                for variant in opened.variants(sample)[:2]:
                    opened.read(sample, variant=variant, cls=True, count=2, seed=0).features.dense()

    part = Selection(samples=("*s0",), views=1, points=False)
    for what in (
        read,
        Diff(store, store).run,
        Pull(store, folder / "whole").run,
        Pull(store, folder / "part", part).run,
        Pull(store, folder / "all", Selection(views=1)).run,
        Merge([store, store], folder / "merged").run,
        lambda: verify_store(store),
    ):
        with contextlib.suppress(DitrCacheError):
            what()
    # nothing but stores, and nothing outside of them
    assert {path.name for path in folder.iterdir()} <= {"s", "whole", "part", "all", "merged"}
    for name in ("whole", "part", "all", "merged"):
        assert all(path.is_file() or path.is_dir() for path in (folder / name).rglob("*"))


OPTIONS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=60, **OPTIONS)
@given(data=st.data())
def test_documents_of_anybody(original, data):
    with fast_folder() as folder:
        store = Path(shutil.copytree(original, folder / "s", copy_function=os.link))
        path = data.draw(st.sampled_from([manifest_path(store), *sorted(store.glob("**/zarr.json"))[:6]]))
        document = json.loads(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            known = places(document)
            if not known:
                break
            place = data.draw(st.sampled_from(known))
            how = data.draw(st.sampled_from(["replace", "replace", "remove", "double"]))
            document = changed(document, place, how, data.draw(st.sampled_from(NASTY)))
        body = json.dumps(document).encode()
        if path.name.startswith("manifest"):
            publish(store, honest(body))
        else:
            write(path, body)
        survives(store, folder)


@settings(max_examples=60, **OPTIONS)
@given(data=st.data())
def test_bytes_of_anybody(original, data):
    """Flipped, cut, or longer; with and without checksums that fit."""
    with fast_folder() as folder:
        store = Path(shutil.copytree(original, folder / "s", copy_function=os.link))
        paths = [p for p in sorted(store.rglob("*")) if p.is_file() and p.parent.name != "plans" and p.name != ".lock"]
        path = data.draw(st.sampled_from(paths))
        body = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, max(len(body) - 1, 0)))
            if body:
                body[at] = data.draw(st.integers(0, 255))
        cut = data.draw(st.sampled_from([0, 0, 0, 1, 5, len(body) // 2, len(body)]))
        body = body[: len(body) - cut] + data.draw(st.sampled_from([b"", b"", b"\0", b"[" * 3000]))
        if path.name.startswith("manifest"):
            publish(store, honest(bytes(body)))
        elif "/c/" in path.as_posix() and data.draw(st.booleans()):
            vouch(store, path, bytes(body))
        else:
            write(path, bytes(body))
        survives(store, folder)


def vouch(store: Path, path: Path, body: bytes) -> None:
    """A manifest that calls these bytes right, whose last four are a checksum."""
    body = body[:-4] + google_crc32c.value(body[:-4]).to_bytes(4, "little")
    write(path, body)
    manifest = json.loads(manifest_path(store).read_bytes())
    parts = path.relative_to(store).parts
    for receipt in manifest["blocks"].values():
        if parts[1].endswith(receipt["uuid"]):
            entry = receipt["arrays"][parts[2]]["data"]
            entry.update(size=len(body), sha256=hashlib.sha256(body).hexdigest())
    publish(store, honest(canonical_json(manifest).encode()))
