# SPDX-License-Identifier: Apache-2.0
"""One sentence, the next command, an exit code."""

import errno

import click
import pytest

from ditr_cache.cli.errors import handled
from ditr_cache.cli.output import Output
from ditr_cache.errors import ConfigError, DatasetError, StoreNotFoundError


def _fail(error, *, verbose=False, resumes=False):
    with pytest.raises(click.exceptions.Exit) as end, handled(Output(verbose=verbose), resumes=resumes):
        raise error
    return end.value.exit_code


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("wrong", where="a.b", hint="Do this."), 2, "error: a.b: wrong\nDo this.\n"),
        (DatasetError("odd"), 1, "error: odd\n"),
        (StoreNotFoundError("no store here", where="x"), 1, "error: x: no store here\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "error: /x: permission denied\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            1,
            "error: /x: the disk is full\nMake room. Run the same command again to go on.\n",
        ),
        (OSError(errno.EIO, "Input/output error"), 1, "error: Input/output error\n"),
        (MemoryError(), 1, "error: out of memory\nSmaller batches need less: -s run.batch_size=1\n"),
    ],
)
def test_sentence_and_code(error, code, message, capsys):
    assert _fail(error) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)


def test_traceback_only_when_asked(capsys):
    assert _fail(TypeError("oops")) == 1
    quiet = capsys.readouterr().err
    assert "Traceback" not in quiet
    assert "TypeError: oops" in quiet
    assert _fail(TypeError("oops"), verbose=True) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_interrupt_says_how_to_go_on(capsys):
    assert _fail(KeyboardInterrupt(), resumes=True) == 130
    assert "same command again" in capsys.readouterr().err
    assert _fail(KeyboardInterrupt()) == 130
    assert "same command" not in capsys.readouterr().err


def test_names_of_strangers_cannot_steer_the_terminal(capsys):
    _fail(DatasetError("bad", where="frame\x1b[2J\u202e\udc80.jpg"))
    assert capsys.readouterr().err == "error: frame\\x1b[2J\\u202e\\udc80.jpg: bad\n"
