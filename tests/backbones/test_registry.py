# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditr_cache.backbones import BACKBONES, load_backbone
from ditr_cache.config import BackboneConfig
from ditr_cache.errors import BackboneError, WeightsUnavailableError


def test_names():
    assert BackboneConfig().name in BACKBONES
    for family in ("dinov2", "dinov2-reg"):
        for size in ("small", "base", "large", "giant"):
            assert f"{family}-{size}" in BACKBONES
    assert BACKBONES["dinov2-reg-large"].repo == "facebook/dinov2-with-registers-large"
    assert BACKBONES["dinov3-large"].repo == "facebook/dinov3-vitl16-pretrain-lvd1689m"
    for name, entry in BACKBONES.items():
        assert "/" not in name
        assert entry.licence
        assert entry.dim % 64 == 0
        assert entry.patch_size in (14, 16)
        assert entry.repo is None or entry.repo.count("/") == 1


def test_unknown_names_are_told_what_there_is():
    with pytest.raises(BackboneError, match="dinov2-reg-large"):
        load_backbone(BackboneConfig(name="dinov2-reg-huge"), "cpu")


def test_missing_folders(tmp_path):
    with pytest.raises(WeightsUnavailableError, match="no such folder"):
        load_backbone(BackboneConfig(weights=tmp_path / "nowhere"), "cpu")
    with pytest.raises(WeightsUnavailableError, match=r"no config\.json"):
        load_backbone(BackboneConfig(weights=tmp_path), "cpu")
    with pytest.raises(WeightsUnavailableError, match=r"no config\.json"):
        load_backbone(BackboneConfig(weights=tmp_path, random_seed=1), "cpu")


def test_random_weights_of_unknown_architectures():
    for name in ("dinov3-large", "someone/something"):
        with pytest.raises(BackboneError, match="--weights DIR"):
            load_backbone(BackboneConfig(name=name, random_seed=1), "cpu")


def _load_elsewhere(name, tmp_path, **environment):
    code = (
        "from ditr_cache.backbones import load_backbone\n"
        "from ditr_cache.config import BackboneConfig\n"
        "from ditr_cache.errors import DitrCacheError\n"
        "import transformers\n"
        "try:\n"
        f"    load_backbone(BackboneConfig(name={name!r}), 'cpu')\n"
        "except DitrCacheError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path), **environment}
    env.pop("HF_HUB_OFFLINE", None) if "HF_HUB_OFFLINE" not in environment else None
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, check=True
    )


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("dinov2-reg-large", {"HF_HUB_OFFLINE": "1"}),
        ("someone/something", {"HF_HUB_OFFLINE": "1"}),
        ("dinov2-reg-large", {"HF_ENDPOINT": "http://127.0.0.1:9"}),  # refuses connections
    ],
)
def test_an_unreachable_hub_is_an_error(tmp_path, name, environment):
    done = _load_elsewhere(name, tmp_path, **environment)
    kind, message = done.stdout.split(" ", 1)
    assert kind == "WeightsUnavailableError"
    assert "hub cannot be reached" in message
    assert "--weights DIR" in message
    assert (BACKBONES[name].repo if name in BACKBONES else name) in message
    assert done.stderr == ""


def test_impossible_repository_names(tmp_path):
    done = _load_elsewhere("a/b/c", tmp_path, HF_HUB_OFFLINE="1")
    assert "BackboneError" in done.stdout


def test_listing_backbones_does_not_import_transformers():
    code = "import sys, ditr_cache.backbones; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
