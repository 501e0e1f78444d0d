# SPDX-License-Identifier: Apache-2.0
"""The servers that the other tests rely on: conditional requests hold, faults happen."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url
from servers import Fault


def client(server, **options):
    return from_url(server.url(), client_options={"allow_http": True}, retry_config={"max_retries": 0}, **options)


@pytest.mark.parametrize("name", ["s3", "bucket"])
def test_conditional_requests(request, name):
    store = client(request.getfixturevalue(name))
    store.put("a", b"one", mode="create")
    with pytest.raises(AlreadyExistsError):
        store.put("a", b"two", mode="create")
    seen = store.head("a")
    store.put("a", b"three", mode={"e_tag": seen["e_tag"]})
    with pytest.raises(PreconditionError):
        store.put("a", b"four", mode={"e_tag": seen["e_tag"]})
    assert bytes(store.get("a").bytes()) == b"three"
    data = os.urandom(11 << 20)
    store.put("folder/large", data, chunk_size=5 << 20)
    assert bytes(store.get_range("folder/large", start=5, end=6 << 20)) == data[5 : 6 << 20]
    assert {o["path"]: o["size"] for page in store.list() for o in page} == {"a": 5, "folder/large": len(data)}
    found = store.list_with_delimiter()
    assert ([o["path"] for o in found["objects"]], found["common_prefixes"]) == (["a"], ["folder"])
    store.delete(["a", "folder/large"])
    assert [*store.list()] == []


def test_one_of_many_wins(bucket):
    store = client(bucket)

    def create(i: int) -> int:
        try:
            store.put("a", bytes([i]), mode="create")
        except AlreadyExistsError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(64))) == 1


def test_pages_of_a_listing(bucket):
    store = client(bucket)
    names = {f"{i // 10:03}/{i:04}" for i in range(1203)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.put(name, b"x"), names))
    assert {o["path"] for page in store.list() for o in page} == names
    assert len(store.list_with_delimiter()["common_prefixes"]) == 121
    assert len([r for r in bucket.log() if "list-type" in r["query"]]) == 3


def test_faults(bucket):
    store = client(bucket)
    for kind in ("status", "drop"):
        bucket.faults(Fault(kind, "PUT"))
        with pytest.raises(BaseError):
            store.put("a", b"1")
    for kind in ("lost", "lost_status"):
        bucket.faults(Fault(kind, "PUT"))
        with pytest.raises(BaseError):
            store.put(kind, b"1")
        assert bytes(store.get(kind).bytes()) == b"1"
    store.put("a", b"before")
    store.put("a", b"after!")
    bucket.faults(Fault("flip", "GET"), Fault("stale", "GET"), Fault("truncate", "GET"))
    assert bytes(store.get("a").bytes()) == b"aftdr!"
    assert bytes(store.get("a").bytes()) == b"before"
    with pytest.raises(BaseError):
        store.get("a").bytes()
    assert bytes(store.get("a").bytes()) == b"after!"
    bucket.faults(Fault("unconditional", "PUT", times=-1))
    store.put("a", b"over", mode="create")
    bucket.faults(Fault("status", key="a$", skip=2, times=-1, status=403))
    store.head("a")
    store.head("a")
    for _ in range(3):
        with pytest.raises(BaseError):
            store.head("a")
    bucket.faults()
    bucket.age(3600)
    assert 3599 < time.time() - store.head("a")["last_modified"].timestamp() < 3700
    bucket.faults(Fault("flip", "PUT"))
    with pytest.raises(BaseError, match="BadDigest"):
        client(bucket, aws_checksum_algorithm="SHA256").put("a", b"checked")
