# SPDX-License-Identifier: Apache-2.0
"""Lets the tests of the store, and the processes that they start, import `store_builder`; stores lie in memory."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from store_builder import fast_folder


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def module_path() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder
