# SPDX-License-Identifier: Apache-2.0
"""One bad frame, sample or block is recorded with its reason, and the rest is what it would be without it."""

import errno
from dataclasses import replace

import numpy as np
import pytest
import torch

from ditr_cache.backbones.base import PatchMaps
from ditr_cache.datasets.registry import open_dataset
from ditr_cache.errors import BackboneError, ConfigError, FrameError, SampleError
from ditr_cache.store.reader import open_store
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.writer import StoreWriter


class Fails:
    """An image that fails some times and is fine then."""

    def __init__(self, source, *errors):
        self.source, self.errors, self.reads = source, list(errors), 0

    def read(self):
        self.reads += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.source.read()


class Gives:
    """An image or depth map of these bytes or values."""

    def __init__(self, value):
        self.value = value

    def read(self):
        return self.value


def with_views(scene, **changes):
    """The scene with some views replaced: `v1=...` is a function of the view before, or None to leave it out."""
    views = [changes.get(f"v{i}", lambda v: v)(v) for i, v in enumerate(scene.views)]
    return replace(scene, views=tuple(v for v in views if v is not None))


def posed(matrix):
    return lambda v: replace(v, camera=replace(v.camera, world_to_camera=np.asarray(matrix, np.float64)))


def seen_through(intrinsics):
    return lambda v: replace(v, camera=replace(v.camera, intrinsics=np.asarray(intrinsics, np.float64)))


def showing(source):
    return lambda v: replace(v, image=source)


def same_sample(one, other, sample):
    """Everything that can be read of a sample agrees."""
    a, b = (store.samples[sample] for store in (one, other))
    assert (a.view_names, a.coord_sha256, a.points) == (b.view_names, b.coord_sha256, b.points)
    for view in range(len(a.view_names)):
        x, y = (store.read(sample, views=[view]) for store in (one, other))
        for name in ("rows", "index"):
            np.testing.assert_array_equal(getattr(x.features, name), getattr(y.features, name))
        np.testing.assert_array_equal(x.patch, y.patch)


HUGE = np.eye(4) * [1e300, 1, 1, 1]
BAD_POSES = {
    "minus infinity": np.full((4, 4), -np.inf),
    "not a number": np.full((4, 4), np.nan),
    "no rotation": np.diag([2.0, 1, 1, 1]),
    "sheared": np.eye(4) + np.eye(4, k=1) * 0.5,
    "mirrored": np.diag([-1.0, 1, 1, 1]),
    "singular": np.zeros((4, 4)),
    "perspective": np.eye(4) + np.eye(4)[[3, 0, 1, 2]],
    "huge": HUGE,
}
BAD_FRAMES = {
    "missing": (showing(Fails(None, FileNotFoundError(2, "gone"))), "does not exist"),
    "refused": (showing(Fails(None, FrameError("the file is empty"))), "the file is empty"),
    "truncated": (showing(Gives(b"\xff\xd8\xff\xe0 nothing")), ""),
    "wrong size": (showing(Gives(np.zeros((20, 30, 3), np.uint8))), "20x30|30 x 20|20 x 30|30x20"),
    "no pixels": (showing(Gives(b"")), ""),
    "singular intrinsics": (seen_through(np.diag([0.0, 0, 1])), "focal length"),
    "infinite intrinsics": (seen_through(np.full((3, 3), np.inf)), "not finite"),
    "no depth": (lambda v: replace(v, depth=Fails(None, FileNotFoundError(2, "gone"))), "does not exist"),
    "flat depth": (lambda v: replace(v, depth=Gives(np.zeros(5, np.float32))), "depth map"),
    "known to be bad": (lambda v: replace(v, problem="no intrinsics\nin the file"), "no intrinsics in the file"),
}


@pytest.fixture(scope="module")
def without(tiny, tmp_path_factory):
    """Stores of rooms r0..r2 as they are without view 1 of r1."""

    def make(*settings):
        dataset = tiny.rooms(3)
        dataset.blocks["r1"]["r1"] = with_views(dataset.blocks["r1"]["r1"], v1=lambda v: None)
        path = tmp_path_factory.mktemp("without") / "store"
        tiny.extract(dataset, path, *settings).run()
        return open_store(path)

    return make


