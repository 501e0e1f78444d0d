# SPDX-License-Identifier: Apache-2.0
import numpy as np
import torch

from ditr_cache.config.model import ModelConfig
from ditr_cache.models.random import draw_weights
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.types import PointBatch


def test_parameters_with_the_heads_of_the_papers():
    for classes, in_channels, expected in ((20, 6, 46_167_572), (200, 6, 46_179_272), (16, 4, 46_159_312)):
        with torch.device("meta"):
            model = Segmentor(ModelConfig(injection="none"), in_channels, classes)
        assert sum(p.numel() for p in model.parameters()) == expected
    with torch.device("meta"):
        model = Segmentor(ModelConfig(), 6, 200, 1024)
    assert sum(p.numel() for p in model.parameters()) == 46_705_096


def test_names():
    with torch.device("meta"):
        names = Segmentor(ModelConfig(injection="none"), 6, 20).state_dict()
    assert {n.partition(".")[0] for n in names} == {"backbone", "seg_head"}
    assert {"seg_head.weight", "seg_head.bias", "backbone.embedding.stem.conv.weight"} <= set(names)


def test_scores_are_the_head_on_the_backbone():
    config = ModelConfig(
        stride=(2,), enc_depths=(1, 1), enc_channels=(8, 8), enc_num_head=(1, 1), enc_patch_size=(16, 16),
        dec_depths=(1,), dec_channels=(8,), dec_num_head=(1,), dec_patch_size=(16,), injection="none",
    )  # fmt: skip
    model = Segmentor(config, 3, 5).eval()
    draw_weights(model, torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    grid = torch.from_numpy(np.unique(rng.integers(0, 10, (100, 3)), axis=0).astype(np.int32))
    n = len(grid)
    batch = PointBatch(
        grid, grid.float(), torch.rand(n, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([n])
    )
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    scores = model(batch, generator=generators[0])
    assert scores.shape == (n, 5)
    assert torch.equal(scores, model.seg_head(model.backbone(batch, generator=generators[1])))
