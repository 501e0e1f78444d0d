# SPDX-License-Identifier: Apache-2.0
"""`finalize`, `gc`, `info`, `verify` and `doctor`."""

import json

import pytest

from ditr_cache.store.reader import open_store
from ditr_cache.store.writer import StoreWriter


@pytest.mark.parametrize("command", ["finalize", "gc", "info", "verify"])
@pytest.mark.parametrize("where", ["nowhere", "file", "empty", "file/below"])
def test_no_store_there(command, where, run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    done = run(command, tmp_path / where)
    assert (done.code, done.out) == (1, "")
    assert str(tmp_path / where) in done.err
    assert done.err.endswith("no store here\nMake one with: ditr-cache extract SOURCE STORE\n")


def test_info(finished, run):
    done = run("info", finished)
    store = open_store(finished)
    assert (done.code, done.err) == (0, "")
    for expected in (store.digest, store.version, "backbone.name", "rooms-vit-tiny", "features", "float16"):
        assert expected in done.out
    (sample,) = store.samples
    assert sample not in done.out
    assert sample in run("info", finished, "--samples").out


def test_info_json(finished, run):
    store = open_store(finished)
    report = json.loads(run("info", finished, "--json").out)
    assert report["digest"] == store.digest
    assert report["samples"] == 1
    assert report["identity"] == store.identity
    (sample,) = json.loads(run("info", finished, "--json", "--samples").out)["samples"]
    assert sample["view_names"] == list(store.samples[sample["id"]].view_names)


def test_info_says_what_is_missing_and_why(run, tmp_path):
    store = tmp_path / "rooms"
    run("extract", "synthetic:rooms=3,views=1", store, "-s", "images.size=[56,70]", "--shard", "0/3", "-q")
    StoreWriter(store).fail("room-a-0000-0001", "Input/output\x1b[2J error")
    done = run("info", store)
    assert "1 present, 2 missing, of which 1 failed" in done.out
    assert "  room-a-0000-0001: Input/output\\x1b[2J error\n" in done.out
    assert done.out.endswith("Missing blocks:\n  room-a-0000-0002\n")


def test_info_warns_of_random_weights(run, tmp_path, rooms):
    store = tmp_path / "rooms"
    assert run("extract", *rooms, "-s", "backbone.random_seed=0", "--", store).code == 0
    assert "random weights" in run("info", store).err
    assert json.loads(run("info", store, "--json").out)["random_weights"] is True


def test_not_finalised_yet(run, store):
    digest = open_store(store).digest
    (store / "LATEST").unlink()
    done = run("info", store)
    assert done.code == 0
    assert digest in done.out
    assert "readers do not see 1 finished block yet; run: ditr-cache finalize" in done.err
    done = run("finalize", store)
    assert (done.code, done.err) == (0, "")
    assert digest in done.out
    assert open_store(store).digest == digest
    assert json.loads(run("finalize", store, "--json").out) == {"blocks": 1, "missing": 0, "digest": digest}


def test_gc_lists_what_it_removes(run, store):
    orphan = f"blocks/room-a-0000-0007-{'0' * 32}"
    (store / orphan).mkdir()
    assert run("gc", store).out == ""
    done = run("gc", store, "--now")
    assert (done.code, done.out, done.err) == (0, f"{orphan}\n", "1 removed\n")
    assert not (store / orphan).exists()
    assert json.loads(run("gc", store, "--now", "--json").out) == {"removed": []}


def test_sound_store(finished, run):
    done = run("verify", finished)
    assert done.code == 0
    assert done.out.startswith("ok: ")
    assert run("verify", finished, "--quick").out.endswith("(documents and sizes only)\n")
    assert json.loads(run("verify", finished, "--json").out)["ok"] is True


def test_damaged_store(run, store):
    (features,) = store.glob("blocks/*/features/c/0/0")
    data = bytearray(features.read_bytes())
    data[1000] ^= 1
    features.write_bytes(data)
    done = run("verify", store)
    assert done.code == 4
    assert str(features.relative_to(store)) in done.out
    assert "error: " in done.err
    done = run("verify", store, "--json", "-q")
    assert done.code == 4
    assert {p["path"] for p in json.loads(done.out)["problems"]} == {str(features.relative_to(store))}
    assert run("verify", store, "--quick").code == 0
    features.unlink()
    assert run("verify", store, "--quick").code == 4


def test_damaged_manifest_is_one_sentence(run, store):
    (store / "LATEST").write_text("../../etc/passwd\n")
    done = run("info", store)
    assert (done.code, done.out) == (1, "")
    assert "does not name a manifest" in done.err


def test_doctor(run):
    done = run("doctor")
    assert done.code == 0
    for expected in ("Python", "torch", "JPEG decoder", "dinov2-reg-large", "rooms-vit-tiny", "semantic_kitti"):
        assert expected in done.out
    report = json.loads(run("doctor", "--json").out)
    assert bool(report["cuda_devices"]) != ("no CUDA device" in done.err)
