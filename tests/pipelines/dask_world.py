# SPDX-License-Identifier: Apache-2.0
"""A real Dask scheduler and real worker processes on the loopback device, which tests may kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.writer import StoreWriter

SETTINGS = ("images.size=[28,42]", "run.batch_size=4", "run.threads=2", "visibility.depth_margin=null")

# data sets that kill or break the process that loads a certain sample; the driver never loads one
DAMAGED = """
import os, signal
from ditr_cache.datasets.nerfstudio import Nerfstudio

class Poisoned(Nerfstudio):
    def load(self, sample_id):
        if sample_id == "scene1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(sample_id)

class Broken(Nerfstudio):
    def load(self, sample_id):
        if sample_id == "scene1":
            raise RuntimeError("a bug in a reader")
        return super().load(sample_id)
"""
# what flushing takes is what a run of tiny images lasts: there is time to be killed
SLOW = "import os, time\nos.fsync = lambda fd: time.sleep({seconds})\n"


def patience(condition, seconds=120):
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


class World:
    """A scheduler with its workers.

    Args:
        folder: For their files.
        flush: Seconds that a worker takes to flush a file.
        deaths: Of workers that a task survives.
    """

    def __init__(self, folder, flush=0.0, deaths=3):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.deaths = folder, deaths
        (folder / "damaged.py").write_text(DAMAGED)
        (folder / "slow.py").write_text(SLOW.format(seconds=flush))
        self.file = folder / "scheduler.json"
        self.processes = []
        self.scheduler = None

    def start(self, *arguments, env=None, before=()):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(self.folder),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(self.deaths),
            **(env or {}),
        }
        log = (self.folder / f"log-{len(self.processes)}").open("wb")
        with log:
            process = subprocess.Popen(
                [*before, *map(str, arguments)],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_scheduler(self):
        self.file.unlink(missing_ok=True)
        options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", self.file)
        self.scheduler = self.start(sys.executable, "-m", "distributed.cli.dask_scheduler", *options)
        patience(lambda: self.file.exists() and self.file.read_bytes().endswith(b"}"))
        return self

    @property
    def address(self):
        return json.loads(self.file.read_bytes())["address"]

    def start_worker(self, env=None, before=()):
        options = ("--host", "127.0.0.1", "--nthreads", "2", "--memory-limit", "0", "--no-dashboard")
        options += ("--local-directory", self.folder, "--preload", self.folder / "slow.py", "--death-timeout", "20")
        command = (sys.executable, "-m", "distributed.cli.dask_worker", self.address, *options)
        return self.start(*command, env=env, before=before)

    def start_driver(self, source, store, weights, *options):
        """The command line, in a process of its own."""
        settings = [word for setting in SETTINGS for word in ("-s", setting)]
        command = (sys.executable, "-m", "ditr_cache.cli", "extract", source, store, "--weights", weights, "--json")
        return self.start(*command, *settings, *options)

    def log(self, process):
        """What a process said."""
        return (self.folder / f"log-{self.processes.index(process)}").read_text()

    def close(self):
        self.stop(self.processes)

    def stop(self, processes):
        for process in processes:
            kill(process, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                kill(process)
                process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def kill(process, number=signal.SIGKILL):
    """A process and its children, all of which are in its session."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def kill_child(process):
    """The worker below a nanny, which starts another one. False if there is none at the moment."""
    try:
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        for worker in workers:
            worker.kill()
    except psutil.NoSuchProcess:
        return False
    return bool(workers)


def settings(weights, *more):
    """The same as `start_driver`'s."""
    layers = [read_named_yaml("extract", "nerfstudio"), {"backbone": {"weights": str(weights)}}]
    return load_config(ExtractConfig, layers, [*SETTINGS, *more])


def receipts(store):
    paths = (Path(store) / "receipts").glob("[!.]*.json")
    return [Receipt.model_validate_json(path.read_bytes()) for path in paths]


def check_clean(store, blocks):
    """Once nobody is at work, nothing lies around but what the manifest names."""
    StoreWriter(store).finalize()
    folders = {receipt.folder.removeprefix("blocks/") for receipt in receipts(store)}
    assert {path.name for path in (store / "blocks").iterdir()} == folders
    assert len(folders) == blocks
    assert not [path for path in store.rglob("*") if path.name.endswith(".tmp")]


class Listener:
    """A `Progress` that remembers."""

    def __init__(self, on_note=lambda text: None):
        self.total = self.done = 0
        self.notes = []
        self.ended = False
        self.on_note = on_note

    def begin(self, images):
        self.total = images

    def advance(self, images):
        self.done += images

    def note(self, text):
        self.notes.append(text)
        self.on_note(text)

    def end(self):
        self.ended = True
