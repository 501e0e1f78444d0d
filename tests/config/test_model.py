# SPDX-License-Identifier: Apache-2.0
"""Settings of the network: the official ones by default, and those that make no network are refused."""

import pytest
from pydantic import ValidationError

from ditr_cache.config.model import ModelConfig


def test_defaults_are_the_official_settings():
    config = ModelConfig()
    assert config.order == ("z", "z-trans", "hilbert", "hilbert-trans")
    assert (config.enc_depths, config.dec_depths) == ((2, 2, 2, 6, 2), (2, 2, 2, 2))
    assert (config.enc_patch_size, config.dec_patch_size) == ((1024,) * 5, (1024,) * 4)
    assert (config.drop_path, config.shuffle_orders, config.qkv_bias, config.mlp_ratio) == (0.3, True, True, 4)
    assert (config.enable_rpe, config.upcast_attention, config.norm_conditions) == (False, False, ())
    assert (config.injection, config.compatibility) == ("decoder", "official")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stride": (2, 2, 2)}, "stride needs 4"),
        ({"stride": (2, 2, 3, 2)}, "powers of two"),
        ({"enc_channels": (32, 64)}, "enc_channels needs 5"),
        ({"dec_depths": (1,)}, "dec_depths needs 4"),
        ({"enc_num_head": (3, 4, 8, 16, 32)}, "32 is not a multiple of its 3 heads"),
        ({"order": ()}, "at least one curve"),
        ({"dec_patch_size": (1024, 0, 1024, 1024)}, "dec_patch_size"),
        ({"enc_num_head": (0, 4, 8, 16, 32)}, "enc_num_head"),
        ({"enc_depths": (2, -1, 2, 6, 2)}, "enc_depths"),
        ({"enc_depths": (2,), "stride": ()}, "two stages"),
        ({"order": ("peano",)}, "order"),
    ],
)
def test_what_makes_no_network_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        ModelConfig(**changes)


def test_minkunet_brings_its_own_widths():
    config = ModelConfig(network="minkunet")
    assert (config.width, config.decoder_stages) == (96, 4)
    assert (ModelConfig().width, ModelConfig().decoder_stages, ModelConfig().network) == (64, 4, "ptv3")
    assert config.minkunet.enc_channels + config.minkunet.dec_channels[::-1] == (32, 64, 128, 256, 256, 128, 96, 96)
    assert config.minkunet.enc_depths + config.minkunet.dec_depths == (2, 3, 4, 6, 2, 2, 2, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"injection": "cls"}, "injection cls is for ptv3: minkunet has no attention"),
        ({"injection": "between"}, "injection between is for ptv3"),
        ({"compile": True}, "compile is for the blocks of ptv3"),
        ({"minkunet": {"dec_channels": (8,)}}, "dec_channels needs 4 values"),
        ({"minkunet": {"enc_depths": (2, 3, 4, 0)}}, "enc_depths"),
        ({"minkunet": {"stem_kernel": 4}}, "stem_kernel must be odd, not 4"),
        ({"minkunet": dict.fromkeys(("enc_channels", "enc_depths", "dec_channels", "dec_depths"), ())}, "one stage"),
        ({"network": "minknet"}, "network"),
    ],
)
def test_what_makes_no_minkunet_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        ModelConfig(**{"network": "minkunet", **changes})