class TestFrames:
    @pytest.mark.parametrize("name", BAD_POSES)
    def test_bad_poses_are_skipped(self, tiny, tmp_path, name):
        dataset = tiny.rooms(1)
        dataset.blocks["r0"]["r0"] = with_views(dataset.blocks["r0"]["r0"], v1=posed(BAD_POSES[name]))
        report = tiny.extract(dataset, tmp_path / "store").run()
        assert (report.failures, report.images, report.blocks_done) == (0, 2, 1)
        (note,) = report.skipped
        assert (note.sample, note.view) == ("r0", "001")
        assert "pose" in note.reason
        assert open_store(tmp_path / "store").samples["r0"].view_names == ("000", "002")

    @pytest.mark.parametrize("name", BAD_FRAMES)
    def test_bad_frames_are_dropped_and_the_rest_stays(self, tiny, tmp_path, name, without):
        change, reason = BAD_FRAMES[name]
        settings = ("visibility.depth_margin=0.2",) if "depth" in name else ()
        dataset = tiny.rooms(3)
        dataset.blocks["r1"]["r1"] = with_views(dataset.blocks["r1"]["r1"], v1=change)
        report = tiny.extract(dataset, tmp_path / "store", *settings).run()
        assert (report.failures, report.images, report.blocks_done, report.skipped) == (1, 8, 3, ())
        (note,) = report.dropped
        assert (note.sample, note.view) == ("r1", "001")
        assert any(part in note.reason for part in reason.split("|"))
        assert "\n" not in note.reason
        store, good = open_store(tmp_path / "store"), without(*settings)
        assert store.digest == good.digest == report.digest
        same_sample(store, good, "r1")
        # again: nothing to do, and the failure is still told
        again = tiny.extract(dataset, tmp_path / "store", *settings).run()
        assert (again.blocks_skipped, again.images, again.failures) == (3, 0, 1)

    @pytest.mark.parametrize("value", [np.inf, np.nan, 65_520.0, -1e9])
    @pytest.mark.parametrize("dtype", ["f16", "int8"])
    def test_features_that_float16_cannot_hold(self, tiny, tmp_path, value, dtype, without):
        dataset = tiny.rooms(3)
        marked = np.full((tiny.height, tiny.width, 3), 255, np.uint8)
        dataset.blocks["r1"]["r1"] = with_views(dataset.blocks["r1"]["r1"], v1=showing(Gives(marked)))

        class Spoils(tiny.PatchSums):
            def __call__(self, images_B3hw):
                maps = super().__call__(images_B3hw)
                white_B = (images_B3hw == 255).flatten(1).all(1)
                rows_BPD = torch.where(white_B[:, None, None], torch.tensor(value), maps.rows)
                return PatchMaps(rows_BPD, maps.cls)

        report = tiny.extract(dataset, tmp_path / "store", f"store.dtype={dtype}", backbone=Spoils()).run()
        assert (report.failures, report.blocks_done) == (1, 3)
        (note,) = report.dropped
        assert (note.sample, note.view) == ("r1", "001")
        assert "not finite, or exceed 65,504" in note.reason
        assert report.digest == without(f"store.dtype={dtype}").digest

    def test_variants_of_a_bad_frame_are_told_once(self, tiny, tmp_path, without):
        settings = ("variants.flip=true", "variants.jitter=1")
        dataset = tiny.rooms(3)
        bad = showing(Gives(b"nothing"))
        dataset.blocks["r1"]["r1"] = with_views(dataset.blocks["r1"]["r1"], v1=bad)
        report = tiny.extract(dataset, tmp_path / "store", *settings).run()
        assert [(n.sample, n.view) for n in report.dropped] == [("r1", "001")]
        assert report.images == 8 * 4
        assert report.digest == without(*settings).digest

    def test_a_variant_alone_can_fail(self, tiny, tmp_path):
        class Spoils(tiny.PatchSums):
            def __call__(self, images_B3hw):
                maps = super().__call__(images_B3hw)
                dark_B = images_B3hw[:, 0, 0, 0] == 7  # the unflipped corner of view 1
                return PatchMaps(torch.where(dark_B[:, None, None], torch.tensor(np.inf), maps.rows), maps.cls)

        corner = tiny.image("r0", 1).copy()
        corner[:, :, 0] = np.where(corner[:, :, 0] == 7, 8, corner[:, :, 0])
        corner[0, -1, 0] = 7
        dataset = tiny.rooms(1)
        dataset.blocks["r0"]["r0"] = with_views(dataset.blocks["r0"]["r0"], v1=showing(Gives(corner)))
        for i in (0, 2):
            assert tiny.image("r0", i)[0, 0, 0] != 7 != tiny.image("r0", i)[0, -1, 0]
        report = tiny.extract(dataset, tmp_path / "store", "variants.flip=true", backbone=Spoils()).run()
        assert [n.view for n in report.dropped] == ["001"]
        store = open_store(tmp_path / "store")
        assert store.samples["r0"].view_names == ("000", "001", "002")
        with pytest.raises(ConfigError, match="variant 1 of view 001"):
            store.read("r0", variant=1)
        for seed in range(4):
            store.read("r0", variant="random", seed=seed)

    def test_all_frames_bad(self, tiny, tmp_path):
        dataset = tiny.rooms(2)
        bad = showing(Gives(b"nothing"))
        dataset.blocks["r1"]["r1"] = with_views(dataset.blocks["r1"]["r1"], v0=bad, v1=bad, v2=bad)
        report = tiny.extract(dataset, tmp_path / "store").run()
        assert (report.failures, report.blocks_done, report.images) == (3, 2, 3)
        read = open_store(tmp_path / "store").read("r1")
        assert (read.view == -1).all()
        assert (read.features.rows.shape, read.features.dense().any()) == ((0, 6), False)


