"""Constant traffic between all pods: echo requests at a steady pace, counted by sequence number.

One thread serves every pod's sockets, which live in the pods' namespaces. A request counts as lost only when
no answer has come some time after the last one was sent: a slow machine is no loss.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agent.lab import netns
from agent.lab.icmp import Source, echo_request
from felix_like.model.address import Address

INTERVAL: Final = 0.01
"""Seconds between two requests of a pod to an address."""
GRACE: Final = 5.0
"""Seconds that answers may still take when the last request is out."""
_IDENTIFIER: Final = 0x7468
_STAMP: Final = struct.Struct("!QQ")
"""A request's payload: who this traffic is, and its sequence number."""
_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER, _SO_RCVBUFFORCE = 255, 1, 1, 33
_ECHO_REPLY, _ECHO_REPLY6 = 0, 129
_RECEIVE_OCTETS = 4 << 20


@dataclass(slots=True)
class Pair:
    """What one pod sent to one address."""

    source: str
    target: str
    address: Address
    sent: int = 0
    waiting: dict[int, float] = field(default_factory=dict)
    """Sequence number -> when it was sent, in seconds since the start; what stays is lost."""

    def __str__(self) -> str:
        return f"{self.source} to {self.target} ({self.address})"


@dataclass(frozen=True, slots=True)
class Tally:
    """The end of it."""

    pairs: tuple[Pair, ...]

    @property
    def sent(self) -> int:
        return sum(pair.sent for pair in self.pairs)

    @property
    def least(self) -> int:
        """Requests of the pair that sent fewest."""
        return min((pair.sent for pair in self.pairs), default=0)

    @property
    def lost(self) -> int:
        return sum(len(pair.waiting) for pair in self.pairs)

    def losses(self) -> list[str]:
        """One phrase for each pair that lost something: how many, and when."""
        return [
            f"{pair}: {len(pair.waiting)} of {pair.sent}, sent from {min(pair.waiting.values()):.2f} s to "
            f"{max(pair.waiting.values()):.2f} s after the start"
            for pair in self.pairs
            if pair.waiting
        ]


class Traffic:
    """Between `start` and `stop` every source pings all addresses of all others."""

    def __init__(
        self,
        sources: Iterable[Source],
        targets: Mapping[str, Sequence[Address]],
        interval: float = INTERVAL,
    ) -> None:
        self._sources = list(sources)
        self._interval = interval
        self._stamp = time.monotonic_ns()
        self._sequence = 0
        self._begun = 0.0
        self._pairs = {
            source.name: {
                address: Pair(source.name, name, address)
                for name, addresses in targets.items()
                if name != source.name
                for address in addresses
            }
            for source in self._sources
        }
        self._selector = selectors.DefaultSelector()
        self._sockets: list[tuple[str, int, socket.socket]] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Raises LabError or OSError when a pod's sockets cannot be opened."""
        try:
            for source in self._sources:
                for version, sock in netns.inside(source.namespace, _sockets).items():
                    self._sockets.append((source.name, version, sock))
                    self._selector.register(sock, selectors.EVENT_READ, source.name)
        except BaseException:
            self._close()
            raise
        self._begun = time.monotonic()
        self._thread.start()

    @property
    def rounds(self) -> int:
        """Requests sent so far by each pod to each address."""
        return self._sequence

    def stop(self) -> Tally:
        """Send no more, wait for what is still under way, and count."""
        self._ending.set()
        self._thread.join()
        self._close()
        if self._failure is not None:
            raise self._failure
        return Tally(tuple(pair for pairs in self._pairs.values() for pair in pairs.values()))

    def _close(self) -> None:
        for _, _, sock in self._sockets:
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        try:
            due = self._begun
            while not self._ending.is_set():
                self._send()
                # After a pause of this machine it goes on at its pace, without a burst.
                due = max(due + self._interval, time.monotonic() - self._interval)
                self._receive_until(due)
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline and any(
                pair.waiting for pairs in self._pairs.values() for pair in pairs.values()
            ):
                self._receive_until(min(deadline, time.monotonic() + self._interval))
        except BaseException as error:  # for the caller of `stop`
            self._failure = error

    def _send(self) -> None:
        self._sequence += 1
        number, now = self._sequence, time.monotonic() - self._begun
        payload = _STAMP.pack(self._stamp, number)
        packets = {
            version: echo_request(version, _IDENTIFIER, number & 0xFFFF, payload) for version in (4, 6)
        }
        for name, version, sock in self._sockets:
            for address, pair in self._pairs[name].items():
                if address.version != version:
                    continue
                try:
                    sock.sendto(packets[version], (str(address), 0))
                except BlockingIOError:
                    continue  # this machine's queue is full: never sent, so never lost
                except OSError:
                    pass  # the pod's own kernel refuses it: that is a loss
                pair.sent += 1
                pair.waiting[number] = now

    def _receive_until(self, deadline: float) -> None:
        while True:
            left = deadline - time.monotonic()
            for key, _ in self._selector.select(max(0.0, left)):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                self._receive(key.data, sock)
            if left <= 0:
                return

    def _receive(self, name: str, sock: socket.socket) -> None:
        pairs = self._pairs[name]
        for _ in range(64):
            try:
                packet, sender = sock.recvfrom(2048)
            except BlockingIOError:
                return
            start = 0 if sock.family == socket.AF_INET6 else (packet[0] & 0x0F) * 4
            if len(packet) < start + 8 + _STAMP.size:
                continue
            stamp, number = _STAMP.unpack_from(packet, start + 8)
            pair = pairs.get(Address.parse(sender[0].partition("%")[0]))
            if stamp == self._stamp and pair is not None:
                pair.waiting.pop(number, None)


def _sockets() -> dict[int, socket.socket]:
    """A raw socket for each family in the calling thread's namespace; only echo replies reach it."""
    ipv4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    ipv4.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF ^ (1 << _ECHO_REPLY)))
    ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    words = [0xFFFFFFFF] * 8
    words[_ECHO_REPLY6 >> 5] ^= 1 << (_ECHO_REPLY6 & 31)
    ipv6.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
    for sock in (ipv4, ipv6):
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_OCTETS)
        sock.setblocking(False)
    return {4: ipv4, 6: ipv6}
