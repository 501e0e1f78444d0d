# SPDX-License-Identifier: Apache-2.0
"""Where real sensor data and real weights are found, and the one rule about missing them."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
