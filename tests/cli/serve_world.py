# SPDX-License-Identifier: Apache-2.0
"""A server process, stores for it, and what it should give."""

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from store_builder import build_store, random_block

from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.local import LocalStorage
from ditr_cache.store.versions import read_manifest

SETTINGS = BlockSettings(dim=8, dtype="float16")
MAIN = "from ditr_cache.cli.main import main; import sys; main(sys.argv[1:])"


@dataclass
class Server:
    process: subprocess.Popen
    host: str
    port: int
    manifest: str

    def get(self, path: str, method: str = "GET", headers: dict[str, str] | None = None):
        """Status, headers and body of one request; the path goes out as it stands."""
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=60)) as connection:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and what was said."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@contextmanager
def serving(store: Path, *options: object, code: str = MAIN, env: dict[str, str] | None = None):
    command = [sys.executable, "-c", code, "serve", str(store), "--port", "0", "--json", *map(str, options)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
    ) as process:
        try:
            document = ""
            while not document.endswith("}\n"):
                line = process.stdout.readline()
                assert line, process.stderr.read()
                document += line
            started = json.loads(document)
            host, _, port = started["url"].removeprefix("http://").rpartition(":")
            yield Server(process, host, int(port), started["manifest"])
        finally:
            if process.poll() is None:
                process.kill()


def make(folder: Path, count: int = 2) -> Path:
    # one block whose name has to be percent-encoded, in the store and once more in a URL
    build_store(folder, [random_block(i, f"scene ä/{i}") for i in range(count)], SETTINGS)
    return folder


def url(key: str) -> str:
    return "/" + key.replace("%", "%25")


def listed(store: Path) -> dict[str, str]:
    """Every immutable object that the current manifest lists, and its sha256."""
    manifest, version = read_manifest(LocalStorage(store))
    found = {f"manifest-{version}.json": version}
    for receipt in manifest.blocks.values():
        for key in receipt.objects:
            found[key] = hashlib.sha256((store / key).read_bytes()).hexdigest()
    for path in (store / "receipts").glob("*.json"):
        found[f"receipts/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def largest(store: Path) -> str:
    return max(listed(store), key=lambda key: (store / key).stat().st_size)
