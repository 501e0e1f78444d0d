# SPDX-License-Identifier: Apache-2.0
"""One flipped byte anywhere is found by verification, and by every read that touches it."""

import json
import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from store_builder import IDENTITY, NoSync, build_store, random_block, tree_digest, write_block

from ditr_cache.errors import CorruptStoreError, MetadataError, StoreError, StoreNotFoundError
from ditr_cache.store import shard
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.reader import open_store
from ditr_cache.store.verify import VerifyReport, verify_store
from ditr_cache.store.writer import StoreWriter


@pytest.fixture(scope="module")
def pristine(module_path) -> Path:
    """A store with everything in it: two blocks, one of them done twice, a failure, an older manifest."""
    path = module_path / "s"
    blocks = [
        random_block(1, "a", samples=2, points=(20, 60), variants=(0, 1), cls=True),
        random_block(2, "b", points=30, cls=True),
    ]
    settings = BlockSettings(8, "int8", "zstd", class_token=True)
    writer = build_store(path, blocks, settings)
    assert writer.commit(write_block(writer, blocks[1], settings, generation=1))
    writer.fail("c", "the camera was\nstolen")
    writer.finalize()
    return path


@pytest.mark.parametrize("level", [1, 9])
def test_how_hard_a_writer_compressed_is_its_own_business(tmp_path, monkeypatch, level):
    build_store(tmp_path / "usual", [random_block(1, "a")])
    monkeypatch.setattr(shard, "BLOSC_LEVEL", level)
    build_store(tmp_path / "other", [random_block(1, "a")])
    (written,) = (tmp_path / "other").glob("blocks/*/hit_row/zarr.json")
    assert f'"clevel": {level}' in written.read_text()
    assert problems(tmp_path / "other") == []
    usual, other = (open_store(tmp_path / name) for name in ("usual", "other"))
    assert usual.digest == other.digest
    written.write_text(written.read_text().replace(f'"clevel": {level}', '"clevel": 11'))
    assert any("sha256" in p or "array" in p for p in problems(tmp_path / "other"))


def problems(path: Path, **options) -> list[str]:
    return [f"{p.path}: {p.what}" for p in verify_store(path, **options).problems]


def flip(path: Path, offset: int, with_: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ with_]))


def read_everything(path: Path) -> list[bytes]:
    """Everything that reads of all samples and views give, as bytes."""
    out = []
    with open_store(path) as store:
        for sample in store.samples:
            for variant in store.variants(sample):
                got = store.read(sample, variant=variant, rule="last")
                arrays = [got.features.rows, got.features.index, got.features.affine, got.view, got.patch]
                points = got.points
                arrays += [points.coord, points.origin, points.color, points.normal, points.strength, points.instance]
                out += [a.tobytes() for a in [*arrays, *points.segments.values()]]
    return out


def test_a_sound_store_has_no_problems(pristine):
    seen = []
    report = verify_store(pristine, progress=seen.append)
    assert (report.problems, report.notes) == ((), ())
    assert report.ok
    assert report.blocks == 2
    files = [p for p in pristine.rglob("*") if p.is_file() and p.name != ".lock"]
    assert report.objects == len(files)
    assert report.bytes == sum(seen) == sum(p.stat().st_size for p in files)


def test_a_shallow_look_reads_no_data(pristine):
    report = verify_store(pristine, deep=False)
    assert report.problems == ()
    assert report.bytes < 200_000 < verify_store(pristine).bytes


