# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache extract`, on real rooms with the embedded backbone."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from ditr_cache.store.reader import open_store


def test_new_store(rooms, run, tmp_path):
    store = tmp_path / "rooms"
    done = run("extract", *rooms, "--", store)
    assert done.code == 0
    assert "blocks           1 done, 0 were there already, 0 failed, of 1" in done.out
    assert "images           2 in " in done.out
    assert open_store(store).digest in done.out
    assert "data set: synthetic (the source starts with synthetic:)" in done.err
    assert "settings: synthetic; backbone: rooms-vit-tiny\n" in done.err
    assert "2 of 2 images in " in done.err


def test_run_again_adds_nothing(rooms, run, store):
    before = open_store(store).digest
    done = run("extract", *rooms, "--", store)
    assert done.code == 0
    assert "0 done, 1 were there already" in done.out
    assert open_store(store).digest == before


def test_redo_with_json(rooms, run, store):
    before = open_store(store).digest
    done = run("extract", *rooms, "--redo", "--json", "-q", "--", store)
    report = json.loads(done.out)
    assert (done.code, report["blocks_done"], report["digest"]) == (0, 1, before)
    assert "images" not in done.err


def test_dry_run_writes_nothing(rooms, run, tmp_path):
    store = tmp_path / "rooms"
    done = run("extract", *rooms, "-n", "--", store)
    assert done.code == 0
    assert not store.exists()
    assert "images                  2 (frames x variants)" in done.out
    assert "4 x 5 patches of 192 channels" in done.out
    estimate = json.loads(run("extract", *rooms, "-n", "--json", "--", store).out)
    assert estimate["blocks"] == 1
    assert estimate["bytes_int8"] < estimate["bytes_f16"]


