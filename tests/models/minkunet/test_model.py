# SPDX-License-Identifier: Apache-2.0
"""MinkUNet: its size, what it must not depend on, and where image features enter."""

import dataclasses

import pytest
import torch
from conv_cases import needs_spconv
from ptv3_cases import IMAGE_CHANNELS, IN_CHANNELS, cloud, make_batch

from ditr_cache.config.minkunet import MinkUNetConfig
from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.models.backbone import build_backbone
from ditr_cache.models.minkunet.levels import build_grid_pyramid
from ditr_cache.models.minkunet.model import MinkUNet
from ditr_cache.models.ptv3.images import DenseImage
from ditr_cache.models.random import draw_weights
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.training.config import OptimConfig
from ditr_cache.training.optim import parameter_groups

TINY = MinkUNetConfig(
    stem_channels=8, stem_kernel=3, enc_channels=(8, 12), enc_depths=(1, 2), dec_channels=(10, 12), dec_depths=(1, 1)
)


def tiny_config(**changes):
    return ModelConfig(**{"network": "minkunet", "minkunet": TINY, "sparse_conv": "torch", **changes})


def tiny_model(dtype=torch.float64, image_channels=IMAGE_CHANNELS, **changes):
    model = MinkUNet(tiny_config(**changes), IN_CHANNELS, image_channels)
    draw_weights(model, torch.Generator().manual_seed(0))
    return model.to(dtype)


def two_clouds(**options):
    return make_batch(cloud(0, 150), cloud(1, 90), **options)


def mixed():
    """Two clouds that Mix3D has laid over each other: some voxels hold two points."""
    batch = two_clouds()
    return dataclasses.replace(batch, offset=batch.offset[-1:])


def expected_parameters(shape, in_channels):
    """Written out from the published layout: k^3 x in x out a convolution, two numbers a channel for batch norm."""

    def stage(width, wanted, depth):
        first = 27 * width * wanted + 27 * wanted**2 + 4 * wanted
        shortcut = width * wanted + 2 * wanted if width != wanted else 0
        return first + shortcut + (depth - 1) * (54 * wanted**2 + 4 * wanted)

    width = shape.stem_channels
    total = shape.stem_kernel**3 * in_channels * width + 2 * width
    skips = []
    for wanted, depth in zip(shape.enc_channels, shape.enc_depths, strict=True):
        skips.append(width)
        total += 8 * width**2 + 2 * width + stage(width, wanted, depth)
        width = wanted
    for skip, wanted, depth in list(zip(skips, shape.dec_channels, shape.dec_depths, strict=True))[::-1]:
        total += 8 * width * wanted + 2 * wanted + stage(wanted + skip, wanted, depth)
        width = wanted
    return total


@pytest.mark.parametrize(("in_channels", "classes", "expected"), [(3, 20, 37_856_052), (6, 20, 37_868_052)])
def test_parameters_of_minkunet34c(in_channels, classes, expected):
    """37.9 M, as papers have it."""
    config = ModelConfig(network="minkunet", injection="none")
    with torch.device("meta"):
        model = Segmentor(config, in_channels, classes)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert expected_parameters(config.minkunet, in_channels) + 97 * classes == expected
    with torch.device("meta"):
        injected = Segmentor(ModelConfig(network="minkunet"), in_channels, classes, 1024)
    widths = config.minkunet.dec_channels
    assert sum(p.numel() for p in injected.parameters()) - expected == sum((1024 + 3) * width for width in widths)


def test_settings_choose_the_network():
    assert isinstance(build_backbone(tiny_config(), 6, 12), MinkUNet)
    segmentor = Segmentor(tiny_config(injection="none"), IN_CHANNELS, 5)
    draw_weights(segmentor, torch.Generator().manual_seed(0))
    assert segmentor(two_clouds(dtype=torch.float32)).shape == (240, 5)


def test_all_parameters_learn_at_the_full_rate():
    """There are no transformers, and nothing is called like theirs."""
    (group,) = parameter_groups(tiny_model(), OptimConfig())
    assert group.name == "base"


def test_the_order_of_points_does_not_matter():
    for batch in (two_clouds(), mixed()):
        order = torch.randperm(len(batch.feat), generator=torch.Generator().manual_seed(3))
        # within each cloud
        order = torch.cat([order[order < batch.offset[0]], order[order >= batch.offset[0]]])
        permuted = dataclasses.replace(
            batch,
            grid_coord=batch.grid_coord[order],
            feat=batch.feat[order],
            image=dataclasses.replace(batch.image, index=batch.image.index[order]),
        )
        model = tiny_model()
        torch.testing.assert_close(model(permuted), model(batch)[order], rtol=1e-9, atol=1e-9)


