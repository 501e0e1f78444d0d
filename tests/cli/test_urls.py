# SPDX-License-Identifier: Apache-2.0
"""Commands that take a store take the URL of one, too."""

import json
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from servers import Fault

from ditr_cache.store.reader import open_store
from ditr_cache.store.remote import retry
from ditr_cache.store.writer import StoreWriter


@pytest.fixture
def url(bucket, finished):
    """The finished store in a bucket."""
    return bucket.put_tree(finished)


def test_info(finished, run, bucket, url):
    here, there = (json.loads(run("info", place, "--json").out) for place in (finished, url))
    assert there == here | {"store": url}
    done = run("info", bucket.http_url())
    assert done.code == 0
    assert here["digest"] in done.out
    assert done.err == "note: a web server cannot tell what failed, and what is not finalised yet\n"
    assert json.loads(run("info", bucket.http_url(), "--json").out)["points"] == here["points"]


def test_not_finalised_yet(run, bucket, url, finished):
    writer = StoreWriter(url)
    writer.storage.remove("LATEST")
    writer.fail("room", "Input/output error")
    done = run("info", url)
    assert (done.code, open_store(finished).digest in done.out) == (0, True)
    assert f"readers do not see 1 finished block yet; run: ditr-cache finalize {url}" in done.err
    assert json.loads(run("finalize", url, "--json").out)["digest"] == open_store(finished).digest
    assert open_store(url).digest == open_store(finished).digest


def test_gc(run, bucket, url):
    orphan = f"blocks/room-a-0000-0007-{'0' * 32}"
    StoreWriter(url).storage.replace(f"{orphan}/zarr.json", b"{}")
    assert run("gc", url).out == ""
    assert run("gc", url, "--now").out == f"{orphan}\n"
    assert json.loads(run("gc", url, "--now", "--json").out) == {"removed": []}


def test_verify(run, bucket, url, finished):
    version = open_store(finished).version
    for place in (url, bucket.http_url(), f"{url}@sha256:{version}"):
        done = run("verify", place)
        assert (done.code, done.out[:4]) == (0, "ok: "), done
    (features,) = finished.glob("blocks/*/features/c/0/0")
    data, name = bytearray(features.read_bytes()), features.relative_to(finished).as_posix()
    data[1000] ^= 1
    urlopen(Request(f"{bucket.http_url()}/{quote(name)}", bytes(data), method="PUT")).close()
    for place in (url, bucket.http_url(), f"{url}@sha256:{version}"):
        done = run("verify", place)
        assert (done.code, name in done.out) == (4, True)
    assert run("verify", url, "--quick").code == 0


def test_a_version_has_what_it_had(run, url, finished):
    store, writer = open_store(finished), StoreWriter(url)
    receipt = writer.receipt(next(iter(store.manifest.blocks)))
    data = receipt.model_copy(update={"generation": 1}).to_bytes()
    writer.storage.create_exclusively(f"receipts/{receipt.block}.1.json", data)
    pinned = f"{url}@sha256:{store.version}"
    assert json.loads(run("info", pinned, "--json").out)["not_finalised"] == 0
    writer.finalize()
    assert open_store(url).version != store.version == open_store(pinned).version
    assert json.loads(run("info", pinned, "--json").out)["manifest"] == store.version
    assert run("verify", pinned).out.startswith("ok: ")
    assert run("info", f"{url}@sha256:{'0' * 64}").code == 1


def test_training_evaluation_and_prediction(run, bucket, url, trained, finished, tmp_path):
    """From the cache, the second time."""
    cache = ("--cache-dir", tmp_path / "cache", "--cache-size", "100MB")
    here = json.loads(run("evaluate", trained, finished, "--split", "train", "--json").out)
    there = json.loads(run("evaluate", trained, url, "--split", "train", "--json", *cache).out)
    assert (there["scores"], there["digest"], there["store"]) == (here["scores"], here["digest"], url)
    bucket.log()
    done = run("predict", trained, url, tmp_path / "labels", "--split", "train", *cache)
    assert done.code == 0, done.err
    assert [r["key"] for r in bucket.log() if "/features/c" in r["key"]] == []
    done = run("train", url, tmp_path / "run", "-n", "--json", *cache)
    assert done.code == 0, done.err


@pytest.mark.parametrize("command", [["info"], ["verify"], ["finalize"], ["gc"], ["train", "run"]])
def test_no_store_there(run, bucket, command, tmp_path):
    place = bucket.url("nothing")
    done = run(command[0], place, *(tmp_path / name for name in command[1:]))
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith(f"{place}: no store here\nMake one with: ditr-cache extract SOURCE STORE\n")


def test_what_cannot_be_written_is_refused_with_a_sentence(run, bucket, url):
    for command in ("finalize", "gc"):
        done = run(command, bucket.http_url())
        assert (done.code, done.out) == (2, "")
        assert "stores cannot be written to http:// URLs" in done.err
    assert run("info", "s3://").code == 2


def test_a_dead_server_is_one_clear_error(run, bucket, url, monkeypatch):
    monkeypatch.setattr(retry, "_FIRST_PAUSE_S", 0.0)
    bucket.faults(Fault("drop", times=-1))
    for command in ("info", "verify", "finalize"):
        done = run(command, url)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"error: {url}/")
        assert "does not answer" in done.err
        assert "test-secret" not in done.err


def test_extraction_into_a_bucket(run, rooms, bucket, finished):
    place = bucket.url("new")
    done = run("extract", *rooms[:1], place, *rooms[1:], "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["digest"] == open_store(finished).digest
    assert run("verify", place).code == 0
    assert json.loads(run("extract", *rooms[:1], place, *rooms[1:], "-n", "--json").out)["free_bytes"] is None


def test_a_server_without_conditions_needs_a_single_writer(run, rooms, bucket, finished):
    bucket.faults(Fault("unconditional", "PUT", times=-1))
    place = bucket.url("new")
    done = run("extract", *rooms[:1], place, *rooms[1:])
    assert (done.code, done.out) == (1, "")
    assert "two writers would overwrite each other" in done.err
    assert done.err.endswith("say so with --single-writer.\n")
    done = run("extract", *rooms[:1], place, *rooms[1:], "--single-writer", "--json")
    assert json.loads(done.out)["digest"] == open_store(finished).digest
    assert run("extract", *rooms[:1], place, "--single-writer", "--workers", "2").code == 2
