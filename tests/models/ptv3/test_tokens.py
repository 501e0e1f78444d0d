# SPDX-License-Identifier: Apache-2.0
"""Class tokens in attention."""

import dataclasses

import pytest
import torch
from ptv3_cases import IMAGE_CHANNELS, cloud, identity, make_batch, tiny_config, tiny_model

from ditr_cache.errors import ConfigError
from ditr_cache.models.ptv3.attention import SerialisedAttention
from ditr_cache.models.ptv3.level import build_pyramid
from ditr_cache.models.ptv3.tokens import class_tokens
from ditr_cache.models.random import draw_weights


def with_views(batch, counts, seed=3, dtype=torch.float64):
    """Tokens that depend on the cloud alone, so that clouds may be left out or joined."""
    own = [torch.randn(n, IMAGE_CHANNELS, generator=torch.Generator().manual_seed(seed + n)) for n in counts]
    return dataclasses.replace(batch, cls=torch.cat(own).to(dtype), cls_offset=torch.tensor(counts).cumsum(0))


def by_definition(attention, x, tokens, counts, level, length):
    """Point by point: softmax over the mates of a patch and the tokens of the cloud."""
    n, channels = x.shape
    q, k, v = attention.qkv(x).view(n, 3, attention.heads, -1).unbind(1)
    _, k_V, v_V = attention.qkv(tokens).view(len(tokens), 3, *k.shape[1:]).unbind(1)
    out = torch.zeros_like(v)
    order = torch.argsort(level.codes[0])
    token_ends = torch.tensor(counts).cumsum(0).tolist()
    for b, end in enumerate(level.ends):
        start = level.ends[b - 1] if b else 0
        own = slice(token_ends[b] - counts[b], token_ends[b])
        size = min(length, end - start)
        for local in range(end - start):
            first = start + min(local // size * size, end - start - size)
            mates, point = order[first : first + size], order[start + local]
            keys, values = torch.cat([k[mates], k_V[own]]), torch.cat([v[mates], v_V[own]])
            scores = torch.einsum("he,khe->hk", q[point], keys) * q.shape[-1] ** -0.5
            if attention.rpe(level.grid_coord, mates[None], x.dtype) is not None:
                # positions count between points alone
                row = (mates == point).nonzero()[0, 0]
                scores[:, :size] += attention.rpe(level.grid_coord, mates[None], x.dtype)[0, :, row]
            out[point] = torch.einsum("hk,khe->he", scores.softmax(1), values)
    return out.reshape(n, channels)


@pytest.mark.parametrize("counts", [(2, 2, 2), (3, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("relative", [False, True])
def test_tokens_are_further_keys_and_values_by_definition(counts, relative):
    config = tiny_config(enable_rpe=relative, compatibility="fixed")
    batch = with_views(make_batch(cloud(1, 50), cloud(2, 7), cloud(3, 33)), counts)
    level = build_pyramid(batch, config, identity(config)).levels[0]
    attention = SerialisedAttention(IMAGE_CHANNELS, 2, 16, relative=relative).double()
    draw_weights(attention, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x, pull = (torch.randn(90, IMAGE_CHANNELS, dtype=torch.float64, generator=generator) for _ in range(2))
    tokens = class_tokens(batch)
    inputs = [x.requires_grad_(), tokens.tokens.requires_grad_(), *attention.qkv.parameters()]
    ours = attention.attend(attention.qkv(x), level, 0, tokens.keys(attention.qkv, attention.heads))
    expected = by_definition(attention, x, tokens.tokens, counts, level, 16)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad((out * pull).sum(), inputs, materialize_grads=True) for out in (ours, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_a_cloud_without_views_is_a_cloud_of_plain_ptv3():
    grids = cloud(1, 60), cloud(2, 40)
    model = tiny_model(injection="cls", compatibility="fixed").eval()
    plain = tiny_model(None, injection="none", compatibility="fixed").eval()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if "proj_cls" not in n})
    batch = with_views(make_batch(*grids), (4, 0))
    out, expected = model(batch), plain(batch)
    torch.testing.assert_close(out[60:], expected[60:], rtol=0, atol=1e-11)
    assert not torch.allclose(out[:60], expected[:60])


@pytest.mark.parametrize("counts", [(2, 5, 0), (3, 3, 3)])
def test_clouds_see_their_own_tokens_alone(counts):
    grids = cloud(1, 60), cloud(2, 40), cloud(3, 25)
    model = tiny_model(injection="cls", compatibility="fixed").eval()
    joined = model(with_views(make_batch(*grids), counts))
    alone = [model(with_views(make_batch(g), (n,))) for g, n in zip(grids, counts, strict=True)]
    torch.testing.assert_close(joined, torch.cat(alone), rtol=0, atol=1e-11)


def test_tokens_have_no_order():
    batch = with_views(make_batch(cloud(1, 60)), (4,))
    model = tiny_model(injection="cls").eval()
    turned = dataclasses.replace(batch, cls=batch.cls.flip(0))
    torch.testing.assert_close(model(batch), model(turned), rtol=0, atol=1e-11)


def test_a_batch_without_any_view_still_gives_every_weight_a_gradient():
    # a process of a distributed run must not leave parameters out
    model = tiny_model(injection="cls")
    model(with_views(make_batch(cloud(1, 60), cloud(2, 30)), (0, 0))).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert model.dec["dec0"].proj_cls.weight.grad.norm() == 0


def test_float16_tokens_and_autocast():
    batch = with_views(make_batch(cloud(1, 60), cloud(2, 30), dtype=torch.float32), (2, 1), dtype=torch.float16)
    model = tiny_model(injection="cls", dtype=torch.float32).eval()
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(batch)
    assert exact.isfinite().all()
    assert (narrow.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_tokens_of_other_clouds_are_refused():
    batch = with_views(make_batch(cloud(1, 60), cloud(2, 30)), (2,))
    with pytest.raises(ConfigError, match="1 clouds in a batch of 2"):
        class_tokens(batch)
