# SPDX-License-Identifier: Apache-2.0
"""Extraction straight into a bucket."""

import tempfile

import pytest
from servers import Fault

from ditr_cache.errors import RemoteError
from ditr_cache.store.reader import open_store
from ditr_cache.store.remote import retry
from ditr_cache.store.verify import verify_store


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where blocks are written first; and requests are repeated without waiting."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(retry, "_FIRST_PAUSE_S", 0.0)
    return tmp_path


@pytest.fixture
def digest(tiny, tmp_path_factory):
    """Of the same in a folder."""
    folder = tmp_path_factory.mktemp("here") / "store"
    tiny.extract(tiny.rooms(2), folder).run()
    return open_store(folder).digest


@pytest.mark.parametrize("server", ["s3", "bucket"])
def test_a_bucket_gets_what_a_folder_gets(request, server, tiny, digest, scratch):
    url = request.getfixturevalue(server).url()
    report = tiny.extract(tiny.rooms(2), url).run()
    assert (report.blocks_done, report.digest) == (2, digest)
    assert verify_store(url).ok
    again = tiny.extract(tiny.rooms(2), url).run()
    assert (again.blocks_done, again.blocks_skipped) == (0, 2)
    assert list(scratch.iterdir()) == []


def test_a_block_whose_upload_fails_is_tried_again(tiny, bucket, digest, scratch):
    bucket.faults(Fault("status", "PUT", "blocks/r1-.*/features/c", times=retry.ATTEMPTS))
    report = tiny.extract(tiny.rooms(2), bucket.url()).run()
    assert (report.failed, report.digest) == ({}, digest)
    assert verify_store(bucket.url()).problems == ()
    assert list(scratch.iterdir()) == []


def test_an_upload_that_never_succeeds_fails_its_block_alone(tiny, bucket, scratch):
    bucket.faults(Fault("status", "PUT", "blocks/r1-.*/features/c", times=-1))
    report = tiny.extract(tiny.rooms(2), bucket.url()).run()
    assert list(report.failed) == ["r1"]
    assert "does not answer" in report.failed["r1"]
    assert list(open_store(bucket.url()).manifest.blocks) == ["r0"]
    assert list(scratch.iterdir()) == []


def test_a_run_that_loses_its_server_goes_on_later(tiny, bucket, digest, scratch):
    bucket.faults(Fault("status", skip=100, times=-1, status=403))
    with pytest.raises(RemoteError, match="refuses"):
        tiny.extract(tiny.rooms(2), bucket.url()).run()
    assert list(scratch.iterdir()) == []
    bucket.faults()
    assert tiny.extract(tiny.rooms(2), bucket.url()).run().digest == digest
    assert verify_store(bucket.url()).problems == ()
