"""A connected socket with a buffer each way, where ExaBGP's own polls and writes piecemeal.

A message is queued whole, so a KEEPALIVE never lands inside an UPDATE that the peer's window cut
short; and reading a message costs no `poll`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from exabgp.protocol.family import AFI
from exabgp.reactor.network.connection import Connection
from exabgp.reactor.network.error import LostConnection, NotConnected

from felix_like.model.address import IpVersion

HIGH_WATER = 64 * 1024
"""Octets that may wait for the peer's window before no more UPDATEs are made."""
_READ = 64 * 1024
_AFI: dict[IpVersion, Any] = {4: AFI.ipv4, 6: AFI.ipv6}


class BufferedConnection(Connection):  # type: ignore[misc]
    """A connected socket with a buffer each way."""

    def __init__(self, version: IpVersion, peer: str, local: str, io: socket.socket, outgoing: bool) -> None:
        super().__init__(_AFI[version], peer, local)
        self.io: socket.socket | None = io
        self.direction = "outgoing" if outgoing else "incoming"
        self._in = b""
        self._at = 0
        self.out = bytearray()

    def _reader(self, number: int) -> Iterator[bytes]:
        while True:
            end = self._at + number
            if end <= len(self._in):
                piece = self._in[self._at : end]
                self._at = end
                yield piece
                return
            if self.io is None:
                raise NotConnected("the connection is closed")
            try:
                chunk = self.io.recv(_READ)
            except (BlockingIOError, InterruptedError):
                yield b""
                continue
            except OSError as error:
                self.close()
                raise LostConnection(f"{error.strerror or error}") from None
            if not chunk:
                self.close()
                raise LostConnection("the peer closed the connection")
            self._in = self._in[self._at :] + chunk
            self._at = 0

    def writer(self, data: bytes) -> Iterator[bool]:
        """Queue a whole message; waits (yields False) while too much is queued already."""
        self.out += data
        self.flush()
        while len(self.out) > HIGH_WATER:
            yield False
            self.flush()
        yield True

    def flush(self) -> None:
        while self.out and self.io is not None:
            try:
                sent = self.io.send(self.out)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.close()
                raise LostConnection(f"{error.strerror or error}") from None
            del self.out[:sent]

    def detach(self) -> socket.socket | None:
        """Give the socket away, unclosed."""
        io, self.io = self.io, None
        return io
