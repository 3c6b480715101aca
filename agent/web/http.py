"""As much HTTP/1.1 as probes, Prometheus and a browser need: GET and HEAD, one request a connection.

Whoever reaches the port may ask, so head, connections and waiting are bounded (RFC 9112 names the parts).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

log = logging.getLogger(__name__)

LONGEST_HEAD: Final = 8192
PATIENCE: Final = 5.0
"""Seconds for the request to come, and for the answer to be taken."""
MOST_CLIENTS: Final = 64
TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Response:
    body: str
    status: int = 200
    kind: str = TEXT
    """Content-Type."""


Handler = Callable[[str], Awaitable[Response | None]]
"""Path (without query) to response; None: there is nothing."""


async def listen(
    host: str, port: int, handler: Handler, *, patience: float = PATIENCE, most_clients: int = MOST_CLIENTS
) -> Listener:
    """Serve from now on; the caller closes. Raises OSError when the port cannot be had."""
    listener = Listener(handler, patience, most_clients)
    await listener.open(host, port)
    return listener


class Listener:
    """An open port. `port` is the real one where 0 was asked for."""

    def __init__(self, handler: Handler, patience: float, most_clients: int) -> None:
        self._handler = handler
        self._patience = patience
        self._most = most_clients
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self, host: str, port: int) -> None:
        self._server = await asyncio.start_server(self._talk, host, port, limit=LONGEST_HEAD)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """At once, whoever is being served."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if len(self._writers) > self._most:
                return
            async with asyncio.timeout(self._patience):
                head = await self._head(reader)
            if not head:
                return
            octets = await self._answer(head)
            async with asyncio.timeout(self._patience):
                writer.write(octets)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError):
            pass  # a client that is slow or gone is its own problem
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        """Request line and headers; empty when the client left, longer than allowed for too much."""
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as rest:
            return bytes(rest.partial)
        except asyncio.LimitOverrunError:
            return b" " * (LONGEST_HEAD + 1)

    async def _answer(self, head: bytes) -> bytes:
        if len(head) > LONGEST_HEAD:
            return _octets(_refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        line = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if len(line) != 3 or not line[2].startswith("HTTP/1.") or not line[1].startswith("/"):
            return _octets(_refusal(HTTPStatus.BAD_REQUEST))
        method, target, _ = line
        if method not in ("GET", "HEAD"):
            return _octets(_refusal(HTTPStatus.METHOD_NOT_ALLOWED), "Allow: GET, HEAD\r\n")
        try:
            response = await self._handler(target.partition("?")[0])
        except Exception:
            # A fault in an answer must not cost more than the answer.
            log.exception("a request could not be answered")
            response = _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _octets(response or _refusal(HTTPStatus.NOT_FOUND), body=method == "GET")


def _refusal(status: HTTPStatus) -> Response:
    return Response(f"{status.phrase}\n", status)


def _octets(response: Response, headers: str = "", *, body: bool = True) -> bytes:
    content = response.body.encode("utf-8", "backslashreplace")
    head = (
        f"HTTP/1.1 {int(response.status)} {HTTPStatus(response.status).phrase}\r\n"
        f"Content-Type: {response.kind}\r\nContent-Length: {len(content)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{headers}Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (content if body else b"")
