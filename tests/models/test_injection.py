# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import LargestTensor

from ditr_cache.errors import ConfigError
from ditr_cache.models.injection import ImageInjection
from ditr_cache.types import FactoredFeatures

D, C = 16, 8


def make_injection(dtype=torch.float64, conditions=()):
    injection = ImageInjection(D, C, conditions)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return injection.to(dtype)


def random_features(points, rows, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(-1, max(1, rows // 2), (points,), generator=generator, dtype=torch.int32)
    return FactoredFeatures(torch.randn(rows, D, generator=generator).to(dtype), index.clamp(max=rows - 1))


def dense(features):
    seen = features.index >= 0
    out = features.rows.new_zeros(len(features.index), features.rows.shape[1])
    out[seen] = features.rows[features.index[seen].long()]
    return out


def step(injection, run, seed=1):
    """Output, gradients and running statistics of one training step."""
    out = run(injection)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (out * pull.to(out.dtype)).sum().backward()
    gradients = {name: p.grad for name, p in injection.named_parameters()}
    return {"out": out.detach(), **gradients, **dict(injection.named_buffers())}


def both(features):
    factored, gathered = make_injection(), make_injection()
    image = dense(features)
    return step(factored, lambda f: f(features)), step(gathered, lambda f: f.forward_dense(image))


def test_names_and_shapes_are_the_official_ones():
    shapes = {name: tuple(t.shape) for name, t in ImageInjection(D, C).state_dict().items()}
    norm = {f"2.{n}": (C,) for n in ("weight", "bias", "running_mean", "running_var")}
    assert shapes == {"1.weight": (C, D), "1.bias": (C,), **norm, "2.num_batches_tracked": ()}


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 20), st.integers(0, 10_000))
def test_factored_is_dense_in_outputs_gradients_and_statistics(points, rows, seed):
    ours, expected = both(random_features(points, rows, seed))
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("index", [[-1] * 6, [0, 1, 2, 3, 0, 0]])
def test_all_points_unseen_and_all_seen(index):
    features = random_features(6, 4, 0)
    ours, expected = both(FactoredFeatures(features.rows, torch.tensor(index)))
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("way", ["factored", "dense"])
def test_float32_is_close_to_float64(way):
    features = random_features(3000, 300, 0, torch.float32)

    def run(features):
        image = dense(features)
        return lambda f: f(features) if way == "factored" else f.forward_dense(image)

    reference = step(make_injection(), run(FactoredFeatures(features.rows.double(), features.index)))
    for name, value in step(make_injection(torch.float32), run(features)).items():
        scale = reference[name].double().abs().max().clamp(min=1)
        assert (value.double() - reference[name]).abs().max() <= 2e-4 * scale, name


def test_evaluation_is_the_same_gather():
    features = random_features(50, 20, 0)
    injection = make_injection().eval()
    torch.testing.assert_close(injection(features), injection.forward_dense(dense(features)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_rows_that_nobody_refers_to_influence_nothing(training):
    features = random_features(50, 20, 0)
    spoilt = features.rows.clone()
    unused = torch.ones(20, dtype=torch.bool)
    unused[features.index.clamp(min=0).long()] = False
    spoilt[unused] = torch.nan
    assert unused.any()
    a, b = make_injection().train(training), make_injection().train(training)
    ours = step(a, lambda f: f(FactoredFeatures(spoilt, features.index)))
    expected = step(b, lambda f: f(features))
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-12)


def test_float16_rows_are_widened_to_the_weights():
    features = random_features(50, 20, 0, torch.float16)
    wide = FactoredFeatures(features.rows.float(), features.index)
    ours, expected = (step(make_injection(torch.float32), lambda f, x=x: f(x)) for x in (features, wide))
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_under_autocast_it_computes_as_a_linear_layer_does(dtype):
    features = random_features(500, 20, 0, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours = step(make_injection(torch.float32), lambda f: f(features))
        image = dense(features)
        expected = step(make_injection(torch.float32), lambda f: f.forward_dense(image))
    assert ours["out"].dtype == torch.bfloat16
    assert ours["1.weight"].dtype == torch.float32
    # statistics are float32 in both
    torch.testing.assert_close(ours["2.running_var"], expected["2.running_var"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["out"], expected["out"], rtol=0.02, atol=0.02)


def test_quantised_rows_are_refused():
    features = FactoredFeatures(torch.zeros(2, D, dtype=torch.int8), torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ConfigError, match="dequantise"):
        make_injection()(features)


def test_data_sets_have_norms_of_their_own():
    injection = make_injection(conditions=("rooms", "streets"))
    assert "2.norm.1.running_mean" in injection.state_dict()
    before = copy.deepcopy(injection.state_dict())
    features = random_features(50, 20, 0)
    image = dense(features)
    twin = copy.deepcopy(injection)
    out, expected = injection(features, "streets"), twin.forward_dense(image, "streets")
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    changed = {name for name, value in injection.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"2.norm.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}


def test_nothing_is_as_large_as_points_times_channels_and_rows_are_kept_as_narrow_as_they_came():
    points, rows = 5000, 100
    features = random_features(points, 2 * rows, 0, torch.float16)
    kept = []
    injection = make_injection(torch.float32)
    pack = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with LargestTensor() as largest, pack:
        out = injection(features)
        out.sum().backward()
    assert largest.numel == points * C
    assert not [t for t in kept if t.dtype == torch.float32 and t.shape[-1:] == (D,) and len(t) > C]
