# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache verify STORE`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ditr_cache.cli.errors import ExitCode
from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.text import bytes_, plural

__all__ = ["command"]


@click.command(
    "verify",
    short_help="Check every byte of a store.",
    epilog="\b\nExample:\n  ditr-cache verify rooms && rsync -a rooms elsewhere:",
)
@click.argument("store", type=StoreLocation())
@click.option("--quick", is_flag=True, help="Only documents and sizes: finds what is lost, not what is damaged.")
@click.option(
    "--key", metavar="PUBLIC.pem", type=click.Path(path_type=Path), help="It must be signed with this key, too."
)
@reports()
def command(output: Output, store: Path | str, quick: bool, key: Path | None) -> ExitCode:
    """Read a whole store and compare it with what was written.

    Every object must be there, with its size and checksums, and hold what the format allows. If something is off it is
    listed, and the exit code is 4.
    """
    from ditr_cache.pipelines.verify import Verify

    if key is not None:
        from ditr_cache.pipelines.sign import CheckSignature

        # a wrong one ends here, with the same exit code
        signed = CheckSignature(store, key).run()
        output.status(f"signed with key {signed.key}")
    with progress_for(output, unit="bytes") as progress:
        report = Verify(store, deep=not quick, progress=progress).run()
    output.document({"ok": report.ok, **asdict(report)})
    for problem in report.problems:
        output.line(f"{problem.path}: {problem.what}")
    for note in report.notes:
        output.status("note: " + ": ".join(filter(None, [note.path, note.what])))
    checked = ", ".join([plural(report.objects, "object"), bytes_(report.bytes), plural(report.blocks, "block")])
    if report.ok:
        output.line(f"ok: {checked}" + " (documents and sizes only)" * quick)
        return ExitCode.OK
    output.error(
        f"{plural(len(report.problems), 'problem')} in {checked}",
        "Fetch a sound copy, or extract again with --redo.",
    )
    return ExitCode.MISMATCH
