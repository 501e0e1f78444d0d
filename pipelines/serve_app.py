# SPDX-License-Identifier: Apache-2.0
"""A store as an ASGI application: GET and HEAD of what its manifests list, whole or in ranges."""

from __future__ import annotations

import hmac
import logging
import os
import re
from collections.abc import AsyncIterator
from urllib.parse import unquote_to_bytes

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ditr_cache.errors import CorruptStoreError, StoreError
from ditr_cache.pipelines.serve_objects import Listed, ServedObjects

__all__ = ["StoreApp"]

_log = logging.getLogger(__name__)

_TYPES = {".json": "application/json", ".md": "text/markdown; charset=utf-8"}
_FOR_EVER = "max-age=31536000, immutable"
_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})", re.IGNORECASE)
_PIECE = 1 << 20
"""Bytes of an answer that are in memory at a time."""


class StoreApp:
    """The application.

    Args:
        objects: What may be had.
        token: What a client must show; None: nothing.
    """

    def __init__(self, objects: ServedObjects, token: str | None = None) -> None:
        self._objects, self._token = objects, None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = await self._answer(scope["method"], scope["raw_path"], Headers(scope=scope))
        await response(scope, receive, send)

    async def _answer(self, method: str, path: bytes, headers: Headers) -> Response:
        # first of all: who may not read learns nothing
        if not self._admits(headers.get("authorization", "")):
            return PlainTextResponse("a bearer token is needed\n", 401, {"WWW-Authenticate": "Bearer"})
        if method not in ("GET", "HEAD"):
            return PlainTextResponse("this server only reads\n", 405, {"Allow": "GET, HEAD"})
        key = _key(path)
        try:
            found = await run_in_threadpool(self._objects.open, key)
        except (StoreError, OSError) as error:
            _log.warning("not served: %s", error)
            return PlainTextResponse("the store cannot be read at the moment\n", 503)
        if found is None:
            return PlainTextResponse("no such object\n", 404)
        return _Object(*found, key, method, headers)

    def _admits(self, authorization: str) -> bool:
        if self._token is None:
            return True
        scheme, _, token = authorization.partition(" ")
        return hmac.compare_digest(token.strip().encode(), self._token) and scheme.lower() == "bearer"


class _Object(StreamingResponse):
    """A file that is open already, or a range of it; closed when the answer is out.

    starlette's FileResponse opens, seeks, reads and closes by path, each in a thread: twice the CPU time of a request
    for a small range, and a path may lead elsewhere by then.

    Args:
        fd: Owned by this object from now on.
        listed: What is known of the file.
        key: Its name.
        method: GET or HEAD.
        asked: The request's headers.
    """

    def __init__(self, fd: int, listed: Listed, key: str, method: str, asked: Headers) -> None:
        self._fd, status = fd, os.fstat(fd)
        size, now = status.st_size, listed.sha256 is None
        tag = f'"{status.st_mtime_ns:x}-{size:x}"' if now else f'"{listed.sha256}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache" if now else _FOR_EVER, "Accept-Ranges": "bytes"}
        code, part = 200, range(size)
        if tag in (known.strip().removeprefix("W/") for known in asked.get("if-none-match", "").split(",")):
            code, part = 304, range(0)
        elif method == "GET" and asked.get("if-range", tag) == tag:
            code, part = _range(asked.get("range", ""), size)
        if code != 304:
            headers["Content-Length"] = str(len(part))
        if code in (206, 416):
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}" if part else f"bytes */{size}"
        body = self._pieces(part if method == "GET" else range(0))
        super().__init__(body, code, headers, _TYPES.get(os.path.splitext(key)[1], "application/octet-stream"))

    async def _pieces(self, part: range) -> AsyncIterator[bytes]:
        at = part.start
        while at < part.stop:
            piece = await run_in_threadpool(os.pread, self._fd, min(_PIECE, part.stop - at), at)
            if not piece:
                # the connection ends before the length that was promised: the client will notice
                raise CorruptStoreError("a file was cut while it was being read")
            yield piece
            at += len(piece)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self._fd)


def _range(header: str, size: int) -> tuple[int, range]:
    """Status code and bytes of a `Range` header (RFC 9110, section 14.2).

    Several ranges, other units and what makes no sense are answered with the whole, as if nothing had been asked for.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match[1] + match[2] == "":
        return 200, range(size)
    if not match[1]:
        part = range(max(size - int(match[2]), 0), size)
    else:
        first, last = int(match[1]), int(match[2] or size)
        if last < first:
            return 200, range(size)
        part = range(first, min(last + 1, size))
    return (206, part) if part else (416, range(0))


def _key(path: bytes) -> str:
    """The object that a path names; a slash in disguise names none."""
    if b"%2f" in path.lower():
        return ""
    return unquote_to_bytes(path).decode("utf-8", "surrogateescape").removeprefix("/")
