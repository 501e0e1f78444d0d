# SPDX-License-Identifier: Apache-2.0
"""What is read back is transformers' own output, gathered; in every variant."""

import json
import warnings

import numpy as np
import pytest
import torch
from transformers import Dinov2Model

from ditr_cache.backbones import load_backbone
from ditr_cache.config import BackboneConfig, ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets.registry import open_dataset
from ditr_cache.errors import ConfigError
from ditr_cache.images import augment, decode, resize
from ditr_cache.pipelines.extract import Extract
from ditr_cache.store.reader import open_store

SIZE, GRID = (420, 560), (30, 40)
VIEWS, BATCH = 3, 2


class Remembering:
    """A backbone that computes every batch once, however many stores are made of it."""

    def __init__(self, backbone):
        self._backbone, self._known = backbone, {}

    def __getattr__(self, name):
        return getattr(self._backbone, name)

    def __call__(self, images_B3hw):
        key = images_B3hw.numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._backbone(images_B3hw)
        return self._known[key]


@pytest.fixture(scope="module")
def real(real_weights):
    return Remembering(load_backbone(BackboneConfig(weights=real_weights), "cpu"))


def reference(folder, images_B3hw):
    """Patch and class tokens by transformers alone, as its documentation has it: `[B, P, D]`, `[B, D]`."""
    settings = json.loads((folder / "preprocessor_config.json").read_text()) if has_preprocessor(folder) else {}
    mean = torch.tensor(settings.get("image_mean", [0.485, 0.456, 0.406])).reshape(3, 1, 1)
    std = torch.tensor(settings.get("image_std", [0.229, 0.224, 0.225])).reshape(3, 1, 1)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
        tokens = model((images_B3hw.float() / 255 - mean) / std).last_hidden_state
    return tokens[:, 1:].numpy(), tokens[:, 0].numpy()


def has_preprocessor(folder):
    return (folder / "preprocessor_config.json").is_file()


def frames(dataset, names):
    """The images of some views as the ViT sees them, `[B, 3, h, w]`."""
    (block,) = dataset.plan()
    views = {v.name: v for v in dataset.load(block.id).views}
    pixels = [decode(views[n].image.read(), views[n].camera.height, views[n].camera.width) for n in names]
    return torch.stack([resize(p, SIZE, "bilinear") for p in pixels])


def extracted(source, store, backbone, *settings):
    dataset = open_dataset(source)
    base = [f"images.size={list(SIZE)}", "images.filter=bilinear", f"frames.limit={VIEWS}", f"run.batch_size={BATCH}"]
    config = load_config(ExtractConfig, [read_named_yaml("extract", dataset.preset)], [*base, *settings])
    report = Extract(dataset, store, config, backbone=backbone).run()
    assert report.failures == 0
    return report, open_store(store), dataset


def float16(x):
    return x.astype(np.float16)


@pytest.mark.real_data
class TestRealViT:
    """Three frames of a real kitchen through a real ViT, in batches of two."""

    @pytest.fixture(scope="class")
    @classmethod
    def kitchen(cls, test_data):
        return test_data / "nerfstudio" / "redkitchen"

    @pytest.fixture(scope="class")
    @classmethod
    def half(cls, kitchen, real, tmp_path_factory):
        return extracted(kitchen, tmp_path_factory.mktemp("half") / "store", real)

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, half, real_weights):
        """Patch and class tokens of the three frames; the last batch is filled up with its first image."""
        _, store, dataset = half
        (info,) = store.samples.values()
        images = frames(dataset, info.view_names)
        batches = [images[:2], images[[2, 2]]]
        outputs = [reference(real_weights, batch) for batch in batches]
        return np.concatenate([o[0] for o in outputs])[:VIEWS], np.concatenate([o[1] for o in outputs])[:VIEWS], images

    def test_float16_is_bit_equal(self, half, expected):
        report, store, _ = half
        (sample,) = store.samples
        assert report.images == VIEWS
        for view in range(VIEWS):
            read = store.read(sample, views=[view])
            seen = read.view == view
            assert 0 < seen.sum() < len(seen)
            dense = read.features.dense()
            np.testing.assert_array_equal(dense[seen], float16(expected[0][view][read.patch[seen]]))
            assert not dense[~seen].any()
        receipt, _ = store.samples.locate(sample)
        np.testing.assert_array_equal(store.block(receipt).array("cls").read_all(), float16(expected[1]))

    def test_float16_is_bit_equal_to_single_images(self, half, expected, real_weights):
        """The CPU's kernels do not depend on the batch: the padding costs no accuracy."""
        _, store, _ = half
        (sample,) = store.samples
        alone = reference(real_weights, expected[2][2:])[0][0]
        read = store.read(sample, views=[2])
        seen = read.view == 2
        got, want = read.features.dense()[seen], float16(alone[read.patch[seen]])
        print("bit-equal to batch size 1:", (got == want).mean())
        np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), rtol=2e-3, atol=2e-3)

    def test_a_draw_of_all_views_joins_them(self, half, expected):
        _, store, _ = half
        (sample,) = store.samples
        read = store.read(sample, views=[2, 0, 1], rule="last")
        seen = read.view >= 0
        want = expected[0][read.view[seen], read.patch[seen]]
        np.testing.assert_array_equal(read.features.dense()[seen], float16(want))

    def test_int8_is_close(self, kitchen, real, half, expected, tmp_path):
        report, store, _ = extracted(kitchen, tmp_path / "store", real, "store.dtype=int8")
        (sample,) = store.samples
        errors = []
        for view in range(VIEWS):
            read = store.read(sample, views=[view])
            rows = read.features.dequantise().rows
            assert read.features.rows.dtype == np.int8
            half_read = half[1].read(sample, views=[view])
            np.testing.assert_array_equal(read.features.index, half_read.features.index)
            patches = np.full(len(rows), -1)
            seen = read.view == view
            patches[read.features.index[seen]] = read.patch[seen]
            want = expected[0][view][patches].astype(np.float64)
            cosine = (rows * want).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(want, axis=1)
            errors.append(1 - cosine)
        p99 = np.quantile(np.concatenate(errors), 0.99)
        print(f"int8 cosine error p99 {p99:.2e}, reported {report.int8_cosine_error_p99:.2e}")
        assert p99 <= 1e-4
        assert report.int8_cosine_error_p99 == pytest.approx(p99, rel=0.05)
        assert store.provenance[sample]["int8_cosine_error_p99"] == report.int8_cosine_error_p99

    def test_the_flipped_copy_is_the_mirrored_image(self, kitchen, real, real_weights, tmp_path):
        settings = ("frames.limit=1", "variants.flip=true", "run.batch_size=1")
        _, store, dataset = extracted(kitchen, tmp_path / "store", real, *settings)
        (sample,) = store.samples
        mirrored = frames(dataset, store.samples[sample].view_names).flip(3)
        want_PD = reference(real_weights, mirrored)[0][0]
        upright, flipped = (store.read(sample, variant=v) for v in (0, 1))
        np.testing.assert_array_equal(upright.view, flipped.view)
        seen = upright.view == 0
        row, column = np.divmod(upright.patch[seen], GRID[1])
        np.testing.assert_array_equal(flipped.patch[seen], row * GRID[1] + GRID[1] - 1 - column)
        np.testing.assert_array_equal(flipped.features.dense()[seen], float16(want_PD[flipped.patch[seen]]))


