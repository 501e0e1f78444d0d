# SPDX-License-Identifier: Apache-2.0
"""The command group. A command's module is imported when it is asked for, torch and its kind only when it runs."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from ditr_cache import __version__
from ditr_cache.cli.errors import ExitCode, close_streams
from ditr_cache.cli.interrupt import sigterm_as_ctrl_c

__all__ = ["group", "main"]

# in the order of a store's life, which is also that of the help page
COMMANDS = (
    "extract",
    "finalize",
    "gc",
    "info",
    "verify",
    "push",
    "pull",
    "merge",
    "diff",
    "attach",
    "sign",
    "serve",
    "probe",
    "bench",
    "picture",
    "distill",
    "train",
    "evaluate",
    "predict",
    "experiment",
    "weights",
    "config",
    "doctor",
    "completion",
)


class LazyGroup(click.Group):
    """Finds the command NAME as `command` in `ditr_cache.cli.NAME`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"ditr_cache.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name, or say which one was meant."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + "".join(f" Did you mean {name!r}?" for name in near))
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Try it without any data:
  ditr-cache extract synthetic:rooms=2,views=4 rooms
  ditr-cache info rooms

Exit codes: 0 ok, 1 failed, 2 usage or settings, 3 finished with failures, 4 verification mismatch, 130 interrupted.
Results go to stdout, everything else to stderr.""",
)
@click.version_option(__version__, "-V", "--version", prog_name="ditr-cache", message="%(prog)s %(version)s")
def group() -> None:
    """Patch features of a frozen ViT for 3D points, extracted once into a store."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its code.

    Args:
        args: Arguments without the program's name; None: those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        # a file name that is not UTF-8, or a terminal that is not, must not cost a run of hours its report
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sigterm_as_ctrl_c()
    code: int = ExitCode.FAILED
    try:
        # without standalone mode a command's exit code is returned
        code = group.main(args, prog_name="ditr-cache", standalone_mode=False) or ExitCode.OK
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("Interrupted.", err=True)
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has seen enough
        code = ExitCode.FAILED
    finally:
        close_streams()
    sys.exit(code)
