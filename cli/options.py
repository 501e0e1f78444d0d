# SPDX-License-Identifier: Apache-2.0
"""Options and arguments that commands share."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ditr_cache.cli.errors import ExitCode, handled
from ditr_cache.cli.output import Output

__all__ = [
    "ByteSize",
    "ConfigName",
    "Shard",
    "StoreFolder",
    "StoreLocation",
    "cache_options",
    "config_options",
    "reports",
    "shard_from_slurm",
]

Command = Callable[..., ExitCode | None]


def reports(*, resumes: bool = False, json: bool = True) -> Callable[[Command], Callable[..., None]]:
    """Give a command `-q`, `-v`, `--json` and an `Output` as first argument; its errors become messages.

    Args:
        resumes: The same command, given again, goes on where it was interrupted.
        json: Whether there is `--json`.
    """

    def decorate(function: Command) -> Callable[..., None]:
        @click.option("-q", "--quiet", is_flag=True, help="Only results, warnings and errors.")
        @click.option("-v", "--verbose", is_flag=True, help="Say more; tracebacks.")
        @functools.wraps(function)
        def command(*args: Any, quiet: bool, verbose: bool, as_json: bool = False, **options: Any) -> None:
            if quiet and verbose:
                raise click.UsageError("-q and -v exclude each other.")
            output = Output(json=as_json, quiet=quiet, verbose=verbose)
            with handled(output, resumes=resumes), _log_to(output):
                code = function(output, *args, **options)
            raise click.exceptions.Exit(code or ExitCode.OK)

        return click.option("--json", "as_json", is_flag=True, help="The result as JSON.")(command) if json else command

    return decorate


def config_options(*kinds: str, example: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`-c FILE|NAME` and `-s a.b=c`; the function gets `configs` and `overrides`.

    Args:
        kinds: Whose installed configurations are completed: `extract`, `train`.
        example: Of `-s`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option(
                "-s",
                "--set",
                "overrides",
                multiple=True,
                metavar="a.b=c",
                help=f"Change one setting, e.g. {example}. Repeatable; wins over -c.",
            ),
            click.option(
                "-c",
                "--config",
                "configs",
                type=ConfigName(*kinds),
                multiple=True,
                help="Settings from a YAML file, or installed ones by name. Repeatable, later ones win.",
            ),
        ):
            function = option(function)
        return function

    return decorate


class ConfigName(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4 only
    """An installed configuration or a YAML file; completes both.

    Args:
        kinds: `extract`, `train`.
        prefix: Complete `kind/name`.
    """

    name = "FILE|NAME"

    def __init__(self, *kinds: str, prefix: bool = False) -> None:
        self._kinds, self._prefix = kinds, prefix

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that fit, else files."""
        from ditr_cache.config import config_names

        names = [f"{kind}/{name}" if self._prefix else name for kind in self._kinds for name in config_names(kind)]
        found = [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


def cache_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--cache-dir` and `--cache-size`; the function gets `cache_dir` and `cache_size`."""
    for option in (
        click.option(
            "--cache-size",
            type=ByteSize(),
            default="50GB",
            show_default=True,
            help="What the cache may take; what was used longest ago goes first.",
        ),
        click.option(
            "--cache-dir",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="Keep what is read of a store on a server in this folder. Any number of processes may share it.",
        ),
    ):
        function = option(function)
    return function


class StoreLocation(click.Path):
    """A folder, which becomes a path, or a URL, which stays text."""

    name = "FOLDER|URL"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text to a path or a URL."""
        scheme, colon, rest = str(value).partition("://")
        if colon and scheme.lower() != "file":
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) or not rest.strip("/"):
                self.fail("That is no URL of a store, such as s3://bucket/rooms.", param, ctx)
            return str(value)
        return super().convert(rest if colon else value, param, ctx)


class StoreFolder(StoreLocation):
    """A folder; URLs are refused rather than taken for strange folder names."""

    name = "FOLDER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text to a path."""
        location = super().convert(value, param, ctx)
        if isinstance(location, str):
            self.fail(f"This needs a folder, not a {location.partition('://')[0]}:// URL.", param, ctx)
        return location


class ByteSize(click.ParamType):  # type: ignore[type-arg]
    """`500MB`, `1.5TB`, `20GiB`, or a number of bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Text to bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?) ?([kMGTP]?)(i?)B?", str(value), re.ASCII)
        if match is None or (match[3] and not match[2]):
            self.fail(f"{value!r} is not a size, such as 500MB, 1.5TB or 20GiB.", param, ctx)
        return int(float(match[1]) * (1024 if match[3] else 1000) ** " kMGTP".index(match[2] or " "))


class Shard(click.ParamType):  # type: ignore[type-arg]
    """`i/n`, 0 <= i < n."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Text to (i, n)."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", str(value))
        if match is None or not int(match[1]) < int(match[2]):
            self.fail(f"{value!r} is not i/n with 0 <= i < n, such as 0/16 for the first of 16.", param, ctx)
        return int(match[1]), int(match[2])


def shard_from_slurm(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Which part of a job array this process is; None outside of one.

    Raises:
        click.UsageError: If the array's task numbers are not evenly spaced, so that no part follows from them.
    """
    try:
        task, count = int(environ["SLURM_ARRAY_TASK_ID"]), int(environ["SLURM_ARRAY_TASK_COUNT"])
        first, step = int(environ["SLURM_ARRAY_TASK_MIN"]), int(environ.get("SLURM_ARRAY_TASK_STEP", "1"))
    except (KeyError, ValueError):
        return None
    last = int(environ.get("SLURM_ARRAY_TASK_MAX", first + (count - 1) * step))
    index, rest = divmod(task - first, max(step, 1))
    if rest or not 0 <= index < count or last != first + (count - 1) * step:
        raise click.UsageError(
            f"SLURM's array (task {task} of {first}..{last}, {count} tasks) is not evenly spaced: give --shard i/n."
        )
    return index, count


class _OutputHandler(logging.Handler):
    """What the library logs, said like everything else."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.DEBUG if output.verbose else logging.INFO)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        say = self._output.warning if record.levelno >= logging.WARNING else self._output.status
        say(self.format(record))


@contextmanager
def _log_to(output: Output) -> Iterator[None]:
    logger, handler = logging.getLogger("ditr_cache"), _OutputHandler(output)
    logger.addHandler(handler)
    logger.setLevel(handler.level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
