# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache completion bash|zsh|fish`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]


@click.command(
    "completion",
    short_help="Completion script for a shell.",
    epilog="""\b
Examples:
  eval "$(ditr-cache completion bash)"          # in ~/.bashrc
  eval "$(ditr-cache completion zsh)"           # in ~/.zshrc
  ditr-cache completion fish > ~/.config/fish/completions/ditr-cache.fish""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that makes a shell complete commands, options and names."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}.", ctx)
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "ditr-cache", "_DITR_CACHE_COMPLETE").source())
