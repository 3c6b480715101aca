"""Desired -> SpeakerConfig: the calculation's peers in a speaker's words.

Pure and history-free: equal peers give equal neighbors, so a node that joins or leaves changes its own
neighbor only. A peer with a value that no speaker could be told is refused here, alone, with a reason:
the others must not lose their file to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bird_config.document import SHORTEST_HOLD, SMALL_MESH, NeighborConfig, SpeakerConfig
from felix_like.model.address import Address
from felix_like.model.bgp import Peer
from felix_like.model.desired import Desired
from felix_like.model.verdict import No, Refusal

MAX_PASSWORD_OCTETS = 80
"""TCP_MD5SIG_MAXKEYLEN (Linux include/uapi/linux/tcp.h)."""
MAX_RESTART_TIME = 4095
"""Twelve bits (RFC 4724 section 3)."""
MAX_HOLD_TIME = 65535


def compose(desired: Desired) -> SpeakerConfig:
    """What the speaker's file should say for this node. Never raises for a peer it cannot use."""
    neighbors: list[NeighborConfig] = []
    refusals: list[Refusal] = []
    for peer in desired.peers.values():
        neighbor = compose_neighbor(peer)
        if isinstance(neighbor, No):
            refusals.append(Refusal(_subject(peer), neighbor.reason))
        elif len(desired.peers) > SMALL_MESH and 0 < neighbor.hold_time < SHORTEST_HOLD:
            # The speaker would refuse the whole file, and with it every node that joins or leaves.
            refusals.append(Refusal(_subject(peer), _too_short(neighbor.hold_time, len(desired.peers))))
            neighbors.append(replace(neighbor, hold_time=SHORTEST_HOLD))
        else:
            neighbors.append(neighbor)
    return SpeakerConfig(
        node=desired.node,
        neighbors=tuple(sorted(neighbors, key=lambda n: (n.name, n.address))),
        refusals=tuple(sorted(refusals)),
    )


def compose_neighbor(peer: Peer) -> NeighborConfig | No:
    """One peer in the speaker's words, or why it cannot be put into them."""
    for refuse in _REFUSE:
        reason = refuse(peer)
        if reason:
            return No(reason)
    return NeighborConfig(
        address=peer.address,
        name=peer.name,
        router_id=peer.router_id,
        local_address=peer.local_address,
        local_asn=peer.local_asn,
        asn=peer.asn,
        hold_time=peer.hold_time,
        passive=peer.passive,
        connect=peer.port,
        listen=peer.listen_port,
        password=None if peer.password is None else peer.password.encode(),
        minimum_ttl=None if peer.ttl_security is None else 256 - peer.ttl_security,
        families=tuple(sorted(set(peer.families))),
        restart_time=peer.restart_time,
    )


def _too_short(hold_time: int, sessions: int) -> str:
    return (
        f"hold time {hold_time} s is too short with {sessions} sessions on this node: {SHORTEST_HOLD} s is "
        f"used. Set keepaliveTime to {SHORTEST_HOLD // 3}s or more, or the agent's hold time to "
        f"{SHORTEST_HOLD} or more"
    )


def _subject(peer: Peer) -> str:
    return f"BGPPeer {peer.resource}" if peer.resource else f"peer {peer.name}"


def _addresses(peer: Peer) -> str | None:
    if peer.address.version != peer.local_address.version:
        return (
            f"the peer's address {peer.address} and this node's address {peer.local_address} "
            "are of different families; one BGP session needs two of the same"
        )
    return None


def _asns(peer: Peer) -> str | None:
    for asn in (peer.asn, peer.local_asn):
        if not 1 <= asn <= 0xFFFFFFFF:
            return f"AS {asn} cannot be used (RFC 7607, RFC 6793); use 1 to 4294967295"
    return None


def _router_id(peer: Peer) -> str | None:
    try:
        router_id = Address.parse(peer.router_id)
    except ValueError:
        router_id = Address()
    if router_id.version != 4 or not any(router_id):
        return f"router ID {peer.router_id!r} is not a dotted quad other than 0.0.0.0 (RFC 6286)"
    return None


def _hold_time(peer: Peer) -> str | None:
    if peer.hold_time == 0 or 3 <= peer.hold_time <= MAX_HOLD_TIME:
        return None
    return (
        f"hold time {peer.hold_time} s is not allowed (RFC 4271 section 4.2); use 0 or 3 to {MAX_HOLD_TIME}"
    )


def _ports(peer: Peer) -> str | None:
    for port in (peer.port, peer.listen_port):
        if not 1 <= port <= 65535:
            return f"{port} is not a TCP port; use 1 to 65535"
    return None


def _password(peer: Peer) -> str | None:
    if peer.password is None:
        return None
    try:
        octets = len(peer.password.encode())
    except UnicodeEncodeError:
        return "its password is not valid text; write it as UTF-8"
    if not octets:
        return "its password is empty, which would leave the session open; set one or remove the reference"
    if octets > MAX_PASSWORD_OCTETS:
        return f"its password has {octets} octets; TCP MD5 takes at most {MAX_PASSWORD_OCTETS} (RFC 2385)"
    return None


def _ttl_security(peer: Peer) -> str | None:
    if peer.ttl_security is None or 1 <= peer.ttl_security <= 255:
        return None
    return f"ttlSecurity {peer.ttl_security} is not a number of hops; use 1 to 255 (RFC 5082)"


def _families(peer: Peer) -> str | None:
    return None if peer.families else "it has no address family to exchange"


def _restart_time(peer: Peer) -> str | None:
    if 0 <= peer.restart_time <= MAX_RESTART_TIME:
        return None
    return (
        f"graceful restart time {peer.restart_time} s does not fit (RFC 4724 section 3); "
        f"use 0 to {MAX_RESTART_TIME}"
    )


_REFUSE: tuple[Callable[[Peer], str | None], ...] = (
    _addresses,
    _asns,
    _router_id,
    _hold_time,
    _ports,
    _password,
    _ttl_security,
    _families,
    _restart_time,
)
