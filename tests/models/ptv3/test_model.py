# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch
from ptv3_cases import IMAGE_CHANNELS, cloud, identity, make_batch, tiny_model
from tensors import LargestTensor

from ditr_cache.errors import ConfigError
from ditr_cache.models.ptv3 import level as level_module
from ditr_cache.types import FactoredFeatures, PointBatch


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(a, b, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def reordered(batch: PointBatch, order: torch.Tensor) -> PointBatch:
    image = dataclasses.replace(batch.image, index=batch.image.index[order])
    return dataclasses.replace(
        batch, grid_coord=batch.grid_coord[order], coord=batch.coord[order], feat=batch.feat[order], image=image
    )


@pytest.mark.parametrize("relative", [False, True])
def test_fixed_gives_a_cloud_the_same_alone_and_in_a_batch(relative):
    small, large = cloud(1, 150, extent=8), cloud(2, 400, extent=30)
    fixed = {"compatibility": "fixed", "enable_rpe": relative}
    model = tiny_model(order=("hilbert", "z", "hilbert-trans"), **fixed).eval()
    alone = model(make_batch(small))
    close(model(make_batch(small, large))[:150], alone)
    close(model(make_batch(large, small))[400:], alone)


def test_official_depends_on_the_depth_of_the_batch():
    """Upstream's Hilbert order of a cloud changes beside a larger one."""
    small, large = cloud(1, 150, extent=8), cloud(2, 400, extent=30)
    model = tiny_model(order=("hilbert", "z", "hilbert-trans")).eval()
    assert (model(make_batch(small, large))[:150] - model(make_batch(small))).abs().max() > 1e-3


@pytest.mark.parametrize("compatibility", ["official", "fixed"])
@pytest.mark.parametrize("factored", [True, False])
def test_permuted_points_give_permuted_outputs(compatibility, factored):
    batch = make_batch(cloud(1, 150), cloud(2, 60))
    model = tiny_model(compatibility=compatibility, factored=factored)
    order = torch.cat((torch.randperm(150, generator=seeded()), 150 + torch.randperm(60, generator=seeded())))
    for mode in (model.eval, model.train):
        mode()
        close(model(reordered(batch, order)), model(batch)[order])


@pytest.mark.parametrize("compatibility", ["official", "fixed"])
@pytest.mark.parametrize("injection", ["decoder", "decoder_last"])
@pytest.mark.parametrize("training", [False, True])
def test_factored_is_dense(compatibility, injection, training):
    batch = make_batch(cloud(1, 300), cloud(2, 100), cloud(3, 5))
    results = []
    for factored in (True, False):
        model = tiny_model(compatibility=compatibility, injection=injection, factored=factored).train(training)
        out = model(batch)
        (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)).sum().backward()
        results.append((out, {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    close(results[0][0], results[1][0], 1e-10)
    for ours, dense in zip(results[0][1:], results[1][1:], strict=True):
        for name in ours:
            close(ours[name], dense[name], 1e-10)


def test_images_matter():
    batch = make_batch(cloud(1, 300))
    other = dataclasses.replace(batch, image=FactoredFeatures(batch.image.rows + 1, batch.image.index))
    for injection, differs in (("decoder", True), ("decoder_last", True), ("none", False)):
        model = tiny_model(injection=injection).eval()
        assert (not torch.equal(model(batch), model(other))) == differs


def test_int8_rows_are_decoded():
    batch = make_batch(cloud(1, 100), dtype=torch.float32)
    rows = torch.randint(-128, 128, batch.image.rows.shape, generator=seeded()).to(torch.int8)
    affine = torch.rand(2, 2, rows.shape[1], generator=seeded())
    packed = FactoredFeatures(rows, batch.image.index, affine, (torch.arange(len(rows)) % 2).int())
    model = tiny_model(dtype=torch.float32).eval()
    out, expected = (model(dataclasses.replace(batch, image=f)) for f in (packed, packed.dequantise()))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("injection", ["before", "between", "decoder", "decoder_last", "after"])
@pytest.mark.parametrize("factored", [True, False])
def test_only_dense_injection_makes_a_tensor_of_points_times_image_channels(injection, factored):
    batch = make_batch(cloud(1, 600), dtype=torch.float32)
    rows = torch.randint(-128, 128, batch.image.rows.shape, generator=seeded()).to(torch.int8)
    affine = torch.rand(1, 2, IMAGE_CHANNELS, generator=seeded())
    image = FactoredFeatures(rows, batch.image.index, affine, torch.zeros(len(rows), dtype=torch.int32))
    model = tiny_model(dtype=torch.float32, injection=injection, factored=factored)
    with LargestTensor(width=IMAGE_CHANNELS) as largest:
        model(dataclasses.replace(batch, image=image)).sum().backward()
    assert largest.numel > 0
    assert (largest.numel < 600 * IMAGE_CHANNELS) == factored


@pytest.mark.parametrize("compatibility", ["official", "fixed"])
@pytest.mark.parametrize("relative", [False, True])
def test_single_points_and_empty_clouds(compatibility, relative):
    batch = make_batch(cloud(1, 1), cloud(2, 40), cloud(3, 1))
    model = tiny_model(compatibility=compatibility, enable_rpe=relative)
    out = model(batch)
    out.sum().backward()
    assert out.shape == (42, 8)
    assert torch.isfinite(out).all()
    if not relative:
        with_empty = dataclasses.replace(batch, offset=torch.tensor([1, 1, 41, 42]))
        close(model(with_empty), model(batch))


@pytest.mark.parametrize("factored", [True, False])
def test_duplicate_voxels_in_any_order(factored):
    """Which of two points on a voxel comes first along a curve decides where patches are cut, and nothing else."""
    batch = make_batch(np.concatenate((cloud(1, 80), cloud(1, 80)[:30])))
    model = tiny_model(factored=factored, enc_patch_size=(128,) * 3, dec_patch_size=(128,) * 2)
    order = torch.randperm(110, generator=seeded())
    for mode in (model.eval, model.train):
        mode()
        close(model(reordered(batch, order)), model(batch)[order])
    # pooling has merged them: no coarser level has any
    _, *coarser = level_module.build_pyramid(batch, model.config, identity(model.config)).levels
    assert all(len(level.grid_coord.unique(dim=0)) == len(level) for level in coarser)


def test_stale_convolution_input_is_official_only():
    """At equal depth the two differ by the convolution of the first block of each decoder stage alone."""
    grid = cloud(1, 200)
    official, fixed = (tiny_model(order=("z", "z-trans"), compatibility=c).eval() for c in ("official", "fixed"))
    assert not torch.allclose(official(make_batch(grid, unseen=0)), fixed(make_batch(grid, unseen=0)))
    with torch.no_grad():
        for model in (official, fixed):
            for s in range(2):
                for parameter in model.dec[f"dec{s}"].block0.cpe.get_submodule("0").parameters():
                    parameter.zero_()
    close(official(make_batch(grid, unseen=0)), fixed(make_batch(grid, unseen=0)))


def test_shuffled_orders():
    batch = make_batch(cloud(1, 200))
    model = tiny_model(shuffle_orders=True).eval()
    first, again, other = (model(batch, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    config = model.config
    permutations = torch.stack([torch.randperm(4, generator=seeded(s)) for s in range(3)])
    assert torch.equal(model(batch, permutations), model(batch, permutations, seeded(5)))
    close(model(batch, identity(config)), tiny_model().eval()(batch))


def test_generator_is_required():
    batch = make_batch(cloud(1, 50))
    with pytest.raises(ConfigError, match="shuffling"):
        tiny_model(shuffle_orders=True).eval()(batch)
    with pytest.raises(ConfigError, match="drop path"):
        tiny_model(drop_path=0.3)(batch)
    tiny_model(drop_path=0.3).eval()(batch)
    with pytest.raises(ConfigError, match="permutations"):
        tiny_model()(batch, torch.arange(4).expand(2, 4))


def test_drop_path_rates():
    model = tiny_model(drop_path=0.4)
    encoder = [b.drop_path.probability for stage in model.enc.values() for b in stage.blocks()]
    assert encoder == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    # finest first [0], [0.2, 0.4]; a stage runs its rates backwards
    assert [b.drop_path.probability for b in model.dec["dec0"].blocks()] == pytest.approx([0])
    assert [b.drop_path.probability for b in model.dec["dec1"].blocks()] == pytest.approx([0.4, 0.2])


def test_global_random_state_is_neither_read_nor_changed():
    batch = make_batch(cloud(1, 100))
    model = tiny_model(shuffle_orders=True, drop_path=0.3)
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        outputs.append(model(batch, generator=seeded(7)))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*outputs)


def test_missing_images_are_refused():
    batch = dataclasses.replace(make_batch(cloud(1, 50)), image=None)
    with pytest.raises(ConfigError, match="image features"):
        tiny_model()(batch)
    assert tiny_model(None, injection="none")(batch).shape == (50, 8)


def test_norms_of_a_data_set():
    batch = make_batch(cloud(1, 100))
    model = tiny_model(norm_conditions=("a", "b"))
    indoors, outdoors = (dataclasses.replace(batch, condition=c) for c in "ab")
    assert torch.equal(model(indoors), model(outdoors))
    with torch.no_grad():
        model.embedding.stem.norm.norm[1].weight.mul_(2)
    assert not torch.allclose(model(indoors), model(outdoors))
    model(indoors).sum().backward()
    unused = [n for n, p in model.named_parameters() if ".norm.1." in n and p.grad is not None]
    assert unused == []
    for condition in (None, "c"):
        with pytest.raises(ConfigError):
            model(dataclasses.replace(batch, condition=condition))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("upcast", [False, True])
def test_autocast(relative, upcast):
    batch = make_batch(cloud(1, 200), cloud(2, 9), dtype=torch.float32)
    model = tiny_model(dtype=torch.float32, enable_rpe=relative, upcast_attention=upcast, drop_path=0.1)
    exact = model(batch, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch, generator=seeded())
        loss = out.float().square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert 0 < float((out.float() - exact).detach().abs().mean()) < 0.1 * float(exact.detach().std())


def test_neighbours_are_searched_once_for_a_level_and_a_size(monkeypatch):
    searched = []
    search = level_module.neighbours

    def counted(grid_coord, batch, kernel_size, backend):
        searched.append((len(grid_coord), kernel_size))
        return search(grid_coord, batch, kernel_size, backend)

    monkeypatch.setattr(level_module, "neighbours", counted)
    tiny_model()(make_batch(cloud(1, 200)))
    assert len(searched) == len(set(searched)) == 4
    assert {k for _, k in searched} == {3, 5}


def test_weights_follow_the_generator():
    states = [tiny_model(seed=s, enable_rpe=True).state_dict() for s in (3, 3, 4)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    drawn = [n for n, t in states[0].items() if not torch.equal(t, states[2][n])]
    assert {n.rpartition(".")[2] for n in drawn} == {"weight", "bias", "rpe_table"}
