# SPDX-License-Identifier: Apache-2.0
"""A store on a server reads like one in a folder, in two round trips, whatever the server does."""

import multiprocessing
import os
import pickle
import re
import socket

import numpy as np
import pytest
from servers import Fault

from ditr_cache.errors import CorruptStoreError, DitrCacheError, RemoteError, StoreError, StoreNotFoundError
from ditr_cache.store.reader import open_store
from ditr_cache.store.remote.fsspec_client import FsspecClient
from ditr_cache.store.remote.storage import RemoteStorage
from ditr_cache.store.storage import Range

READS = [
    {"seed": 0},
    {"count": 3, "seed": 1, "rule": "last"},
    {"views": [4, 1], "variant": 1, "cls": True, "seed": 2},
    {"count": 2, "pick": "strided", "rule": "first", "seed": 3},
    {"views": [], "seed": 4},
    {"count": 4, "variant": "random", "seed": 5},
]


def equal(a, b) -> bool:
    """Whether two reads are the same to the bit."""
    pairs = [
        (a.features.rows, b.features.rows),
        (a.features.index, b.features.index),
        (a.features.affine, b.features.affine),
        (a.features.row_view, b.features.row_view),
        (a.view, b.view),
        (a.patch, b.patch),
        (a.cls, b.cls),
        (a.points.coord, b.points.coord),
        (a.points.origin, b.points.origin),
        (a.points.color, b.points.color),
        (a.points.segments["segment20"], b.points.segments["segment20"]),
    ]
    return all((x is None and y is None) or np.array_equal(x, y) for x, y in pairs)


def check_all(location, folder, **options):
    with open_store(folder) as here, open_store(location, **options) as there:
        assert there.digest == here.digest
        for sample in here.samples:
            for read in READS:
                assert equal(there.read(sample, **read), here.read(sample, **read)), (sample, read)


def test_reads_over_s3(url, folder):
    check_all(url, folder)


def test_reads_over_http(bucket, url, folder):
    check_all(bucket.http_url(), folder)


def test_reads_through_fsspec(s3, folder, monkeypatch):
    import s3fs

    monkeypatch.setattr("ditr_cache.store.remote.client.find_spec", lambda name: None)
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.put(str(folder), f"{s3.bucket}/store", recursive=True)
    assert isinstance(RemoteStorage(s3.url()).client, FsspecClient)
    check_all(s3.url(), folder)
    keys = {entry.key: entry.size for entry in RemoteStorage(s3.url()).list("blocks/")}
    there = {p.relative_to(folder).as_posix(): p.stat().st_size for p in (folder / "blocks").rglob("*") if p.is_file()}
    assert keys == there


def test_listing(url, folder):
    found = {entry.key: entry.size for entry in RemoteStorage(url).list("receipts/")}
    assert found == {f"receipts/{p.name}": p.stat().st_size for p in (folder / "receipts").iterdir()}


def test_web_servers_do_not_list(bucket, url):
    with pytest.raises(StoreError, match="cannot list"):
        list(RemoteStorage(bucket.http_url()).list(""))


def test_two_round_trips_cold_and_one_warm(url, bucket, monkeypatch):
    trips = []
    together, alone = RemoteStorage._request_all, RemoteStorage.read_range
    monkeypatch.setattr(
        RemoteStorage, "_request_all", lambda self, spans: trips.append(len(spans)) or together(self, spans)
    )
    store = open_store(url)
    bucket.log()
    for expected in (2, 1, 1):
        trips.clear()
        store.read("b0/s0", count=4, seed=expected, cls=expected == 1)
        assert len(trips) == expected
        log = bucket.log()
        assert len(log) == sum(trips), "a request was made outside of a round trip"
    assert alone is RemoteStorage.read_range


def test_little_more_than_needed_is_read(url, bucket, folder):
    store = open_store(url)
    bucket.log()
    got = store.read("b0/s0", count=3, seed=0)
    needed = got.features.rows.nbytes + got.features.index.nbytes
    sent = sum(entry["bytes"] for entry in bucket.log())
    whole = sum(p.stat().st_size for p in next((folder / "blocks").glob("b0-*")).rglob("*") if p.is_file())
    assert needed < sent < whole


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", "GET", times=3, status=500),
        Fault("status", "GET", times=3, status=503),
        Fault("status", "GET", times=3, status=429),
        Fault("drop", "GET", times=3),
        Fault("truncate", "GET", times=3),
        Fault("flip", "GET", "blocks/", times=1),
        Fault("flip", "GET", "features", times=1),
        Fault("flip", "GET", "view_rows", times=1),
    ],
    ids=lambda f: f"{f.kind}-{f.status}-{f.key}",
)
def test_what_goes_wrong_a_few_times_is_made_good(url, bucket, folder, fault, impatient):
    with open_store(folder) as here, open_store(url) as there:
        bucket.faults(fault)
        assert equal(there.read("b1/s1", count=4, seed=0), here.read("b1/s1", count=4, seed=0))
        assert any(entry["fault"] for entry in bucket.log()), "the fault never happened"


@pytest.mark.parametrize("kind", ["status", "drop", "truncate", "flip"])
@pytest.mark.parametrize("key", ["LATEST", "manifest", "features", "view_sample", "hit_step"])
def test_what_always_goes_wrong_is_one_clear_error(url, bucket, folder, kind, key, impatient):
    bucket.faults(Fault(kind, "GET|HEAD", key, times=-1, status=503))
    with pytest.raises(DitrCacheError) as caught:
        open_store(url).read("b0/s0", seed=0)
    assert isinstance(caught.value, CorruptStoreError | RemoteError | ValueError)
    assert caught.value.where is not None
    assert "\n" not in caught.value.what
    assert "secret" not in str(caught.value)


