# SPDX-License-Identifier: Apache-2.0
"""Ranges of rows, however they lie to the chunks, are what was written; damage in them is found."""

import dataclasses
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.errors import CorruptStoreError, MetadataError
from ditr_cache.store import layout, local
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.local import LocalStorage
from ditr_cache.store.objects import ArrayReader
from ditr_cache.store.shard import ArrayWriter

ROWS, CHUNK = 41, 8
ARRAYS = {
    "features": ("float16", (3,), "none"),
    "features zstd": ("float16", (3,), "zstd"),
    "row_patch": ("uint16", (), "none"),  # narrower than a checksum
    "hit_step": ("int32", (), "blosc"),
}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("arrays"), {}
    for title, (dtype, tail, codec) in ARRAYS.items():
        name = title.split()[0]
        spec = dataclasses.replace(layout.ARRAYS[name], chunk_rows=CHUNK)
        with patch.dict(layout.ARRAYS, {name: spec}):
            writer = ArrayWriter(root / title, name, dtype, tail, codec, Filesystem())
            values = np.random.default_rng(0).integers(0, 9, (ROWS, *tail)).astype(dtype)
            writer.append(values)
            made[title] = root, name, writer.close(), values
    return made


def open_reader(arrays, title):
    root, name, entry, values = arrays[title]
    return ArrayReader(LocalStorage(root), title, name, entry), values


RANGES = st.lists(st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)).map(sorted).map(tuple), max_size=5)


@pytest.mark.parametrize("title", ARRAYS)
@pytest.mark.parametrize("most_buffers", [1024, 2])
@settings(max_examples=40, deadline=None)
@given(ranges=RANGES, check=st.booleans())
def test_ranges_are_what_was_written(arrays, title, most_buffers, ranges, check):
    reader, values = open_reader(arrays, title)
    expected = [values[start:stop] for start, stop in ranges]
    with patch.object(local, "_IOV_MAX", most_buffers):
        got = reader.read_ranges(ranges, check=check)
        np.testing.assert_array_equal(got, np.concatenate([values[:0], *expected]))
        if reader.entry.codec != "none":
            for one, other in zip(reader.decode_ranges(ranges), expected, strict=True):
                np.testing.assert_array_equal(one, other)
    reader.close()


@pytest.mark.parametrize("title", ARRAYS)
@pytest.mark.parametrize("bad", [(-1, 2), (3, 2), (0, ROWS + 1)])
def test_rows_that_do_not_exist_are_refused(arrays, title, bad):
    reader, _ = open_reader(arrays, title)
    with pytest.raises(MetadataError):
        reader.read_ranges([(0, 1), bad])
    if reader.entry.codec != "none":
        with pytest.raises(MetadataError):
            list(reader.decode_ranges([bad]))
    reader.close()


@pytest.mark.parametrize("title", ARRAYS)
def test_any_flipped_byte_of_a_chunk_is_found_by_reads_that_touch_it(arrays, title):
    root, _, entry, values = arrays[title]
    path = root / title / layout.data_object(entry.shape)
    intact = path.read_bytes()
    reader, _ = open_reader(arrays, title)
    index = reader.index.tolist()
    try:
        for at in range(0, index[-1][0] + index[-1][1], 3):
            damaged = bytearray(intact)
            damaged[at] ^= 1
            path.write_bytes(damaged)
            chunk = next(i for i, (offset, size) in enumerate(index) if offset <= at < offset + size)
            start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, ROWS)
            for ranges in ([(0, ROWS)], [(start, stop)], [(stop - 1, stop)], [(0, 1), (start, start + 1)]):
                with pytest.raises(CorruptStoreError, match=f"chunk {chunk} "):
                    reader.read_ranges(ranges)
            if start:
                np.testing.assert_array_equal(reader.read_ranges([(0, start)]), values[:start])
    finally:
        path.write_bytes(intact)
        reader.close()
