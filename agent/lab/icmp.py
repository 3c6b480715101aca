"""Ping every pod from every pod: one raw socket per family in each namespace, no process per ping.

ICMP echo: RFC 792; ICMPv6 echo: RFC 4443 section 4.1.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from agent.lab import netns
from felix_like.model.address import Address

ROUNDS = 4
"""An address unanswered so often counts as lost: the first packet of a pair may wait for ARP."""
ROUND_SECONDS = 1.0
_PAYLOAD = b"tortie lab ping."


@dataclass(frozen=True, slots=True)
class Source:
    """A pod that pings: its name and its namespace."""

    name: str
    namespace: str


def matrix(sources: Iterable[Source], targets: dict[str, list[Address]]) -> tuple[int, dict[str, list[str]]]:
    """Ping all `targets` (pod name -> addresses) from all sources, but none from itself.

    Returns the number of pairs tried, and source name -> "target (address)" of those without an answer.
    """
    lost: dict[str, list[str]] = {}
    tried = 0
    with ThreadPoolExecutor(max_workers=8) as pool:
        jobs = []
        for source in sources:
            wanted = {
                address: name
                for name, addresses in targets.items()
                if name != source.name
                for address in addresses
            }
            tried += len(wanted)
            jobs.append((source, wanted, pool.submit(ping_from, source.namespace, list(wanted))))
        for source, wanted, job in jobs:
            silent = [f"{wanted[address]} ({address})" for address in job.result()]
            if silent:
                lost[source.name] = silent
    return tried, lost


def ping_from(namespace: str, addresses: list[Address], rounds: int = ROUNDS) -> list[Address]:
    """The addresses that did not answer an echo request sent from inside the namespace."""
    return netns.inside(namespace, lambda: _ping(addresses, rounds))


def _ping(addresses: list[Address], rounds: int) -> list[Address]:
    waiting = set(addresses)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ipv4,
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as ipv6,
        selectors.DefaultSelector() as selector,
    ):
        for sock in (ipv4, ipv6):
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        for sequence in range(1, rounds + 1):
            for address in [a for a in addresses if a in waiting]:
                try:
                    sock = ipv4 if address.version == 4 else ipv6
                    sock.sendto(echo_request(address.version, 0x7467, sequence), (str(address), 0))
                except OSError:
                    continue  # no route, full queue: unanswered
                _collect(selector, waiting, 0)
            deadline = time.monotonic() + ROUND_SECONDS
            while waiting and (left := deadline - time.monotonic()) > 0:
                _collect(selector, waiting, left)
            if not waiting:
                break
    return [address for address in addresses if address in waiting]


def _collect(selector: selectors.BaseSelector, waiting: set[Address], seconds: float) -> None:
    for key, _ in selector.select(seconds):
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        while True:
            try:
                packet, sender = sock.recvfrom(2048)
            except BlockingIOError:
                break
            if _is_reply(sock.family, packet):
                waiting.discard(Address.parse(sender[0].partition("%")[0]))


def _is_reply(family: int, packet: bytes) -> bool:
    if family == socket.AF_INET6:
        return packet[:1] == b"\x81"
    header = (packet[0] & 0x0F) * 4
    return packet[header : header + 1] == b"\x00"


def echo_request(version: int, identifier: int, sequence: int, payload: bytes = _PAYLOAD) -> bytes:
    """An echo request; the kernel fills in ICMPv6's checksum, ICMP's is ours (RFC 1071). `payload`: an even
    number of octets."""
    kind = 8 if version == 4 else 128
    packet = struct.pack("!BBHHH", kind, 0, 0, identifier, sequence) + payload
    if version == 6:
        return packet
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    total += total >> 16
    return packet[:2] + struct.pack("!H", ~total & 0xFFFF) + packet[4:]
