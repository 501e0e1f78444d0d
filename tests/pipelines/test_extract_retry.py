# SPDX-License-Identifier: Apache-2.0
"""What failed, or has become other data, is done again when it is asked for, and named until then."""

from dataclasses import replace

import numpy as np
import pytest

from ditr_cache.errors import FrameError, SampleError
from ditr_cache.pipelines.progress import Silent
from ditr_cache.store.reader import open_store
from ditr_cache.store.verify import verify_store
from ditr_cache.types import SamplePlan


class Unreadable:
    """An image that is not there."""

    def read(self):
        raise FrameError("the file is missing", where="000.png")


def without_image(scene):
    return replace(scene, views=(replace(scene.views[0], image=Unreadable()), *scene.views[1:]))


@pytest.fixture
def undisturbed(tiny, tmp_path):
    return tiny.extract(tiny.rooms(3), tmp_path / "whole").run().digest


def test_a_frame_that_was_mended(tiny, undisturbed, tmp_path):
    store, bad = tmp_path / "store", tiny.rooms(3)
    bad.blocks["r1"]["r1"] = without_image(bad.blocks["r1"]["r1"])
    assert [note.view for note in tiny.extract(bad, store).run().dropped] == ["000"]
    again = tiny.extract(tiny.rooms(3), store).run()
    assert (again.blocks_done, len(again.dropped), again.changed) == (0, 1, ())
    mended = tiny.extract(tiny.rooms(3), store, retry=True).run()
    assert (mended.blocks_done, mended.failures) == (1, 0)
    assert mended.digest == undisturbed
    assert tiny.extract(tiny.rooms(3), store, retry=True).run().blocks_done == 0
    assert verify_store(store).problems == ()


def test_a_sample_that_was_mended(tiny, tmp_path):
    def pair():
        return tiny.Rooms({"b": [tiny.room("s0"), tiny.room("s1")]})

    store, bad = tmp_path / "store", pair()
    bad.failures["s1"] = [SampleError("truncated", where="s1")]
    report = tiny.extract(bad, store).run()
    assert ([note.sample for note in report.dropped], report.changed) == (["s1"], ())
    mended = tiny.extract(pair(), store, retry=True).run()
    assert (mended.blocks_done, mended.failures) == (1, 0)
    assert sorted(open_store(store).samples) == ["s0", "s1"]


class Listener(Silent):
    """Notes of a run."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("what", ["sample", "view", "split", "fewer"])
def test_data_that_grew_is_named_until_it_is_done_again(tiny, tmp_path, what):
    def data(*, late):
        rooms = tiny.Rooms({"a": [tiny.room("a")], "b": [tiny.room("s0")]})
        if what == "sample" and late:
            rooms.blocks["b"]["s1"] = tiny.room("s1")
        if what == "view" and late:
            rooms.blocks["b"]["s0"] = tiny.room("s0", views=4)
        if what == "fewer" and late:
            rooms.blocks["b"]["s0"] = tiny.room("s0", views=2)
        if what == "split" and late:
            plan = rooms.plan()
            samples = (SamplePlan("s0", "val", plan[1].samples[0].views),)
            rooms.plan = lambda: (plan[0], replace(plan[1], samples=samples))
        return rooms

    store = tmp_path / "store"
    assert tiny.extract(data(late=False), store).run().changed == ()
    late = tiny.extract(data(late=True), store).run()
    assert (late.blocks_done, late.changed, late.failures) == (0, ("b",), 1)
    mended = tiny.extract(data(late=True), store, retry=True).run()
    assert (mended.blocks_done, mended.changed, mended.failures) == (1, (), 0)
    assert mended.digest == tiny.extract(data(late=True), tmp_path / "whole").run().digest


def test_frames_without_a_valid_pose_are_no_change(tiny, tmp_path):
    def data():
        rooms = tiny.rooms(2)
        scene = rooms.blocks["r0"]["r0"]
        camera = replace(scene.views[1].camera, world_to_camera=np.full((4, 4), -np.inf))
        views = (scene.views[0], replace(scene.views[1], camera=camera), *scene.views[2:])
        rooms.blocks["r0"]["r0"] = replace(scene, views=views)
        return rooms

    for retry in (False, True):
        report = tiny.extract(data(), tmp_path / "store", "frames.stride=1", retry=retry).run()
        assert (len(report.skipped), report.changed, report.failures) == (1, (), 0)
    assert report.blocks_done == 0


def test_a_depth_test_that_views_do_not_get_is_said_once(tiny, tmp_path):
    listener = Listener()
    tiny.extract(tiny.rooms(3), tmp_path / "store", "visibility.depth_margin=0.1", progress=listener).run()
    (note,) = listener.notes
    assert note.startswith("r0: 3 of 3 views have no depth map")
    for number, settings in enumerate(("visibility.depth_margin=null", "visibility.zbuffer=true")):
        tiny.extract(tiny.rooms(3), tmp_path / str(number), settings, progress=listener).run()
    assert len(listener.notes) == 1
