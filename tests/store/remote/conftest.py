# SPDX-License-Identifier: Apache-2.0
"""One store on a disk, and the same on a server."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from store_builder import build_store, fast_folder, random_block

from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.remote import retry


@pytest.fixture(scope="session")
def folder():
    """A store with variants, class tokens and int8 rows, several samples a block."""
    with fast_folder() as path:
        blocks = [
            random_block(i, f"b{i}", samples=2, points=(200, 400), views=6, variants=(0, 1), dim=48, cls=True)
            for i in range(2)
        ]
        build_store(path / "store", blocks, BlockSettings(dim=48, dtype="int8", class_token=True))
        yield path / "store"


@pytest.fixture
def url(bucket, folder):
    """The same on the server that fails on demand, with nothing in its log yet."""
    bucket.put_tree(folder)
    bucket.log()
    return bucket.url()


@pytest.fixture
def impatient(monkeypatch):
    """Requests are repeated without waiting."""
    monkeypatch.setattr(retry, "_FIRST_PAUSE_S", 0.0)
