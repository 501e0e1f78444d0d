# SPDX-License-Identifier: Apache-2.0
"""`bench`."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serve_world import serving

from ditr_cache.store.reader import open_store


def test_table(finished, run):
    done = run("bench", finished, "--samples", 3, "--count", 1, "-q")
    assert (done.code, done.err) == (0, "")
    assert "3 reads of 1 samples, 1 view of each" in done.out
    rows = [line.split("  ")[0] for line in done.out.split("Speed\n")[1].splitlines()]
    assert rows[1:5] == ["cold", "cold, raw", "warm", "warm, raw"]
    assert "times as long as its bytes alone." in rows[5]


def test_json(finished, run):
    report = json.loads(
        run("bench", finished, "--samples", 2, "--all-views", "--workers", 1, "--kind", "thread", "--json").out
    )
    assert report["manifest"] == open_store(finished).version
    assert report["count"] is None
    assert [(s["name"], s["reader"]) for s in report["speeds"]][-1] == ("loader", "store")


def test_workers_are_named(finished, run):
    assert "\nloader, 2 threads " in run("bench", finished, "--samples", 2, "--workers", 2, "--kind", "thread").out
    assert "\nloader, 1 process " in run("bench", finished, "--samples", 2, "--workers", 1).out


@pytest.mark.parametrize("option", [("--samples", 0), ("--count", 0), ("--prefetch", 0), ("--kind", "fork")])
def test_wrong_usage(finished, run, option):
    assert run("bench", finished, *option).code == 2


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_server_has_no_raw_reads(finished, run, tmp_path, kind):
    with serving(finished) as server:
        done = run(
            *("bench", f"http://{server.host}:{server.port}", "--samples", 3, "--count", 1, "--json"),
            *("--workers", 2, "--kind", kind, "--cache-dir", tmp_path / "cache"),
        )
        report = json.loads(done.out)
        plain = run("bench", f"http://{server.host}:{server.port}", "--samples", 3, "--count", 1)
    assert report["remote"]
    assert [(s["name"], s["reader"]) for s in report["speeds"]] == [
        ("cold", "store"),
        ("warm", "store"),
        ("loader", "store"),
    ]
    assert report["warm_over_raw"] is None
    assert report["bytes_per_sample"] > 0
    assert any((tmp_path / "cache").rglob("*"))
    assert "No raw reads: the store is not a folder." in plain.out
