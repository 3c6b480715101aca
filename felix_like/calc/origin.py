"""Origin validation: may this announcer announce this prefix? Decided by the IPAM data in etcd.

The words are RFC 6811's. The announcer is the node that owns the path's next hop, because that is where
the packets would go; a reflected path's ORIGINATOR_ID must name the same node. A verdict of unknown is
not an error: the path waits and is judged again whenever something it depends on changes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from felix_like.calc.cluster import quoted
from felix_like.calc.ownership import Ownership, who
from felix_like.model.address import Prefix
from felix_like.model.path import NOT_JUDGED, Attributes
from felix_like.model.verdict import Origin, Validity
from felix_like.rib.import_policy import Source

Judge = Callable[[Prefix], Origin]


class OriginMode(StrEnum):
    OFF = "off"
    """Nothing is judged."""
    OBSERVE = "observe"
    """Verdicts are given and shown, but everything is used."""
    ENFORCE = "enforce"
    """Only what is valid is used."""


_OFF = Origin(Validity.UNKNOWN, "origin validation is off")
_OUTSIDE = Origin(Validity.VALID, "outside every pool")
_SERVICE = Origin(Validity.VALID, "inside a service range")


def _valid(reason: str) -> Origin:
    return Origin(Validity.VALID, reason)


def _invalid(reason: str) -> Origin:
    return Origin(Validity.INVALID, reason)


def _unknown(reason: str) -> Origin:
    return Origin(Validity.UNKNOWN, reason)


class Validator:
    """Gives a judge per sender and set of attributes; the judge is asked once per prefix."""

    def __init__(self, ownership: Ownership, mode: OriginMode, node: str) -> None:
        self._ownership = ownership
        self._mode = mode
        self._node = node

    def judge(self, source: Source, attributes: Attributes) -> Judge:
        if self._mode is OriginMode.OFF:
            return lambda _: _OFF
        if source.peer is None:
            return lambda _: NOT_JUDGED
        if source.peer.remote_node is None and not self._ownership.owners(source.address):
            return self._external(
                source, attributes
            )  # else two nodes say it is theirs: no stranger either way
        announcer = self.announcer(source, attributes)
        return lambda prefix: self._from_node(prefix, source, announcer)

    def announcer(self, source: Source, attributes: Attributes) -> str | Origin:
        """The node that announces, or the verdict when nobody or two nodes may be meant."""
        next_hop = attributes.next_hop
        names = self._ownership.owners(next_hop)
        if not names:
            return _unknown(f"its next hop {next_hop} belongs to no node that is known")
        if len(names) > 1:
            both = " and ".join(quoted(name) for name in names[:3])
            return _unknown(f"its next hop {next_hop} belongs to {both}: nobody can tell which")
        originator = attributes.originator_id
        if originator is None or source.is_ebgp:
            return names[0]
        routers = self._ownership.routers(originator)
        if not routers:
            return _unknown(f"its ORIGINATOR_ID {originator} is no known node's router ID")
        if names[0] not in routers:
            return _invalid(
                f"its ORIGINATOR_ID {originator} is {who(min(routers))}'s, "
                f"but its next hop {next_hop} {who(names[0])}'s"
            )
        return names[0]

    def _takes_a_node(self, prefix: Prefix) -> Origin | None:
        taken = self._ownership.node_inside(prefix)
        if taken is None:
            return None
        name, address = taken
        return _invalid(f"it would take the traffic of node {who(name)}'s own address {address}")

    def _from_node(self, prefix: Prefix, source: Source, announcer: str | Origin) -> Origin:
        if taken := self._takes_a_node(prefix):
            return taken
        if self._ownership.service_range(prefix) is not None:  # every node may announce it
            return announcer if isinstance(announcer, Origin) else _SERVICE
        pool = self._ownership.pools.match(prefix)
        if pool is None:
            return self._outside(prefix, source)
        if isinstance(announcer, Origin):
            return announcer
        held = self._held(prefix, announcer)
        if held is not None:
            return held
        if prefix.length < pool.block_size and not self._ownership.any_block_size:
            return _invalid(
                f"{who(announcer)} announces more than a block (/{pool.block_size}) "
                f"of IPPool {quoted(pool.name)}"
            )
        return _unknown(f"no block is known for it in IPPool {quoted(pool.name)}")

    def _held(self, prefix: Prefix, announcer: str) -> Origin | None:
        """The verdict of the block that the prefix is or lies in; None without one."""
        holding = self._ownership.blocks.match(prefix)
        if holding is None:
            return None
        if holding.holder == announcer:
            return holding.verdict
        borrower = holding.borrowed.get(prefix.network) if prefix.is_host else None
        if borrower == announcer:
            return _valid(f"{quoted(announcer)} borrows it from {holding.kind} {holding.cidr}")
        lent = f", which lends it to {who(borrower)}" if borrower else ""
        return _invalid(
            f"{who(holding.holder)} holds {holding.kind} {holding.cidr}{lent}, "
            f"but {who(announcer)} announces it"
        )

    def _outside(self, prefix: Prefix, source: Source) -> Origin:
        sender = quoted(source.name)
        if prefix.is_default:
            return _invalid(f"node {sender} announces the default route, which is no node's to announce")
        inside = self._ownership.pools.covered_by(prefix)
        if inside is not None:
            pool = self._ownership.pools.get(inside)
            name = quoted(pool.name) if pool is not None else str(inside)
            return _invalid(f"node {sender} announces more than the whole IPPool {name} ({inside})")
        return _invalid(f"node {sender} announces what is outside every pool and service range")

    def _external(self, source: Source, attributes: Attributes) -> Judge:
        """A peer that is no node of ours: what lies outside the pools is its own business."""
        peer = source.peer
        assert peer is not None
        resource = quoted(peer.resource or str(peer.address))
        # Where the next hop is a node, packets go there, whoever says so: then ownership decides.
        through_node = bool(self._ownership.owners(attributes.next_hop))
        announcer = self.announcer(source, attributes)

        def judge(prefix: Prefix) -> Origin:
            if taken := self._takes_a_node(prefix):
                return taken
            pool = self._ownership.pools.match(prefix)
            service = self._ownership.service_range(prefix)
            if pool is None and service is None:
                return _OUTSIDE
            if not peer.accepts_pool_routes:
                where = (
                    f"IPPool {quoted(pool.name)}"
                    if pool is not None and service is None
                    else f"service range {service}"
                )
                return _invalid(
                    f"it is inside {where}, and BGPPeer {resource} does not allow that "
                    "(annotation tortie/pool-routes: accept)"
                )
            if service is not None:
                return announcer if through_node and isinstance(announcer, Origin) else _SERVICE
            if through_node:
                return self._from_node(prefix, source, announcer)
            holding = self._ownership.blocks.match(prefix)
            if holding is not None and holding.holder == self._node:
                return _invalid(f"this node itself holds {holding.kind} {holding.cidr}")
            return _valid(f"BGPPeer {resource} allows it")

        return judge
