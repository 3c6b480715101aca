"""Adj-RIB-Out: what each peer is told, exactly as it goes on the wire.

The AS_PATH here is complete: the local AS is already prepended for eBGP peers, the speaker adds
nothing. Calico's export filter is part of it: only prefixes inside pools and service ranges leave the
node (confd's `calico_export_to_bgp_peers`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from felix_like.model.address import Address, Asn, IpVersion, Prefix
from felix_like.model.bgp import Peer, PeerType
from felix_like.model.ippool import IPPool
from felix_like.model.path import Attributes, Path, SegmentKind
from felix_like.rib.decision import DEFAULT_LOCAL_PREF
from felix_like.rib.import_policy import Source
from felix_like.rib.prefix_table import PrefixTable

NO_EXPORT = "65535:65281"
NO_ADVERTISE = "65535:65282"
NO_EXPORT_SUBCONFED = "65535:65283"
"""The well-known communities of RFC 1997."""

_SEGMENT_LIMIT = 255
"""AS numbers of one AS_PATH segment at most: its count is one octet (RFC 4271 section 4.3)."""


@dataclass(slots=True)
class ExportFilter:
    """Which learned prefixes may leave the node."""

    pools: PrefixTable[bool] = field(default_factory=PrefixTable)
    """Pool -> export allowed."""
    services: PrefixTable[None] = field(default_factory=PrefixTable)
    own_blocks: PrefixTable[None] = field(default_factory=PrefixTable)

    @classmethod
    def of(
        cls, pools: Iterable[IPPool], services: Iterable[Prefix], own_blocks: Iterable[Prefix]
    ) -> ExportFilter:
        """Where pools have one CIDR or lie in each other, one that forbids export is enough."""
        rules = cls()
        for pool in pools:
            allowed = rules.pools.get(pool.cidr) is not False and not pool.disable_bgp_export
            rules.pools.put(pool.cidr, allowed)
        for cidr in services:
            rules.services.put(cidr, None)
        for block in own_blocks:
            rules.own_blocks.put(block, None)
        return rules

    def same_ranges(self, other: ExportFilter) -> bool:
        """The same pools and service ranges; own blocks aside."""
        mine, its = ({p: rules.pools.get(p) for p in rules.pools} for rules in (self, other))
        return mine == its and set(self.services) == set(other.services)

    def service_range(self, prefix: Prefix) -> Prefix | None:
        """The service range that a prefix lies in, unless it lies in a pool that is more specific."""
        return self.services.longest_beside(self.pools, prefix)

    def refuse(self, prefix: Prefix) -> str | None:
        pools = self.pools.all_matches(prefix)
        if not all(pools):
            return "its pool has disableBGPExport"
        block = self.own_blocks.longest(prefix)
        if block is not None and block != prefix:
            return f"it is aggregated into this node's block {block}"
        if pools or self.services.longest(prefix) is not None:
            return None
        return "it is outside every pool and service range"


def may_learn_from(target: Peer, source: Source) -> str | None:
    """Why a target never hears of a source's paths; None when it may (RFC 4271 9.2, RFC 4456 6)."""
    origin = source.peer
    if target.address == source.address:
        return "it came from this peer"
    if origin is None:
        return "its sender is not among this node's peers"
    if origin.is_ebgp or target.is_ebgp:
        if origin.type is PeerType.MESH and target.type is PeerType.MESH:
            # Nodes with AS numbers of their own: each is its blocks' only announcer all the same.
            return "a peer of the full mesh hears it from its sender"
        return None
    if not (origin.route_reflector_client or target.route_reflector_client):
        return "learned by iBGP, and neither side is a route reflector client"
    if source.session is None:
        return "its sender's router ID is not known, so ORIGINATOR_ID cannot be set"
    return None