def test_100_of_100_random_flips_are_found(pristine):
    """Half of them in objects chosen alike, half in proportion to size."""
    rng = random.Random(0)
    files = sorted(p for p in pristine.rglob("*") if p.is_file() and p.name != ".lock")
    sizes = [p.stat().st_size for p in files]
    undisturbed, expected = tree_digest(pristine), read_everything(pristine)
    replaced = f"blocks/b-{json.loads((pristine / 'receipts' / 'b.0.json').read_bytes())['uuid']}"
    for i in range(100):
        path = rng.choice(files) if i % 2 else rng.choices(files, sizes)[0]
        offset, with_ = rng.randrange(path.stat().st_size), rng.randrange(1, 256)
        flip(path, offset, with_)
        found = problems(pristine)
        assert found, (path, offset, with_)
        name = str(path.relative_to(pristine))
        assert any(line.startswith((name, "LATEST", "manifest")) for line in found), (name, found)
        check_reads_after_flip(pristine, name, replaced, expected)
        flip(path, offset, with_)
    assert tree_digest(pristine) == undisturbed
    assert problems(pristine) == []


def check_reads_after_flip(store: Path, name: str, replaced: str, expected: list[bytes]) -> None:
    read_by_reads = (name.endswith("/0") and not name.startswith(replaced)) or name == "LATEST"
    unread = ("intrinsics", "world_to_camera", "distortion", "image_size", "grid", "cls", "view_sha256")
    if any(f"/{array}/" in name for array in unread):
        read_by_reads = False
    try:
        got = read_everything(store)
    except (CorruptStoreError, MetadataError, StoreNotFoundError):
        return
    assert got == expected, name
    current = (store / "LATEST").read_text().strip()
    assert not read_by_reads, name
    assert name != current, name


@pytest.mark.slow
def test_flips_spread_over_every_object_are_found(pristine):
    for path in sorted(p for p in pristine.rglob("*") if p.is_file() and p.name != ".lock"):
        size = path.stat().st_size
        stride = 97 if size < 30_000 else 9973
        for offset in range(0, size, stride):
            flip(path, offset, 0x20)
            assert problems(pristine), (path, offset)
            flip(path, offset, 0x20)


@pytest.mark.parametrize("with_", [0x01, 0x20, 0x2A, 0x07])
def test_the_newline_of_latest_counts(pristine, with_):
    latest = pristine / "LATEST"
    flip(latest, latest.stat().st_size - 1, with_)
    try:
        assert problems(pristine)
        with pytest.raises(MetadataError):
            open_store(pristine)
    finally:
        flip(latest, latest.stat().st_size - 1, with_)


def array_paths(store: Path) -> list[Path]:
    return sorted(p for p in (store / "blocks").glob("a-*/*") if p.is_dir())


def test_a_missing_object_is_named(pristine):
    undisturbed = tree_digest(pristine)
    for name in undisturbed:
        if "blocks/b-" in name:
            continue
        path = pristine / name
        data = path.read_bytes()
        path.unlink()
        shallow = problems(pristine, deep=False)
        # arrays fare alike
        found = problems(pristine) if name.count("/") < 3 or "features" in name or "origin" in name else shallow
        path.write_bytes(data)
        if name.startswith(("failures/", "manifest-")) and name != (pristine / "LATEST").read_text().strip():
            # a record for people, and a version that nothing names any more
            assert found == []
            continue
        assert found, name
        assert shallow, name
        assert any(name in line or line.startswith("LATEST") for line in found), (name, found)
    assert tree_digest(pristine) == undisturbed


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_size_is_named_without_reading(pristine, change):
    path = next(pristine.glob("blocks/a-*/features/c/0/0"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] if change < 0 else data + b"\0")
    try:
        for deep in (False, True):
            assert any("the receipt says" in line for line in problems(pristine, deep=deep))
        with pytest.raises(CorruptStoreError, match="the manifest says"):
            read_everything(pristine)
    finally:
        path.write_bytes(data)


def rewritten(folder: Path, monkeypatch, **changes) -> Path:
    """A store whose writer had these values in its tables: all checksums are right, the content is not."""
    from ditr_cache.store.block import BlockWriter

    original = BlockWriter._write_small

    def change_and_write(self):
        for name, change in changes.items():
            self._small[name] = change(self._small[name])
        original(self)

    monkeypatch.setattr(BlockWriter, "_write_small", change_and_write)
    build_store(
        folder / "s", [random_block(1, samples=2, points=40, cls=True)], BlockSettings(8, "int8", class_token=True)
    )
    return folder / "s"