class TestVariants:
    """Flips and colour draws of a tiny room through a tiny ViT."""

    ALL = (0, 1, 2, 3, 4, 5)

    @pytest.fixture(scope="class")
    @classmethod
    def setting(cls, tiny, tiny_vit, tmp_path_factory):
        """Two samples of three views in one block, all variants: store, dataset, backbone."""
        size = (42, 70)
        dataset = tiny.Rooms({"b": [tiny.room(name, views=3, size=size) for name in ("r0", "r1")]})
        backbone = load_backbone(BackboneConfig(weights=tiny_vit), "cpu")
        path = tmp_path_factory.mktemp("variants") / "store"
        settings = (f"images.size={list(size)}", "variants.flip=true", "variants.jitter=2")
        report = tiny.extract(dataset, path, *settings, backbone=backbone).run()
        assert (report.images, report.failures) == (2 * 3 * 6, 0)
        return open_store(path), dataset, backbone

    def test_order_is_sample_variant_view(self, setting):
        store, _, _ = setting
        receipt, _ = store.samples.locate("r0")
        block = store.block(receipt)
        tables = [block.array(n).read_all().tolist() for n in ("view_sample", "view_variant", "view_index")]
        expected = [(s, v, i) for s in range(2) for v in self.ALL for i in range(3)]
        assert list(zip(*tables, strict=True)) == expected
        assert store.variants("r1") == self.ALL
        # base views count, variants do not
        assert receipt.coverage.views == 6
        assert store.samples["r0"].view_names == ("000", "001", "002")

    @pytest.mark.parametrize("variant", ALL)
    def test_features_are_those_of_the_changed_image(self, setting, tiny_vit, variant):
        store, dataset, _ = setting
        scene = dataset.load("r1")
        for i, view in enumerate(scene.views):
            image_3hw = torch.from_numpy(view.image.read()).permute(2, 0, 1).contiguous()
            changed = augment(image_3hw, variant, "r1", view.name)
            want_PD = reference(tiny_vit, changed[None].expand(4, -1, -1, -1))[0][0]
            read, base = store.read("r1", views=[i], variant=variant), store.read("r1", views=[i])
            seen = base.view == i
            np.testing.assert_array_equal(read.view, base.view)
            column = base.patch[seen] % 5
            patch = base.patch[seen] + (4 - 2 * column if variant & 1 else 0)
            np.testing.assert_array_equal(read.patch[seen], patch)
            np.testing.assert_allclose(read.features.dense()[seen], want_PD[patch], atol=4e-3, rtol=2e-3)

    def test_random_variants(self, setting):
        store, _, _ = setting
        reads = [store.read("r0", variant="random", rule="last", seed=s) for s in range(8)]
        again = store.read("r0", variant="random", rule="last", seed=3)
        np.testing.assert_array_equal(reads[3].features.rows, again.features.rows)
        assert len({r.features.rows.tobytes() for r in reads}) > 4
        for read in reads:
            np.testing.assert_array_equal(read.view, reads[0].view)
            assert read.view.max() == 2

    def test_a_variant_that_is_not_there(self, setting):
        with pytest.raises(ConfigError, match="variant 6 of view 000"):
            setting[0].read("r0", variant=6)

    def test_base_views_do_not_change(self, setting, tiny, tmp_path):
        store, dataset, backbone = setting
        tiny.extract(dataset, tmp_path / "plain", "images.size=[42,70]", backbone=backbone).run()
        plain = open_store(tmp_path / "plain")
        for sample in ("r0", "r1"):
            one, other = store.read(sample, rule="last"), plain.read(sample, rule="last")
            np.testing.assert_array_equal(one.features.rows, other.features.rows)
            np.testing.assert_array_equal(one.features.index, other.features.index)
