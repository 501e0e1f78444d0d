# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache train`, on a small store of real features."""

import json

import pytest
import yaml

from ditr_cache.cli.output import Output
from ditr_cache.cli.train_progress import TrainBar, TrainLines
from ditr_cache.training.metrics import ConfusionMatrix
from ditr_cache.training.tracking import EvaluationReport, StepReport


def test_new_run(micro, finished, run, tmp_path):
    done = run("train", finished, tmp_path / "run", *micro, "-s", "optim.lr=0.01")
    assert done.code == 0, done.err
    assert f"settings: tiny + {micro[1]} + optim.lr=0.01\n" in done.err
    assert "epoch 1: mIoU " in done.err
    assert "epoch 1, step 3 of 3: loss " in done.err
    assert "steps       3 in " in done.out
    assert "best mIoU   " in done.out
    assert "Last evaluation, 1 samples" in done.out
    assert "floor" in done.out
    assert "no CUDA" not in done.err


def test_json_and_quiet(micro, finished, run, tmp_path):
    done = run("train", finished, tmp_path / "run", *micro, "--json", "-q")
    report = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert (report["step"], report["total"], report["interrupted"]) == (3, 3, False)
    assert report["last"]["classes"][0]["name"] == "floor"


def test_a_run_that_is_there(micro, finished, run, tmp_path):
    assert run("train", finished, tmp_path / "run", *micro, "-q").code == 0
    again = run("train", finished, tmp_path / "run", *micro)
    assert (again.code, again.out) == (1, "")
    assert again.err.endswith("there is a run in this folder\nGo on with it: --resume. Or name a new folder.\n")
    on = run("train", finished, tmp_path / "run", "--resume")
    assert on.code == 0, on.err
    assert "settings: those of the run\n" in on.err
    assert "steps       0 in " in on.out
    other = run("train", finished, tmp_path / "run", "--resume", "-s", "optim.lr=1", "-c", "scannet200")
    assert other.code == 1
    assert "optim.lr: the run has 0.006, asked for 1" in other.err
    assert 'data.label_set: the run has "segment", asked for "segment200"' in other.err


def test_dry_run_writes_nothing(micro, finished, run, tmp_path):
    done = run("train", finished, tmp_path / "run", *micro, "-n")
    assert done.code == 0, done.err
    assert "samples         1 to train on, 1 to evaluate on" in done.out
    assert "steps           3: 1 epochs of 3" in done.out
    assert "image features  192 channels" in done.out
    estimate = json.loads(run("train", finished, tmp_path / "run", *micro, "-n", "--json", "-q").out)
    assert estimate["steps"] == 3
    assert estimate["step_s"] > 0
    assert not (tmp_path / "run").exists()


def test_dry_run_of_distill_writes_nothing(micro, finished, run, tmp_path):
    done = run("distill", finished, tmp_path / "run", *micro, "-n")
    assert done.code == 0, done.err
    assert "stores        synthetic: 1 samples to train on, 1 to evaluate on" in done.out
    assert "regressed     192 channels" in done.out
    assert "steps         3: 1 epochs of 3" in done.out
    assert json.loads(run("distill", finished, tmp_path / "run", *micro, "-n", "--json", "-q").out)["steps"] == 3
    assert not (tmp_path / "run").exists()


def test_init_takes_the_network_of_the_distillation_but_for_what_a_file_says(micro, finished, run, tmp_path):
    assert run("distill", finished, tmp_path / "pre", *micro).code == 0
    file = tmp_path / "mine.yaml"
    data = {"val_splits": ["train"], "loop": 3}
    file.write_text(yaml.safe_dump({"model": {"injection": "decoder", "drop_path": 0.25}, "data": data}))
    steps = ("-s", "run.epochs=1", "-s", "run.batch_size=1", "-s", "run.workers=0")
    done = run("train", finished, tmp_path / "run", "--init", tmp_path / "pre", "-c", file, *steps)
    assert done.code == 0, done.err
    assert f"settings: tiny + {file} + the network of {tmp_path / 'pre'} + run.epochs=1" in done.err
    found = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (found["model"]["injection"], found["model"]["drop_path"]) == ("decoder", 0.25)
    assert found["model"]["enc_channels"] == [8, 16]
    assert found["init"]["distilled"] == str(tmp_path / "pre")
    # an installed recipe says how to train, and not what the network is
    planned = run("train", finished, tmp_path / "other", "--init", tmp_path / "pre", "-c", "tiny", "-c", file, "-n")
    assert planned.code == 0, planned.err
    assert not (tmp_path / "other").exists()


