# SPDX-License-Identifier: Apache-2.0
"""`serve`: every object that is listed, whole or in ranges, by a real server process."""

import hashlib
import http.client
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serve_world import SETTINGS, build_store, largest, listed, make, random_block, serving, url
from store_builder import fast_folder, write_block

from ditr_cache.store.local import LocalStorage
from ditr_cache.store.reader import open_store
from ditr_cache.store.versions import read_manifest


@pytest.fixture(scope="module")
def store():
    """Do not write to it."""
    with fast_folder() as folder:
        yield make(folder / "store")


@pytest.fixture(scope="module")
def server(store):
    with serving(store) as started:
        yield started


def test_every_listed_object_can_be_had(server, store):
    objects = listed(store)
    assert len(objects) > 50
    for key, sha256 in objects.items():
        status, headers, body = server.get(url(key))
        assert status == 200, key
        assert hashlib.sha256(body).hexdigest() == sha256
        assert headers["etag"] == f'"{sha256}"'
        assert "immutable" in headers["cache-control"]
        assert headers["accept-ranges"] == "bytes"
        status, again, body = server.get(url(key), "HEAD")
        assert (status, body) == (200, b"")
        assert {k: v for k, v in again.items() if k != "date"} == {k: v for k, v in headers.items() if k != "date"}


@pytest.mark.parametrize("key", ["LATEST", "zarr.json", "STORE_CARD.md"])
def test_what_may_be_replaced_is_asked_for_anew(server, store, key):
    status, headers, body = server.get(f"/{key}")
    assert (status, body) == (200, (store / key).read_bytes())
    assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("asked", "cut"),
    [
        ("0-0", slice(0, 1)),
        ("5-9", slice(5, 10)),
        ("100-", slice(100, None)),
        ("-7", slice(-7, None)),
        ("-99999999", slice(None)),
        ("3-99999999", slice(3, None)),
    ],
)
def test_ranges(server, store, asked, cut):
    key = largest(store)
    data = (store / key).read_bytes()
    part = data[cut]
    start = range(len(data))[cut].start
    status, headers, body = server.get(url(key), headers={"Range": f"bytes={asked}"})
    assert (status, body) == (206, part)
    assert headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{len(data)}"
    assert headers["content-length"] == str(len(part))
    # ranges are a matter of GET alone (RFC 9110)
    status, headers, body = server.get(url(key), "HEAD", {"Range": f"bytes={asked}"})
    assert (status, body, headers["content-length"]) == (200, b"", str(len(data)))


def test_ranges_that_there_are_not(server, store):
    key = largest(store)
    size = (store / key).stat().st_size
    for asked in (f"{size}-", f"{size + 5}-{size + 9}", "-0"):
        status, headers, body = server.get(url(key), headers={"Range": f"bytes={asked}"})
        assert (status, headers["content-range"], body) == (416, f"bytes */{size}", b"")
    for asked in (
        "bytes=a-b",
        "bytes=9-5",
        "bytes=-",
        "bytes",
        "lines=0-5",
        "bytes=0-1,4-5",
        "bytes=+1-5",
        "bytes=1_0-",
    ):
        status, headers, body = server.get(url(key), headers={"Range": asked})
        assert (status, body) == (200, (store / key).read_bytes())


def test_conditions(server, store):
    key = largest(store)
    data = (store / key).read_bytes()
    tag = server.get(url(key), "HEAD")[1]["etag"]
    for known in (tag, f'"x", W/{tag}'):
        status, headers, body = server.get(url(key), headers={"If-None-Match": known})
        assert (status, body, headers["etag"]) == (304, b"", tag)
    assert server.get(url(key), headers={"If-None-Match": '"x"'})[2] == data
    assert server.get(url(key), headers={"Range": "bytes=0-3", "If-Range": tag})[2] == data[:4]
    # the client has a part of something else: it gets the whole
    status, _, body = server.get(url(key), headers={"Range": "bytes=0-3", "If-Range": '"x"'})
    assert (status, body) == (200, data)