def test_dry_run_warns_of_a_full_disk(rooms, run, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    done = run("extract", *rooms, "-n", "--", tmp_path / "rooms")
    assert "the store will need about " in done.err
    assert ", and 1.0 kB are free\n" in done.err


def test_other_settings_are_refused(rooms, run, store):
    done = run("extract", *rooms, "-s", "store.dtype=int8", "--", store)
    assert (done.code, done.out) == (1, "")
    assert 'features.dtype: the store has "float16", asked for "int8"' in done.err


def test_shards_fill_one_store(run, tmp_path, monkeypatch):
    store = tmp_path / "rooms"
    small = ["-s", "images.size=[56,70]", "-q", "--json"]
    first = json.loads(run("extract", "synthetic:rooms=3,views=1", store, *small, "--shard", "1/2").out)
    assert first["blocks_planned"] == 1
    assert "1 present, 2 missing, of which 0 failed" in run("info", store).out
    for name, value in {"ID": 7, "MIN": 7, "MAX": 8, "COUNT": 2}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    done = run("extract", "synthetic:rooms=3,views=1", store, *small[:2])
    assert "shard 0/2, from SLURM's array" in done.err
    assert "2 done" in done.out
    assert "3 present, 0 missing" in run("info", store).out
    empty = run("extract", "synthetic:rooms=3,views=1", store, *small[:2], "--shard", "3/4")
    assert "warning: shard 3/4 has no blocks: nothing was done" in empty.err


def test_what_has_failed_is_retried_when_it_is_asked_for(run, tmp_path, tiny_capture):
    frame = sorted(tiny_capture.glob("images/*.png"))[1]
    whole, store = frame.read_bytes(), tmp_path / "store"
    frame.write_bytes(whole[:100])
    command = ["extract", tiny_capture, store, "-s", "backbone.name=rooms-vit-tiny", "-s", "images.size=[56,70]"]
    failed = run(*command)
    assert failed.code == 3
    assert "Failed frames (once they are mended: --retry):" in failed.out
    frame.write_bytes(whole)
    assert run(*command).code == 3
    done = run(*command, "--retry")
    assert done.code == 0, done.out
    assert "1 done, 0 were there already" in done.out
    transforms = tiny_capture / "transforms.json"
    document = json.loads(transforms.read_text())
    transforms.write_text(json.dumps({**document, "frames": document["frames"][:-1]}))
    changed = run(*command)
    assert changed.code == 3
    assert "Blocks of other samples, views or splits than the data set has now (--retry):" in changed.out
    assert run(*command, "--retry").code == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere: there is no such folder\n"),
        ("empty", "no supported data set found in this folder\nSupported: nerfstudio"),
        ("file", "file: not a folder\n"),
        ("synthetic:rooms=0", "rooms is a number from 1"),
    ],
)
def test_wrong_source(source, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    done = run("extract", source, "store")
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert not Path("store").exists()


def test_wrong_store(rooms, run, tmp_path):
    (tmp_path / "file").touch()
    assert "this is a file, a store is a folder" in run("extract", *rooms, "--", tmp_path / "file").err
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    done = run("extract", *rooms, "--", tmp_path / "photos")
    assert done.code == 1
    assert "the folder is not empty and not a store (it holds cat.jpg)" in done.err


def test_unwritable_place(rooms, run):
    target = Path("/sys/ditr-cache")
    try:
        target.mkdir()
    except PermissionError:
        done = run("extract", *rooms, "--", target)
        assert done.code == 1
        assert done.err.endswith("error: /sys/ditr-cache: permission denied\n")
    except OSError:
        pytest.skip("no /sys to be refused by")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-s", "imagse.size=1", "-s", "run.batch_size=x"], 2, "imagse: there is no such setting"),
        (["-s", "images.size"], 2, "an override reads section.key=value"),
        (["-c", "nope"], 2, "Installed: nerfstudio"),
        (["-s", "backbone.name=resnet50"], 1, "there is no backbone named 'resnet50'"),
        (["--weights", "nowhere"], 1, "nowhere: there is no such folder"),
        (["-s", "run.device=cuda:77"], 2, "cuda"),
    ],
)
def test_wrong_settings(args, code, message, run, tmp_path):
    done = run("extract", "synthetic:rooms=1,views=1", tmp_path / "store", *args)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_damaged_frame_is_listed_and_the_exit_code_tells(run, tmp_path, tiny_capture):
    frames = sorted(tiny_capture.glob("images/*.png"))
    frames[1].write_bytes(frames[1].read_bytes()[:100])
    store = tmp_path / "store"
    command = ["extract", tiny_capture, store, "-s", "backbone.name=rooms-vit-tiny", "-s", "images.size=[56,70]"]
    done = run(*command)
    assert done.code == 3
    assert "data set: nerfstudio (" in done.err
    assert "frames left out  1 failed, 0 without a valid pose" in done.out
    assert f"images/{frames[1].name}: " in done.out.partition("Failed frames")[2]
    assert f"images/{frames[1].name}" in run("info", store).out.partition("Failed frames:")[2]
    report = json.loads(run(*command, "--json").out)
    assert [note["view"] for note in report["dropped"]] == [f"images/{frames[1].name}"]


def test_weights_option(run, tmp_path, tiny_capture):
    weights = Path("ditr_cache/backbones/weights/rooms-vit-tiny").resolve()
    store = tmp_path / "store"
    done = run(
        "extract", tiny_capture, store, "--weights", weights, "-s", "images.size=[56,70]", "--dataset", "nerfstudio"
    )
    assert done.code == 0
    assert "data set:" not in done.err
    assert open_store(store).identity["backbone"]["dim"] == 192


@pytest.fixture
def tiny_capture(tmp_path):
    """Three photographs of a plane, in nerfstudio's layout."""
    folder = tmp_path / "capture"
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in range(3):
        Image.effect_noise((140, 112), 50 + i).convert("RGB").save(folder / f"images/{i}.png")
        pose = [[1, 0, 0, 0.1 * i], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]]
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": pose})
    camera = {"fl_x": 120, "fl_y": 120, "cx": 70, "cy": 56, "w": 140, "h": 112}
    (folder / "transforms.json").write_text(json.dumps({**camera, "ply_file_path": "points.ply", "frames": frames}))
    points = [f"{x / 10} {y / 10} 0" for x in range(-8, 9) for y in range(-8, 9)]
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}", *(f"property float {a}" for a in "xyz")]
    (folder / "points.ply").write_text("\n".join([*header, "end_header", *points, ""]))
    return folder