def test_no_gpu_is_said(finished, run, tmp_path):
    done = run("train", finished, tmp_path / "run", "-c", "scannet", "-s", "run.device=auto")
    assert "warning: no CUDA device: training runs on the CPU, which is many times slower\n" in done.err
    assert 'dataset.name: the store has "synthetic", asked for "scannet"' in done.err
    assert done.code == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-s", "data.label_set=segment20"], 2, "Name one of them, e.g. -s data.label_set=segment: segment\n"),
        (["-s", "modle.drop_path=1", "-s", "optim.lr=-1"], 2, "modle: there is no such setting"),
        (["-s", "optim.lr"], 2, "an override reads section.key=value"),
        (["-c", "nope"], 2, "Installed: nuscenes, s3dis_finetune, scannet, scannet200"),
        (["-s", "run.device=cuda:77"], 2, "cuda:77"),
        (["-s", "run.weights=nowhere.pth"], 1, "nowhere.pth"),
        (["-s", "data.train_splits=[test]"], 2, "Splits of the store: train (1)"),
    ],
)
def test_wrong_settings(args, code, message, micro, finished, run, tmp_path):
    done = run("train", finished, tmp_path / "run", *micro, *args)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_wrong_places(micro, finished, run, tmp_path):
    done = run("train", tmp_path / "nowhere", tmp_path / "run")
    assert (done.code, done.out) == (1, "")
    assert "nowhere: no store here\nMake one with: ditr-cache extract SOURCE STORE\n" in done.err
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    done = run("train", finished, tmp_path / "photos", *micro)
    assert done.code == 1
    assert "the folder is not empty and holds no run (it holds cat.jpg)\nName a new folder.\n" in done.err


def test_strange_environment(micro, finished, run, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run("train", finished, tmp_path / "run", *micro)
    assert (done.code, done.out) == (2, "")
    assert "must be numbers, as torchrun sets them" in done.err


def test_interrupted_run_says_how_to_go_on(micro, finished, interrupt, tmp_path):
    folder = tmp_path / "my run"
    command = [
        "train",
        str(finished),
        str(folder),
        *map(str, micro),
        "-s",
        "run.epochs=1000",
        "-s",
        "run.eval_every=1000",
    ]
    log = folder / "log.jsonl"
    done = interrupt(command, log)
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    lines = done.err.splitlines()
    assert lines[-1] == f"Go on: ditr-cache train {finished} '{folder}' --resume"
    step = int(lines[-2].removeprefix("error: interrupted after step ").partition(",")[0].replace(",", ""))
    assert step == len(log.read_text().splitlines())


def _reports():
    scores = ConfusionMatrix(2).scores()
    return StepReport(5, 0, 1e-3, 0.25, 0.75, 100, 2.5), EvaluationReport(5, 0, scores, 3.0, True)


def test_lines(capsys):
    now = [0.0]
    lines = TrainLines(Output(), clock=lambda: now[0])
    step, evaluation = _reports()
    lines.begin(4, 10)
    lines.step(step)
    assert capsys.readouterr().err == ""
    now[0] = 31.0
    lines.step(step)
    expected = "epoch 1, step 5 of 10: loss 2.5, lr 0.001, 1.00 s/step (0.25 waiting for data), 5.0 s left\n"
    assert capsys.readouterr().err == expected
    lines.evaluation(evaluation)
    assert capsys.readouterr().err == "epoch 1: mIoU 0.0, mAcc 0.0, allAcc 0.0, the best so far (3.0 s)\n"
    lines.close()
    assert capsys.readouterr().err == ""


def test_bar(capsys):
    bar = TrainBar(Output())
    step, evaluation = _reports()
    bar.begin(4, 10)
    bar.step(step)
    bar.evaluation(evaluation)
    bar.note("a note")
    bar.close()
    bar.close()
    err = capsys.readouterr().err
    assert "a note" in err
    assert "mIoU 0.0" in err
