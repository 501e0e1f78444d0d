# SPDX-License-Identifier: Apache-2.0
"""A store is never continued with other settings; how a machine works is no setting of the store."""

import json

import pytest
import torch

from ditr_cache.backbones import load_backbone
from ditr_cache.config import BackboneConfig
from ditr_cache.datasets.registry import open_dataset
from ditr_cache.errors import ConfigError, DatasetError, IdentityMismatchError, StoreError
from ditr_cache.pipelines.extract import pick_device, store_identity
from ditr_cache.store.reader import open_store
from ditr_cache.store.verify import verify_store

CHANGES = {
    "images.filter=bilinear-antialias": ["images.filter"],
    "images.size=[40,56]": ["images.size"],
    "images.size=null": ["images.budget", "images.size"],
    "visibility.min_depth=0.5": ["visibility.min_depth"],
    "visibility.max_depth=9.0": ["visibility.max_depth"],
    "visibility.depth_margin=0.1": ["visibility.depth_margin"],
    "visibility.zbuffer=true": ["visibility.zbuffer", "visibility.zbuffer_cell", "visibility.zbuffer_margin"],
    "frames.stride=2": ["frames.stride"],
    "frames.limit=2": ["frames.limit"],
    "variants.flip=true": ["variants.flip"],
    "variants.jitter=1": ["variants.jitter"],
    "store.dtype=int8": ["features.dtype"],
    "store.compress=zstd": ["features.compress"],
    "store.points=false": ["features.points"],
}


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("identity") / "store"
    tiny.extract(tiny.rooms(1), path).run()
    return path


def files(store):
    return {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}


class TestDifference:
    @pytest.mark.parametrize("change", CHANGES)
    def test_a_changed_setting_is_named(self, tiny, store, change):
        before = files(store)
        with pytest.raises(IdentityMismatchError) as caught:
            tiny.extract(tiny.rooms(1), store, change).run()
        lines = [line.strip() for line in str(caught.value).splitlines() if "the store has" in line]
        assert [line.split(":")[0] for line in lines] == CHANGES[change]
        assert str(store) in str(caught.value)
        assert files(store) == before

    def test_every_difference_is_listed(self, tiny, store):
        changes = ("store.dtype=int8", "variants.flip=true", "visibility.min_depth=0.5", "frames.stride=3")
        with pytest.raises(IdentityMismatchError) as caught:
            tiny.extract(tiny.rooms(1), store, *changes).run()
        text = str(caught.value)
        for line in (
            'features.dtype: the store has "float16", asked for "int8"',
            "variants.flip: the store has false, asked for true",
            "visibility.min_depth: the store has 0.0, asked for 0.5",
            "frames.stride: the store has 1, asked for 3",
        ):
            assert line in text

    def test_another_data_set_or_network(self, tiny, store):
        dataset = tiny.rooms(1)
        dataset.version = "2"
        with pytest.raises(IdentityMismatchError, match=r"dataset\.version"):
            tiny.extract(dataset, store).run()
        with pytest.raises(IdentityMismatchError, match=r"backbone\.patch_size"):
            tiny.extract(tiny.rooms(1), store, "images.size=[28,42]", backbone=tiny.PatchSums(14)).run()

    def test_weights_and_layer(self, tiny, tiny_vit, tmp_path):
        base = load_backbone(BackboneConfig(weights=tiny_vit), "cpu")
        size = "images.size=[28,42]"
        tiny.extract(tiny.rooms(1), tmp_path / "store", size, backbone=base).run()
        for change, key in (({"layer": 1}, "layer"), ({"norm": False}, "norm"), ({"dtype": "bf16"}, "dtype")):
            other = load_backbone(BackboneConfig(weights=tiny_vit, **change), "cpu")
            with pytest.raises(IdentityMismatchError, match=rf"backbone\.{key}: the store has"):
                tiny.extract(tiny.rooms(1), tmp_path / "store", size, backbone=other).run()


