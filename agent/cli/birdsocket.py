"""Asking BIRD on its control socket, as birdc does: what it routes where. Read-only."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import NamedTuple

from felix_like.model.address import Address, IpVersion, Prefix

CALICO = Path("/var/run/calico")
"""Where calico-node has `bird.ctl` and `bird6.ctl`."""
SOCKETS: dict[IpVersion, str] = {4: "bird.ctl", 6: "bird6.ctl"}
TIMEOUT = 5.0
LONGEST = 1 << 20
_END = re.compile(rb"^(?:0|8|9)\d{3} ", re.MULTILINE)
"""The last line of a reply: a code and a space (0: done, 8 and 9: refused)."""
_VIA = re.compile(r"\bvia (\S+) on (\S+)")
_SOURCE = re.compile(r"\[(\S+) ")


class BirdRoute(NamedTuple):
    """The route that BIRD has chosen for a destination."""

    protocol: str
    """BIRD's own name of the protocol that it has it from, such as `Mesh_10_0_0_1`."""
    blackhole: bool
    ways: frozenset[tuple[Address, str]]
    """Gateway and name of the interface."""


def answers(folder: Path, version: IpVersion) -> bool:
    """True when BIRD's daemon for this family is there."""
    try:
        _ask(folder / SOCKETS[version], "show status")
    except OSError:
        return False
    return True


def chosen(folder: Path, prefix: Prefix) -> BirdRoute | None:
    """What BIRD routes this prefix by; None when it has no route to exactly this one. Raises OSError."""
    path = folder / SOCKETS[prefix.version]
    return parse(_ask(path, f"show route {prefix} primary").decode("utf-8", "replace"))


def parse(text: str) -> BirdRoute | None:
    """`show route PREFIX primary` of BIRD 1.6 (all on one line) and of BIRD 2 (each way on its own)."""
    source = _SOURCE.search(text)
    if source is None:
        return None
    ways = set()
    for gateway, interface in _VIA.findall(text):
        try:
            ways.add((Address.parse(gateway), interface))
        except ValueError:
            return None
    return BirdRoute(source[1], re.search(r"\bblackhole\b", text) is not None, frozenset(ways))


def _ask(path: Path, question: str) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(str(path))
        greeting = _read(connection)
        if not greeting.startswith(b"0001 "):
            raise OSError(f"{path} does not greet as BIRD does")
        connection.sendall(question.encode() + b"\n")
        return _read(connection)


def _read(connection: socket.socket) -> bytes:
    reply = b""
    while not _END.search(reply) or not reply.endswith(b"\n"):
        part = connection.recv(65536)
        reply += part
        if not part or len(reply) > LONGEST:
            raise OSError("BIRD did not end its answer")
    return reply