class TestSamples:
    def test_an_empty_cloud_is_dropped(self, tiny, tmp_path):
        scenes = [tiny.room(f"s{i}", points=0 if i == 1 else 100) for i in range(3)]
        report = tiny.extract(tiny.Rooms({"b": scenes}), tmp_path / "store").run()
        (note,) = report.dropped
        assert (note.sample, note.view, report.blocks_done) == ("s1", None, 1)
        assert "empty" in note.reason
        store = open_store(tmp_path / "store")
        assert list(store.samples) == ["s0", "s2"]
        tiny.extract(tiny.Rooms({"b": scenes[::2]}), tmp_path / "other").run()
        assert open_store(tmp_path / "other").digest == store.digest

    @pytest.mark.parametrize("error", [SampleError("truncated\nfile"), FileNotFoundError(2, "No such file", "x.ply")])
    def test_an_unusable_sample_is_dropped(self, tiny, tmp_path, error):
        dataset = tiny.Rooms({"b": [tiny.room("s0"), tiny.room("s1")]})
        dataset.failures = {"s0": [error]}
        report = tiny.extract(dataset, tmp_path / "store").run()
        assert [(n.sample, n.view) for n in report.dropped] == [("s0", None)]
        assert list(open_store(tmp_path / "store").samples) == ["s1"]
        assert dataset.loaded == ["s0", "s1"]

    def test_other_attributes_than_the_sample_before(self, tiny, tmp_path):
        scenes = [tiny.room("s0"), tiny.room("s1"), tiny.room("s2")]
        scenes[1] = replace(scenes[1], points=replace(scenes[1].points, color=None))
        report = tiny.extract(tiny.Rooms({"b": scenes}), tmp_path / "store").run()
        assert [(n.sample, n.view) for n in report.dropped] == [("s1", None)]
        tiny.extract(tiny.Rooms({"b": scenes[::2]}), tmp_path / "other").run()
        assert open_store(tmp_path / "other").digest == open_store(tmp_path / "store").digest

    def test_a_block_that_keeps_failing_has_one_record(self, tiny, tmp_path):
        for _ in range(3):
            assert list(tiny.extract(tiny.rooms(1, points=0), tmp_path / "store").run().failed) == ["r0"]
        assert len(list((tmp_path / "store/failures").iterdir())) == 1
        assert list(StoreWriter(tmp_path / "store").failures()) == ["r0"]

    def test_a_block_without_usable_samples_fails_and_is_retried(self, tiny, tmp_path):
        dataset = tiny.rooms(3)
        good = dataset.blocks["r1"]["r1"]
        dataset.blocks["r1"]["r1"] = replace(good, points=tiny.room("r1", points=0).points)
        report = tiny.extract(dataset, tmp_path / "store").run()
        assert (report.blocks_done, report.blocks_failed, report.dropped) == (2, 1, ())
        assert "no usable sample" in report.failed["r1"]
        assert "empty" in report.failed["r1"]
        assert {p.name.split(".")[0] for p in (tmp_path / "store/receipts").iterdir()} == {"r0", "r2"}
        assert len(list((tmp_path / "store/failures").iterdir())) == 1
        assert len(list((tmp_path / "store/blocks").iterdir())) == 2
        assert [b.id for b in open_store(tmp_path / "store").manifest.planned] == ["r1"]

        dataset.blocks["r1"]["r1"] = good
        report = tiny.extract(dataset, tmp_path / "store").run()
        assert (report.blocks_done, report.blocks_skipped, report.failures) == (1, 2, 0)
        assert not list((tmp_path / "store/failures").iterdir())
        tiny.extract(tiny.rooms(3), tmp_path / "other").run()
        assert open_store(tmp_path / "other").digest == report.digest


