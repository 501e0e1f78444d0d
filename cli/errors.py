# SPDX-License-Identifier: Apache-2.0
"""From an exception to one sentence, the next command, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import click

from ditr_cache.cli.output import Output
from ditr_cache.errors import ConfigError, DitrCacheError, SignatureError

__all__ = ["ExitCode", "close_streams", "handled"]


class ExitCode(IntEnum):
    """What a command tells its caller."""

    OK = 0
    FAILED = 1
    USAGE = 2
    """Usage or settings."""
    INCOMPLETE = 3
    """Finished, but frames or blocks failed."""
    MISMATCH = 4
    """Verification found something that is not what was written."""
    INTERRUPTED = 130


_RESUME = "Run the same command again to go on."


@contextmanager
def handled(output: Output, *, resumes: bool = False) -> Iterator[None]:
    """Turn every error within into a message on stderr and an exit code.

    Args:
        output: Says it.
        resumes: The same command, given again, goes on where it stopped.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        output.error("interrupted" + "; what is finished is kept" * resumes, _RESUME if resumes else None)
        raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
    except Exception as error:
        what, hint = _explain(error)
        if output.verbose:
            output.say(traceback.format_exc().rstrip())
        output.error(what, hint)
        raise click.exceptions.Exit(_code(error)) from error


def _code(error: Exception) -> ExitCode:
    if isinstance(error, SignatureError):
        return ExitCode.MISMATCH
    return ExitCode.USAGE if isinstance(error, ConfigError) else ExitCode.FAILED


def _explain(error: Exception) -> tuple[str, str | None]:
    """What is wrong, and what to do about it."""
    if isinstance(error, DitrCacheError):
        return (error.what if error.where is None else f"{error.where}: {error.what}"), error.hint
    if isinstance(error, OSError):
        return _explain_os(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory", "Smaller batches need less: -s run.batch_size=1"
    return (
        f"internal error, which should not happen ({type(error).__name__}: {error})",
        "With -v there is a traceback, which belongs into a bug report.",
    )


def _explain_os(error: OSError) -> tuple[str, str | None]:
    where = error.filename2 or error.filename
    prefix = f"{os.fsdecode(where)}: " if isinstance(where, str | bytes) else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{prefix}the disk is full", f"Make room. {_RESUME}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{prefix}permission denied", None
    if error.errno == errno.EMFILE:
        return f"{prefix}too many open files", "Raise the limit: ulimit -n 4096"
    return f"{prefix}{error.strerror or error}", None


def close_streams() -> None:
    """Flush; if the reader is gone, hand the rest to nobody, so that the interpreter does not complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # it has no descriptor: nothing to hand over
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
