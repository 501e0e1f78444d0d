# SPDX-License-Identifier: Apache-2.0
"""Where a command's words go: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import click

from ditr_cache.cli.text import align, clean

__all__ = ["Output", "is_fancy"]


def is_fancy(stream: IO[str]) -> bool:
    """Whether somebody sits before this stream, at a terminal that can do more than append lines."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Output:
    """The mouth of a command.

    Args:
        json: Results are one JSON document; `facts`, `table` and `text` say nothing.
        quiet: Only results, warnings and errors.
        verbose: Also what helps to find a fault.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        self._write: Callable[[str], None] = _to_stderr

    def document(self, value: Mapping[str, Any]) -> None:
        """The result for machines. Called once in every command that succeeds."""
        if self.json:
            click.echo(json.dumps(_finite(value), indent=2, allow_nan=False, default=str))

    def text(self, text: str) -> None:
        """A result for people, as it stands: our own words, YAML, scripts."""
        if not self.json:
            click.echo(text)

    def line(self, text: object) -> None:
        """A result for people, on one line whatever it holds."""
        self.text(clean(text))

    def facts(self, facts: Iterable[tuple[str, object]], title: str | None = None) -> None:
        """A result for people: what is what."""
        self._show(title, None, [[clean(key), clean(value)] for key, value in facts], frozenset())

    def table(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        title: str | None = None,
        right: Iterable[int] = (),
    ) -> None:
        """A result for people.

        Args:
            header: Names of the columns.
            rows: Their cells.
            title: A line above.
            right: Columns that are aligned to the right.
        """
        self._show(title, list(header), [[clean(cell) for cell in row] for row in rows], frozenset(right))

    def listing(self, title: str, lines: Sequence[object], most: int = 10) -> None:
        """A result for people: the first few of many, and how many more there are."""
        if not lines or self.json:
            return
        self.text(f"\n{title}")
        for line in lines[:most]:
            self.text(f"  {clean(line)}")
        if len(lines) > most:
            self.text(f"  ... and {len(lines) - most:,} more (--json lists all)")

    def status(self, text: str) -> None:
        """What is going on."""
        if not self.quiet:
            self.say(text)

    def warning(self, text: str) -> None:
        """Something that the user should know, and may not expect."""
        self.say(_styled("warning:", fg="yellow") + f" {text}")

    def error(self, what: str, hint: str | None = None) -> None:
        """Why the command ends here."""
        lines = [_styled("error:", fg="red") + f" {_lines(what)}", *([_lines(hint)] if hint else [])]
        self.say("\n".join(lines))

    def say(self, text: str) -> None:
        """Any text, to stderr."""
        self._write(text)

    @contextmanager
    def speaking_through(self, write: Callable[[str], None]) -> Iterator[None]:
        """Within, what goes to stderr is handed to `write` (a progress bar, which must stay below it)."""
        before, self._write = self._write, write
        try:
            yield
        finally:
            self._write = before

    def _show(self, title: str | None, header: list[str] | None, rows: list[list[str]], right: frozenset[int]) -> None:
        if self.json:
            return
        if title:
            click.echo(f"\n{click.style(title, bold=True) if is_fancy(sys.stdout) else title}")
        if is_fancy(sys.stdout):
            _rich_table(header, rows, right)
        elif rows or header:
            click.echo("\n".join(align([*([header] if header else []), *rows], right)))


def _rich_table(header: list[str] | None, rows: list[list[str]], right: frozenset[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    table = Table(box=None, show_header=header is not None, pad_edge=False, padding=(0, 1))
    for i in range(len(header or rows[0]) if header or rows else 0):
        style = "dim" if header is None and i == 0 else None
        justify = "right" if i in right else "left"
        # long digests and paths break rather than end in dots
        table.add_column(header[i] if header else "", style=style, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _to_stderr(text: str) -> None:
    click.echo(text, err=True)


def _styled(text: str, fg: str) -> str:
    return click.style(text, fg=fg, bold=True) if is_fancy(sys.stderr) and not os.environ.get("NO_COLOR") else text


def _lines(text: str) -> str:
    """Our own line breaks stay, control characters of strangers go."""
    return "\n".join(line[: len(line) - len(line.lstrip(" "))] + clean(line.lstrip(" ")) for line in text.split("\n"))


def _finite(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
