# SPDX-License-Identifier: Apache-2.0
"""Stores travel through buckets and web servers, kind ones and unkind ones, and arrive as they were or not at all."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import Fault
from share_world import BLOCKS, fast_folder, features_of, make, random_block, sound, version_of

from ditr_cache.config import canonical_json
from ditr_cache.errors import CorruptStoreError, RemoteError, SignatureError, StoreError, StoreNotFoundError
from ditr_cache.pipelines.merge import Merge
from ditr_cache.pipelines.pull import Pull
from ditr_cache.pipelines.push import Push
from ditr_cache.pipelines.sign import NewKeys, Sign
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.reader import open_store
from ditr_cache.store.remote import retry
from ditr_cache.store.subset import Selection
from ditr_cache.store.verify import verify_store


@pytest.fixture
def tmp_path():
    with fast_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def source():
    """Do not write to it."""
    with fast_folder() as folder:
        yield make(folder / "source")


def intact(url: str) -> None:
    assert verify_store(url).problems == ()


def test_folder_to_bucket_to_folder(source, s3, tmp_path):
    url = s3.url()
    there = Push(source, url).run()
    assert there.manifest == version_of(source) == version_of(url)
    assert there.objects == sum(len(r.objects) for r in open_store(source).manifest.blocks.values())
    assert Push(source, url).run().objects == 0
    back = Pull(url, tmp_path / "back").run()
    assert back.manifest == version_of(source)
    sound(tmp_path / "back")
    intact(url)


def test_a_part_from_a_bucket_into_a_bucket(source, s3, tmp_path):
    Push(source, s3.url()).run()
    Pull(s3.url(), s3.url("part"), Selection(samples=("*s1",), views=2, dtype="int8")).run()
    Pull(s3.url(), tmp_path / "part", Selection(samples=("*s1",), views=2, dtype="int8")).run()
    with open_store(s3.url("part")) as part, open_store(tmp_path / "part") as local:
        assert part.digest == local.digest
        assert len(part.samples) == 3
    intact(s3.url("part"))


def test_shards_in_buckets_are_merged(s3, tmp_path):
    for i, block in enumerate(BLOCKS):
        Push(make(tmp_path / str(i), [block]), s3.url(f"shard-{i}")).run()
    report = Merge([s3.url(f"shard-{i}") for i in range(3)], s3.url("whole")).run()
    assert report.digest == open_store(make(tmp_path / "whole")).digest
    intact(s3.url("whole"))


def test_a_web_server_cannot_list_and_need_not(source, bucket, tmp_path):
    bucket.put_tree(source)
    report = Pull(bucket.http_url(), tmp_path / "copy").run()
    assert report.manifest == version_of(source)
    sound(tmp_path / "copy")
    assert not [entry for entry in bucket.log() if "list-type" in entry["query"]]


def test_pinned_and_signed(source, bucket, tmp_path):
    mine = Path(Push(source, tmp_path / "mine").run().store)
    NewKeys(tmp_path / "key", tmp_path / "pub").run()
    version = Sign(mine, tmp_path / "key").run().manifest
    bucket.put_tree(mine)
    url = bucket.http_url()
    report = Pull(f"{url}@sha256:{version}", tmp_path / "copy", key=tmp_path / "pub").run()
    assert report.signer is not None
    assert (tmp_path / "copy" / f"manifest-{version}.sig").read_bytes() == (
        mine / f"manifest-{version}.sig"
    ).read_bytes()
    with pytest.raises(StoreNotFoundError, match="no version 1111"):
        Pull(f"{url}@sha256:{'1' * 64}", tmp_path / "other").run()
    NewKeys(tmp_path / "key2", tmp_path / "pub2").run()
    with pytest.raises(SignatureError, match="another key"):
        Pull(url, tmp_path / "other", key=tmp_path / "pub2").run()
    assert not (tmp_path / "other").exists()


def test_only_the_bytes_that_are_needed_travel(bucket, tmp_path):
    """One of two samples, half of its views: chunks are the smallest thing that travels."""
    block = random_block(5, "b", samples=2, points=30_000, views=8, dim=256)
    source = make(tmp_path / "source", [block], BlockSettings(256, "float16"))
    url = bucket.put_tree(source)
    size = open_store(source).manifest.blocks["b"].size
    bucket.log()
    Pull(url, tmp_path / "part", Selection(samples=("b/s1",), views=4, points=False)).run()
    travelled = sum(entry["bytes"] for entry in bucket.log() if "/blocks/" in entry["key"])
    assert travelled < 0.35 * size
    with open_store(source) as whole, open_store(tmp_path / "part") as part:
        theirs = features_of(whole, "b/s1")
        assert all((value == theirs[key]).all() for key, value in features_of(part, "b/s1").items())


@pytest.mark.parametrize(
    "fault",
    [
        Fault("flip", "GET", "/features/c", times=1),
        Fault("flip", "GET", "/zarr.json", times=2),
        Fault("truncate", "GET", "/blocks/", times=3),
        Fault("drop", "GET", times=4),
        Fault("status", "GET", "/blocks/", times=4, status=503),
        Fault("status", "GET", "/blocks/", times=2, status=429),
        Fault("status", "HEAD", times=1, status=500),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
@pytest.mark.parametrize("wanted", [Selection(), Selection(samples=("*s0",))], ids=["whole", "part"])
def test_servers_that_fail_now_and_then(bucket, tmp_path, fault, wanted):
    source = make(tmp_path / "source", BLOCKS[:1])
    Pull(source, tmp_path / "expected", wanted).run()
    url = bucket.put_tree(source)
    bucket.faults(fault)
    report = Pull(url, tmp_path / "copy", wanted).run()
    assert report.digest == open_store(tmp_path / "expected").digest
    sound(tmp_path / "copy")


@pytest.mark.parametrize("wanted", [Selection(), Selection(samples=("*s0",))], ids=["whole", "part"])
def test_bytes_that_are_always_wrong_stay_where_they_are(source, bucket, tmp_path, wanted):
    url = bucket.put_tree(source)
    bucket.faults(Fault("flip", "GET", "/features/c", times=-1))
    with pytest.raises(CorruptStoreError, match=r"\(3 times\)") as error:
        Pull(url, tmp_path / "copy", wanted).run()
    assert "/features/c" in str(error.value) or "scène" in str(error.value)
    assert not list((tmp_path / "copy").glob("blocks/*/features/c/0/0"))
    assert not (tmp_path / "copy" / "LATEST").exists()
    bucket.faults()
    assert Pull(url, tmp_path / "copy", wanted).run().blocks == 3


def test_a_server_that_is_gone(source, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "_FIRST_PAUSE_S", 0.001)
    url = bucket.put_tree(source)
    bucket.faults(Fault("status", "GET", "/blocks/", times=-1, status=503))
    with pytest.raises(RemoteError, match="does not answer as it should"):
        Pull(url, tmp_path / "copy").run()
    assert not (tmp_path / "copy" / "LATEST").exists()


@pytest.mark.parametrize("kind", ["drop", "lost", "lost_status", "status"])
def test_a_bucket_that_fails_while_it_is_filled(tmp_path, bucket, kind):
    source = make(tmp_path / "source", BLOCKS[:1])
    bucket.faults(Fault(kind, "PUT|POST", skip=3, times=4))
    report = Push(source, bucket.url()).run()
    bucket.faults()
    assert report.manifest == version_of(source) == version_of(bucket.url())
    intact(bucket.url())


def test_two_at_once_into_one_bucket(source, bucket):
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: Push(source, bucket.url(), jobs=2).run(), range(2)))
    assert {report.manifest for report in reports} == {version_of(source)}
    assert all(report.kept == () for report in reports)
    intact(bucket.url())


def test_a_web_server_cannot_be_filled(source, bucket):
    with pytest.raises((StoreError, ValueError)):
        Push(source, bucket.http_url()).run()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["superseded"].update({"../../../etc/passwd.0": "0" * 64}), "superseded"),
        (lambda m: m["blocks"]["b"].update(uuid="../../x"), "uuid"),
        (lambda m: m["blocks"]["b"]["arrays"].update({"../x": m["blocks"]["b"]["arrays"]["cls"]}), "no array"),
        (lambda m: m["blocks"]["b"]["metadata"].update(size=1 << 41), "size"),
        (lambda m: m["blocks"]["b"]["metadata"].update(size=1 << 39), "zarr.json"),
        (lambda m: m["blocks"]["b"]["metadata"].update(sha256="0" * 64), "zarr.json: sha256"),
        (lambda m: m["blocks"]["b"]["samples"].append(m["blocks"]["b"]["samples"][0]), "samples"),
    ],
)
def test_manifests_of_strange_servers(bucket, tmp_path, change, match, monkeypatch):
    monkeypatch.setattr(retry, "_FIRST_PAUSE_S", 0.001)
    source = make(tmp_path / "source", [random_block(1, "b", cls=True)])
    manifest = json.loads((source / (source / "LATEST").read_text().strip()).read_bytes())
    change(manifest)
    data = canonical_json(manifest).encode()
    name = f"manifest-{hashlib.sha256(data).hexdigest()}.json"
    (source / name).write_bytes(data)
    (source / "LATEST").write_text(f"{name}\n")
    bucket.put_tree(source)
    with pytest.raises(StoreError, match=match):
        Pull(bucket.http_url(), tmp_path / "copy").run()
    assert not (tmp_path / "copy" / "LATEST").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]
