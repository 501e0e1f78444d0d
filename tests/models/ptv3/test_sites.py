# SPDX-License-Identifier: Apache-2.0
"""Where image features enter: every row of the paper's Table 5."""

import dataclasses

import pytest
import torch
from ptv3_cases import IMAGE_CHANNELS, cloud, make_batch, tiny_config, tiny_model

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.models.ptv3.model import PointTransformerV3
from ditr_cache.models.ptv3.sites import sites
from ditr_cache.types import FactoredFeatures, PointBatch

PLACES = ("before", "enc.enc0", "enc.enc1", "enc.enc2", "dec.dec1", "dec.dec0", "after", "second", "output")
"""In the order in which a forward pass comes by."""

# mode -> (modules that hold what the injection learns, first place whose output the images change)
MODES = {
    "before": ({"before"}, "before"),
    "between": ({"after"}, "after"),
    "decoder": ({"dec.dec0.up", "dec.dec1.up"}, "dec.dec1"),
    "decoder_last": ({"dec.dec0.up"}, "dec.dec0"),
    "after": ({"after"}, "after"),
    "cls": ({"dec.dec0", "dec.dec1"}, "dec.dec1"),
}


def two_clouds(dtype=torch.float64) -> PointBatch:
    batch = make_batch(cloud(1, 120), cloud(2, 40), dtype=dtype)
    cls = torch.randn(5, IMAGE_CHANNELS, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return dataclasses.replace(batch, cls=cls, cls_offset=torch.tensor([3, 5]))


def outputs(model, batch) -> dict[str, torch.Tensor]:
    """What leaves each place."""
    seen = {}

    def keep(name):
        return lambda module, inputs, out: seen.__setitem__(name, out.detach().clone())

    names = dict(model.named_modules())
    hooks = [names[name].register_forward_hook(keep(name)) for name in PLACES if name in names]
    if model.second is not None:
        # its forward is never called: it takes the first one's points
        hooks.append(model.second.embedding.register_forward_hook(keep("second")))
    seen["output"] = model(batch).detach()
    for hook in hooks:
        hook.remove()
    return seen


def other_images(batch: PointBatch) -> PointBatch:
    return dataclasses.replace(
        batch, image=FactoredFeatures(batch.image.rows * 2 + 1, batch.image.index), cls=batch.cls * 2 + 1
    )


def injection_weights(model) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if "proj_image_feat" in n or "proj_cls" in n}


@pytest.mark.parametrize("mode", MODES)
def test_images_change_everything_from_their_place_on_and_nothing_before(mode):
    model = tiny_model(injection=mode).eval()
    batch = two_clouds()
    first, second = outputs(model, batch), outputs(model, other_images(batch))
    changed = [place for place in PLACES if place in first and not torch.equal(first[place], second[place])]
    present = [place for place in PLACES if place in first]
    assert changed == present[present.index(MODES[mode][1]) :]


@pytest.mark.parametrize("mode", MODES)
def test_weights_of_the_injection_lie_where_they_act(mode):
    model = tiny_model(injection=mode).eval()
    weights = injection_weights(model)
    owners, place = MODES[mode]
    assert {n.partition(".proj_")[0] for n in weights} == owners
    before = outputs(model, two_clouds())
    with torch.no_grad():
        for weight in weights.values():
            weight.mul_(2).add_(0.1)
    after = outputs(model, two_clouds())
    changed = [p for p in PLACES if p in before and not torch.equal(before[p], after[p])]
    assert changed[0] == place


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_mode_trains(mode, dtype):
    model = tiny_model(injection=mode, dtype=dtype)
    out = model(two_clouds(dtype))
    assert out.shape == (160, 8)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=dtype)
    (out * pull).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # linear layers in front of a norm have biases of no effect; all that is left must move
    assert all(p.grad.norm() > 1e-9 for n, p in injection_weights(model).items() if n.endswith("weight"))


@pytest.mark.parametrize("mode", ["before", "between", "after"])
@pytest.mark.parametrize("training", [False, True])
def test_factored_is_dense_at_every_place(mode, training):
    batch, results = two_clouds(), []
    for factored in (True, False):
        model = tiny_model(injection=mode, factored=factored).train(training)
        out = model(batch)
        out.square().sum().backward()
        results.append({"out": out, **{n: p.grad for n, p in model.named_parameters()}, **dict(model.named_buffers())})
    for name, value in results[1].items():
        torch.testing.assert_close(results[0][name], value, rtol=1e-9, atol=1e-9)


def test_none_ignores_images_and_has_no_weights_for_them():
    model = tiny_model(None, injection="none")
    assert not injection_weights(model)
    batch = two_clouds()
    bare = dataclasses.replace(batch, image=None, cls=None, cls_offset=None)
    torch.testing.assert_close(model.eval()(batch), model.eval()(bare), rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_all_but_the_injection_has_the_names_of_ptv3(mode):
    plain = set(tiny_model(None, injection="none").state_dict())
    names = {n for n in tiny_model(injection=mode).state_dict() if "proj_image_feat" not in n and "proj_cls" not in n}
    assert {n for n in names if not n.startswith("second.")} == plain
    assert {n.removeprefix("second.") for n in names if n.startswith("second.")} == (
        plain if mode == "between" else set()
    )


PTV3 = 46_166_272


@pytest.mark.parametrize(
    ("mode", "extra"),
    [
        # linear with bias and batch norm, D = 1024: (1024 + 3) C
        ("before", 1027 * 32),
        ("after", 1027 * 64),
        ("decoder_last", 1027 * 64),
        ("decoder", 1027 * (256 + 128 + 64 + 64)),
        # a linear layer a stage
        ("cls", 1025 * (256 + 128 + 64 + 64)),
        # a second network whose stem takes 64 channels and not 6
        ("between", 1027 * 64 + PTV3 + 125 * (64 - 6) * 32),
    ],
)
def test_parameters_at_full_size(mode, extra):
    with torch.device("meta"):
        model = PointTransformerV3(ModelConfig(injection=mode), 6, 1024)
    assert sum(p.numel() for p in model.parameters()) == PTV3 + extra


@pytest.mark.parametrize("mode", MODES)
def test_what_is_missing_is_named(mode):
    with pytest.raises(ConfigError, match="image_channels"):
        PointTransformerV3(tiny_config(injection=mode), 6)
    bare = dataclasses.replace(two_clouds(), image=None, cls=None)
    with pytest.raises(ConfigError, match="class tokens" if mode == "cls" else "image features"):
        tiny_model(injection=mode)(bare)


@pytest.mark.parametrize("mode", MODES)
def test_norms_by_data_set_reach_every_place(mode):
    model = tiny_model(injection=mode, norm_conditions=("rooms", "streets"))
    model(dataclasses.replace(two_clouds(), condition="streets"))
    counts = {n: int(v) for n, v in model.state_dict().items() if n.endswith("num_batches_tracked")}
    assert counts
    assert all(count == (".norm.1." in name) for name, count in counts.items())


def test_levels_that_are_pooled():
    depth = {mode: sites(tiny_config(injection=mode), IMAGE_CHANNELS).levels for mode in (*MODES, "none")}
    assert depth == {"before": 1, "between": 1, "decoder": 2, "decoder_last": 1, "after": 1, "cls": 0, "none": 0}
