# SPDX-License-Identifier: Apache-2.0
"""The linear probe finds what is there, nothing where nothing is, and the same each time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.errors import ConfigError
from ditr_cache.probing.linear import PENALTIES, LinearProbe, choose_penalty, held_out


def blobs(seed, n=600, dim=12, classes=4, spread=0.3):
    """Points around one centre a class."""
    generator = torch.Generator().manual_seed(seed)
    centre_KD = torch.randn(classes, dim, generator=generator) * 3
    label_N = torch.arange(n) % classes
    return centre_KD[label_N] + spread * torch.randn(n, dim, generator=generator), label_N


def test_separable_classes_are_found():
    x, label = blobs(0)
    probe = LinearProbe.fit(x[:400], label[:400], 1e-3)
    assert (probe.predict(x[400:]) == label[400:]).all()


def test_shuffled_labels_are_chance():
    x, label = blobs(1, n=4000)
    shuffled = label[torch.randperm(len(label), generator=torch.Generator().manual_seed(2))]
    probe = LinearProbe.fit(x[:2000], shuffled[:2000], 1e-2)
    right = (probe.predict(x[2000:]) == shuffled[2000:]).double().mean()
    assert abs(right - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5


def test_it_is_the_optimum():
    """The gradient of the objective, written out again in float64, is zero there."""
    x, label = blobs(3, spread=4.0)
    probe = LinearProbe.fit(x, label, 1e-2)
    z = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    p = torch.softmax(z @ probe.weight_KD.double().T + probe.bias_K.double(), 1)
    error = p - torch.nn.functional.one_hot(label).double()
    gradient = error.T @ z / len(x) + 1e-2 * probe.weight_KD.double()
    assert gradient.abs().max() < 1e-4
    assert error.mean(0).abs().max() < 1e-4


def test_equal_bits_each_time():
    x, label = blobs(4, spread=2.0)
    a, b = (LinearProbe.fit(x, label, 1e-3) for _ in range(2))
    assert torch.equal(a.weight_KD, b.weight_KD)
    assert torch.equal(a.bias_K, b.bias_K)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 99))
def test_units_of_channels_do_not_matter(scale, shift, seed):
    x, label = blobs(seed, n=200, spread=1.0)
    there = torch.ones(x.shape[1])
    there[::2] = scale
    a, b = LinearProbe.fit(x, label, 1e-2), LinearProbe.fit(x * there + shift * there, label, 1e-2)
    same = (a.predict(x) == b.predict(x * there + shift * there)).double().mean()
    assert same >= 0.98


def test_constant_channels_and_missing_classes():
    x, label = blobs(5)
    x = torch.cat([x, torch.full((len(x), 2), 7.1)], 1)
    label = label * 3 + 1
    probe = LinearProbe.fit(x, label, 1e-3)
    assert probe.class_K.tolist() == [1, 4, 7, 10]
    assert (probe.predict(x) == label).all()
    assert torch.isfinite(probe.weight_KD).all()
    assert probe.cross_entropy(x, torch.zeros_like(label)) == 0
    assert probe.cross_entropy(x, label) < 0.1


def test_one_class_is_always_predicted():
    x, _ = blobs(6, n=20)
    probe = LinearProbe.fit(x, torch.full((20,), 3), 1e-3)
    assert (probe.predict(-x) == 3).all()
    with pytest.raises(ConfigError, match="training points"):
        LinearProbe.fit(x[:0], torch.zeros(0, dtype=torch.int64), 1e-3)


def test_the_penalty_is_chosen_on_what_was_held_out():
    """Channels that say nothing want a strong one, classes that can be told apart a weak one."""
    noise, label = torch.randn(200, 30, generator=torch.Generator().manual_seed(7)), torch.arange(200) % 4
    assert choose_penalty(noise, label, torch.arange(200) % 3 == 0) == PENALTIES[0]
    clear, label = blobs(8, n=1000)
    ticks = []
    assert choose_penalty(clear, label, torch.arange(1000) % 3 == 0, tick=lambda: ticks.append(1)) == PENALTIES[-1]
    assert len(ticks) == len(PENALTIES)
    nothing = torch.zeros(1000, dtype=torch.bool)
    assert choose_penalty(clear, label, nothing) == choose_penalty(clear, label, ~nothing) == PENALTIES[0]


@given(groups=st.lists(st.integers(0, 50), min_size=1, max_size=200))
def test_whole_groups_are_held_out(groups):
    held = held_out(torch.tensor(groups)).numpy()
    kinds = np.unique(groups)
    if len(kinds) == 1:
        assert held.sum() == (len(groups) // 5 if len(groups) >= 5 else 1)
        return
    out = {g for g, h in zip(groups, held, strict=True) if h}
    assert not out & {g for g, h in zip(groups, held, strict=True) if not h}
    assert 1 <= len(out) < len(kinds)
    assert len(out) == (len(kinds) // 5 if len(kinds) >= 5 else 1)
