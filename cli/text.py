# SPDX-License-Identifier: Apache-2.0
"""Numbers and untrusted names as people read them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["align", "bytes_", "clean", "duration", "number", "plural", "share"]


def clean(text: object) -> str:
    """One line that cannot steer a terminal: names and reasons come from files of strangers."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text).split()))


def number(value: float | None, digits: int = 0) -> str:
    """With thousands separators; `-` for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def plural(count: int, what: str) -> str:
    """A count and what is counted."""
    ending = "" if count == 1 else "es" if what.endswith("ss") else "s"
    return f"{count:,} {what}{ending}"


def share(part: int, whole: int) -> str:
    """In per cent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def bytes_(count: float | None) -> str:
    """In decimal units, three digits."""
    if count is None:
        return "-"
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    power = 0
    while abs(count) >= 999.5 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.{int(power > 0 and count < 99.95)}f} {units[power]}"


def duration(seconds: float | None) -> str:
    """The two units that matter."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def align(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """Columns as plain lines, two spaces apart, nothing at their ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
