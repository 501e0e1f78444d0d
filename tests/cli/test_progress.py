# SPDX-License-Identifier: Apache-2.0
import io
import sys

import pytest

from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import Bar, Lines, progress_for
from ditr_cache.pipelines.progress import Silent


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_every_30_seconds_and_at_the_end(capsys):
    clock = Clock()
    lines = Lines(Output(), clock=clock)
    lines.begin(100)
    for _ in range(7):
        clock.now += 10
        lines.advance(5)
    lines.note("frame 3: truncated")
    lines.end()
    lines.end()
    assert capsys.readouterr().err.splitlines() == [
        "15 of 100 images in 30.0 s, 0.5 images/s, 2 min 50 s left",
        "30 of 100 images in 1 min 0 s, 0.5 images/s, 2 min 20 s left",
        "frame 3: truncated",
        "35 of 100 images in 1 min 10 s, 0.5 images/s, 2 min 10 s left",
    ]


def test_bytes(capsys):
    clock = Clock()
    lines = Lines(Output(), "bytes", clock)
    lines.begin(3_000_000)
    clock.now += 2
    lines.advance(4_000_000)
    lines.end()
    assert capsys.readouterr().err == "4.0 MB of 4.0 MB in 2.0 s, 2.0 MB/s\n"


def test_nothing_to_do_says_nothing(capsys):
    lines = Lines(Output())
    lines.begin(0)
    lines.end()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("unit", ["images", "bytes"])
def test_bar_stays_below_what_is_said(unit, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    output = Output()
    with progress_for(output, unit) as progress:
        assert isinstance(progress, Bar)
        progress.advance(1)
        progress.begin(10)
        progress.advance(4)
        progress.note("[red]frame 3[/red]: truncated")
        output.warning("careful")
        progress.advance(6)
    output.status("after")
    text = terminal.getvalue()
    assert "[red]frame 3[/red]: truncated" in text
    assert text.index("truncated") < text.index("careful") < text.index("after")
    assert ("10 of 10 images" if unit == "images" else "10 bytes of 10 bytes") in text


def test_quiet_is_silent(capsys):
    with progress_for(Output(quiet=True)) as progress:
        assert isinstance(progress, Silent)
        progress.begin(1)
        progress.note("x")
        progress.advance(1)
    assert capsys.readouterr().err == ""
