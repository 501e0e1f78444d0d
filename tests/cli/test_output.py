# SPDX-License-Identifier: Apache-2.0
"""Results on stdout, the rest on stderr; plain text unless somebody looks at a terminal."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from ditr_cache.cli.output import Output


def test_results_and_talk_do_not_mix(capsys):
    output = Output()
    output.document({"a": 1})
    output.facts([("key", "value"), ("longer key", 2)], title="Title")
    output.table(["name", "n"], [["x", "1"], ["y", "23"]], right=[1])
    output.status("working")
    output.warning("careful")
    captured = capsys.readouterr()
    assert captured.out == "\nTitle\nkey         value\nlonger key  2\nname   n\nx      1\ny     23\n"
    assert captured.err == "working\nwarning: careful\n"


def test_json_is_one_document(capsys):
    output = Output(json=True)
    output.document({"nan": float("nan"), "nested": {"x": (1, 2.5, float("inf"))}, "name": "\udc80"})
    output.facts([("key", "value")])
    output.table(["a"], [["b"]])
    output.listing("Title", ["x"])
    output.text("text")
    out = capsys.readouterr().out
    assert json.loads(out) == {"nan": None, "nested": {"x": [1, 2.5, None]}, "name": "\udc80"}


def test_quiet_keeps_warnings(capsys):
    output = Output(quiet=True)
    output.status("working")
    output.warning("careful")
    output.text("result")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", "warning: careful\n")


def test_long_lists_are_cut(capsys):
    Output().listing("Failed:", [f"frame {i}" for i in range(1012)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["", "Failed:", "  frame 0"]
    assert lines[-1] == "  ... and 1,002 more (--json lists all)"
    assert len(lines) == 13
    Output().listing("Failed:", [])
    assert capsys.readouterr().out == ""


def _on_a_terminal(args, **environ):
    """What a command writes when stdout is a terminal."""
    parent, child = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "ditr_cache.cli", *args],
        stdout=child,
        stderr=subprocess.DEVNULL,
        env=env | {"TERM": "xterm-256color", **environ},
    ) as process:
        os.close(child)
        chunks = []
        while True:
            try:
                chunk = os.read(parent, 65536)
            except OSError:  # Linux says so when the last writer is gone
                break
            if not chunk:
                break
            chunks.append(chunk)
    os.close(parent)
    assert process.returncode == 0
    return b"".join(chunks).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [60, 100])
def test_tables_fit_the_terminal(columns, finished):
    text = _on_a_terminal(["info", str(finished)], COLUMNS=str(columns))
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "rooms-vit-tiny" in plain
    assert max(map(len, plain.splitlines())) <= columns


def test_colour_can_be_refused(finished):
    text = _on_a_terminal(["info", str(finished)], COLUMNS="80", NO_COLOR="1")
    assert re.search(r"\x1b\[[0-9;]*[34][0-9]", text) is None


def test_dumb_terminals_get_plain_text(finished):
    assert "\x1b" not in _on_a_terminal(["info", str(finished)], COLUMNS="80", TERM="dumb")