def replace(position: int, value):
    def change(rows):
        rows = [np.array(row) for row in rows]
        rows[position] = np.broadcast_to(value, rows[position].shape)
        return rows

    return change


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("view_rows", replace(1, (5, 3)), "ascending ranges"),
        ("view_rows", replace(0, (-(2**63), 2**63 - 1)), "ascending ranges"),
        ("view_rows", replace(5, (0, 2**40)), "ascending ranges"),
        ("view_hits", replace(0, (1, 2)), "rows that belong to no view are not zero"),
        ("view_hits", replace(0, (2, 1)), "ascending ranges"),
        ("view_sample", replace(0, 7), "belongs to no sample"),
        ("view_sample", replace(5, 0), "order"),
        ("view_index", replace(0, 3), "belongs to no sample"),
        ("view_index", replace(0, 1), "order"),
        ("view_variant", replace(1, -1), "belongs to no sample"),
        ("view_variant", replace(2, 1), "base view is missing"),
        ("grid", replace(0, (1, 1)), "outside its grid"),
        ("grid", replace(0, (0, 5)), "empty or too large"),
        ("grid", replace(0, (2**31 - 1, 2**31 - 1)), "empty or too large"),
        ("image_size", replace(3, (0, 4)), "no pixels"),
        ("view_sha256", replace(2, 0), "other content"),
        ("affine", replace(2, np.inf), "not finite"),
        ("cls", replace(2, np.nan), "not finite"),
        ("intrinsics", replace(0, np.nan), "not finite"),
        ("origin", replace(0, 5.0), "other coordinates"),
    ],
)
def test_tables_that_make_no_sense_are_found(tmp_path, monkeypatch, table, change, message):
    path = rewritten(tmp_path, monkeypatch, **{table: change})
    found = problems(path)
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("hit_step", lambda x: np.where(np.arange(len(x)) == 1, 0, x), "hits outside its sample"),
        ("hit_step", lambda x: x + 1000, "hits outside its sample"),
        ("hit_step", lambda x: np.where(np.arange(len(x)) == 0, -1, x), "hits outside its sample"),
        ("hit_row", lambda x: x + 900, "hits outside its rows"),
        ("row_patch", lambda x: x[::-1].copy(), "ascending order"),
        ("row_patch", lambda x: x + 500, "outside its grid"),
        ("rows", lambda x: np.where(np.arange(len(x))[:, None] == 2, np.float16(np.nan), x), "is not finite"),
    ],
)
def test_rows_and_hits_that_make_no_sense_are_found(tmp_path, field, change, message):
    import hashlib
    from dataclasses import replace as with_

    block = random_block(4, points=50)
    settings = BlockSettings(8, "float16")
    writer = StoreWriter.create(tmp_path / "s", IDENTITY, NoSync())
    out = writer.start_block(block.id, settings)
    sample = block.samples[0]
    out.add_sample(sample.id, sample.split, sample.points)
    for i, view in enumerate(sample.views):
        encoded = view.encode(settings)
        if i == 1:
            value = change(getattr(encoded, field)).astype(getattr(encoded, field).dtype)
            encoded = with_(encoded, **{field: value})
            digest = hashlib.sha256()
            for array in (encoded.rows, encoded.row_patch, encoded.hit_step, encoded.hit_row):
                digest.update(array.tobytes())
            encoded = with_(encoded, sha256=digest.digest())
        out.add_view(encoded)
    writer.commit(out.finish(0, {}, {}))
    writer.finalize()
    found = problems(tmp_path / "s")
    assert any(message in line for line in found), found
    if field.startswith("hit"):
        with pytest.raises(MetadataError):
            open_store(tmp_path / "s").read(sample.id)


