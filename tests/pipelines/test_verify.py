# SPDX-License-Identifier: Apache-2.0
import pytest

from ditr_cache.errors import StoreNotFoundError
from ditr_cache.pipelines.verify import Verify


class Recorder:
    """A listener that remembers."""

    def __init__(self):
        self.total, self.done, self.ended = None, 0, 0

    def begin(self, images):
        self.total = images

    def advance(self, images):
        self.done += images

    def note(self, text):
        raise AssertionError(text)

    def end(self):
        self.ended += 1


def test_progress_counts_bytes(tiny, tmp_path):
    tiny.extract(tiny.rooms(2), tmp_path).run()
    listener = Recorder()
    report = Verify(tmp_path, progress=listener).run()
    assert report.ok
    assert listener.done == report.bytes >= listener.total > 0
    assert listener.ended == 1


def test_damage_is_reported_even_to_the_manifest(tiny, tmp_path):
    tiny.extract(tiny.rooms(1), tmp_path).run()
    (tmp_path / "LATEST").write_text("rubbish")
    listener = Recorder()
    assert not Verify(tmp_path, progress=listener).run().ok
    assert listener.total == 0


def test_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError):
        Verify(tmp_path).run()
