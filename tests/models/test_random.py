# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from ditr_cache.errors import ConfigError
from ditr_cache.models.random import device_generator, draw_permutations, draw_weights
from ditr_cache.models.sparse_conv import SubmanifoldConv3d


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_permutations_are_permutations_and_uniform():
    drawn = draw_permutations(5999, 3, seeded())
    assert drawn.shape == (6000, 3)
    assert (drawn.sort(1).values == torch.arange(3)).all()
    _, counts = torch.unique(drawn, dim=0, return_counts=True)
    # chi-square with 5 degrees of freedom: 20.5 is exceeded once in a thousand
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 20.5
    assert torch.equal(drawn, draw_permutations(5999, 3, seeded()))
    with pytest.raises(ConfigError, match="generator"):
        draw_permutations(4, 4, None)


def test_device_generator_follows_the_callers():
    caller = seeded()
    first, second = (device_generator(caller, torch.device("cpu")) for _ in range(2))
    again = device_generator(seeded(), torch.device("cpu"))
    assert first.initial_seed() == again.initial_seed() != second.initial_seed()
    assert device_generator(None, torch.device("cpu")) is None


def test_weights_have_the_distribution_of_torch():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(50, 400)
            self.conv = SubmanifoldConv3d(4, 90, 3)
            self.norm = nn.LayerNorm(7)
            self.rpe_table = nn.Parameter(torch.full((4000, 2), 9.0))

    network = Network()
    with torch.no_grad():
        network.norm.weight.fill_(3)
    draw_weights(network, seeded())
    for layer, fan_in in ((network.linear, 50), (network.conv, 27 * 4)):
        bound = fan_in**-0.5
        for parameter in (layer.weight, layer.bias):
            assert float(parameter.detach().abs().max()) <= bound
        # a uniform distribution deviates by bound / sqrt(3)
        assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert network.norm.weight.tolist() == [1] * 7
    assert float(network.rpe_table.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_a_layer_without_a_rule_is_noticed():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))

    with pytest.raises(AssertionError, match="Token"):
        draw_weights(Token(), seeded())
