# SPDX-License-Identifier: Apache-2.0
"""Any Zarr v3 library opens a block and reads the same bits."""

import json
import warnings

import numpy as np
import pytest
import tensorstore
from store_builder import NoSync, build_store, random_block

from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.layout import array_document, array_spec
from ditr_cache.store.reader import open_store
from ditr_cache.store.shard import ArrayWriter


def open_zarr(path):
    import zarr

    with warnings.catch_warnings():
        # zarr-python warns of every dtype and codec whose specification is younger than version 3.0
        warnings.simplefilter("ignore")
        return zarr.open_group(path, mode="r", zarr_format=3)


def read_tensorstore(path):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    return tensorstore.open(spec, open=True, read=True).result().read().result()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_every_array_reads_bit_equal_in_zarr_python_and_tensorstore(tmp_path, dtype, codec):
    block = random_block(5, samples=2, points=20_000, views=3, variants=(0, 1), cls=True)
    build_store(tmp_path / "s", [block], BlockSettings(8, dtype, codec, class_token=True))
    store = open_store(tmp_path / "s")
    receipt = store.manifest.blocks["b0"]
    reader = store.block(receipt)
    group = open_zarr(tmp_path / "s" / receipt.folder)
    assert sorted(group.array_keys()) == sorted(receipt.arrays)
    assert group.attrs["ditr_cache"]["samples"][1]["id"] == "b0/s1"
    assert group.attrs["ditr_cache"]["class_names"]["segment"] == ["floor", "wände"]
    for name, entry in receipt.arrays.items():
        ours = reader.array(name).read_all()
        zarrs = group[name][...]
        theirs = read_tensorstore(tmp_path / "s" / receipt.folder / name)
        for other in (zarrs, theirs):
            assert other.dtype == ours.dtype == np.dtype(entry.dtype)
            assert other.shape == ours.shape == entry.shape
            assert other.tobytes() == ours.tobytes()


@pytest.mark.parametrize("name", ["features", "hit_step", "view_rows", "coord"])
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 16_384, 16_385])
def test_arrays_of_any_length_read_back_in_both(tmp_path, name, rows):
    import zarr

    spec = array_spec(name)
    tail = tuple(int(n) if n.isdigit() else 8 for n in spec.shape.split()[1:])
    codec = spec.codecs[-1]
    rng = np.random.default_rng(rows)
    data = rng.integers(0, 100, (rows, *tail)).astype(spec.dtypes[0])
    writer = ArrayWriter(tmp_path / name, name, spec.dtypes[0], tail, codec, NoSync())
    for piece in np.split(data, sorted(rng.integers(0, rows + 1, 3))):
        writer.append(piece)
    entry = writer.close()
    document = json.loads((tmp_path / name / "zarr.json").read_text())
    assert document == array_document(name, entry.dtype, entry.shape, entry.chunk_rows, codec)
    assert read_tensorstore(tmp_path / name).tobytes() == data.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.open_array(tmp_path / name, mode="r")
        assert array.shape == data.shape
        assert array[...].tobytes() == data.tobytes()
    files = sorted(str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*") if p.is_file())
    assert len(files) == (2 if rows else 1)


def test_the_root_is_a_zarr_group_too(tmp_path):
    build_store(tmp_path / "s", [random_block(0)])
    assert open_zarr(tmp_path / "s").attrs["ditr_cache"]["identity"]["backbone"]["name"] == "noise"
