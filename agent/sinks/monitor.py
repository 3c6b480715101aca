"""Hears what happens to routes, links and addresses, and tells whoever subscribed."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Collection, Sequence
from typing import Final

from agent.netlink.rtnetlink import messages
from agent.netlink.sockets import open_socket
from agent.sinks.rtlink import Event, Overrun, parse_event

RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE = (
    1,
    5,
    7,
    9,
    11,
)
GROUPS: Final = (
    RTNLGRP_LINK,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
)
_SO_ATTACH_FILTER: Final = 26
_READ_OCTETS: Final = 1 << 16
_READS: Final = 256
"""Datagrams read per turn of the loop: about 3 ms, so that a burst does not hold everything else up."""

Listener = Callable[[Sequence[Event]], None]


class RouteMonitor:
    """One monitor socket for all who need it. Belongs to one event loop.

    Notifications that `ignored` ports caused are dropped in the kernel by a socket filter, so that our own
    bulk writes cost nothing here. When the buffer overflows, listeners get `Overrun` and the monitor goes on.
    """

    def __init__(self, *, receive_octets: int = 8 << 20) -> None:
        self._receive_octets = receive_octets
        self._listeners: list[Listener] = []
        self._ignored: frozenset[int] = frozenset()
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.overruns = 0
        """How often events were lost since the start."""

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def start(self) -> None:
        """Open the socket in the calling thread's network namespace, once. Raises OSError."""
        if self._socket is not None:
            return
        sock = open_socket(GROUPS, self._receive_octets)
        sock.setblocking(False)
        self._socket = sock
        self._attach_filter()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)

    def close(self) -> None:
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        self._socket = self._loop = None

    def ignore(self, ports: Collection[int]) -> None:
        """Drop what these netlink ports cause from now on."""
        self._ignored = frozenset(ports)
        self._attach_filter()

    def _attach_filter(self) -> None:
        if self._socket is None:
            return
        program = ignore_filter(self._ignored)
        buffer = ctypes.create_string_buffer(program, len(program))
        fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)

    def _read(self) -> None:
        assert self._socket is not None
        heard: list[Event] = []
        for _ in range(_READS):
            try:
                octets = self._socket.recv(_READ_OCTETS)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                heard.append(Overrun())
                continue
            heard += (event for message in messages(octets) if (event := parse_event(octets, message)))
        if heard:
            for listener in self._listeners:
                listener(heard)


def ignore_filter(ports: Collection[int]) -> bytes:
    """Classic BPF: drop a message whose nlmsg_pid (octets 12 to 15 of its header) is one of the ports.

    BPF loads words in network order while netlink writes host order, hence the swap.
    """
    instruction = struct.Struct("=HBBI")
    load, jump_equal, give_back = 0x20, 0x15, 0x06
    program = [instruction.pack(load, 0, 0, 12)]
    for left, port in zip(range(len(ports), 0, -1), sorted(ports), strict=True):
        program.append(instruction.pack(jump_equal, left, 0, socket.htonl(port)))
    program.append(instruction.pack(give_back, 0, 0, 0xFFFFFFFF))
    program.append(instruction.pack(give_back, 0, 0, 0))
    return b"".join(program)