def test_what_is_not_finalised_is_a_problem_with_its_cure(tmp_path):
    blocks = [random_block(1, "a"), random_block(2, "b")]
    writer = build_store(tmp_path / "s", blocks[:1], finalize=False)
    assert any("ditr-cache finalize" in line for line in problems(tmp_path / "s"))
    writer.finalize()
    assert problems(tmp_path / "s") == []
    writer.commit(write_block(writer, blocks[1], BlockSettings(8, "float16")))
    assert any("1 blocks are not in it" in line for line in problems(tmp_path / "s"))
    writer.finalize()
    assert problems(tmp_path / "s") == []


def test_a_damaged_manifest_is_written_again_by_finalize(tmp_path):
    writer = build_store(tmp_path / "s", [random_block(1)])
    path = next((tmp_path / "s").glob("manifest-*"))
    flip(path, 100, 1)
    assert problems(tmp_path / "s")
    with pytest.raises(CorruptStoreError, match="ditr-cache finalize"):
        open_store(tmp_path / "s")
    writer.finalize()
    assert problems(tmp_path / "s") == []


def test_blocks_without_a_receipt_and_stray_files_are_notes(tmp_path):
    writer = build_store(tmp_path / "s", [random_block(1, "a")])
    write_block(writer, random_block(2, "b"), BlockSettings(8, "float16"))
    stray = next((tmp_path / "s" / "blocks").glob("a-*/features")) / ".DS_Store"
    stray.write_bytes(b"?")
    report = verify_store(tmp_path / "s")
    assert report.problems == ()
    assert sorted(n.path.split("/")[1][:2] for n in report.notes) == ["a-", "b-"]


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("what", ["LATEST", "features", "features/c/0/0", "receipts", "block"])
def test_links_and_pipes_are_refused(tmp_path, kind, what):
    """A link to the very same bytes would read fine, and be gone once the store is copied."""
    build_store(tmp_path / "s", [random_block(1, "a")])
    root = tmp_path / "s"
    block = next(root.glob("blocks/a-*"))
    path = {"LATEST": root / "LATEST", "receipts": next(root.glob("receipts/*")), "block": block}.get(
        what, block / what
    )
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    if kind == "link":
        path.symlink_to(elsewhere)
    else:
        os.mkfifo(path)
    report = verify_store(root)
    assert any("stores hold plain files only" in p.what for p in report.problems)
    if what != "receipts":
        with pytest.raises(StoreError, match=r"symbolic link|plain file"):
            open_store(root).read("a/s0")


def test_no_store_is_the_only_error(tmp_path):
    with pytest.raises(StoreNotFoundError):
        verify_store(tmp_path)
    with pytest.raises(StoreNotFoundError):
        verify_store(tmp_path / "absent")


def test_garbage_in_every_document_is_listed_and_never_raised(tmp_path):
    build_store(tmp_path / "s", [random_block(1, "a")])
    documents = [p for p in (tmp_path / "s").rglob("*") if p.is_file() and p.name not in (".lock", "0")]
    for path in documents:
        data = path.read_bytes()
        for garbage in (b"", b"null", b"[" * 100_000, b'{"a": NaN}', b"\xff\xfe", b'"\\ud800"', data[: len(data) // 2]):
            path.write_bytes(garbage)
            report = verify_store(tmp_path / "s")
            assert isinstance(report, VerifyReport)
            assert report.problems, (path, garbage[:10])
        path.write_bytes(data)


def test_memory_is_bounded_by_a_chunk_and_a_view(tmp_path):
    def peak(views: int) -> int:
        path = tmp_path / str(views)
        block = random_block(1, "a", points=4_000, views=views, dim=64)
        build_store(path, [block], BlockSettings(64, "float16"))
        verify_store(path)
        tracemalloc.start()
        assert verify_store(path).problems == ()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(40) < 1.3 * peak(4)
