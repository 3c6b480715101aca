"""TCP MD5 keys (RFC 2385) and TTLs (RFC 5082) on the sockets of BGP sessions."""

from __future__ import annotations

import socket
from typing import Any

from exabgp.protocol.family import AFI
from exabgp.reactor.network import tcp
from exabgp.reactor.network.error import NetworkError

from agent.speaker.settings import Neighbor
from felix_like.model.address import Address, IpVersion

_AFI: dict[IpVersion, Any] = {4: AFI.ipv4, 6: AFI.ipv6}


def open_socket(neighbor: Neighbor) -> socket.socket:
    """A bound socket to connect to the neighbor with, MD5 key and TTLs set. Raises OSError."""
    source: Any = neighbor.source
    family = socket.AF_INET if neighbor.address.version == 4 else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if source["source-interface"]:
            tcp.bind_to_device(made, source["source-interface"])
        if neighbor.password:
            tcp.md5(made, str(neighbor.address), neighbor.connect_port, neighbor.password, True)
        set_ttl(made, neighbor)
        if neighbor.local_address is not None:
            made.bind((str(neighbor.local_address), 0))
    except NetworkError as error:
        made.close()
        raise OSError(str(error)) from None
    except OSError:
        made.close()
        raise
    return made


def set_ttl(connected: socket.socket, neighbor: Neighbor) -> None:
    """Sending and accepted TTL (GTSM, RFC 5082) of a connection. Raises OSError."""
    afi = _AFI[neighbor.address.version]
    peer = str(neighbor.address)
    try:
        sending = tcp.sending_ttl(neighbor.outgoing_ttl, neighbor.incoming_ttl)
        tcp.set_sending_ttl(connected, afi, peer, sending)
        tcp.set_minimum_ttl(connected, afi, peer, neighbor.incoming_ttl)
    except NetworkError as error:
        raise OSError(str(error)) from None


def set_key(listener: socket.socket, address: Address, password: str | None) -> None:
    """Set, change or (without one) delete a peer's TCP MD5 key, in base64, on a listening socket.

    Raises OSError.
    """
    try:
        tcp.md5(listener, str(address), 0, password or "", True)
    except NetworkError as error:
        raise OSError(str(error)) from None
