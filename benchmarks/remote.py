# SPDX-License-Identifier: Apache-2.0
"""Claims on reading over a network, measured on loopback against a server that adds 20 ms to every request.

- One random 10-view sample (7-Scenes RedKitchen, 50 views, D = 384): at most 2 dependent round trips cold, 1 warm, and
  at most 1.2x the bytes that are needed: the encoded chunks of the rows, hits and points that are read, and the tables.
  zarr-python (through obstore) and tensorstore read the same slices of the same arrays: what a program without our
  reader would do, with all slices of a step asked for at once where the library can.
- An epoch of training from a server takes at most 1.15x the time of one from a folder, once the disk cache is warm.

    python benchmarks/remote.py [--latency 0.02]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tensorstore
import zarr
from _harness import environment, write_results
from _stores import REDKITCHEN, build_store, work_folder
from obstore.store import from_url

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from servers import BucketServer, bucket_server, fresh_bucket

from ditr_cache.config import load_config, read_named_yaml
from ditr_cache.pipelines.train import Train
from ditr_cache.store.reader import FeatureStore, open_store
from ditr_cache.store.remote import RemoteStorage
from ditr_cache.store.storage import Range
from ditr_cache.training.config import TrainConfig

VIEWS, DRAWS = 10, 9
TRIPS, BYTES, EPOCH = {"cold": 2, "warm": 1}, 1.2, 1.15

Slices = dict[str, list[tuple[int, int]]]


class CountedTrips:
    """How often the reader waited for the server."""

    def __init__(self) -> None:
        self.trips = 0
        together = RemoteStorage._request_all
        alone = RemoteStorage._request

        def request_all(storage: RemoteStorage, spans: Sequence[Range]) -> Any:
            if spans:
                self.trips += 1
                self._inside = True
            try:
                return together(storage, spans)
            finally:
                self._inside = False

        def request(storage: RemoteStorage, wanted: Range) -> Any:
            self.trips += not self._inside
            return alone(storage, wanted)

        self._inside = False
        RemoteStorage._request_all, RemoteStorage._request = request_all, request  # type: ignore[method-assign]

    def take(self) -> int:
        trips, self.trips = self.trips, 0
        return trips


def slices_of(store: FeatureStore, views: Sequence[int]) -> Slices:
    """What a sample of these views is made of: rows start..stop of every array."""
    receipt, position = store.samples.locate(next(iter(store.samples)))
    block = store.block(receipt)
    tables = [block.view(position, v, 0) for v in views]
    rows, hits = block.view_rows[tables].tolist(), block.view_hits[tables].tolist()
    (points,) = block.sample_points[position : position + 1].tolist()
    names = [n for n in receipt.arrays if n in {"coord", "color", "normal", "instance"} or n.startswith("segment")]
    return {"features": rows, "row_patch": rows, "hit_step": hits, "hit_row": hits, **{n: [points] for n in names}}


def needed_bytes(store: FeatureStore, views: Sequence[int], *, cold: bool) -> int:
    """Of the encoded chunks that hold the slices; cold: of the tables and shard indexes as well."""
    receipt, _ = store.samples.locate(next(iter(store.samples)))
    block, total = store.block(receipt), 0
    for name, ranges in slices_of(store, views).items():
        array = block.array(name)
        step = array.entry.chunk_rows
        chunks = {c for start, stop in ranges for c in range(start // step, -(-stop // step))}
        total += int(sum(array.index[c, 1] for c in chunks)) + (16 * array.entry.chunks + 4) * cold
    tables = ("view_rows", "view_hits", "view_sample", "view_index", "view_variant", "sample_points", "origin")
    return total + cold * sum(e.data.size for n in tables if (e := receipt.arrays[n]).data is not None)


def read_zarr(endpoint: str, folder: str, slices: Slices) -> Callable[[], int]:
    """zarr-python, one slice after the other, as its documentation shows."""

    def read() -> int:
        store = zarr.storage.ObjectStore(from_url(f"{endpoint}/{folder}", client_options={"allow_http": True}))
        total = 0
        for name, ranges in slices.items():
            array = zarr.open_array(store, path=name, mode="r", zarr_format=3)
            total += sum(array[start:stop].nbytes for start, stop in ranges)
        return total

    return read


def read_tensorstore(endpoint: str, folder: str, slices: Slices) -> Callable[[], int]:
    """tensorstore, everything that does not depend on anything else at the same time."""

    async def read_all() -> int:
        spec = {"driver": "http", "base_url": endpoint}
        opened = await asyncio.gather(
            *(
                tensorstore.open({"driver": "zarr3", "kvstore": {**spec, "path": f"/{folder}/{name}/"}}, open=True)
                for name in slices
            )
        )
        parts = await asyncio.gather(
            *(
                array[start:stop].read()
                for array, ranges in zip(opened, slices.values(), strict=True)
                for start, stop in ranges
            )
        )
        return sum(part.nbytes for part in parts)

    return lambda: asyncio.run(read_all())


def measure(bucket: BucketServer, read: Callable[[], Any]) -> dict[str, float]:
    """Seconds, requests and bytes of one call."""
    bucket.log()
    start = time.perf_counter()
    read()
    seconds = time.perf_counter() - start
    log = bucket.log()
    return {"ms": 1e3 * seconds, "requests": len(log), "bytes": sum(entry["bytes"] for entry in log)}


def compare(bucket: BucketServer, folder: Path, latency: float) -> dict[str, Any]:
    """One draw after the other, every reader in turn."""
    url, local = bucket.put_tree(folder), open_store(folder)
    sample = next(iter(local.samples))
    receipt, _ = local.samples.locate(sample)
    counted, warm = CountedTrips(), open_store(url)
    warm.read(sample, count=VIEWS, seed=0)
    bucket.latency(latency)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(1, DRAWS + 1):
        views = np.unique(local.read(sample, count=VIEWS, seed=seed).view)
        drawn = sorted(views[views >= 0].tolist())
        there = f"{bucket.bucket}/store/{receipt.folder}"
        slices = slices_of(local, drawn)
        for name, cold in (("ours, warm", False), ("ours, cold", True)):
            store = open_store(url) if cold else warm
            counted.take()
            row = measure(bucket, partial(store.read, sample, views=drawn, rule="last"))
            row |= {"trips": counted.take(), "needed": needed_bytes(local, drawn, cold=cold)}
            found.setdefault(name, []).append(row)
            if cold:
                store.close()
        # zarr-python takes seconds a draw: it waits for one chunk after the other
        readers = [("tensorstore", read_tensorstore), ("zarr-python", read_zarr)][: 2 if seed <= 2 else 1]
        for name, reader in readers:
            found.setdefault(name, []).append(measure(bucket, reader(bucket.endpoint, there, slices)))
    bucket.latency(0)
    warm.close()
    return {name: {key: median(r[key] for r in rows) for key in rows[0]} for name, rows in found.items()}


def epochs(bucket: BucketServer, folder: Path, rounds: int) -> dict[str, Any]:
    """Training of the `tiny` network: an epoch from the folder, and one from the server with a warm cache, in turn."""
    rooms = folder / "rooms"
    from ditr_cache.config import ExtractConfig
    from ditr_cache.datasets import open_dataset
    from ditr_cache.pipelines.extract import Extract

    Extract(
        open_dataset("synthetic:rooms=8,views=12,val=1", "synthetic"),
        rooms,
        load_config(ExtractConfig, [read_named_yaml("extract", "synthetic")], []),
    ).run()
    url, cache = bucket.put_tree(rooms, "rooms"), folder / "cache"
    config = load_config(TrainConfig, [read_named_yaml("train", "tiny")], ["run.epochs=1", "data.loop=4"])
    seconds: dict[str, list[float]] = {"folder": [], "server": [], "server, first epoch": []}

    def train(name: str, location: str | Path, **options: Any) -> None:
        run = folder / f"run-{sum(map(len, seconds.values()))}"
        start = time.perf_counter()
        Train(location, run, config, **options).run()
        seconds[name].append(time.perf_counter() - start)

    options = {"cache_dir": cache, "cache_size": 1 << 30}
    train("server, first epoch", url, **options)
    bucket.log()
    for i in range(rounds):
        for name in ("folder", "server") if i % 2 else ("server", "folder"):
            train(name, rooms if name == "folder" else url, **(options if name == "server" else {}))
    asked = [entry for entry in bucket.log() if "/blocks/" in entry["key"]]
    pairs = [b / a for a, b in zip(seconds["folder"], seconds["server"], strict=True)]
    return {
        "seconds": seconds,
        "ratio": median(pairs),
        "ratio_min": min(pairs),
        "ratio_max": max(pairs),
        "block_requests_warm": len(asked),
    }


def main() -> None:
    """Print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds added to every request")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of epochs")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=work_folder()))
    try:
        with bucket_server() as endpoint:
            bucket = BucketServer(endpoint, fresh_bucket(endpoint))
            os.environ |= bucket.environment
            build_store(REDKITCHEN, folder / "store").close()
            table = compare(bucket, folder / "store", args.latency)
            for name, row in table.items():
                trips = f"  {row['trips']:.0f} round trips" if "trips" in row else ""
                over = f", {row['bytes'] / row['needed']:.3f}x what is needed" if "needed" in row else ""
                print(
                    f"{name:12} {row['ms']:7.1f} ms  {row['requests']:4.0f} requests  {row['bytes'] / 2**20:6.2f} MiB"
                    f"{trips}{over}"
                )
            bucket.latency(args.latency)
            training = epochs(bucket, folder, args.rounds)
            print(
                f"epoch from the server, cache warm / from a folder: {training['ratio']:.3f} "
                f"({training['ratio_min']:.3f} to {training['ratio_max']:.3f})"
            )
    finally:
        shutil.rmtree(folder)
    write_results(
        "remote",
        {
            "environment": environment(),
            "target": f"round trips {TRIPS}, bytes <= {BYTES}x, epoch <= {EPOCH}x",
            "latency_s": args.latency,
            "sample": {name: {k: round(v, 2) for k, v in row.items()} for name, row in table.items()},
            "epoch": training,
        },
    )


if __name__ == "__main__":
    main()