class TestMedium:
    """An OSError is retried at once, then at the end of the run, and then by the next run."""

    def broken(self):
        return OSError(errno.EIO, "Input/output error")

    @pytest.mark.parametrize("failures", range(6))
    def test_images(self, tiny, tmp_path, failures):
        dataset = tiny.rooms(3)
        scene = dataset.blocks["r1"]["r1"]
        source = Fails(scene.views[1].image, *(self.broken() for _ in range(failures)))
        dataset.blocks["r1"]["r1"] = with_views(scene, v1=showing(source))
        self.check(tiny, tmp_path, dataset, failures)
        assert source.reads == failures + 1

    @pytest.mark.parametrize("failures", range(6))
    def test_points(self, tiny, tmp_path, failures):
        dataset = tiny.rooms(3)
        dataset.failures = {"r1": [self.broken() for _ in range(failures)]}
        self.check(tiny, tmp_path, dataset, failures)
        assert dataset.loaded.count("r1") == failures + 1

    def check(self, tiny, tmp_path, dataset, failures):
        path = tmp_path / "store"
        report = tiny.extract(dataset, path).run()
        if failures >= 4:
            assert (report.blocks_done, report.failures) == (2, 1)
            assert "Input/output error" in report.failed["r1"]
            assert sorted(open_store(path).samples) == ["r0", "r2"]
            report = tiny.extract(dataset, path).run()
            assert (report.blocks_done, report.blocks_skipped, report.failures) == (1, 2, 0)
        else:
            # what a block lost is not counted twice
            assert (report.blocks_done, report.failures, report.images) == (3, 0, 9)
        tiny.extract(tiny.rooms(3), tmp_path / "other").run()
        assert report.digest == open_store(tmp_path / "other").digest
        assert len(list((path / "blocks").iterdir())) == 3
        assert not list((path / "failures").iterdir())


