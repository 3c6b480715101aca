"""Which announcements may take part at all, whatever the datastore says (RFC 4271, 4456, 1930).

A refused path stays in Adj-RIB-In with its reason, so that it can be explained, and judged again when
the configuration changes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.bgp import Peer
from felix_like.model.path import Attributes
from felix_like.rib.session import Session, dotted

_MARTIANS = tuple(
    Prefix.parse(text)
    for text in (
        "0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4",
        "::/128", "::1/128", "::ffff:0:0/96", "fe80::/10", "ff00::/8",
    )
)  # fmt: skip
"""Never a destination for somebody else (RFC 6890; RFC 4291 sections 2.5 and 2.7)."""
_SUSPECT_OCTETS = {4: frozenset({0, 127, *range(224, 256)}), 16: frozenset({0, 0xFE, 0xFF})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Self:
    """What this node calls itself on the wire."""

    addresses: frozenset[Address] = frozenset()
    router_ids: frozenset[str] = frozenset()
    cluster_ids: frozenset[str] = frozenset()
    asn: Asn | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A peer as an announcer: its configuration and its session, either of which may be missing."""

    address: Address
    peer: Peer | None
    session: Session | None

    @property
    def name(self) -> str:
        if self.peer is None:
            return str(self.address)
        return self.peer.remote_node or self.peer.resource or str(self.address)

    @property
    def is_ebgp(self) -> bool:
        return self.peer is not None and self.peer.is_ebgp


_REFLECTED_BACK, _CLUSTER_LOOP = "reflected back to us: ", "cluster loop: "


def is_reflection(rejection: str) -> bool:
    """Whether a reflector sent what has been here before (RFC 4456 section 8)."""
    return rejection.startswith((_REFLECTED_BACK, _CLUSTER_LOOP))


def refuse_attributes(source: Source, attributes: Attributes, us: Self) -> str | None:
    """Why nothing with these attributes is accepted from this peer; None when something may be."""
    peer = source.peer
    if peer is None:
        return "its sender is not among this node's peers (any more)"
    if reason := _refuse_as_path(peer, attributes, us):
        return reason
    if not peer.is_ebgp:  # from eBGP both attributes are ignored (RFC 4456 section 8)
        if attributes.originator_id is not None:
            if attributes.originator_id in us.router_ids:
                return f"{_REFLECTED_BACK}ORIGINATOR_ID {attributes.originator_id} is our router ID"
            try:
                dotted(attributes.originator_id)
            except ValueError as problem:
                return f"ORIGINATOR_ID {problem}"
        if loop := us.cluster_ids.intersection(attributes.cluster_list):
            return f"{_CLUSTER_LOOP}our cluster ID {min(loop)} is in CLUSTER_LIST"
    return _refuse_next_hop(attributes.next_hop, us.addresses)


def _refuse_as_path(peer: Peer, attributes: Attributes, us: Self) -> str | None:
    asns = attributes.asns
    if asns:
        for ours in {peer.local_asn, us.asn or peer.local_asn}:
            if (times := asns.count(ours)) > peer.allowed_local_asns:
                return (
                    f"AS loop: our AS {ours} is {times} times in AS_PATH, {peer.allowed_local_asns} allowed"
                )
    if peer.is_ebgp and attributes.neighbor_as != peer.asn:
        # RFC 4271 section 6.3 lets us check this; an eBGP speaker prepends its own AS.
        return f"AS_PATH does not start with the peer's AS {peer.asn}"
    return None


def _refuse_next_hop(next_hop: Address, ours: Collection[Address]) -> str | None:
    if next_hop in ours:
        return f"its next hop {next_hop} is this node itself"
    first = next_hop[0]
    if len(next_hop) == 4:
        unusable = first in (0, 127) or first >= 224
    else:
        unusable = first == 0xFF or next_hop.is_link_local or not any(next_hop[:10])
    return f"its next hop {next_hop} is not a usable unicast address" if unusable else None


def refuse_prefix(source: Source, prefix: Prefix, next_hop: Address) -> str | None:
    """Why this one prefix is not accepted."""
    network, length = prefix
    octets = len(network)
    if octets != len(next_hop):
        return f"its next hop {next_hop} is of the other address family"
    peer = source.peer
    if peer is not None and prefix.version not in peer.families:
        return f"IPv{prefix.version} is not carried by this session"
    if length and network[0] in _SUSPECT_OCTETS[octets]:
        for martian in _MARTIANS:
            if martian.covers(prefix):
                return f"martian: it lies in {martian}, which is never routed"
    return None
