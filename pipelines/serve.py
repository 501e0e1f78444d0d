# SPDX-License-Identifier: Apache-2.0
"""A store, read over HTTP by those who share no disk and no object storage."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from pathlib import Path

from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.serve_objects import ServedObjects

__all__ = ["Serve"]

_KEEP_ALIVE_S = 75
"""Longer than a training step: a reader that finds its connection closed pays for another round trip."""
_PATIENCE_S = 5
"""What answers that are on their way get to end, once the server is asked to stop."""


class Serve:
    """A server that listens from the start, and answers while it runs.

    Args:
        store: Folder of the store.
        host: Name or address to listen on.
        port: 0: a free one.
        token: What clients must show (`Authorization: Bearer ...`); None: nothing.
        access_log: Log every request, with level INFO, to `uvicorn.access`.

    Raises:
        StoreNotFoundError: If there is no store, or none of its blocks has been finalised.
        StoreError: If its manifest cannot be read.
        ConfigError: If starlette or uvicorn is missing, or nothing can listen there.
    """

    def __init__(
        self,
        store: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
        access_log: bool = False,
    ) -> None:
        try:
            import uvicorn

            from ditr_cache.pipelines.serve_app import StoreApp
        except ImportError as error:
            raise ConfigError(
                f"serving needs starlette and uvicorn ({error})", hint="Install them: pip install 'ditr-cache[serve]'"
            ) from error
        logging.getLogger("uvicorn.error").addFilter(_is_news)
        self._objects = ServedObjects(store)
        self._socket = _listen(host, port)
        self._server = uvicorn.Server(
            uvicorn.Config(
                StoreApp(self._objects, token),
                lifespan="off",
                ws="none",
                access_log=access_log,
                log_config=None,
                log_level="info" if access_log else "warning",
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_PATIENCE_S,
            )
        )

    @property
    def url(self) -> str:
        """Where clients find the store."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach it."""
        return _is_exposed(self._socket.getsockname()[0])

    @property
    def version(self) -> str:
        """sha256 of the current manifest."""
        return self._objects.version

    @property
    def objects(self) -> int:
        """How many objects can be had."""
        return len(self._objects)

    def run(self) -> None:
        """Answer until SIGINT or SIGTERM; then end what is being answered, and hand the signal on.

        Raises:
            KeyboardInterrupt: If that is what the signal's handler raises.
        """
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.close()

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()


def _is_exposed(address: str) -> bool:
    # IPv6 addresses may name an interface: fe80::1%eth0
    return not ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_news(record: logging.LogRecord) -> bool:
    """Not the trace of an answer that was cut off at the end: uvicorn has said how many there are."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _listen(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # with its protocol: asyncio turns Nagle's algorithm off for sockets that say they are TCP; with it on, a small
        # answer took 44 ms instead of 1.4, for its head and body are two writes
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"nothing can listen here: {reason}",
            where=f"{host}:{port}",
            hint="Choose another --port (0: any free one) or --host.",
        ) from error
    return listener
