# SPDX-License-Identifier: Apache-2.0
import logging
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditr_cache.cli.options import ByteSize, Shard, StoreFolder, StoreLocation, _log_to, shard_from_slurm
from ditr_cache.cli.output import Output


@given(st.integers(1, 999_999).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_shard(part):
    assert Shard().convert(f"{part[0]}/{part[1]}", None, None) == part


@pytest.mark.parametrize(
    "text", ["", "1", "1/1", "2/1", "-1/2", "1/0", "a/b", "1/2/3", " 0/2", "0/2\n", "٠/2", "1.0/2"]
)
def test_wrong_shard(text):
    with pytest.raises(click.BadParameter, match="0 <= i < n"):
        Shard().convert(text, None, None)


def _slurm(task, first, last, count, step=None):
    names = {"ID": task, "MIN": first, "MAX": last, "COUNT": count} | ({"STEP": step} if step else {})
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 5))
def test_every_task_of_an_array_has_its_own_part(first, count, step):
    tasks = range(first, first + count * step, step)
    parts = [shard_from_slurm(_slurm(task, first, tasks[-1], count, step)) for task in tasks]
    assert parts == [(i, count) for i in range(count)]


@pytest.mark.parametrize(
    "environ", [_slurm(5, 1, 9, 3), _slurm(1, 1, 9, 3), _slurm(9, 0, 8, 9), _slurm(2, 1, 9, 5, step=2)]
)
def test_uneven_arrays_are_refused(environ):
    with pytest.raises(click.UsageError, match="--shard"):
        shard_from_slurm(environ)


@pytest.mark.parametrize("environ", [{}, {"SLURM_ARRAY_TASK_ID": "3"}, {"SLURM_JOB_ID": "1"}])
def test_outside_of_an_array(environ):
    assert shard_from_slurm(environ) is None


def test_store_folder():
    assert str(StoreFolder().convert("file:///data/x", None, None)) == "/data/x"
    with pytest.raises(click.BadParameter, match="gs://"):
        StoreFolder().convert("gs://x/y", None, None)


@pytest.mark.parametrize("url", ["s3://bucket/rooms", "https://host:1/a?b=c", "hf://datasets/a/b", "S3://bucket"])
def test_urls_stay_as_they_are(url):
    assert StoreLocation().convert(url, None, None) == url


def test_folders_become_paths():
    for text in ("rooms", "a:b", "/data/s3:/x"):
        assert StoreLocation().convert(text, None, None) == Path(text)
    assert StoreLocation().convert("file:///data/x", None, None) == Path("/data/x")


@pytest.mark.parametrize("url", ["s3://", "http:///", "3s://x", "://x", "a b://c"])
def test_what_only_looks_like_a_url(url):
    with pytest.raises(click.BadParameter, match="no URL of a store"):
        StoreLocation().convert(url, None, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("1k", 1000),
        ("1.5kB", 1500),
        ("2MB", 2_000_000),
        ("20GiB", 20 << 30),
        ("0.5T", 500_000_000_000),
        ("1 Pi", 1 << 50),
    ],
)
def test_sizes(text, size):
    assert ByteSize().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "-1", "1X", "1iB", "1e9", "GB", "1 000", "٣GB", "1.2.3", "0x10", "1GBB", "1G\n"])
def test_wrong_sizes(text):
    with pytest.raises(click.BadParameter, match="is not a size"):
        ByteSize().convert(text, None, None)


def test_what_the_library_logs_is_said(capsys):
    logger = logging.getLogger("ditr_cache.somewhere")
    with _log_to(Output()):
        logger.debug("detail")
        logger.info("fetching")
        logger.warning("odd")
    logger.info("nobody listens")
    assert capsys.readouterr().err == "fetching\nwarning: odd\n"
    with _log_to(Output(verbose=True)):
        logger.debug("detail")
    assert capsys.readouterr().err == "detail\n"
