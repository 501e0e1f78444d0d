# SPDX-License-Identifier: Apache-2.0
"""`push`, `pull`, `merge`, `diff`, `attach`, `sign`, and `verify --key`."""

import json
import shutil

import pytest

from ditr_cache.store.reader import open_store


def test_push_and_pull(finished, run, tmp_path):
    with open_store(finished) as store:
        version, (sample,) = store.version, store.samples
    done = run("push", finished, tmp_path / "there")
    assert (done.code, done.err.count("\n")) == (0, 1)
    for expected in ("1 present, 0 planned and missing", "bytes copied", "bytes there already", version):
        assert expected in done.out
    report = json.loads(run("pull", f"{tmp_path / 'there'}@sha256:{version}", tmp_path / "back", "--json", "-q").out)
    assert (report["manifest"], report["blocks_copied"], report["bytes_skipped"]) == (version, 1, 0)
    assert report["seconds"] > 0
    done = run("pull", finished, tmp_path / "part", "--samples", sample, "--views", 1, "--no-points", "--dtype", "int8")
    assert done.code == 0, done.err
    with open_store(tmp_path / "part") as part:
        (source,) = part.manifest.sources
        assert (source.version, source.samples, source.views) == (version, (sample,), 1)
        assert part.identity["features"] == {**store.identity["features"], "dtype": "int8", "points": False}
    assert run("verify", tmp_path / "part").code == 0


def test_a_part_can_be_trained_on(finished, trained, run, tmp_path):
    done = run("pull", finished, tmp_path / "part", "--views", 1, "--dtype", "int8", "-q")
    assert done.code == 0, done.err
    done = run("train", tmp_path / "part", tmp_path / "run", "-c", trained / "config.yaml", "-q")
    assert done.code == 0, done.err


def test_errors_are_one_sentence_and_the_next_step(finished, run, tmp_path):
    done = run("pull", finished, tmp_path / "x", "--samples", "nothing")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: no sample fits 'nothing'\nThe store has 1: room-a-0000-0000\n"
    done = run("pull", f"{finished}@sha256:{'0' * 64}", tmp_path / "x")
    assert (done.code, done.out) == (1, "")
    assert run("pull", f"{finished}@sha256:0", tmp_path / "x").code == 2
    assert run("pull", tmp_path / "nowhere", tmp_path / "x").code == 1
    assert run("pull", finished, tmp_path / "x", "--views", 0).code == 2
    assert run("merge", finished, tmp_path / "x").code == 2
    assert not (tmp_path / "x").exists()


def test_what_stays_is_said(finished, run, tmp_path, rooms):
    other = tmp_path / "other"
    assert run("extract", *rooms, "--", other).code == 0
    done = run("push", finished, other)
    assert done.code == 0
    assert "Left as they are:\n  room-a-0000-0000: the store has it from elsewhere, with equal content\n" in done.out
    assert "is no plain copy: it had something of its own before (blocks)" in done.err


def test_diff_and_merge(finished, run, tmp_path):
    run("push", finished, tmp_path / "a")
    done = run("diff", finished, tmp_path / "a")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"equal: content digest {open_store(finished).digest}\n"
    assert run("merge", finished, tmp_path / "a", tmp_path / "both").code == 0
    assert run("diff", finished, tmp_path / "both", "--json").code == 0
    run("pull", finished, tmp_path / "part", "--no-points")
    done = run("diff", finished, tmp_path / "part")
    assert (done.code, done.err) == (1, "")
    assert "features.points: A has true, B has false" in done.out
    assert "room-a-0000-0000: color, coord," in done.out
    report = json.loads(run("diff", finished, tmp_path / "part", "--json").out)
    assert report["equal"] is False
    done = run("merge", finished, tmp_path / "part", tmp_path / "both")
    assert (done.code, done.out) == (1, "")
    assert "features.points: the store has true, the other false" in done.err


def test_attach(finished, run, tmp_path, rooms):
    run("pull", finished, tmp_path / "part", "--no-points")
    done = run("attach", tmp_path / "part", rooms[0], tmp_path / "joined")
    assert done.code == 0, done.err
    assert "data set: synthetic" in done.err
    assert run("diff", finished, tmp_path / "joined").code == 0
    done = run("attach", tmp_path / "part", "synthetic:rooms=1,views=2,seed=3", tmp_path / "other")
    assert (done.code, done.out) == (1, "")


def test_sign(store, run, tmp_path):
    key, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    done = run("sign", "--new-key", key, public)
    assert done.code == 0
    assert f"Keep {key} to yourself" in done.err
    assert (run("sign", "--new-key", key, public).code, run("sign").code, run("sign", store).code) == (2, 2, 2)
    for command in (("verify", store), ("pull", store, tmp_path / "copy")):
        done = run(*command, "--key", public)
        assert (done.code, done.out) == (4, "")
        assert "not signed" in done.err
    done = run("sign", store, "--key", key)
    assert (done.code, done.err) == (0, "")
    assert open_store(store).version in done.out
    assert run("verify", store, "--key", public).code == 0
    done = run("pull", store, tmp_path / "copy", "--key", public)
    assert done.code == 0
    assert "signed by" in done.out
    assert run("verify", tmp_path / "copy", "--key", public).code == 0
    run("sign", "--new-key", tmp_path / "key2.pem", tmp_path / "pub2.pem")
    done = run("verify", store, "--key", tmp_path / "pub2.pem")
    assert (done.code, done.out) == (4, "")
    assert "signed with another key" in done.err


def test_a_wrong_signature_counts_before_anything_is_read(store, run, tmp_path):
    run("sign", "--new-key", tmp_path / "key.pem", tmp_path / "pub.pem")
    shutil.rmtree(store / "blocks")
    done = run("verify", store, "--key", tmp_path / "pub.pem")
    assert (done.code, done.out) == (4, "")
    assert "not signed" in done.err


@pytest.mark.parametrize("command", ["push", "pull", "merge", "diff", "attach", "sign"])
def test_what_is_no_store_is_said_so(command, run, tmp_path):
    (tmp_path / "empty").mkdir()
    more = {"merge": (tmp_path / "b", tmp_path / "c"), "attach": ("synthetic:rooms=1", tmp_path / "c")}
    key = ("--key", tmp_path / "key.pem") if command == "sign" else (tmp_path / "b",)
    done = run(command, tmp_path / "empty", *more.get(command, key))
    assert (done.code, done.out) == (1, "")
    assert "no store here" in done.err
    assert list((tmp_path / "empty").iterdir()) == []
