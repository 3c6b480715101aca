"""Netlink sockets: bulk route writes, kernel-filtered dumps and lookups. All of it blocks: use a thread.

A send does the kernel's work inside the system call, so a bulk write holds its thread for milliseconds. One
instance belongs to one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from agent.netlink.rtnetlink import (
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_NEWROUTE,
    KernelRoute,
    Operation,
    Refused,
    messages,
    pack_batch,
    pack_dump,
    pack_lookup,
    parse_error,
    parse_route,
)
from felix_like.model.address import Address
from felix_like.model.desired import Route

SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NETLINK_GET_STRICT_CHK: Final = 12
SO_RCVBUFFORCE: Final = 33
RECEIVE_OCTETS: Final = 4 << 20
_READ_OCTETS: Final = 1 << 18
_SEND_OCTETS: Final = 128 << 10  # below the default send buffer (net.core.wmem_default), else EMSGSIZE
BATCH: Final = 500
"""Messages a send: enough to amortise the call, few enough that an error for each fits the buffer."""


class NetlinkError(OSError):
    """The kernel refused a request as a whole; `strerror` holds its own sentence where it gave one."""


class Failure(NamedTuple):
    """One message of a batch that the kernel refused."""

    position: int
    """From 0, in the order of the requests."""
    errno: int
    reason: str


def open_socket(groups: Iterable[int] = (), receive_octets: int = RECEIVE_OCTETS) -> socket.socket:
    """An rtnetlink socket in the calling thread's network namespace, member of the multicast groups."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            sock.setsockopt(SOL_NETLINK, option, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_octets)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_octets)  # capped by rmem_max
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        # The kernel answers inside the send; this only bounds what should never happen.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 10, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def reason_of(refused: Refused) -> str:
    """The kernel's sentence, else the errno's."""
    return refused.text or os.strerror(refused.errno)


class RouteWriter:
    """Writes batches of route messages; a lost answer reopens nothing silently: it raises OSError."""

    def __init__(self) -> None:
        self._socket = open_socket()
        self.port: int = self._socket.getsockname()[0]
        """The netlink port id: the kernel puts it into every notification that this writer causes."""

    def close(self) -> None:
        self._socket.close()

    def write(self, requests: Sequence[tuple[Operation, Route]]) -> list[Failure]:
        """Write in order, BATCH messages a send; returns the refused ones by index, the rest is done."""
        failures: list[Failure] = []
        start = 0
        while start < len(requests):
            octets, count = batch(requests, start)
            failures += (
                failure._replace(position=failure.position + start) for failure in self.send(octets, count)
            )
            start += count
        return failures

    def send(self, octets: bytes, count: int) -> list[Failure]:
        """Send what `batch` packed and read every answer. Raises OSError when an answer is lost."""
        self._socket.send(octets)
        failures: list[Failure] = []
        while True:
            reply = self._socket.recv(_READ_OCTETS)
            for message in messages(reply):
                if message.type != NLMSG_ERROR:
                    continue
                refused = parse_error(reply, message)
                if refused.errno:
                    failures.append(Failure(refused.sequence - 1, refused.errno, reason_of(refused)))
                if refused.sequence == count:
                    return failures


def batch(requests: Sequence[tuple[Operation, Route]], start: int = 0) -> tuple[bytes, int]:
    """Pack as many requests from `start` on as fit one send: the octets and how many they are."""
    count = min(BATCH, len(requests) - start)
    while True:
        octets = pack_batch(requests[start : start + count])
        if len(octets) <= _SEND_OCTETS or count == 1:
            return octets, count
        count = max(1, count * _SEND_OCTETS // len(octets))


def dump_replies(request: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Buffer, message type, start and end of every message of one dump, read on a socket of its own.

    Raises InterruptedError when the tables changed under the dump, NetlinkError when the kernel refused it.
    """
    with contextlib.closing(open_socket()) as sock:
        sock.send(request)
        torn = False
        while True:
            reply = sock.recv(_READ_OCTETS)
            for message in messages(reply):
                torn = torn or bool(message.flags & NLM_F_DUMP_INTR)
                if message.type == NLMSG_DONE:
                    if message.end - message.start >= 4:
                        (result,) = struct.unpack_from("=i", reply, message.start)
                        if result < 0:
                            raise NetlinkError(-result, os.strerror(-result))
                    if torn:
                        raise InterruptedError(errno.EINTR, "the routing tables changed during the dump")
                    return
                if message.type == NLMSG_ERROR:
                    refused = parse_error(reply, message)
                    raise NetlinkError(refused.errno, reason_of(refused))
                yield reply, message.type, message.start, message.end


def dump_routes(family: int, protocol: int = 0, table: int = 0, tries: int = 5) -> list[KernelRoute]:
    """All routes of an address family, filtered by the kernel; 0 means any protocol or any table.

    A torn dump is read again; after `tries` the last one counts, as the tables never came to rest.
    """
    routes: list[KernelRoute] = []
    for _ in range(tries):
        routes = []
        try:
            for octets, kind, start, end in dump_replies(pack_dump(family, protocol, table)):
                if kind == RTM_NEWROUTE and (route := parse_route(octets, start, end)) is not None:
                    routes.append(route)
        except InterruptedError:
            continue
        except NetlinkError as error:
            if error.errno == errno.ENOENT:  # a table that does not exist is empty
                return []
            raise
        break
    return routes


class RouteLookup:
    """Asks the kernel which FIB entry an address matches."""

    def __init__(self) -> None:
        self._socket = open_socket(receive_octets=1 << 18)

    def close(self) -> None:
        self._socket.close()

    def lookup(self, address: Address) -> KernelRoute:
        """The matching FIB entry. Raises NetlinkError, with EINVAL for a blackhole."""
        self._socket.send(pack_lookup(address))
        while True:
            reply = self._socket.recv(_READ_OCTETS)
            for message in messages(reply):
                if message.type == NLMSG_ERROR:
                    refused = parse_error(reply, message)
                    raise NetlinkError(refused.errno, reason_of(refused))
                if message.type == RTM_NEWROUTE:
                    route = parse_route(reply, message.start, message.end)
                    if route is None:
                        raise NetlinkError(errno.EPROTO, "the kernel's answer is cut short")
                    return route
