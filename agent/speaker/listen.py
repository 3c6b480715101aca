"""Listening sockets: one per local address and port, each peer's MD5 key on its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterable

from agent.speaker.settings import Neighbor
from felix_like.model.address import Address

_logger = logging.getLogger("tortie.speaker")

Endpoint = tuple[Address, int]
BACKLOG = 512
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RETRY = 5.0
"""Seconds until an address that is not there yet, or a port in use, is tried again."""


class Listeners:
    """`update` with the neighbors; `accepted(local, peer, socket)` is called for each connection.

    `set_key(socket, peer, password)` is the adapter's; it may raise OSError.
    """

    def __init__(
        self,
        default_port: int,
        accepted: Callable[[Address, Address, socket.socket], None],
        set_key: Callable[[socket.socket, Address, str | None], None],
        retry: float = RETRY,
    ) -> None:
        self._default_port = default_port
        self._accepted = accepted
        self._set_key = set_key
        self._pause = retry
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[Endpoint, socket.socket] = {}
        self._keys: dict[Endpoint, dict[Address, str]] = {}
        self._wanted: dict[Endpoint, dict[Address, str]] = {}
        self._complained: set[Endpoint] = set()
        self._retry: asyncio.TimerHandle | None = None

    def update(self, neighbors: Iterable[Neighbor]) -> None:
        wanted: dict[Endpoint, dict[Address, str]] = {}
        for neighbor in neighbors:
            port = neighbor.listen_port or self._default_port
            if neighbor.local_address is None or not port:
                continue
            keys = wanted.setdefault((neighbor.local_address, port), {})
            if neighbor.password:
                keys[neighbor.address] = neighbor.password
        self._wanted = wanted
        for endpoint in [one for one in self._sockets if one not in wanted]:
            self._close(endpoint)
        self._open_missing()

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        for endpoint in list(self._sockets):
            self._close(endpoint)

    def _open_missing(self) -> None:
        if self._retry is not None:  # a new configuration came first: one timer is enough
            self._retry.cancel()
        self._retry = None
        failed = False
        for endpoint, keys in self._wanted.items():
            try:
                if endpoint not in self._sockets:
                    self._open(endpoint)
                self._set_keys(endpoint, keys)
                self._complained.discard(endpoint)
            except OSError as error:
                failed = True
                if endpoint not in self._complained:
                    self._complained.add(endpoint)
                    _logger.warning(
                        "cannot listen on %s port %d (tried again every %.0f s): %s",
                        endpoint[0],
                        endpoint[1],
                        self._pause,
                        error.strerror or error,
                    )
        if failed:
            self._retry = self._loop.call_later(self._pause, self._open_missing)

    def _open(self, endpoint: Endpoint) -> None:
        address, port = endpoint
        made = socket.socket(
            socket.AF_INET if address.version == 4 else socket.AF_INET6,
            socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
        )
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address.version == 6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((str(address), port))
            # Keys before listen: a peer that has one must not get in without it.
            self._sockets[endpoint] = made
            self._keys[endpoint] = {}
            self._set_keys(endpoint, self._wanted[endpoint])
            made.listen(BACKLOG)
        except OSError:
            self._sockets.pop(endpoint, None)
            made.close()
            raise
        self._loop.add_reader(made.fileno(), self._accept, endpoint, made)

    def _set_keys(self, endpoint: Endpoint, wanted: dict[Address, str]) -> None:
        have, listener = self._keys[endpoint], self._sockets[endpoint]
        for address in [one for one in have if one not in wanted]:
            self._set_key(listener, address, None)
            del have[address]
        for address, password in wanted.items():
            if have.get(address) != password:
                self._set_key(listener, address, password)
                have[address] = password

    def _accept(self, endpoint: Endpoint, listener: socket.socket) -> None:
        for _ in range(16):
            try:
                io, peer = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                _logger.warning("cannot accept a connection: %s", error.strerror or error)
                if error.errno in _EXHAUSTED:
                    self._rest(endpoint, listener)
                return
            try:
                io.setblocking(False)
                io.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._accepted(endpoint[0], Address.parse(peer[0].partition("%")[0]), io)
            except (OSError, ValueError):
                io.close()

    def _rest(self, endpoint: Endpoint, listener: socket.socket) -> None:
        """The connection stays in the queue and the socket readable: without a pause the loop would spin."""
        self._loop.remove_reader(listener.fileno())

        def go_on() -> None:
            if self._sockets.get(endpoint) is listener:
                self._loop.add_reader(listener.fileno(), self._accept, endpoint, listener)

        self._loop.call_later(self._pause, go_on)

    def _close(self, endpoint: Endpoint) -> None:
        listener = self._sockets.pop(endpoint)
        self._keys.pop(endpoint, None)
        with contextlib.suppress(OSError):
            self._loop.remove_reader(listener.fileno())
        listener.close()
