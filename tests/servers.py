# SPDX-License-Identifier: Apache-2.0
"""Real servers on loopback for tests: moto's S3, and one of our own that fails on demand. Each is a process.

They end when their standard input closes, so none outlives the tests, however those end.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_WATCH_STDIN = "import os, sys, threading; threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start(); "
_MOTO = _WATCH_STDIN + "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
_FRESH = itertools.count()


@contextmanager
def running(command: list[str], *, ready_s: float = 60) -> Iterator[str]:
    """The address that a server process prints as `Running on http://...`."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + ready_s
            while True:
                ended = process.poll()
                log.seek(0)
                said = log.read()
                if found := re.search(r"Running on (http://\S+)\n", said):
                    yield found[1]
                    return
                if ended is not None or time.monotonic() > end:
                    raise RuntimeError(f"the server did not start: {said}")
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


@dataclass(frozen=True)
class S3:
    """A bucket of its own for a test, and what programs need to know about it."""

    endpoint: str
    """`http://127.0.0.1:<port>`."""
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables that every S3 library reads."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-key-id",
            "AWS_SECRET_ACCESS_KEY": "test-secret-never-to-be-seen",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def url(self, key: str = "store") -> str:
        """`s3://<bucket>/<key>`."""
        return f"s3://{self.bucket}/{key}"

    def http_url(self, key: str = "store") -> str:
        """The same place for plain HTTP; `BucketServer` gives it to anyone, moto does too."""
        return f"{self.endpoint}/{self.bucket}/{key}"


@dataclass(frozen=True)
class Fault:
    """What happens to requests: the first rule that matches a request, and is not used up, applies.

    `status`: refused with `status`, nothing is done. `drop`: the connection is closed, nothing is done. `lost`: done,
    then closed without a reply. `lost_status`: done, then answered with `status`. `truncate`: half of the body, then
    closed. `flip`: one bit of the body is wrong (of what arrives for PUT, of what goes for GET). `stale`: the version
    before; none if it is the first. `slow`: `seconds` later. `unconditional`: If-Match and If-None-Match are ignored.
    """

    kind: str
    method: str = ".*"
    """Regular expression for the whole method."""
    key: str = ""
    """Regular expression, searched for in the key (in the prefix, for listings)."""
    skip: int = 0
    """So many matching requests first pass."""
    times: int = 1
    """To how many it happens; -1: to all."""
    status: int = 503
    seconds: float = 0.0


@dataclass(frozen=True)
class BucketServer(S3):
    """Our own server: strict, logged, and unkind on demand."""

    def faults(self, *rules: Fault) -> None:
        """Replace all rules; none: kind again."""
        self._control("faults", rules=[asdict(rule) for rule in rules])

    def latency(self, seconds: float) -> None:
        """Added to every request."""
        self._control("latency", seconds=seconds)

    def log(self) -> list[dict[str, Any]]:
        """Requests since the last call: method, key, query, range, status, bytes sent, received, fault."""
        return self._control("log")

    def age(self, seconds: float, key: str = "") -> None:
        """Make objects older."""
        self._control("age", prefix=f"{self.bucket}/{key}", seconds=seconds)

    def put_tree(self, folder: Path, key: str = "store") -> str:
        """Put the files of a folder there, behind the back of any client; returns the URL."""
        self._control("tree", folder=str(folder), prefix=f"{self.bucket}/{key}")
        return self.url(key)

    def unfinished_uploads(self) -> int:
        """Multipart uploads that were neither completed nor aborted."""
        return self._control("uploads")

    def clear(self) -> None:
        """Forget everything."""
        self._control("clear")

    def _control(self, verb: str, **wish: Any) -> Any:
        request = urllib.request.Request(f"{self.endpoint}/-/{verb}", json.dumps(wish).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or b"null")


@contextmanager
def moto_server() -> Iterator[str]:
    """Endpoint of a moto server process."""
    with running([sys.executable, "-c", _MOTO]) as endpoint:
        yield endpoint


@contextmanager
def bucket_server() -> Iterator[str]:
    """Endpoint of our own server process."""
    with running([sys.executable, str(Path(__file__).with_name("bucket_server.py"))]) as endpoint:
        yield endpoint


def fresh_bucket(endpoint: str) -> str:
    """Create a bucket that no other test has."""
    name = f"bucket-{next(_FRESH)}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
    return name
