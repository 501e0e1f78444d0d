# SPDX-License-Identifier: Apache-2.0
"""Help pages, what they cost, and wrong command lines."""

import json
import os
import re
import subprocess
import sys

import pytest

import ditr_cache
from ditr_cache.cli.main import COMMANDS

PAGES = [
    (),
    *((name,) for name in COMMANDS),
    ("bench", "model"),
    ("config", "show"),
    ("config", "list"),
    ("config", "schema"),
]
HEAVY = {"torch", "transformers", "zarr", "numcodecs", "dask", "distributed", "numpy", "pydantic", "rich", "yaml"}


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_help(page, run, snapshot):
    done = run(*page, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out == snapshot
    assert run(*page, "-h").out == done.out
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_help_is_readable_in_a_narrow_terminal(page, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = run(*page, "--help").out.splitlines()
    examples = [line for line in lines if line.startswith("    ")]
    assert all(len(line) <= 60 for line in lines if line not in examples)


@pytest.mark.parametrize(
    "args", [["--help"], ["extract", "--help"], ["train", "--help"], ["--version"], ["completion", "zsh"]]
)
def test_light_command_lines_import_nothing_heavy(args):
    code = f"""
import json, sys
from ditr_cache.cli.main import main
try:
    main({args!r})
except SystemExit as end:
    assert not end.code
print()
print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) & HEAVY == set()


def test_version(run):
    assert run("--version").out == f"ditr-cache {ditr_cache.__version__}\n"


def test_no_command_shows_help_and_fails(run):
    done = run()
    assert (done.code, done.out) == (2, "")
    assert "Commands:" in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["extrat"], "Did you mean 'extract'?"),
        (["frobnicate"], "No such command 'frobnicate'.\n"),
        (["info"], "Missing argument 'STORE'"),
        (["extract", "synthetic:"], "Missing argument 'STORE'"),
        (["info", "x", "--jsn"], "--json"),
        (["info", "x", "-q", "-v"], "-q and -v exclude each other"),
        (["extract", "synthetic:", "x", "--dataset", "sunrgbd"], "nerfstudio, nuscenes, scannet"),
        (["extract", "synthetic:", "x", "--shard", "3/3"], "0 <= i < n"),
        (["completion", "tcsh"], "'bash', 'zsh', 'fish'"),
    ],
)
def test_wrong_usage(args, message, run):
    done = run(*args)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell, run):
    done = run("completion", shell)
    assert done.code == 0
    assert "_DITR_CACHE_COMPLETE" in done.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ditr-cache ver", {"verify"}),
        ("ditr-cache extract a b --dataset n", {"nerfstudio", "nuscenes"}),
        ("ditr-cache extract a b -c scannet", {"scannet", "scannet_sens"}),
        ("ditr-cache config s", {"show", "schema"}),
    ],
)
def test_completion(words, expected):
    answer = subprocess.run(
        [sys.executable, "-c", "from ditr_cache.cli.main import main; main()"],
        env=os.environ
        | {"_DITR_CACHE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {re.sub("^plain,", "", line) for line in answer.stdout.split()} == expected


def test_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "ditr_cache.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ditr-cache ")


def test_reader_of_the_output_may_leave():
    with subprocess.Popen(
        [sys.executable, "-m", "ditr_cache.cli", "config", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert err == b""
    assert process.returncode == 1
