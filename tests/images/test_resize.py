# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ditr_cache.config import ImagesConfig
from ditr_cache.errors import ConfigError
from ditr_cache.images import resize, target_size

# H, W of the source and the preset's size (reference: the official configurations)
PRESETS = [(968, 1296, 420, 560), (1080, 1080, 518, 518), (900, 1600, 378, 672), (376, 1241, 378, 1246)]


@pytest.mark.parametrize(("height", "width", "h", "w"), PRESETS)
def test_presets(height, width, h, w):
    images = ImagesConfig(size=(h, w))
    assert target_size(height, width, 14, images) == (h, w)
    assert target_size(height, width, 16, images) == (h // 14 * 16, w // 14 * 16)
    assert target_size(height, width, 8, images)[0] // 8 in (h // 14, h // 8)


def test_a_size_of_whole_patches_is_taken_as_it_is():
    assert target_size(480, 640, 16, ImagesConfig(size=(448, 448))) == (448, 448)
    assert target_size(480, 640, 16, ImagesConfig(size=(480, 640))) == (480, 640)
    assert target_size(1, 9999, 16, ImagesConfig(size=(480, 640))) == (480, 640)


def test_other_sizes_are_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"images.size=\[476,644\]"):
        target_size(480, 640, 14, ImagesConfig(size=(480, 640)))
    with pytest.raises(ConfigError, match="whole number of patches of 16"):
        target_size(480, 640, 16, ImagesConfig(size=(100, 100)))


def test_grids_beyond_the_format_are_refused():
    assert target_size(1, 1, 16, ImagesConfig(size=(4096, 4096))) == (4096, 4096)  # 65,536: as many as uint16 has
    with pytest.raises(ConfigError, match="257x256"):
        target_size(1, 1, 16, ImagesConfig(size=(4112, 4096)))


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(900, 1600, (27, 48)), (968, 1296, (31, 42)), (480, 640, (31, 41)), (1080, 1080, (37, 37)), (1600, 900, (48, 27))],
)
def test_budget(height, width, grid):
    h, w = target_size(height, width, 14, ImagesConfig())
    assert (h // 14, w // 14) == grid


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 65_535), st.sampled_from([8, 14, 16, 32]))
def test_budget_is_kept_and_used(height, width, budget, patch):
    h, w = target_size(height, width, patch, ImagesConfig(budget=budget))
    assert h % patch == w % patch == 0
    rows, columns = h // patch, w // patch
    assert 1 <= rows * columns <= budget
    short, long = sorted((height, width))
    n, m = (rows, columns) if height <= width else (columns, rows)
    assert n <= m
    if m < budget:
        assert abs(m - n * long / short) <= 0.5 or n == 1  # the aspect ratio, to half a patch
    assert (n + 1) * round((n + 1) * long / short + 0.5) > budget  # no larger grid would fit


def noise(height, width, spread=70):
    return np.clip(np.random.default_rng(0).normal(128, spread, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("filter", ["bilinear", "bilinear-antialias", "bicubic-antialias"])
@pytest.mark.parametrize("size", [(420, 560), (28, 700), (1000, 1400)])
def test_within_one_level_of_float32(filter, size):
    # the cubic filter overshoots, and 8 bits clamp between its two passes: compare it where it does not reach the ends
    image_HW3 = noise(484, 648, 70 if filter.startswith("bilinear") else 20)
    out = resize(image_HW3, size, filter)
    assert out.dtype == torch.uint8
    assert out.shape == (3, *size)
    assert out.is_contiguous()
    expected = functional.interpolate(
        torch.from_numpy(image_HW3).permute(2, 0, 1)[None].float(),
        size,
        mode=filter.split("-")[0],
        antialias="antialias" in filter,
        align_corners=False,
    )[0]
    difference = (out.float() - expected.clamp(0, 255).round()).abs()
    assert difference.max() <= 1
    assert difference.mean() < 0.3


@pytest.mark.real_data
def test_real_photograph_within_one_level(test_data):
    from PIL import Image

    with Image.open(sorted((test_data / "nuscenes" / "samples").glob("CAM_FRONT/*.jpg"))[0]) as image:
        image_HW3 = np.array(image)
    out = resize(image_HW3, (378, 672))
    x = torch.from_numpy(image_HW3).permute(2, 0, 1)[None].float()
    expected = functional.interpolate(x, (378, 672), mode="bilinear", align_corners=False)[0]
    assert (out.float() - expected.round()).abs().max() <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.integers(1, 80))
def test_any_size_to_any_size(height, width, h, w):
    image_HW3 = noise(height, width)
    out = resize(image_HW3, (h, w))
    assert out.shape == (3, h, w)
    expected = functional.interpolate(
        torch.from_numpy(image_HW3).permute(2, 0, 1)[None].float(), (h, w), mode="bilinear"
    )
    assert (out.float() - expected[0].round()).abs().max() <= 1


def test_same_size_keeps_every_pixel():
    image_HW3 = noise(42, 56)
    out = resize(image_HW3, (42, 56))
    assert out.is_contiguous()
    np.testing.assert_array_equal(out.permute(1, 2, 0).numpy(), image_HW3)


def test_unknown_filter():
    with pytest.raises(ConfigError, match="nearest"):
        resize(noise(4, 4), (2, 2), "nearest")