class TestRun:
    """What is no single frame's fault ends the run at once, without a deadlock, and the next one goes on."""

    def test_a_backbone_that_breaks(self, tiny, tmp_path):
        class Breaks(tiny.PatchSums):
            def __call__(self, images_B3hw):
                if len(self.batches) == 3:
                    raise BackboneError("out of memory")
                return super().__call__(images_B3hw)

        dataset = tiny.rooms(8, views=4)
        with pytest.raises(BackboneError, match="out of memory"):
            tiny.extract(dataset, tmp_path / "store", backbone=Breaks()).run()
        self.goes_on(tiny, dataset, tmp_path)

    def test_an_interrupt_in_the_main_thread(self, tiny, tmp_path):
        class Interrupts(tiny.PatchSums):
            def __call__(self, images_B3hw):
                if len(self.batches) == 4:
                    raise KeyboardInterrupt
                return super().__call__(images_B3hw)

        dataset = tiny.rooms(8, views=4)
        with pytest.raises(KeyboardInterrupt):
            tiny.extract(dataset, tmp_path / "store", backbone=Interrupts()).run()
        self.goes_on(tiny, dataset, tmp_path)

    def test_a_reader_with_a_bug(self, tiny, tmp_path):
        dataset = tiny.rooms(8, views=4)
        dataset.failures = {"r3": [ZeroDivisionError("a bug")]}
        with pytest.raises(ZeroDivisionError):
            tiny.extract(dataset, tmp_path / "store").run()
        self.goes_on(tiny, dataset, tmp_path)

    def test_an_image_source_with_a_bug(self, tiny, tmp_path):
        dataset = tiny.rooms(8, views=4)
        source = Fails(tiny.Pixels(tiny.image("r3", 2)), ZeroDivisionError("a bug"))
        dataset.blocks["r3"]["r3"] = with_views(dataset.blocks["r3"]["r3"], v2=showing(source))
        with pytest.raises(ZeroDivisionError):
            tiny.extract(dataset, tmp_path / "store").run()
        self.goes_on(tiny, dataset, tmp_path)

    def goes_on(self, tiny, dataset, tmp_path):
        blocks = {p.name for p in (tmp_path / "store/blocks").iterdir()}
        receipts = [Receipt.model_validate_json(p.read_bytes()) for p in (tmp_path / "store/receipts").glob("*.json")]
        assert blocks == {r.folder.removeprefix("blocks/") for r in receipts}
        assert all(r.coverage.views == 4 for r in receipts)
        report = tiny.extract(dataset, tmp_path / "store").run()
        assert report.blocks_done + report.blocks_skipped == 8
        assert report.blocks_skipped == len(receipts)
        tiny.extract(tiny.rooms(8, views=4), tmp_path / "other").run()
        assert report.digest == open_store(tmp_path / "other").digest

    def test_a_size_that_fits_no_patch(self, tiny, tmp_path):
        with pytest.raises(ConfigError, match="not a whole number of patches"):
            tiny.extract(tiny.rooms(1), tmp_path / "store", "images.size=[21,28]").run()
        assert not (tmp_path / "store").exists()

    def test_shards_are_checked(self, tiny, tmp_path):
        for shard in ((2, 2), (-1, 2), (0, 0)):
            with pytest.raises(ConfigError, match="0 <= i < n"):
                tiny.extract(tiny.rooms(1), tmp_path / "store", shard=shard)


class TestFiles:
    """The same from files, through a reader."""

    @pytest.fixture
    def capture(self, tiny, tmp_path):
        return tiny.write_capture(tmp_path / "capture", scenes=3, views=3)

    def run(self, tiny, source, store):
        return tiny.extract(open_dataset(source), store, "images.size=[28,42]", backbone=tiny.PatchSums(14)).run()

    def test_broken_files(self, tiny, tmp_path, capture):
        images = capture / "scene0/images"
        (images / "0.png").unlink()
        (images / "1.png").write_bytes((images / "1.png").read_bytes()[:200])
        document = capture / "scene1/transforms.json"
        text = document.read_text()
        start = text.index("[[")
        minus = "[[-Infinity, -Infinity, -Infinity, -Infinity], " * 1
        end = text.index("]", start)
        document.write_text(text[:start] + minus.rstrip(", ").rstrip("]") + text[end:])
        (capture / "scene2/points.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
        report = self.run(tiny, capture, tmp_path / "store")
        assert sorted((n.sample, n.view) for n in report.dropped) == [
            ("scene0", "images/0.png"),
            ("scene0", "images/1.png"),
        ]
        assert [(n.sample, n.view) for n in report.skipped] == [("scene1", "images/0.png")]
        assert list(report.failed) == ["scene2"]
        assert (report.blocks_done, report.failures) == (2, 3)
        store = open_store(tmp_path / "store")
        assert store.samples["scene0"].view_names == ("images/2.png",)

    def test_names_that_no_store_can_hold(self, tiny, tmp_path, capture):
        document = capture / "scene0/transforms.json"
        long = "x" * 600
        document.write_text(document.read_text().replace("images/0.png", long).replace("images/1.png", ""))
        report = self.run(tiny, capture, tmp_path / "store")
        assert report.blocks_done == 3
        assert len(report.dropped) == 2