def export(path: Path, source: Source, target: Peer, own: Mapping[IpVersion, Address]) -> Attributes | str:
    """A learned path's attributes as the target gets them, or the reason why it does not."""
    attributes, version = path.attributes, path.prefix.version
    communities = attributes.communities
    if NO_ADVERTISE in communities:
        return "it carries NO_ADVERTISE"
    if target.is_ebgp and (NO_EXPORT in communities or NO_EXPORT_SUBCONFED in communities):
        return "it carries NO_EXPORT"
    next_hop: Address | None = attributes.next_hop
    if target.next_hop_mode == "Self" or (target.is_ebgp and target.next_hop_mode != "Keep"):
        next_hop = _own_address(target, version, own)
        if next_hop is None:
            return f"this node has no IPv{version} address to be its next hop"
    assert next_hop is not None
    if next_hop == target.address:  # RFC 4271 section 5.1.3
        return "the peer itself is its next hop"
    if target.is_ebgp:
        return _outward(replace(attributes, next_hop=next_hop, med=None), target)
    if source.is_ebgp:  # LOCAL_PREF and the reflector's attributes from outside were ignored
        return replace(
            attributes, next_hop=next_hop, local_pref=DEFAULT_LOCAL_PREF, originator_id=None, cluster_list=()
        )
    assert source.session is not None
    cluster_id = target.cluster_id or (source.peer.cluster_id if source.peer is not None else "")
    cluster_id = cluster_id or target.router_id  # RFC 4456 section 7: the router ID is the default
    return replace(
        attributes,
        next_hop=next_hop,
        local_pref=DEFAULT_LOCAL_PREF if attributes.local_pref is None else attributes.local_pref,
        originator_id=attributes.originator_id or source.session.router_id,
        cluster_list=(cluster_id, *attributes.cluster_list),
    )


def originate(attributes: Attributes, target: Peer) -> Attributes:
    """This node's own prefix as the target gets it: the MED stays, it is ours to set."""
    if target.is_ebgp:
        return _outward(attributes, target)
    if attributes.local_pref is not None:
        return attributes
    return replace(attributes, local_pref=DEFAULT_LOCAL_PREF)


def _own_address(target: Peer, version: IpVersion, own: Mapping[IpVersion, Address]) -> Address | None:
    return target.local_address if target.local_address.version == version else own.get(version)


def _outward(attributes: Attributes, target: Peer) -> Attributes:
    return replace(
        attributes,
        as_path=prepend(attributes.as_path, target.local_asn),
        local_pref=None,
        originator_id=None,
        cluster_list=(),
    )


def prepend(
    as_path: tuple[tuple[SegmentKind, tuple[Asn, ...]], ...], asn: Asn
) -> tuple[tuple[SegmentKind, tuple[Asn, ...]], ...]:
    """RFC 4271 section 5.1.2 b: into the first sequence, or a new one before a set or a full one."""
    if as_path and as_path[0][0] == "sequence" and len(as_path[0][1]) < _SEGMENT_LIMIT:
        return (("sequence", (asn, *as_path[0][1])), *as_path[1:])
    return (("sequence", (asn,)), *as_path)


class AdjRibOut:
    """What every peer has been told, and what changed since somebody last asked."""

    __slots__ = ("_changed", "_counts", "_told")

    def __init__(self) -> None:
        self._told: dict[Prefix, dict[Address, Attributes]] = {}
        self._counts: dict[Address, int] = {}
        self._changed: dict[Address, dict[Prefix, Attributes | None]] = {}

    def put(self, prefix: Prefix, wanted: Mapping[Address, Attributes]) -> None:
        """From now on exactly these peers are told this prefix, with these attributes."""
        told = self._told.get(prefix)
        if told is None:
            if not wanted:
                return
            told = {}
        for peer, attributes in wanted.items():
            before = told.get(peer)
            if before is not attributes and before != attributes:
                self._changed.setdefault(peer, {})[prefix] = attributes
                if before is None:
                    self._counts[peer] = self._counts.get(peer, 0) + 1
        for peer in told:
            if peer not in wanted:
                self._changed.setdefault(peer, {})[prefix] = None
                self._counts[peer] -= 1
        if wanted:
            self._told[prefix] = dict(wanted)
        else:
            del self._told[prefix]

    def take(self) -> dict[Address, dict[Prefix, Attributes | None]]:
        """Changes since the last call, per peer; None withdraws."""
        changed, self._changed = self._changed, {}
        return changed

    def told(self, prefix: Prefix) -> Mapping[Address, Attributes]:
        return self._told.get(prefix, {})

    def prefixes(self) -> list[Prefix]:
        return list(self._told)

    def to(self, peer: Address) -> dict[Prefix, Attributes]:
        """Everything one peer is told: what a speaker without memory needs."""
        return {prefix: told[peer] for prefix, told in self._told.items() if peer in told}

    def count(self, peer: Address) -> int:
        return self._counts.get(peer, 0)