def test_many_ranges_at_once_are_the_bytes_of_the_files(server, store):
    pieces = []
    objects = listed(store)
    for key in objects:
        size = (store / key).stat().st_size
        step = max(1, size // 5)
        pieces += [(key, at, min(at + step, size)) for at in range(0, size, step)]
    order = np.random.default_rng(0).permutation(len(pieces))

    def read(which):
        found = []
        # one connection for many requests, as readers keep them
        with closing(http.client.HTTPConnection(server.host, server.port, timeout=60)) as connection:
            for i in which:
                key, start, stop = pieces[i]
                connection.request("GET", url(key), headers={"Range": f"bytes={start}-{stop - 1}"})
                answer = connection.getresponse()
                assert answer.status == 206
                found.append((i, answer.read()))
        return found

    with ThreadPoolExecutor(16) as pool:
        got = dict(item for part in pool.map(read, np.array_split(order, 16)) for item in part)
    assert len(got) == len(pieces) > 200
    joined: dict[str, bytes] = {}
    for i, (key, _, _) in enumerate(pieces):
        joined[key] = joined.get(key, b"") + got[i]
    assert {key: hashlib.sha256(data).hexdigest() for key, data in joined.items()} == objects


def test_a_new_manifest_is_followed_and_the_old_one_stays(tmp_path):
    blocks = [random_block(i, f"b{i}") for i in range(3)]
    writer = build_store(tmp_path / "s", blocks[:1], SETTINGS)
    before = read_manifest(LocalStorage(tmp_path / "s"))[1]
    with serving(tmp_path / "s") as server:
        assert server.manifest == before
        assert server.get("/LATEST")[2].decode() == f"manifest-{before}.json\n"
        writer.commit(write_block(writer, blocks[1], SETTINGS))
        writer.finalize()
        new = set(listed(tmp_path / "s"))
        # a client that has LATEST from elsewhere may ask for anything first
        for key in sorted(new, reverse=True):
            assert server.get(url(key))[0] == 200
        assert server.get("/LATEST")[2] == (tmp_path / "s/LATEST").read_bytes()
        assert f"manifest-{before}.json" not in new
        assert server.get(f"/manifest-{before}.json")[0] == 200
        (tmp_path / f"s/manifest-{before}.json").unlink()
        assert server.get(f"/manifest-{before}.json")[0] == 404
        # and again, through LATEST
        writer.commit(write_block(writer, blocks[2], SETTINGS))
        writer.finalize()
        latest = server.get("/LATEST")[2].decode().strip()
        assert latest == (tmp_path / "s/LATEST").read_text().strip()
        assert server.get(f"/{latest}")[2] == (tmp_path / "s" / latest).read_bytes()


def test_what_a_newer_generation_replaced_stays_for_those_who_read_it(tmp_path):
    block, store = random_block(0, "b0"), tmp_path / "s"
    writer = build_store(store, [block], SETTINGS)
    before = listed(store)
    with serving(store) as server:
        writer.commit(write_block(writer, block, SETTINGS, generation=1))
        writer.finalize()
        after = listed(store)
        assert "receipts/b0.0.json" in after
        assert len(set(before) - set(after)) > 20
        for key, sha256 in (before | after).items():
            assert server.get(url(key))[1]["etag"] == f'"{sha256}"'
    # who starts anew knows the current manifest alone
    with serving(store) as server:
        assert {server.get(url(key))[0] for key in after} == {200}
        assert {server.get(url(key))[0] for key in set(before) - set(after)} == {404}


def test_the_store_can_be_read_through_it(server, store):
    here = open_store(store)
    there = open_store(f"http://{server.host}:{server.port}")
    assert there.version == here.version
    for sample_id in here.samples:
        a, b = here.read(sample_id, seed=0), there.read(sample_id, seed=0)
        np.testing.assert_array_equal(a.features.rows, b.features.rows)
        np.testing.assert_array_equal(a.features.index, b.features.index)
        np.testing.assert_array_equal(a.points.coord, b.points.coord)
    there.close()
