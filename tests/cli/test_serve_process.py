# SPDX-License-Identifier: Apache-2.0
"""`serve`: how it starts, how it stops, and what it needs meanwhile."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serve_world import MAIN, SETTINGS, build_store, largest, make, random_block, serving, url
from store_builder import BlockSpec, SampleSpec, fast_folder

from ditr_cache.pipelines.serve import Serve, _is_exposed
from ditr_cache.types import PointCloud


@pytest.fixture(scope="module")
def store():
    """Do not write to it."""
    with fast_folder() as folder:
        yield make(folder / "store")


@pytest.fixture
def own(tmp_path):
    return make(tmp_path / "store")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_when_asked(own, number):
    with serving(own) as server, closing(http.client.HTTPConnection(server.host, server.port, timeout=60)) as idle:
        idle.request("GET", "/LATEST")
        assert idle.getresponse().read()
        # a connection that is kept for later does not hold it up
        code, err = server.stop(number)
    assert code == 0
    assert err.endswith("stopped\n")
    assert "Traceback" not in err
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port)).close()


@pytest.fixture(scope="module")
def large():
    """A store with a shard of 24 MB."""
    with fast_folder() as folder:
        points = PointCloud(np.random.default_rng(0).random((2_000_000, 3), np.float32), np.zeros(3))
        build_store(folder / "s", [BlockSpec("b", (SampleSpec("b/s", "train", points, ()),))], SETTINGS)
        yield folder / "s"


def _peak(process: subprocess.Popen) -> int:
    """Most memory that a process has had, in bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_shards_are_never_in_memory_as_a_whole(large):
    key, size = largest(large), (large / largest(large)).stat().st_size
    assert size > 24_000_000
    with serving(large) as server:
        assert server.get("/LATEST")[0] == 200
        before, answers = _peak(server.process), []
        clients = [http.client.HTTPConnection(server.host, server.port, timeout=60) for _ in range(8)]
        # eight clients that have begun to read, and wait
        for client in clients:
            client.request("GET", url(key))
            answers.append(client.getresponse())
            assert len(answers[-1].read(1000)) == 1000
        data = [answer.read() for answer in answers]
        assert {len(rest) for rest in data} == {size - 1000}
        assert data[0] == (large / key).read_bytes()[1000:]
        assert _peak(server.process) - before < 4 * size
        for client in clients:
            client.close()


def test_a_download_on_its_way_does_not_hold_it_up_for_ever(large):
    with serving(large) as server, closing(http.client.HTTPConnection(server.host, server.port)) as client:
        client.request("GET", url(largest(large)))
        answer = client.getresponse()
        assert len(answer.read(1000)) == 1000
        code, err = server.stop()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
    assert code == 0
    assert "Traceback" not in err


def opened(process: subprocess.Popen, store: Path) -> list[str]:
    """Files of a store that a process holds open."""
    found = []
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        # one may be closed between the listing and the look at it
        with suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return [name for name in found if name.startswith(str(store))]


def test_a_client_that_leaves_is_no_trouble(large):
    with serving(large) as server:
        for _ in range(5):
            with socket.create_connection((server.host, server.port)) as client:
                client.sendall(f"GET {url(largest(large))} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert client.recv(100)
        assert server.get("/LATEST")[0] == 200
        patience = time.monotonic() + 60
        while opened(server.process, large):
            assert time.monotonic() < patience
            time.sleep(0.05)
        code, err = server.stop()
    assert code == 0
    assert "Traceback" not in err


def test_no_store_there(run, tmp_path):
    done = run("serve", tmp_path / "nowhere")
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("no store here\nMake one with: ditr-cache extract SOURCE STORE\n")


def test_not_finalised_yet(run, tmp_path):
    build_store(tmp_path / "s", [random_block(0)], SETTINGS, finalize=False)
    done = run("serve", tmp_path / "s")
    assert done.code == 1
    assert "nothing has been finalised here yet" in done.err


def test_a_port_that_is_taken(run, store):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", store, "--port", port)
    assert (done.code, done.out) == (2, "")
    assert f"127.0.0.1:{port}: nothing can listen here: Address already in use\nChoose another --port" in done.err


def test_a_host_that_is_none(run, store):
    done = run("serve", store, "--host", "no.such.host.invalid", "--port", 0)
    assert done.code == 2
    assert "no.such.host.invalid:0: nothing can listen here: " in done.err


@pytest.mark.parametrize("missing", ["uvicorn", "starlette"])
def test_without_the_extra(store, missing):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{missing!r}] = None; {MAIN}", "serve", str(store)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("Install them: pip install 'ditr-cache[serve]'\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", ["", " \n", "two words", "t\x7fken", "tökén", "a" * 5000])
def test_what_is_no_token(run, store, tmp_path, monkeypatch, content):
    (tmp_path / "token").write_text(content)
    monkeypatch.setenv("STORE_TOKEN", content)
    for option in (["--token-file", tmp_path / "token"], ["--token-env", "STORE_TOKEN"]):
        done = run("serve", store, *option)
        assert (done.code, done.out) == (2, "")
        assert f"{option[1]}: holds no token" in done.err
        assert not content.strip() or content not in done.err


def test_where_no_token_is(run, store, tmp_path):
    assert "NO_SUCH_VARIABLE: holds no token" in run("serve", store, "--token-env", "NO_SUCH_VARIABLE").err
    done = run("serve", store, "--token-file", tmp_path / "nowhere")
    assert (done.code, "No such file" in done.err) == (1, True)
    done = run("serve", store, "--token-file", "a", "--token-env", "b")
    assert (done.code, "exclude each other" in done.err) == (2, True)


def test_other_machines_without_a_token_are_warned_of(own):
    # tests listen on the loopback interface only
    outside = f"from ditr_cache.pipelines.serve import Serve; Serve.exposed = True; {MAIN}"
    with serving(own, code=outside) as server:
        assert "warning: without a token, whoever can reach" in server.stop()[1]
    with serving(own, "--token-env", "STORE_TOKEN", code=outside, env={"STORE_TOKEN": "t"}) as server:
        assert "warning" not in server.stop()[1]
    with serving(own) as server:
        assert "warning" not in server.stop()[1]


def test_small_answers_are_not_held_back(own):
    """Without the protocol asyncio leaves Nagle's algorithm on: 44 ms for every small range."""
    server = Serve(own, port=0)
    assert server._socket.proto == socket.IPPROTO_TCP
    server.close()


@pytest.mark.parametrize(
    ("address", "exposed"),
    [
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("::1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("10.0.0.1", True),
        ("fe80::1%eth0", True),
    ],
)
def test_what_others_can_reach(address, exposed):
    assert _is_exposed(address) is exposed


def test_localhost_is_not_exposed(own):
    server = Serve(own, host="localhost", port=0)
    assert not server.exposed
    server.close()
