# SPDX-License-Identifier: Apache-2.0
"""Labels for all points: nothing is lost, nothing counts twice, and the store is read once.

The network here is linear in each point alone, so that a loop over points can say what must come out.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.training.data_config import DataConfig, TestConfig
from ditr_cache.training.inference import Clock, Cost, Network
from ditr_cache.training.protocol import PlainPass, TestProtocol
from ditr_cache.training.sample import Sample
from ditr_cache.training.transforms import CenterShift, GridSample, RandomDropout, SphereCrop, apply, fragments
from ditr_cache.types import FactoredFeatures

CLASSES, DIM = 4, 5


class Pointwise(nn.Module):
    """Scores of a point from its inputs, its place and its image feature."""

    def __init__(self, channels=3):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.seg_head = nn.Linear(channels + 3 + DIM, CLASSES)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.backbone = SimpleNamespace(config=ModelConfig())
        self.batches = []

    def forward(self, batch, permutations=None, generator=None):
        assert permutations.shape == (5, 4)
        assert torch.is_inference_mode_enabled()
        self.batches.append(batch)
        dense = torch.cat([batch.image.rows, torch.zeros(1, DIM)])[batch.image.index.long()]
        return self.seg_head(torch.cat([batch.feat, batch.coord, dense], 1))


def cloud(n=120, seed=0, rows=7):
    rng = np.random.default_rng(seed)
    sample = Sample(
        coord=rng.uniform(0, 0.2, (n, 3)).astype(np.float32),
        point=np.arange(n),
        index=rng.integers(-1, rows, n).astype(np.int32),
        color=rng.uniform(0, 255, (n, 3)).astype(np.float32),
        segment=rng.integers(-1, CLASSES, n).astype(np.int32),
    )
    return sample, FactoredFeatures(rng.normal(size=(rows, DIM)).astype(np.float16), sample.index)


def network(**options):
    return Network(Pointwise(), ("color",), **options)


def logits_of(net, color, coord, index, features):
    dense = np.zeros(DIM) if index < 0 else features.rows[index]
    x = np.concatenate([color, coord, dense])
    head = net.model.seg_head
    return head.weight.detach().numpy().astype(np.float64) @ x + head.bias.detach().numpy()


VAL = (CenterShift(), GridSample(grid_size=0.05, keep="first"), CenterShift(apply_z=False))
TEST = TestConfig(
    before=(CenterShift(),),
    rotations=(0.0, 0.5),
    scales=(0.9, 1.0),
    flip="once",
    voxelize=(GridSample(grid_size=0.05, keep="all"),),
)


def test_plain_pass_gives_a_voxel_the_class_of_its_first_point():
    net, clock = network(), Clock()
    sample, features = cloud()
    got = PlainPass(net, VAL)("s", sample, features, None, clock)
    voxels = apply(VAL, sample, np.random.default_rng(0))
    seat = {int(p): i for i, p in enumerate(voxels.point)}
    cell = np.floor(
        (sample.coord - [*((sample.coord.min(0) + sample.coord.max(0)) / 2)[:2], sample.coord[:, 2].min()])
        / np.float32(0.05)
    )
    for i in range(len(sample)):
        first = next(j for j in range(len(sample)) if (cell[j] == cell[i]).all())
        k = seat[first]
        scores = logits_of(net, voxels.color[k], voxels.coord[k], voxels.index[k], features)
        assert got[i] == scores.argmax()
    assert len(net.model.batches) == 1
    assert (clock.cost.clouds, clock.cost.forwards, clock.cost.fragments) == (1, 1, 1)
    assert clock.cost.forward_s > 0


def oracle(net, sample, features, config):
    """Sums of the softmax, point by point."""
    base = apply(config.before, sample, np.random.default_rng(0))
    total = np.zeros((len(base), CLASSES))
    parts = 0
    for copy in config.augmentations():
        moved = apply((*copy, *config.voxelize), base, np.random.default_rng(0))
        for seats in fragments(moved):
            parts += 1
            part = apply(config.after, moved.take(seats), np.random.default_rng(0))
            for k, seat in enumerate(seats):
                z = logits_of(net, part.color[k], part.coord[k], part.index[k], features)
                z = np.exp(z - z.max())
                total[seat] += z / z.sum()
    return total, parts


@pytest.mark.parametrize("fragments_a_pass", [1, 3, 100])
def test_official_sums(fragments_a_pass):
    net, clock = network(), Clock()
    sample, features = cloud()
    got = TestProtocol(net, TEST, fragments_a_pass)("s", sample, features, None, clock)
    total, parts = oracle(net, sample, features, TEST)
    margin = np.sort(total, 1)
    sure = margin[:, -1] - margin[:, -2] > 1e-4
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(got[sure], total.argmax(1)[sure])
    assert (clock.cost.clouds, clock.cost.copies, clock.cost.fragments) == (1, 5, parts)
    assert clock.cost.forwards == len(net.model.batches)
    if fragments_a_pass == 1:
        assert clock.cost.forwards == parts
        assert all(len(b.offset) == 1 for b in net.model.batches)


def test_rows_are_moved_once_and_shared_by_all_fragments():
    net = network()
    sample, features = cloud()
    TestProtocol(net, TEST, 2)("s", sample, features, None, Clock())
    pointers = {b.image.rows.data_ptr() for b in net.model.batches}
    assert len(net.model.batches) > 3
    assert len(pointers) == 1
    assert {b.image.rows.shape for b in net.model.batches} == {(7, DIM)}
    last = net.model.batches[-1]
    assert last.offset[-1] == len(last.coord) == len(last.image.index)


def test_int8_rows_are_decoded_once():
    net = network()
    sample, _ = cloud()
    rng = np.random.default_rng(2)
    affine = rng.uniform(0.1, 1, (2, 2, DIM)).astype(np.float32)
    coded = FactoredFeatures(
        rng.integers(-128, 128, (7, DIM)).astype(np.int8),
        sample.index,
        affine,
        np.array([0, 0, 0, 1, 1, 1, 1], np.int32),
    )
    plain = FactoredFeatures(coded.dequantise().rows, sample.index)
    np.testing.assert_array_equal(
        PlainPass(net, VAL)("s", sample, coded, None, Clock()), PlainPass(net, VAL)("s", sample, plain, None, Clock())
    )


def test_outdoor_test_chooses_points_first_and_maps_back():
    net = network()
    sample, features = cloud(300)
    config = TEST.model_copy(update={"before": (CenterShift(), GridSample(grid_size=0.03, keep="first"))})
    got = TestProtocol(net, config)("s", sample, features, None, Clock())
    base = apply(config.before, sample, np.random.default_rng(0))
    assert len(base) < len(sample)
    total, _ = oracle(net, sample, features, config)
    margin = np.sort(total, 1)
    sure = (margin[:, -1] - margin[:, -2] > 1e-4)[base.inverse]
    np.testing.assert_array_equal(got[sure], total.argmax(1)[base.inverse][sure])


def test_class_tokens_are_repeated_for_every_cloud_of_a_pass():
    net = network()
    object.__setattr__(net.model.backbone.config, "injection", "cls")
    net._config = net.model.backbone.config
    sample, features = cloud()
    tokens = np.arange(3 * DIM, dtype=np.float16).reshape(3, DIM)
    TestProtocol(net, TEST, 2)("s", sample, features, tokens, Clock())
    batch = net.model.batches[0]
    assert batch.cls.shape == (6, DIM)
    assert batch.cls_offset.tolist() == [3, 6]
    with pytest.raises(ConfigError, match="class tokens"):
        PlainPass(net, VAL)("s", sample, features, None, Clock())


def test_evaluation_is_the_same_every_time():
    sample, features = cloud()
    runs = [TestProtocol(network(seed=s), TEST)("s", sample, features, None, Clock()) for s in (1, 1)]
    np.testing.assert_array_equal(*runs)
    assert torch.equal(network(seed=1)._permutations, network(seed=1)._permutations)
    assert not torch.equal(network(seed=1)._permutations, network(seed=2)._permutations)


@pytest.mark.parametrize("lossy", [SphereCrop(point_max=50), RandomDropout(dropout_application_ratio=1)])
def test_lost_points_are_an_error(lossy):
    sample, features = cloud()
    with pytest.raises(ConfigError, match="lose points"):
        PlainPass(network(), (lossy, *VAL))("s", sample, features, None, Clock())
    with pytest.raises(ConfigError, match="lose points"):
        PlainPass(network(), (*VAL, lossy))("s", sample, features, None, Clock())
    config = TEST.model_copy(update={"voxelize": (GridSample(keep="all"), lossy)})
    with pytest.raises(ConfigError, match="leaves"):
        TestProtocol(network(), config)("s", sample, features, None, Clock())


def test_no_voxels_are_an_error():
    sample, features = cloud()
    with pytest.raises(ConfigError, match="grid_sample"):
        PlainPass(network(), (CenterShift(),))("s", sample, features, None, Clock())
    with pytest.raises(ConfigError, match="at least one"):
        TestProtocol(network(), TEST, 0)


@pytest.mark.parametrize(("flip", "copies"), [("none", 12), ("once", 13), ("each", 24)])
def test_number_of_copies(flip, copies):
    assert len(TestConfig(flip=flip).augmentations()) == copies


def test_the_default_is_scannets():
    assert len(DataConfig().test.augmentations()) == 13


def test_costs_add_up():
    clock = Clock()
    clock.count(forwards=2)
    with clock.measure("read"):
        pass
    total = clock.cost + Cost(forwards=3, read_s=1.0)
    assert total.forwards == 5
    assert total.read_s >= 1.0
