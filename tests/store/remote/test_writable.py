# SPDX-License-Identifier: Apache-2.0
"""Object storage as a place to write to: what is exclusive is exclusive, whatever happens to replies."""

import os
import pickle
import threading

import pytest
from servers import Fault

from ditr_cache.errors import ConfigError, CorruptStoreError, RemoteError, StoreError, StoreNotFoundError
from ditr_cache.store.commit_storage import Seen
from ditr_cache.store.locate import open_writable_storage
from ditr_cache.store.writer import StoreWriter

LOST = [Fault("lost", "PUT"), Fault("lost_status", "PUT", status=500), Fault("drop", "PUT", times=3)]
LARGE = 19 << 20


@pytest.fixture(params=["s3", "bucket"])
def storage(request):
    """A place on each server."""
    return open_writable_storage(request.getfixturevalue(request.param).url())


@pytest.fixture
def faulty(bucket, impatient):
    """A place on the server that fails on demand."""
    return open_writable_storage(bucket.url())


def test_creating_is_exclusive(storage):
    assert storage.create_exclusively("folder/ä%20b", b"one")
    assert storage.create_exclusively("folder/ä%20b", b"one")
    assert not storage.create_exclusively("folder/ä%20b", b"two")
    assert storage.read("folder/ä%20b") == b"one"
    assert [(e.key, e.size) for e in storage.list("folder/")] == [("folder/ä%20b", 3)]


def test_swapping_fails_for_who_has_seen_an_older_version(storage):
    nothing = storage.look("LATEST")
    assert nothing == Seen(None)
    assert storage.swap("LATEST", b"one", nothing)
    assert not storage.swap("LATEST", b"other", nothing)
    seen = storage.look("LATEST")
    assert storage.swap("LATEST", b"two", seen)
    assert not storage.swap("LATEST", b"three", seen)
    assert storage.look("LATEST").data == b"two"
    storage.remove("LATEST")
    assert not storage.swap("LATEST", b"three", seen)


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: fault.kind)
def test_a_lost_reply_is_no_defeat(faulty, bucket, fault):
    bucket.faults(fault)
    assert faulty.create_exclusively("a", b"one")
    bucket.faults()
    seen = faulty.look("a")
    bucket.faults(fault)
    assert faulty.swap("a", b"two", seen)
    bucket.faults(fault)
    faulty.replace("a", b"three")
    bucket.faults()
    assert not faulty.create_exclusively("a", b"one")
    assert not faulty.swap("a", b"four", seen)
    assert faulty.read("a") == b"three"


def test_large_objects_go_in_parts(storage):
    data = os.urandom(LARGE)
    storage.write("large", (data[i : i + 1_000_003] for i in range(0, LARGE, 1_000_003)), LARGE)
    assert storage.read("large") == data
    storage.write("empty", [], 0)
    assert storage.read("empty") == b""


@pytest.mark.parametrize("size", [100, LARGE])
@pytest.mark.parametrize("error", [-1, 1, None])
def test_pieces_that_are_not_what_was_announced_leave_nothing(faulty, bucket, size, error):
    def pieces():
        for start in range(0, size, 1 << 20):
            yield bytes(min(1 << 20, size - start))
        if error is None:
            raise KeyError("the source broke")

    with pytest.raises(KeyError if error is None else CorruptStoreError):
        faulty.write("a", pieces(), size + (error or 0))
    assert not faulty.exists("a")
    assert bucket.unfinished_uploads() == 0


def test_what_is_damaged_on_its_way_is_sent_again(faulty, bucket):
    data = os.urandom(LARGE)
    bucket.faults(
        Fault("flip", "PUT", "small"),
        Fault("drop", "PUT", "large"),
        Fault("lost", "PUT", "large", skip=1),
        Fault("lost", "POST", "large", skip=1),
    )
    faulty.write("small", [b"some bytes"], 10)
    faulty.write("large", iter([data]), LARGE)
    bucket.faults()
    assert faulty.read("small") == b"some bytes"
    assert faulty.read("large") == data
    # what came out of an iterator cannot be sent again, but it does not stand there either
    bucket.faults(Fault("flip", "PUT", "other"))
    with pytest.raises(RemoteError, match="BadDigest"):
        faulty.write("other", iter([data]), LARGE)
    assert not faulty.exists("other")
    assert bucket.unfinished_uploads() == 0


def test_removing(storage):
    for key in ("folder/a", "folder/sub/b", "folder-2/c", "folder"):
        storage.replace(key, b"x")
    storage.remove_tree("folder/")
    storage.remove_tree("nothing/")
    storage.remove("nothing")
    assert {e.key for e in storage.list("")} == {"folder-2/c", "folder"}
    storage.remove("folder")
    assert [e.key for e in storage.entries("")] == ["folder-2/"]


def test_a_server_that_ignores_conditions_is_refused(bucket):
    bucket.faults(Fault("unconditional", "PUT", times=-1))
    with pytest.raises(StoreError, match="ignores If-None-Match") as caught:
        StoreWriter.create(bucket.url(), {"a": 1})
    assert "--single-writer" in str(caught.value)
    assert list(open_writable_storage(bucket.url()).list("")) == []
    # one that knows the first condition, and not the second
    bucket.faults(Fault("unconditional", "PUT", skip=3, times=-1))
    with pytest.raises(StoreError, match="If-Match"):
        StoreWriter.create(bucket.url(), {"a": 1})
    bucket.faults(Fault("unconditional", "PUT", times=-1))
    writer = StoreWriter.create(bucket.url(), {"a": 1}, single_writer=True)
    writer.finalize()
    writer.finalize()
    assert not writer.storage.create_exclusively("LATEST", b"other")


def test_a_server_that_knows_no_conditions_is_told_from_others(bucket, impatient):
    bucket.faults(Fault("status", "PUT", times=-1, status=501))
    with pytest.raises(RemoteError, match="If it knows no conditions: write with one process") as caught:
        StoreWriter.create(bucket.url(), {"a": 1})
    assert "--single-writer" in caught.value.hint


def test_a_sound_server_is_believed_and_nothing_is_left_of_the_proof(storage):
    storage.prove()
    assert list(storage.list("")) == []


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/store", "https://user:secret@host/s?key=secret", "sftp://host/store"]
)
def test_where_nothing_can_be_exclusive_nothing_is_written(url):
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        StoreWriter.create(url, {"a": 1})
    assert "ditr-cache[s3]" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_refusals_name_no_secrets(bucket):
    bucket.faults(Fault("status", times=-1, status=403))
    with pytest.raises(RemoteError, match="the server refuses") as caught:
        StoreWriter.create(bucket.url(), {"a": 1})
    assert bucket.url() in str(caught.value)
    for secret in ("test-secret", "test-key"):
        assert secret not in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_a_bucket_that_is_not_there(s3):
    with pytest.raises(StoreError, match="no such bucket"):
        StoreWriter.create("s3://no-bucket-of-this-name/store", {"a": 1})


def test_no_store_there(storage):
    with pytest.raises(StoreNotFoundError, match="extract"):
        StoreWriter(storage)


def test_a_place_can_be_passed_on(storage):
    storage.replace("a", b"x")
    again = pickle.loads(pickle.dumps(storage))
    assert (again.read("a"), again.location) == (b"x", storage.location)


def test_one_of_many_creates(faulty):
    won = []

    def create(i: int) -> None:
        if faulty.create_exclusively("a", bytes([i])):
            won.append(i)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faulty.read("a") == bytes(won)
