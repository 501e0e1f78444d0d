# SPDX-License-Identifier: Apache-2.0
"""The published suite on real and on seeded weights; tests/backbones runs it on every architecture."""

import pytest

from ditr_cache.backbones import load_backbone
from ditr_cache.config import BackboneConfig
from ditr_cache.testing.backbones import BackboneTests


class TestSeededDinov2(BackboneTests):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("tiny")
        (folder / "config.json").write_text(
            '{"model_type": "dinov2", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,'
            ' "image_size": 56, "patch_size": 14}'
        )
        return load_backbone(BackboneConfig(weights=folder, random_seed=0), "cpu")


@pytest.mark.real_data
class TestRealVit(BackboneTests):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, real_weights):
        return load_backbone(BackboneConfig(weights=real_weights), "cpu")


@pytest.mark.real_data
class TestRealVitInBfloat16(BackboneTests):
    batch_tolerance = 0.05

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, real_weights):
        return load_backbone(BackboneConfig(weights=real_weights, dtype="bf16", layer=4), "cpu")
