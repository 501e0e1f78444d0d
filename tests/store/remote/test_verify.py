# SPDX-License-Identifier: Apache-2.0
"""`verify_store` on servers: the same findings as in a folder, and what a plain web server makes impossible is said."""

import random
import shutil
import urllib.request
from urllib.parse import quote

import pytest
from servers import Fault
from store_builder import build_store, fast_folder, random_block, write_block

from ditr_cache.errors import RemoteError, StoreNotFoundError
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.verify import verify_store

S = BlockSettings(8, "int8", "zstd", class_token=True)


@pytest.fixture(scope="module")
def pristine():
    """A store with everything in it: two blocks, one of them done twice, a failure, an older manifest."""
    with fast_folder() as folder:
        blocks = [
            random_block(1, "a ä", samples=2, points=(20, 60), variants=(0, 1), cls=True),
            random_block(2, "b", points=30, cls=True),
        ]
        writer = build_store(folder / "s", blocks, S)
        assert writer.commit(write_block(writer, blocks[1], S, generation=1))
        writer.fail("c", "the camera was\nstolen")
        writer.finalize()
        yield folder / "s"


@pytest.fixture
def url(bucket, pristine):
    """The same in a bucket."""
    return bucket.put_tree(pristine)


def files(store):
    return sorted(p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file() and p.name != ".lock")


def put(server, key: str, data: bytes) -> None:
    """Behind everybody's back."""
    address = f"{server.http_url()}/{quote(key)}"
    urllib.request.urlopen(urllib.request.Request(address, data, method="PUT")).close()


def test_a_sound_store_has_no_problems(bucket, url, pristine):
    seen = []
    report, local = verify_store(url, progress=seen.append), verify_store(pristine)
    assert (report.problems, report.notes) == ((), ())
    assert (report.objects, report.bytes, report.blocks) == (local.objects, local.bytes, local.blocks)
    assert sum(seen) == report.bytes
    quick = verify_store(url, deep=False)
    assert quick.problems == ()
    assert quick.bytes == verify_store(pristine, deep=False).bytes < report.bytes


def test_requests_are_few(bucket, url, pristine):
    """One an object where a listing tells sizes, and one more where the index of a shard is read first."""
    bucket.log()
    verify_store(url)
    log = bucket.log()
    objects = len(files(pristine))
    shards = sum(any(f"/{name}/c/" in f for name in ("features", "coord", "color", "segment")) for f in files(pristine))
    assert len(log) < objects + 3 * shards + 30
    assert sum(r["method"] == "HEAD" for r in log) < 10


def test_large_arrays_come_in_large_pieces_and_are_not_held(bucket):
    block = random_block(0, "a", points=500, views=64, dim=1536)
    build_store(bucket.url(), [block], BlockSettings(1536, "float16"))
    bucket.log()
    assert verify_store(bucket.url()).problems == ()
    sizes = [r["bytes"] for r in bucket.log() if "features/c" in r["key"]]
    assert max(sizes) <= 2 << 20
    assert len(sizes) < 20


def test_flipped_bytes_are_found(bucket, url, pristine):
    rng, names = random.Random(0), files(pristine)
    for name in rng.sample(names, 25):
        data = bytearray((pristine / name).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        put(bucket, name, bytes(data))
        found = [f"{p.path}: {p.what}" for p in verify_store(url).problems]
        assert any(line.startswith((name, "LATEST", "manifest")) for line in found), (name, found)
        put(bucket, name, (pristine / name).read_bytes())
    assert verify_store(url).problems == ()


def test_missing_and_additional_objects_are_found(bucket, url, pristine):
    features = next(name for name in files(pristine) if "blocks/a" in name and "features/c" in name)
    put(bucket, features, (pristine / features).read_bytes()[:-1])
    put(bucket, f"{features.rpartition('/features')[0]}/stray", b"?")
    put(bucket, f"blocks/z-{'0' * 32}/zarr.json", b"{}")
    report = verify_store(url, deep=False)
    assert [p.path for p in report.problems] == [features]
    assert "the receipt says" in report.problems[0].what
    assert [n.what for n in report.notes] == [
        "is no part of the store",
        "is no committed block: being written, or left by a run that was killed",
    ]
    bucket.clear()
    bucket.put_tree(pristine)
    request = urllib.request.Request(f"{bucket.http_url()}/{quote(features)}", method="DELETE")
    urllib.request.urlopen(request).close()
    for deep in (False, True):
        assert {p.path for p in verify_store(url, deep=deep).problems} == {features}


def test_a_web_server_is_asked_for_what_the_manifest_names(bucket, url, pristine):
    report = verify_store(bucket.http_url())
    assert report.problems == ()
    assert ["a web server cannot tell" in note.what for note in report.notes] == [True]
    assert report.blocks == 2
    replaced = next(name for name in files(pristine) if name.startswith("receipts/b.0"))
    current = next(name for name in files(pristine) if name.startswith("receipts/a"))
    coordinates = next(name for name in files(pristine) if "blocks/a" in name and "/coord/c" in name)
    for name in (replaced, current, coordinates, "zarr.json", "STORE_CARD.md", "LATEST"):
        data = bytearray((pristine / name).read_bytes())
        data[len(data) // 2] ^= 1
        put(bucket, name, bytes(data))
        assert verify_store(bucket.http_url()).problems, name
        put(bucket, name, (pristine / name).read_bytes())
    assert verify_store(bucket.http_url()).problems == ()


def test_a_server_that_fails_for_a_while_changes_no_verdict(bucket, url, impatient):
    bucket.faults(
        Fault("drop", "GET", skip=5, times=5),
        Fault("status", "GET", skip=20, times=5, status=500),
        Fault("truncate", "GET", "blocks/", skip=30, times=3),
        Fault("status", "GET", "receipts/", times=2, status=429),
    )
    report = verify_store(url)
    assert (report.problems, report.notes) == ((), ())


def test_an_object_that_cannot_be_had_is_a_problem_and_not_the_end(bucket, url, impatient):
    bucket.faults(Fault("status", "GET", "grid/c/0/0", times=-1))
    report = verify_store(url)
    # of two blocks, and of what one of them replaced
    assert len(report.problems) == 3
    assert all("grid" in p.path and "does not answer" in p.what for p in report.problems)


def test_no_store_is_an_error(bucket, impatient):
    for location in (bucket.url("nothing"), bucket.http_url("nothing")):
        with pytest.raises(StoreNotFoundError, match="no store here"):
            verify_store(location)
    bucket.faults(Fault("drop", times=-1))
    with pytest.raises(RemoteError):
        verify_store(bucket.url())


def test_a_folder_may_be_copied_as_it_is(bucket, pristine, tmp_path):
    """`aws s3 cp` takes the lock file along."""
    shutil.copytree(pristine, tmp_path / "copy")
    (tmp_path / "copy" / ".lock").touch()
    assert verify_store(bucket.put_tree(tmp_path / "copy")).ok
