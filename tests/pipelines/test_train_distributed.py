# SPDX-License-Identifier: Apache-2.0
"""Two processes of torchrun, on gloo, against one."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from ditr_cache.config import load_config
from ditr_cache.errors import ConfigError, TrainingError
from ditr_cache.pipelines.distill import Distill
from ditr_cache.pipelines.train import Train
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distill_config import DistillConfig
from ditr_cache.training.distributed import World, environment, join, pick_device
from ditr_cache.training.run_folder import RunFolder

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
from ditr_cache.config import load_config
from ditr_cache.pipelines.distill import Distill
from ditr_cache.pipelines.train import Train
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distill_config import DistillConfig

plan = json.loads(Path(sys.argv[1]).read_text())
dist.init_process_group("gloo")
for job in plan:
    store, run = Path(job["store"]), Path(job["run"])
    if job["kind"] == "distill":
        report = Distill([store, store], run, load_config(DistillConfig, [job["config"]])).run()
    else:
        report = Train(store, run, load_config(TrainConfig, [job["config"]])).run()
    assert report.processes == 2, report
dist.destroy_process_group()
"""


def _torchrun(folder, plan):
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, folder / "script.py", folder / "plan.json"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pairs(rooms_store, micro, tmp_path_factory):
    """Runs of two processes, and the ones of one process that they should equal."""
    folder = tmp_path_factory.mktemp("distributed")
    common = ["data.loop=10", "run.epochs=1", "run.checkpoint_every=null", "run.log_every=2"]
    # four samples, two for each process
    common += ["data.val_splits=[train,val]"]
    settings = {
        # two clouds a step and process; Mix3D, drop path and curves as ever
        "accumulated": ([], ["run.accumulation=2"]),
        # norm layers of another data set, which take no part
        "norms": ([], ["run.accumulation=2"]),
        "minkunet": ([], ["run.accumulation=2"]),
        "doubled": (["run.sync_bn=true"], []),
    }
    alike = [
        "loss.global_normalisation=true",
        "loss.lovasz=0",  # of a process's own points
        "data.mix_prob=0",  # pairs of clouds, drawn a batch
        "model.shuffle_orders=false",  # drawn a batch
        "model.drop_path=0",
        "model.compatibility=fixed",  # codes of one depth, whatever else is in the batch
        # biases in front of a norm have no gradient but rounding, which AdamW would blow up to a full step
        "optim.eps=1e-3",
    ]
    small = "{stem_channels: 8, enc_channels: [8], enc_depths: [1], dec_channels: [8], dec_depths: [1]}"
    more = {
        "accumulated": [],
        "norms": ["model.norm_conditions=[synthetic,scannet]"],
        "minkunet": ["model.network=minkunet", f"model.minkunet={small}"],
        "doubled": alike,
    }
    plan = []
    for name, (two, one) in settings.items():
        base = [*common, "run.batch_size=6", *more[name]]
        config = load_config(TrainConfig, [micro], [*base, *two])
        plan.append(
            {
                "kind": "train",
                "store": str(rooms_store),
                "run": str(folder / f"{name}-2"),
                "config": config.model_dump(mode="json"),
            }
        )
        Train(rooms_store, folder / f"{name}-1", load_config(TrainConfig, [micro], [*base, *one])).run()
    # every step is of one store: the other's norm layers and head take no part in it
    distilled = ["distill.names=[a,b]", "distill.separate_heads=true", "run.batch_size=6"]
    loops = [value for value in common if not value.startswith("data.loop")]
    config = load_config(DistillConfig, [micro], [*loops, *distilled, "data.loop=6"])
    plan.append(
        {
            "kind": "distill",
            "store": str(rooms_store),
            "run": str(folder / "distilled-2"),
            "config": config.model_dump(mode="json"),
        }
    )
    one = load_config(DistillConfig, [config.model_dump(mode="json")], ["run.accumulation=2"])
    Distill([rooms_store, rooms_store], folder / "distilled-1", one).run()
    _torchrun(folder, plan)
    names = [*settings, "distilled"]
    return {name: (RunFolder(folder / f"{name}-2"), RunFolder(folder / f"{name}-1")) for name in names}


