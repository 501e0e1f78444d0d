# SPDX-License-Identifier: Apache-2.0
"""Clusters that cannot be used say so in one sentence, and soon: nobody there, other versions, other disks."""

import socket
import subprocess
import threading

import pytest
from dask_world import Listener, World, patience, settings
from distributed import Client

from ditr_cache.datasets.registry import open_dataset
from ditr_cache.errors import ConfigError, RemoteError
from ditr_cache.pipelines.cluster import ClusterExtract
from ditr_cache.pipelines.cluster_connect import RemoteScheduler
from ditr_cache.pipelines.extract import Extract

NO_DATA = "nerfstudio: the data set is not here as it is where the run was started"


@pytest.fixture(scope="module")
def capture(tiny, tmp_path_factory):
    return tiny.write_capture(tmp_path_factory.mktemp("capture"), scenes=3)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """A scheduler to which tests bring workers of their own."""
    with World(tmp_path_factory.mktemp("world")) as world:
        yield world.start_scheduler()


@pytest.fixture
def world(scheduler):
    """Its workers are gone after each test."""
    yield scheduler
    workers = [process for process in scheduler.processes if process is not scheduler.scheduler]
    scheduler.stop(workers)
    with Client(scheduler.address, set_as_default=False) as client:
        patience(lambda: not client.nthreads())


def refused(where, capture, weights, store, kind, match, patience=5.0):
    with pytest.raises(kind, match=match) as caught:
        ClusterExtract(open_dataset(capture), store, settings(weights), RemoteScheduler(str(where), patience)).run()
    return caught.value


def wait_for(world, workers):
    with Client(world.address, set_as_default=False) as client:
        client.wait_for_workers(workers)


def test_nobody_listens(capture, tiny_vit, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    error = refused(where, capture, tiny_vit, tmp_path / "store", RemoteError, "no Dask scheduler answered", 1.0)
    assert error.where == where
    assert "dask scheduler" in error.hint
    assert not (tmp_path / "store").exists()


def test_somebody_else_listens(capture, tiny_vit, tmp_path):
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        refused(where, capture, tiny_vit, tmp_path / "store", RemoteError, "within 1 s", 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "neither an address such as tcp://host:8786 nor a file"),
        (b"", "not the file of a Dask scheduler"),
        (b"\xff\xfe{", "not the file of a Dask scheduler"),
        (b"[1]", "not the file of a Dask scheduler"),
        (b'{"address": 7}', "not the file of a Dask scheduler"),
        (b'{"address": "here"}', "not the file of a Dask scheduler"),
        (b'{"address": "gopher://127.0.0.1:70"}', "not the address of a scheduler"),
    ],
)
def test_wrong_file(content, message, capture, tiny_vit, tmp_path):
    file = tmp_path / "scheduler.json"
    if content is not None:
        file.write_bytes(content)
    refused(file, capture, tiny_vit, tmp_path / "store", ConfigError, message)


def test_wrong_address(capture, tiny_vit, tmp_path):
    refused("gopher://127.0.0.1:70", capture, tiny_vit, tmp_path / "store", ConfigError, "unknown address scheme")


def test_another_version(world, capture, tiny_vit, tmp_path):
    """As importlib.metadata tells it: the first one on the path."""
    other = tmp_path / "site" / "ditr_cache-0.0.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: ditr-cache\nVersion: 0.0.9\n")
    world.start_worker()
    world.start_worker(env={"PYTHONPATH": str(other.parent)})
    wait_for(world, 2)
    error = refused(world.file, capture, tiny_vit, tmp_path / "store", RemoteError, "has ditr-cache 0.0.9, and")
    assert "worker tcp://127.0.0.1:" in str(error)
    assert error.hint == "Install the same version everywhere."


class TestOtherDisks:
    """Workers in a mount namespace of their own, in which a folder is another one."""

    @pytest.fixture
    def elsewhere(self):
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
            pytest.skip("a mount namespace needs root")

        def before(folder):
            folder.mkdir(exist_ok=True)
            return ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{folder}" && exec "$@"', "sh")

        return before

    def test_no_data_set_there(self, elsewhere, world, capture, tiny_vit, tmp_path):
        world.start_worker()
        world.start_worker(before=elsewhere(capture))
        wait_for(world, 2)
        error = refused(world.file, capture, tiny_vit, tmp_path / "store", RemoteError, "cannot take part: ")
        assert "worker tcp://127.0.0.1:" in error.where
        assert error.what == f"cannot take part: {NO_DATA}"
        assert error.hint.startswith("1 of 2 workers cannot. Data set, store and weights must be at the same place")

    def test_no_store_there(self, elsewhere, world, capture, tiny_vit, tmp_path):
        """It does not make one where nobody would find it."""
        world.start_worker(before=elsewhere(tmp_path / "stores"))
        wait_for(world, 1)
        error = refused(world.file, capture, tiny_vit, tmp_path / "stores" / "a", RemoteError, "no store here")
        assert str(tmp_path / "stores" / "a") in error.what

    def test_other_data_there(self, elsewhere, world, tiny, tiny_vit, tmp_path):
        here = tiny.write_capture(tmp_path / "capture", scenes=3)
        there = tiny.write_capture(tmp_path / "other", scenes=2)
        before = ("unshare", "--mount", "sh", "-c", f'mount --bind "{there}" "{here}" && exec "$@"', "sh")
        world.start_worker(before=before)
        wait_for(world, 1)
        refused(world.file, here, tiny_vit, tmp_path / "store", RemoteError, NO_DATA)

    def test_workers_that_come_later_and_cannot_are_left_out(self, elsewhere, world, tiny, tiny_vit, tmp_path):
        capture, listener, reports = tiny.write_capture(tmp_path / "capture", scenes=16, views=1), Listener(), []
        one = Extract(open_dataset(capture), tmp_path / "one", settings(tiny_vit)).run()
        pipeline = ClusterExtract(
            open_dataset(capture),
            tmp_path / "store",
            settings(tiny_vit),
            RemoteScheduler(world.address),
            progress=listener,
        )
        driver = threading.Thread(target=lambda: reports.append(pipeline.run()))
        driver.start()
        patience(lambda: "no workers at the moment; waiting for some" in listener.notes)
        world.start_worker()
        wait_for(world, 1)
        world.start_worker(before=elsewhere(capture))
        driver.join()
        assert [(report.digest, report.failed) for report in reports] == [(one.digest, {})]

    def test_only_workers_that_cannot(self, elsewhere, world, capture, tiny_vit, tmp_path):
        listener, errors = Listener(), []
        pipeline = ClusterExtract(
            open_dataset(capture),
            tmp_path / "store",
            settings(tiny_vit),
            RemoteScheduler(world.address),
            progress=listener,
        )

        def run():
            with pytest.raises(RemoteError) as caught:
                pipeline.run()
            errors.append(caught.value)

        driver = threading.Thread(target=run)
        driver.start()
        patience(lambda: listener.notes)
        world.start_worker(before=elsewhere(capture))
        driver.join()
        assert errors[0].what == NO_DATA
        assert any("gets no more blocks" in note for note in listener.notes)