def test_a_stale_pointer_gives_an_older_store_and_never_a_mixture(bucket, folder, tmp_path):
    bucket.put_tree(folder)
    older = open_store(bucket.url()).version
    bucket.faults(Fault("stale", "GET", "LATEST", times=-1))
    # the version before is the same one, put there once more
    bucket.put_tree(folder)
    assert open_store(bucket.url()).version == older


def test_refused_credentials_are_said_so_without_them(url, bucket):
    bucket.faults(Fault("status", times=-1, status=403))
    with pytest.raises(RemoteError, match="credentials") as caught:
        open_store(url)
    assert "test-secret" not in str(caught.value)
    assert len(bucket.log()) == 1, "what is refused is not asked for again"


def test_user_and_password_of_a_url_are_never_shown(impatient):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(RemoteError) as caught:
            open_store(f"http://me:hunter2@127.0.0.1:{port}/store?token=hunter3")
    assert not re.search("hunter|me:", str(caught.value))
    assert f"127.0.0.1:{port}" in str(caught.value)


def test_no_store_and_no_object(url, bucket):
    with pytest.raises(StoreNotFoundError, match="no store here"):
        open_store(bucket.url("elsewhere"))
    with pytest.raises(CorruptStoreError, match="missing"):
        RemoteStorage(url).read("blocks/nothing")
    assert not RemoteStorage(url).exists("blocks/nothing")


def test_documents_have_a_limit(url):
    storage = RemoteStorage(url)
    with pytest.raises(ValueError, match="too many"):
        storage.read("LATEST", limit=10)
    with pytest.raises(ValueError, match="too many"):
        storage.read("LATEST", limit=10 << 20) and storage.read("zarr.json", limit=5)


def _read_elsewhere(store, sample, queue):
    queue.put(store.read(sample, seed=0).features.rows.sum(dtype=np.int64))


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_store_goes_to_other_processes(url, method):
    store = open_store(url)
    expected = store.read("b0/s0", seed=0).features.rows.sum(dtype=np.int64)
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=_read_elsewhere, args=(store, "b0/s0", queue))
    process.start()
    assert queue.get() == expected
    process.join()


def test_pickles_small_and_without_connections(url):
    store = open_store(url)
    store.read("b0/s0", seed=0)
    again = pickle.loads(pickle.dumps(store._storage))
    assert again.location == url
    assert again._client is None


def test_ranges_are_joined_and_cut(url, monkeypatch, folder):
    monkeypatch.setattr("ditr_cache.store.remote.storage._PIECE", 1000)
    storage = RemoteStorage(url)
    path = max((p for p in (folder / "blocks").rglob("c/*") if p.is_file()), key=lambda p: p.stat().st_size)
    path = max((p for p in folder.rglob("features/c/0/0")), key=lambda p: p.stat().st_size)
    key, data = path.relative_to(folder).as_posix(), path.read_bytes()
    ranges = [Range(key, 0, 10), Range(key, 12, 5000), Range(key, 3, 8), Range(key, len(data) - 7, len(data))]
    with storage.fetch(ranges):
        for wanted in ranges:
            assert bytes(storage.read_range(wanted)) == data[wanted.start : wanted.stop]
    assert storage.open(key).read(0, 1 << 30) == data
    assert storage.read(key, limit=1 << 30) == data


class TestCache:
    def test_what_was_read_once_is_not_asked_for_again(self, url, bucket, folder, tmp_path):
        check_all(url, folder, cache_dir=tmp_path, cache_size=1 << 30)
        bucket.log()
        check_all(url, folder, cache_dir=tmp_path, cache_size=1 << 30)
        assert not [entry for entry in bucket.log() if entry["key"].startswith("store/blocks")]

    def test_a_damaged_entry_is_read_again(self, url, folder, tmp_path):
        check_all(url, folder, cache_dir=tmp_path, cache_size=1 << 30)
        for path in tmp_path.rglob("??/*"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        check_all(url, folder, cache_dir=tmp_path, cache_size=1 << 30)

    def test_bytes_that_the_server_damaged_do_not_stay(self, url, bucket, folder, tmp_path, impatient):
        options = {"cache_dir": tmp_path, "cache_size": 1 << 30}
        bucket.faults(Fault("flip", "GET", "features", times=-1))
        with open_store(url, **options) as store, pytest.raises(CorruptStoreError):
            store.read("b0/s0", seed=0)
        bucket.faults()
        check_all(url, folder, **options)

    def test_a_folder_that_cannot_be_used_costs_a_warning(self, url, folder, tmp_path, caplog):
        storage = RemoteStorage(url, cache_dir=tmp_path, cache_size=1 << 30)
        assert storage.client is not None
        # entries go to folders of two digits: let all of them be files
        for i in range(256):
            (tmp_path / "ditr-cache-1" / f"{i:02x}").write_bytes(b"")
        check_all(url, folder, cache_dir=tmp_path, cache_size=1 << 30)
        assert "is not used" in caplog.text

    def test_environment_is_not_part_of_it(self, url, tmp_path):
        check = RemoteStorage(url, cache_dir=tmp_path, cache_size=1 << 20)
        assert check.client is not None
        assert os.stat(tmp_path / "ditr-cache-1").st_mode & 0o077 == 0