def _difference(two, one, *, statistics):
    mine, other = (folder.checkpoints.find("last") for folder in (two, one))
    assert mine.step == other.step >= 5
    mine, other = mine.weights(), other.weights()
    assert mine.keys() == other.keys()
    names = [name for name in mine if statistics or ("running_" not in name and "num_batches" not in name)]
    return max(float((mine[name].double() - other[name].double()).abs().max()) for name in names)


def _losses(folder):
    lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize("name", ["accumulated", "norms", "minkunet", "distilled"])
def test_two_processes_are_one_that_accumulates(pairs, name):
    two, one = pairs[name]
    assert _difference(two, one, statistics=False) < 1e-6
    assert _losses(two) == pytest.approx(_losses(one), abs=1e-6)


def test_synchronised_processes_are_one_with_all_clouds(pairs):
    two, one = pairs["doubled"]
    assert _difference(two, one, statistics=True) < 1e-5
    assert _losses(two) == pytest.approx(_losses(one), abs=1e-5)


def _evaluation(folder):
    lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
    return next(line["scores"] for line in lines if line["kind"] == "evaluation")


@pytest.mark.parametrize("name", ["accumulated", "doubled"])
def test_processes_share_an_evaluation(pairs, name):
    two, one = (_evaluation(folder) for folder in pairs[name])
    assert [c["points"] for c in two["classes"]] == [c["points"] for c in one["classes"]]
    assert two["points"] > 0
    if name == "doubled":  # the others have statistics of their own half
        assert two["allacc"] == pytest.approx(one["allacc"], abs=0.005)


@pytest.mark.slow
def test_sigterm_under_torchrun_leaves_a_checkpoint(rooms_store, micro, tmp_path):
    """The signal goes to torchrun, which passes it on to the process groups of its processes."""
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(micro))
    run = tmp_path / "run"
    settings = ["run.epochs=100000", "run.eval_every=100000", "run.checkpoint_every=null", "run.workers=2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "ditr_cache.cli", "train", str(rooms_store), str(run), "-c", str(tmp_path / "micro.yaml")]
    command += [word for setting in [*settings, "data.loop=2000"] for word in ("-s", setting)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        patience = time.monotonic() + 120
        log = run / "log.jsonl"
        while not (log.exists() and log.stat().st_size):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < patience
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert "Go on: the same torchrun command, with --resume" in err
    step = RunFolder(run).checkpoints.find("last").step
    assert step == len(log.read_text().splitlines()) > 0


def test_one_process_writes(pairs):
    two, _ = pairs["accumulated"]
    run = two.run()
    assert run["processes"] == 2
    assert len(run["starts"]) == 1
    assert [json.loads(line)["kind"] for line in two.log.read_text().splitlines()] == ["step"] * 3 + ["evaluation"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8, 3)),
        ({"LOCAL_RANK": "1"}, (0, 1, 0)),
    ],
)
def test_environment(environ, expected):
    assert environment(environ) == expected


@pytest.mark.parametrize("environ", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "a", "WORLD_SIZE": "2"}])
def test_strange_environment(environ):
    with pytest.raises(ConfigError):
        environment(environ)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices():
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device"):
        pick_device("cuda")
    with pytest.raises(ConfigError, match="there is no device 'tpu'"):
        pick_device("tpu")


def test_alone():
    with join("cpu") as world:
        assert world == World(torch.device("cpu"))
        assert (world.sum(2.5), world.any(False), world.any(True)) == (2.5, False, True)
        assert world.mean(torch.tensor([1.0, 3.0])).tolist() == [1.0, 3.0]
        with world.main_only() as main:
            assert main


def test_failure_of_the_main_process_is_its_own():
    with pytest.raises(ZeroDivisionError), World(torch.device("cpu")).main_only():
        raise ZeroDivisionError
    assert issubclass(TrainingError, RuntimeError)
