# SPDX-License-Identifier: Apache-2.0
import pytest

from ditr_cache.errors import StoreNotFoundError
from ditr_cache.pipelines.maintain import CollectGarbage, Finalize
from ditr_cache.store.reader import open_store


def test_finalize_makes_blocks_visible(tiny, tmp_path):
    tiny.extract(tiny.rooms(2), tmp_path, shard=(0, 2)).run()
    digest = open_store(tmp_path).digest
    (tmp_path / "LATEST").unlink()
    report = Finalize(tmp_path).run()
    assert report.to_dict() == {"blocks": 1, "missing": 1, "digest": digest}
    assert open_store(tmp_path).digest == digest


def test_garbage_is_what_no_receipt_names(tiny, tmp_path):
    tiny.extract(tiny.rooms(1), tmp_path).run()
    kept = [p.name for p in (tmp_path / "blocks").iterdir()]
    orphan = tmp_path / "blocks" / f"r7-{'0' * 32}"
    orphan.mkdir()
    assert CollectGarbage(tmp_path).run().removed == ()
    assert CollectGarbage(tmp_path, now=True).run().removed == (f"blocks/{orphan.name}",)
    assert [p.name for p in (tmp_path / "blocks").iterdir()] == kept


@pytest.mark.parametrize("pipeline", [Finalize, CollectGarbage])
def test_no_store(pipeline, tmp_path):
    with pytest.raises(StoreNotFoundError):
        pipeline(tmp_path)
