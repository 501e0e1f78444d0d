# SPDX-License-Identifier: Apache-2.0
import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.config import VariantsConfig
from ditr_cache.images import augment, variants
from ditr_cache.images.variants import _draw, _turn_hue

GOLDEN_ORDER = ["hue", "saturation", "brightness", "contrast"]
GOLDEN_FACTORS = {"brightness": 0.882171414, "contrast": 0.671683345, "saturation": 1.191579552, "hue": -0.043524093}
GOLDEN_PIXEL = [37, 113, 140]


def image(seed=0, h=28, w=42):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, h, w), np.uint8))


def test_variants_ascend():
    assert variants(VariantsConfig()) == (0,)
    assert variants(VariantsConfig(flip=True)) == (0, 1)
    assert variants(VariantsConfig(jitter=2)) == (0, 2, 4)
    assert variants(VariantsConfig(flip=True, jitter=2)) == (0, 1, 2, 3, 4, 5)
    most = variants(VariantsConfig(flip=True, jitter=16_000))
    assert list(most) == sorted(set(most))
    assert most[-1] < 2**15


def test_variant_zero_is_the_image_itself():
    x = image()
    assert augment(x, 0, "scene", "view") is x


@settings(deadline=None)
@given(st.integers(0, 20), st.text(max_size=8), st.text(max_size=8))
def test_flip_comes_after_the_same_jitter(draw, sample, view):
    x = image(h=5, w=7)
    straight, flipped = (augment(x, draw << 1 | bit, sample, view) for bit in (0, 1))
    assert straight.dtype == torch.uint8
    assert straight.shape == x.shape
    assert torch.equal(straight.flip(2), flipped)


def test_draws_depend_on_sample_view_and_number_alone():
    x = image()
    assert torch.equal(augment(x, 2, "a", "b"), augment(x.clone(), 2, "a", "b"))
    others = [augment(x, 2, "a", "c"), augment(x, 2, "b", "b"), augment(x, 4, "a", "b"), augment(x, 2, "ab", "")]
    assert all(not torch.equal(augment(x, 2, "a", "b"), other) for other in others)


def test_draws_stay_as_they_are_in_every_version():
    factors, order = _draw("scene0000_00", "120", 1)
    assert order == GOLDEN_ORDER
    assert {k: round(v, 9) for k, v in factors.items()} == GOLDEN_FACTORS
    out = augment(torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4) * 5, 2, "scene0000_00", "120")
    assert out[:, 0, 0].tolist() == GOLDEN_PIXEL


def test_factors_fill_their_ranges():
    draws = [_draw("s", "v", i) for i in range(2000)]
    for step, (low, high) in {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
    }.items():
        values = np.array([factors[step] for factors, _ in draws])
        assert low <= values.min() < low + 0.01 * (high - low) + 1e-2
        assert high - 1e-2 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low)
    orders = {tuple(order) for _, order in draws}
    assert len(orders) == 24


@pytest.mark.parametrize("turns", [0.0, 0.1, -0.1, 1 / 3, 0.5])
def test_hue_against_colorsys(turns):
    x = image(h=6, w=6)
    x[:, 0, 0] = 77  # grey has no hue
    x[:, 0, 1] = 0
    x[:, 0, 2] = 255
    out = _turn_hue(x.float(), turns)
    for r in range(6):
        for c in range(6):
            h, s, v = colorsys.rgb_to_hsv(*(x[:, r, c].double() / 255).tolist())
            expected = np.array(colorsys.hsv_to_rgb((h + turns) % 1, s, v)) * 255
            np.testing.assert_allclose(out[:, r, c].numpy(), expected, atol=0.02)


def test_grey_stays_grey_and_extremes_stay_in_range():
    grey = torch.full((3, 4, 4), 200, dtype=torch.uint8)
    for draw in range(1, 20):
        out = augment(grey, draw << 1, "s", "v")
        assert (out.amax(0) - out.amin(0)).max() <= 1
