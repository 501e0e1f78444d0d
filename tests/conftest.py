# SPDX-License-Identifier: Apache-2.0
"""Where real sensor data and real weights are found, and the one rule about missing them; servers on loopback."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

# tests of every room use the same servers
sys.path.insert(0, str(Path(__file__).parent))

from servers import S3, BucketServer, bucket_server, fresh_bucket, moto_server

ROOT = Path(__file__).resolve().parents[1]
Server = TypeVar("Server", bound=S3)


def _shared(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable, default))
    if not path.is_dir():
        message = f"real data not found at {path}; set {variable}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with small real samples in the genuine layouts."""
    return _shared("DITR_CACHE_TEST_DATA", ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """A real ViT in Hugging Face layout: 384 channels, patch 14, no registers."""
    return _shared("DITR_CACHE_TEST_WEIGHTS", ROOT.parent / "shared" / "weights" / "dinov2-small-first8blocks")


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def bucket_endpoint() -> Iterator[str]:
    with bucket_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A bucket on moto's server; the environment names it, for this process and those that it starts."""
    return _announced(S3(moto_endpoint, fresh_bucket(moto_endpoint)), monkeypatch)


@pytest.fixture
def bucket(bucket_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> BucketServer:
    """A bucket on our own server, which counts requests, and is slow and fails when told to. Nothing else is on it."""
    # first, for the faults of the test before hit this one's requests as well
    BucketServer(bucket_endpoint, "").clear()
    return _announced(BucketServer(bucket_endpoint, fresh_bucket(bucket_endpoint)), monkeypatch)


def _announced(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    # nothing of the machine's own
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    return server
