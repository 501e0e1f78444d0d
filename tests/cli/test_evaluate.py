# SPDX-License-Identifier: Apache-2.0
"""`evaluate` and `weights`: tables, JSON, exit codes."""

import json
import re

import pytest
import torch

from ditr_cache.training.run_folder import RunFolder


def test_tables(trained, finished, run):
    done = run("evaluate", trained, finished, "-q")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^all +\d+\.\d +\d+\.\d +\d+\.\d +\d+\.\d +[\d,]+$", done.out, re.MULTILINE)
    assert re.search(r"^visible +\d", done.out, re.MULTILINE)
    assert re.search(r"^invisible +\d", done.out, re.MULTILINE)
    for class_name in ("floor", "striped panel"):
        assert re.search(rf"^{class_name} +\d+\.\d +\d+\.\d +\d+\.\d +\d+\.\d +[\d,]+$", done.out, re.MULTILINE)
    assert re.search(r"^passes +1 \(fragments 1, copies 1\)$", done.out, re.MULTILINE)
    assert re.search(r"^ViT saved +2 images ", done.out, re.MULTILINE)


def test_json_has_the_same_numbers(trained, finished, run):
    done = run("evaluate", trained, finished, "--json", "--protocol", "test", "--batch", "2")
    report = json.loads(done.out)
    assert done.code == 0
    assert report["protocol"] == "test"
    assert report["cost"]["copies"] == 2
    assert report["cost"]["forwards"] < report["cost"]["fragments"]
    overall = report["scores"]["overall"]
    assert len(overall["classes"]) == len({c["name"] for c in overall["classes"]})
    mean = sum(c["iou"] for c in overall["classes"]) / len(overall["classes"])
    assert overall["miou"] == pytest.approx(mean)


def test_two_runs_side_by_side(trained, finished, run):
    done = run("evaluate", trained, finished, "--against", trained, "--json")
    report = json.loads(done.out)
    assert [other["scores"] for other in report["against"]] == [report["scores"]]
    done = run("evaluate", trained, finished, "--against", trained, "-q")
    assert done.code == 0
    assert re.search(r"^all classes +(\d+\.\d) +\1$", done.out, re.MULTILINE)
    assert re.search(r"^striped panel +(\d+\.\d) +\1$", done.out, re.MULTILINE)


def test_pictures(trained, finished, run, tmp_path):
    done = run("evaluate", trained, finished, "--pictures", tmp_path / "seen")
    assert done.code == 0
    assert {p.name for p in (tmp_path / "seen").iterdir()} == {"confusion.png", "room-a-0000-0000.png"}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--split", "test"), 2, "no samples in split 'test'"),
        (("--samples", "kitchen*"), 2, "matches 'kitchen*'"),
        (("--protocol", "fast"), 2, "Invalid value for '--protocol'"),
        (("--device", "toaster"), 2, "there is no device 'toaster'"),
    ],
)
def test_what_cannot_be(args, code, message, trained, finished, run):
    done = run("evaluate", trained, finished, *args)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_no_run(finished, run, tmp_path):
    done = run("evaluate", tmp_path, finished)
    assert done.code == 1
    assert "no run here" in done.err
    assert "ditr-cache train" in done.err


def test_another_store(trained, store, run, rooms):
    done = run("extract", *rooms[:1], store.with_name("other"), *rooms[1:], "-s", "visibility.max_depth=2")
    assert done.code == 0, done.err
    done = run("evaluate", trained, store.with_name("other"))
    assert (done.code, done.out) == (1, "")
    assert "visibility.max_depth: the store has 2.0, asked for" in done.err


def weights_of(folder):
    return RunFolder(folder).checkpoints.find("best").folder / "model.safetensors"


def test_weights_go_out_and_come_back(trained, run, tmp_path):
    out = run("weights", "export", trained, tmp_path / "official.pth", "--json")
    entries = json.loads(out.out)
    names = torch.load(tmp_path / "official.pth", weights_only=True)["state_dict"]
    assert entries["entries"] == len(names)
    assert all(name.startswith(("module.backbone.", "module.seg_head.")) for name in names)
    done = run("weights", "import", tmp_path / "official.pth", tmp_path / "back.safetensors")
    assert done.code == 0
    assert (tmp_path / "back.safetensors").stat().st_size == pytest.approx(weights_of(trained).stat().st_size, rel=0.01)
    for other in (tmp_path / "back.safetensors", tmp_path / "official.pth", weights_of(trained)):
        done = run("weights", "diff", trained, other)
        assert (done.code, done.out) == (0, "")
        assert f"{entries['entries']} entries fit" in done.err


def test_weights_that_do_not_fit_are_listed(trained, run, tmp_path):
    torch.save({"state_dict": {"module.seg_head.bias": torch.zeros(3)}}, tmp_path / "other.pth")
    done = run("weights", "diff", trained, tmp_path / "other.pth")
    assert done.code == 4
    assert "shape: seg_head.bias is 3 in the file" in done.out
    assert "missing: seg_head.weight" in done.out
    report = json.loads(run("weights", "diff", trained, tmp_path / "other.pth", "--json").out)
    assert report["mismatched"][0]["found"] == [3]


def test_weights_of_nothing(run, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"nothing")
    done = run("weights", "import", tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert done.code == 1
    assert "not a checkpoint" in done.err
    assert run("weights", "import", tmp_path / "w.pth", tmp_path / "w.bin").code == 2
    assert run("weights", "export", tmp_path / "w.pth", tmp_path / "w.safetensors").code == 2
    (tmp_path / "run").mkdir()
    done = run("weights", "export", tmp_path / "run", tmp_path / "o.pth")
    assert done.code == 1
    assert "no saved weights here" in done.err
