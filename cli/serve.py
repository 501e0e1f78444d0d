# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache serve STORE`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from ditr_cache.cli.options import StoreFolder, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.text import number
from ditr_cache.errors import ConfigError

__all__ = ["command"]


@click.command(
    "serve",
    short_help="Let others read a store over HTTP.",
    epilog="""\b
Examples:
  ditr-cache serve rooms
  ditr-cache serve rooms --host 0.0.0.0 --token-file ~/rooms.token
  ditr-cache serve rooms --port 0 --json""",
)
@click.argument("store", type=StoreFolder())
@click.option("--host", default="127.0.0.1", show_default=True, help="Name or address to listen on; 0.0.0.0 is all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0 is a free one."
)
@click.option("--token-env", metavar="NAME", help="Environment variable with the token that clients must show.")
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File with that token. There is no option for the token itself: others can see command lines.",
)
@reports()
def command(output: Output, store: Path, host: str, port: int, token_env: str | None, token_file: Path | None) -> None:
    """Let others read a store over HTTP, whole objects or ranges of them.

    Only what the store's manifest lists can be had, and nothing can be changed. A manifest that becomes the current one
    meanwhile is followed. Ctrl-C and SIGTERM end it, with exit code 0. There is no encryption: on a network that is not
    yours alone, put it behind a server that speaks HTTPS.
    """
    from ditr_cache.pipelines.serve import Serve

    token = _token(token_env, token_file)
    server = Serve(store, host=host, port=port, token=token, access_log=output.verbose)
    for handler in logging.getLogger("ditr_cache").handlers:
        logging.getLogger("uvicorn").addHandler(handler)
    if server.exposed and token is None:
        output.warning(f"without a token, whoever can reach {server.url} can read this store")
    try:
        output.document({"url": server.url, "manifest": server.version, "objects": server.objects})
        output.line(server.url)
        output.status(f"serving {number(server.objects)} objects; Ctrl-C ends it")
        server.run()
    except KeyboardInterrupt:
        # its way to end
        output.status("stopped")
    finally:
        server.close()


def _token(name: str | None, file: Path | None) -> str | None:
    """The token, from where it is kept.

    Raises:
        click.UsageError: If two places are named.
        ConfigError: If there is none, or not one that fits into a header.
    """
    if name is not None and file is not None:
        raise click.UsageError("--token-env and --token-file exclude each other.")
    if name is None and file is None:
        return None
    where = name if file is None else str(file)
    if file is not None:
        with file.open(encoding="utf-8", errors="replace") as opened:
            token = opened.read(4097).strip()
    else:
        token = os.environ.get(name or "", "").strip()
    if not token or len(token) > 4096 or not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError("holds no token: visible ASCII characters, without spaces, at most 4096", where=where)
    return token