def test_clouds_do_not_see_each_other():
    clouds = cloud(0, 150), cloud(1, 90)
    model = tiny_model().eval()
    together = model(make_batch(*clouds))
    apart = torch.cat([model(make_batch(one)) for one in clouds])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


def test_moved_by_whole_coarse_voxels_it_says_the_same():
    batch, model = two_clouds(), tiny_model()
    moved = dataclasses.replace(batch, grid_coord=batch.grid_coord + torch.tensor([4, -8, 12]))
    torch.testing.assert_close(model(moved), model(batch), rtol=1e-9, atol=1e-9)


@needs_spconv
def test_back_ends_are_equal():
    results = []
    for backend in ("torch", "spconv"):
        model = tiny_model(torch.float32, sparse_conv=backend)
        for batch in (two_clouds(dtype=torch.float32), dataclasses.replace(mixed(), feat=mixed().feat.float())):
            batch = dataclasses.replace(batch, image=dataclasses.replace(batch.image, rows=batch.image.rows.float()))
            model(batch).square().mean().backward()
        results.append([model(batch).detach(), *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-7


def test_gradient_along_a_direction():
    """Of all parameters at once, against a difference of losses."""
    model, batch = tiny_model(injection="decoder"), two_clouds()
    target = torch.randn(240, 10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    parameters = list(model.parameters())
    loss = (model(batch) * target).sum()
    direction = [torch.randn(p.shape, generator=torch.Generator().manual_seed(6), dtype=p.dtype) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(loss, parameters), direction, strict=True))
    step, values = 1e-7, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=sign * step)
            values.append(float((model(batch) * target).sum()))
    assert float(slope) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


MODES = {
    "before": {"before"},
    "decoder": {"dec.0.image", "dec.1.image"},
    "decoder_last": {"dec.0.image"},
    "after": {"after"},
    "none": set(),
}


@pytest.mark.parametrize("mode", MODES)
def test_where_image_features_enter(mode):
    model = tiny_model(injection=mode)
    found = {n.partition(".proj_image_feat")[0] for n, _ in model.named_parameters() if "proj_image_feat" in n}
    assert found == MODES[mode]
    batch = two_clouds()
    others = dataclasses.replace(batch, image=dataclasses.replace(batch.image, rows=batch.image.rows + 1))
    assert torch.equal(model(batch), model(others)) is (mode == "none")
    for name, parameter in model.named_parameters():
        if "proj_image_feat.2" in name:
            parameter.data.zero_()
    # GELU of 0 is 0: what is left is the network without images
    plain = tiny_model(injection="none", image_channels=None)
    plain.load_state_dict({n: w for n, w in model.state_dict().items() if "proj_image_feat" not in n})
    torch.testing.assert_close(model(batch), plain(batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compatibility", ["official", "fixed"])
def test_by_rows_as_by_points(compatibility):
    results = []
    for factored in (True, False):
        model = tiny_model(factored=factored, compatibility=compatibility)
        out = model(two_clouds())
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    for by_rows, by_points in zip(*results, strict=True):
        torch.testing.assert_close(by_rows, by_points, rtol=1e-8, atol=1e-8)


def test_image_features_are_pooled_over_coarse_voxels():
    batch = two_clouds()
    pyramid = build_grid_pyramid(batch, 2, "torch")
    image = DenseImage.of(batch.image, "official")
    for level, clusters in zip(pyramid.levels[1:], pyramid.clusters(), strict=True):
        finer, image = image, image.pooled(clusters)
        for m in range(len(level)):
            expected = finer.image_ND[clusters.cluster_N == m].amax(0)
            assert torch.equal(image.image_ND[m], expected)


def test_norm_layers_of_a_data_set():
    model = tiny_model(norm_conditions=("rooms", "streets"))
    model(dataclasses.replace(two_clouds(), condition="streets"))
    counts = {n: int(v) for n, v in model.state_dict().items() if n.endswith("num_batches_tracked")}
    assert counts
    assert all(count == (".norm.1." in name) for name, count in counts.items())
    with pytest.raises(ConfigError, match="no norm layer for the data set 'sea'"):
        model(dataclasses.replace(two_clouds(), condition="sea"))


def test_what_is_missing():
    with pytest.raises(ConfigError, match="needs to know how many channels"):
        MinkUNet(tiny_config(), IN_CHANNELS)
    with pytest.raises(ConfigError, match="needs image features, and the batch has none"):
        tiny_model()(dataclasses.replace(two_clouds(), image=None))