class TestSame:
    @pytest.mark.parametrize("change", ["run.batch_size=7", "run.threads=5", "run.device=cpu"])
    def test_how_it_runs_does_not_matter(self, tiny, store, tmp_path, change):
        report = tiny.extract(tiny.rooms(1), store, change).run()
        assert (report.blocks_skipped, report.failures) == (1, 0)
        assert tiny.extract(tiny.rooms(1), tmp_path / "store", change).run().digest == report.digest

    def test_settings_that_do_nothing(self, tiny, store):
        for change in ("visibility.zbuffer_margin=0.7", "visibility.zbuffer_cell=16", "images.budget=900"):
            assert tiny.extract(tiny.rooms(1), store, change).run().blocks_skipped == 1

    def test_where_the_data_lies_does_not_matter(self, tiny, tmp_path):
        for name in ("here", "there"):
            tiny.write_capture(tmp_path / name, scenes=2, views=2)
        backbone = tiny.PatchSums(14)
        here, there = (open_dataset(tmp_path / name) for name in ("here", "there"))
        first = tiny.extract(here, tmp_path / "store", "images.size=[28,42]", backbone=backbone).run()
        second = tiny.extract(there, tmp_path / "store", "images.size=[28,42]", backbone=backbone).run()
        assert (second.blocks_skipped, second.digest) == (2, first.digest)

    def test_it_is_plain_json(self, tiny, store):
        identity = store_identity(tiny.config(), tiny.rooms(1), tiny.PatchSums())
        assert json.loads(json.dumps(identity, allow_nan=False)) == identity == open_store(store).identity
        assert "run" not in json.dumps(identity)


class TestBlockNames:
    def test_names_that_differ_only_in_case(self, tiny, tmp_path):
        dataset = tiny.Rooms({"Room": [tiny.room("a")], "room": [tiny.room("b")]})
        with pytest.raises(DatasetError, match="twice once case is ignored"):
            tiny.extract(dataset, tmp_path / "store").run()
        assert not (tmp_path / "store").exists()

    def test_no_samples(self, tiny, tmp_path):
        with pytest.raises(DatasetError, match="no samples"):
            tiny.extract(tiny.Rooms({}), tmp_path / "store").run()

    def test_names_that_are_no_file_names(self, tiny, tmp_path):
        names = ("../../evil", "a b/c", "scène", "x" * 100, "CON", ".hidden")
        dataset = tiny.Rooms({name: [tiny.room(name)] for name in names})
        report = tiny.extract(dataset, tmp_path / "store").run()
        assert (report.blocks_done, report.failures) == (len(names), 0)
        assert sorted(open_store(tmp_path / "store").samples) == sorted(names)
        assert {p.name for p in tmp_path.iterdir()} == {"store"}

    def test_long_names_are_shortened(self, tiny, tmp_path):
        names = ("x" * 101, "x" * 102, "\u4f1a\u8bae\u5ba4" * 40)
        report = tiny.extract(tiny.Rooms({n: [tiny.room(n)] for n in names}), tmp_path / "store").run()
        assert (report.blocks_done, report.failures) == (3, 0)
        store = open_store(tmp_path / "store")
        assert sorted(store.samples) == sorted(names)
        assert all(len(store.read(name).view) for name in names)
        assert verify_store(tmp_path / "store").problems == ()
        assert all(len(p.name) == 100 + 33 for p in (tmp_path / "store" / "blocks").iterdir())

    def test_a_folder_of_something_else(self, tiny, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(StoreError, match=r"not a store.*notes\.txt"):
            tiny.extract(tiny.rooms(1), tmp_path).run()
        assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


class TestTorch:
    def test_threads_stay_as_they_are(self, tiny, tmp_path):
        before = torch.get_num_threads(), torch.__config__.parallel_info()
        tiny.extract(tiny.rooms(1), tmp_path / "store").run()
        assert (torch.get_num_threads(), torch.__config__.parallel_info()) == before

    def test_devices(self):
        assert pick_device("cpu") == "cpu"
        assert pick_device("auto") in ("cpu", "cuda:0")
        for name in ("mps", "nonsense"):
            with pytest.raises(ConfigError, match=name):
                pick_device(name)
        if not torch.cuda.is_available():
            with pytest.raises(ConfigError, match="no CUDA device"):
                pick_device("cuda:0")
