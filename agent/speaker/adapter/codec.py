"""UPDATEs between ExaBGP's objects and ours."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import Any

from exabgp.bgp.message import Notify, Update
from exabgp.bgp.message.action import Action
from exabgp.bgp.message.open.asn import ASN
from exabgp.bgp.message.update.attribute import Attribute
from exabgp.bgp.message.update.attribute.aspath import CONFED_SEQUENCE, CONFED_SET, SEQUENCE, SET, ASPath
from exabgp.bgp.message.update.attribute.atomicaggregate import AtomicAggregate
from exabgp.bgp.message.update.attribute.attributes import Attributes as ExaAttributes
from exabgp.bgp.message.update.attribute.clusterlist import ClusterID, ClusterList
from exabgp.bgp.message.update.attribute.community.initial.communities import Communities
from exabgp.bgp.message.update.attribute.community.initial.community import Community
from exabgp.bgp.message.update.attribute.community.large.communities import LargeCommunities
from exabgp.bgp.message.update.attribute.community.large.community import LargeCommunity
from exabgp.bgp.message.update.attribute.localpref import LocalPreference
from exabgp.bgp.message.update.attribute.med import MED
from exabgp.bgp.message.update.attribute.nexthop import NextHop
from exabgp.bgp.message.update.attribute.origin import Origin
from exabgp.bgp.message.update.attribute.originatorid import OriginatorID
from exabgp.bgp.message.update.nlri.cidr import CIDR
from exabgp.bgp.message.update.nlri.inet import INET
from exabgp.protocol.family import AFI, SAFI

from agent.speaker import decode as checks
from agent.speaker.nlri import OCTETS, Packed, split
from agent.speaker.settings import Batch, Neighbor
from agent.speaker.settings import Update as Received
from felix_like.model.address import Address, Asn, IpVersion
from felix_like.model.path import Attributes, OriginCode, SegmentKind

CODE = Attribute.CODE
Judged = tuple[Attributes | None, str | None]
"""Decoded attributes, or the reason why their routes count as withdrawn."""
CACHED = 2048
_SEGMENTS: dict[int, SegmentKind] = {
    SET.ID: "set",
    SEQUENCE.ID: "sequence",
    CONFED_SEQUENCE.ID: "confed-sequence",
    CONFED_SET.ID: "confed-set",
}
_CLASSES = {"set": SET, "sequence": SEQUENCE, "confed-sequence": CONFED_SEQUENCE, "confed-set": CONFED_SET}


# --------------------------------------------------------------------------- received


def decode(
    body: bytes, direction: Any, negotiated: Any, neighbor: Neighbor, cache: dict[bytes, Judged]
) -> Received:
    """Read an UPDATE's body. Raises Notify where the session must end.

    `cache` is the session's own: octets of attributes -> what they mean on this session.
    """
    if body == b"\x00\x00\x00\x00":
        return Received(end_of_rib=4)
    withdrawn4, announced4, pieces = _cut(body, (AFI.ipv6, SAFI.unicast) in negotiated.families)
    if pieces.unreach == [] and not (pieces.attributes or withdrawn4 or announced4 or pieces.reach):
        return Received(end_of_rib=6)

    withdrawn: list[tuple[IpVersion, list[Packed]]] = []
    if withdrawn4:
        withdrawn.append((4, withdrawn4))
    if pieces.unreach:
        withdrawn.append((6, pieces.unreach))
    families: tuple[tuple[IpVersion, list[Packed]], ...] = ((4, announced4), (6, pieces.reach or []))
    came_in = [(version, nlri) for version, nlri in families if nlri]
    if not came_in and pieces.attributes:
        # Nothing of ours came with them, but what ExaBGP must refuse may be inside.
        ExaAttributes.unpack(pieces.attributes, direction, negotiated)
    announced: list[tuple[IpVersion, Attributes, list[Packed]]] = []
    fault, faulty = None, 0
    for version, nlri in came_in:
        attributes, why = _judge(version, pieces, direction, negotiated, neighbor, cache)
        if attributes is None:
            fault, faulty = why, faulty + len(nlri)
            withdrawn.append((version, nlri))
        else:
            announced.append((version, attributes, nlri))
    return Received(tuple(withdrawn), tuple(announced), None, fault, faulty)


def _cut(body: bytes, ipv6: bool) -> tuple[list[Packed], list[Packed], checks.Pieces]:
    """IPv4 NLRI withdrawn and announced, and the path attributes taken apart. Raises Notify."""
    gone, raw, came = Update.split(body)
    try:
        withdrawn, announced = split(4, gone), split(4, came)
    except ValueError as error:
        raise Notify(3, 10, str(error)) from None
    try:
        return withdrawn, announced, checks.take_apart(raw, ipv6)
    except ValueError as error:
        raise Notify(3, 9, str(error)) from None


def _judge(
    version: IpVersion,
    pieces: checks.Pieces,
    direction: Any,
    negotiated: Any,
    neighbor: Neighbor,
    cache: dict[bytes, Judged],
) -> Judged:
    key = (b"4" if version == 4 else b"6" + (pieces.next_hop or b"")) + pieces.attributes
    found = cache.get(key)
    if found is None:
        if len(cache) >= CACHED:
            cache.clear()
        found = cache[key] = _attributes(version, pieces, direction, negotiated, neighbor)
    return found


def _attributes(
    version: IpVersion, pieces: checks.Pieces, direction: Any, negotiated: Any, neighbor: Neighbor
) -> Judged:
    theirs = ExaAttributes.unpack(pieces.attributes, direction, negotiated)
    if CODE.INTERNAL_TREAT_AS_WITHDRAW in theirs:
        return None, "an attribute is malformed"
    fault = pieces.fault or checks.missing(pieces.codes, version, neighbor.is_ebgp)
    if fault:
        return None, fault
    next_hop = Address(theirs[CODE.NEXT_HOP].ton()) if version == 4 else Address(pieces.next_hop or b"")
    if theirs[CODE.ORIGIN].origin > 2:
        return None, f"ORIGIN has the undefined value {theirs[CODE.ORIGIN].origin}"
    fault = checks.next_hop_fault(next_hop, neighbor.local_address)
    if fault:
        return None, fault
    internal = not neighbor.is_ebgp
    return (
        Attributes(
            next_hop=next_hop,
            origin=OriginCode(theirs[CODE.ORIGIN].origin),
            as_path=tuple(
                (_SEGMENTS[segment.ID], tuple(Asn(int(asn)) for asn in segment))
                for segment in (theirs[CODE.AS_PATH].aspath if CODE.AS_PATH in theirs else ())  # () is empty
            ),
            med=theirs[CODE.MED].med if CODE.MED in theirs else None,
            local_pref=theirs[CODE.LOCAL_PREF].localpref if internal else None,
            atomic_aggregate=CODE.ATOMIC_AGGREGATE in theirs,
            communities=tuple(
                "{}:{}".format(*struct.unpack("!HH", one.community))
                for one in (theirs[CODE.COMMUNITY].communities if CODE.COMMUNITY in theirs else ())
            ),
            large_communities=tuple(
                "{}:{}:{}".format(*struct.unpack("!LLL", one.large_community))
                for one in (
                    theirs[CODE.LARGE_COMMUNITY].communities if CODE.LARGE_COMMUNITY in theirs else ()
                )
            ),
            originator_id=str(theirs[CODE.ORIGINATOR_ID])
            if internal and CODE.ORIGINATOR_ID in theirs
            else None,
            cluster_list=tuple(map(str, theirs[CODE.CLUSTER_LIST].clusters))
            if internal and CODE.CLUSTER_LIST in theirs
            else (),
        ),
        None,
    )


# --------------------------------------------------------------------------- sent


def encode(batch: Batch, negotiated: Any) -> Iterator[bytes]:
    """The UPDATE messages of a batch, IPv6 packed like IPv4."""
    afi = AFI.ipv4 if batch.version == 4 else AFI.ipv6
    if (afi, SAFI.unicast) not in negotiated.families:
        return
    octets = OCTETS[batch.version]
    action = Action.WITHDRAW if batch.attributes is None else Action.ANNOUNCE
    attributes, next_hop = (None, None) if batch.attributes is None else _to_exabgp(batch.attributes)
    nlris = []
    for packed in batch.nlri:
        nlri = INET(afi, SAFI.unicast, action)
        nlri.cidr = CIDR(packed[1:] + bytes(octets + 1 - len(packed)), packed[0])
        if next_hop is not None:
            nlri.nexthop = next_hop
        nlris.append(nlri)
    yield from Update(nlris, ExaAttributes() if attributes is None else attributes).messages(negotiated)


@functools.lru_cache(maxsize=1024)
def _to_exabgp(ours: Attributes) -> tuple[Any, Any]:
    """ExaBGP's attributes and next hop for ours."""
    next_hop = NextHop(str(ours.next_hop), bytes(ours.next_hop))
    theirs = ExaAttributes()
    theirs.add(Origin(int(ours.origin)))
    if ours.next_hop.version == 4:
        theirs.add(next_hop)
    if ours.as_path:
        theirs.add(ASPath([_CLASSES[kind]([ASN(asn) for asn in asns]) for kind, asns in ours.as_path]))
    if ours.med is not None:
        theirs.add(MED(ours.med))
    if ours.local_pref is not None:
        theirs.add(LocalPreference(ours.local_pref))
    if ours.atomic_aggregate:
        theirs.add(AtomicAggregate())
    if ours.communities:
        communities = [Community(struct.pack("!HH", *map(int, c.split(":")))) for c in ours.communities]
        theirs.add(Communities(communities))
    if ours.large_communities:
        large = [LargeCommunity(struct.pack("!LLL", *map(int, c.split(":")))) for c in ours.large_communities]
        theirs.add(LargeCommunities(large))
    if ours.originator_id is not None:
        theirs.add(OriginatorID(ours.originator_id))
    if ours.cluster_list:
        theirs.add(ClusterList([ClusterID(one) for one in ours.cluster_list]))
    return theirs, next_hop
