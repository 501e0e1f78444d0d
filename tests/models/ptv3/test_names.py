# SPDX-License-Identifier: Apache-2.0
"""Names, shapes and counts of weights are the official ones, so that official checkpoints fit."""

import json
from pathlib import Path

import pytest
import torch
from ptv3_cases import tiny_config

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.models.ptv3.model import PointTransformerV3

OFFICIAL = json.loads((Path(__file__).parents[2] / "golden" / "state_dict_names.json").read_text())


def shapes(model) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def full_size(image_channels=None, **changes) -> PointTransformerV3:
    with torch.device("meta"):
        return PointTransformerV3(ModelConfig(**changes), 6, image_channels)


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


def test_ptv3():
    model = full_size(injection="none")
    assert len(OFFICIAL["ptv3_indoor"]) == 486
    assert shapes(model) == OFFICIAL["ptv3_indoor"]
    assert list(shapes(model)) == list(OFFICIAL["ptv3_indoor"])
    assert count(model) == OFFICIAL["parameters"]["ptv3"] == 46_166_272
    # the optimiser's groups go by this word
    assert sum(p.numel() for name, p in model.named_parameters() if "block" in name) == 45_697_984


def test_ditr():
    model = full_size(1024)
    assert shapes(model) == OFFICIAL["ptv3_indoor"] | OFFICIAL["ditr_vitl_indoor_extra"]
    assert count(model) == OFFICIAL["parameters"]["ditr_vitl"] == 46_692_096


@pytest.mark.parametrize(("dim", "extra"), [(384, 198_144), (768, 394_752), (1024, 525_824), (1536, 787_968)])
def test_parameters_of_the_injection(dim, extra):
    assert count(full_size(dim)) - 46_166_272 == extra


def test_relative_positions_at_patch_128():
    patches = {"enc_patch_size": (128,) * 5, "dec_patch_size": (128,) * 4}
    model = full_size(injection="none", enable_rpe=True, **patches)
    # with the 13 classes of S3DIS: 46,190,553
    assert count(model) + 13 * 65 == 46_190_553


def test_last_decoder_block_alone():
    with torch.device("meta"):
        model = PointTransformerV3(tiny_config(injection="decoder_last"), 6, 12)
    assert {n.split(".up.")[0] for n in model.state_dict() if "proj_image_feat" in n} == {"dec.dec0"}


def test_norms_by_data_set():
    with torch.device("meta"):
        shared = shapes(PointTransformerV3(tiny_config(), 6, 12))
        split = shapes(PointTransformerV3(tiny_config(norm_conditions=("a", "b")), 6, 12))
    norms = (".norm", ".cpe.2", "proj.1", "proj_skip.1", "proj_image_feat.2")
    # ".attn.proj" ends like the linear layer of an unpooling, but has no number
    expected = {}
    for name, shape in shared.items():
        layer, _, leaf = name.rpartition(".")
        if layer.removesuffix(".0").endswith((*norms, ".norm1", ".norm2")):
            expected |= {f"{layer}.norm.{i}.{leaf}": shape for i in range(2)}
        else:
            expected[name] = shape
    assert split == expected


def test_image_channels_are_needed():
    with pytest.raises(ConfigError, match="image_channels"):
        PointTransformerV3(tiny_config(), 6)
