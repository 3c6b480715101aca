"""Every refusal of import policy, one row each: what is announced, and what the operator reads."""

from __future__ import annotations

from typing import Any

import pytest

from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.bgp import Peer, PeerType
from felix_like.model.path import Attributes
from felix_like.rib.import_policy import Self, Source, refuse_attributes, refuse_prefix

US = Self(
    addresses=frozenset({Address.parse("192.0.2.1"), Address.parse("fd00::1")}),
    router_ids=frozenset({"192.0.2.1"}),
    cluster_ids=frozenset({"1.0.0.1"}),
    asn=Asn(64512),
)


def source(asn: int = 64512, **more: Any) -> Source:
    address = Address.parse("192.0.2.2")
    peer = Peer(
        address=address,
        asn=Asn(asn),
        local_address=Address.parse("192.0.2.1"),
        local_asn=Asn(64512),
        router_id="192.0.2.1",
        type=PeerType.MESH,
        name="x",
        **more,
    )
    return Source(address, peer, None)


def attributes(next_hop: str = "192.0.2.2", *asns: int, **more: Any) -> Attributes:
    if asns:
        more["as_path"] = (("sequence", tuple(map(Asn, asns))),)
    return Attributes(next_hop=Address.parse(next_hop), **more)


INSIDE, OUTSIDE = source(), source(65000)


@pytest.mark.parametrize(
    ("sender", "announced", "reason"),
    [
        (Source(Address.parse("192.0.2.2"), None, None), attributes(), "not among this node's peers"),
        (INSIDE, attributes("192.0.2.2", 64512), "AS loop: our AS 64512 is 1 times in AS_PATH, 0 allowed"),
        (OUTSIDE, attributes("192.0.2.2", 65000, 64512), "AS loop"),
        (source(65000, allowed_local_asns=1), attributes("192.0.2.2", 65000, 64512, 64512), "2 times in"),
        (OUTSIDE, attributes("192.0.2.2"), "does not start with the peer's AS 65000"),
        (OUTSIDE, attributes("192.0.2.2", 65001, 65000), "does not start with the peer's AS 65000"),
        (OUTSIDE, attributes(as_path=(("set", (Asn(65000),)),)), "does not start with the peer's AS 65000"),
        (INSIDE, attributes(originator_id="192.0.2.1"), "ORIGINATOR_ID 192.0.2.1 is our router ID"),
        (INSIDE, attributes(originator_id="rogue"), "'rogue' is not a dotted quad"),
        (INSIDE, attributes(cluster_list=("7.7.7.7", "1.0.0.1")), "our cluster ID 1.0.0.1 is in"),
        (INSIDE, attributes("192.0.2.1"), "192.0.2.1 is this node itself"),
        (INSIDE, attributes("fd00::1"), "fd00::1 is this node itself"),
        *(
            (INSIDE, attributes(bad), "not a usable unicast address")
            for bad in (
                "0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255",
                "::", "::1", "::ffff:10.0.0.1", "ff02::1", "fe80::1",
            )
        ),
    ],
)  # fmt: skip
def test_what_is_refused(sender: Source, announced: Attributes, reason: str) -> None:
    assert reason in (refuse_attributes(sender, announced, US) or "accepted")


@pytest.mark.parametrize(
    ("sender", "announced"),
    [
        (INSIDE, attributes()),
        (INSIDE, attributes("192.0.2.3")),
        (INSIDE, attributes("fd00::2", originator_id="192.0.2.2", cluster_list=("7.7.7.7",))),
        (OUTSIDE, attributes("192.0.2.254", 65000, 65001)),
        (source(65000, allowed_local_asns=1), attributes("192.0.2.254", 65000, 64512)),
        # RFC 4456 section 8: from outside they are ignored, so they cannot loop either.
        (OUTSIDE, attributes("192.0.2.254", 65000, originator_id="192.0.2.1", cluster_list=("1.0.0.1",))),
    ],
)
def test_what_is_accepted(sender: Source, announced: Attributes) -> None:
    assert refuse_attributes(sender, announced, US) is None


@pytest.mark.parametrize(
    ("prefix", "next_hop", "reason"),
    [
        ("10.1.0.0/26", "fd00::2", "other address family"),
        ("fd00:10::/122", "192.0.2.2", "other address family"),
        ("0.0.0.0/8", "192.0.2.2", "martian: it lies in 0.0.0.0/8"),
        ("127.0.0.1/32", "192.0.2.2", "martian"),
        ("224.0.0.0/4", "192.0.2.2", "martian"),
        ("255.255.255.255/32", "192.0.2.2", "martian"),
        ("::1/128", "fd00::2", "martian"),
        ("fe80::/64", "fd00::2", "martian"),
        ("ff02::/16", "fd00::2", "martian"),
        ("::ffff:10.0.0.0/104", "fd00::2", "martian"),
    ],
)
def test_prefixes_that_are_refused(prefix: str, next_hop: str, reason: str) -> None:
    got = refuse_prefix(INSIDE, Prefix.parse(prefix), Address.parse(next_hop))
    assert reason in (got or "accepted")


@pytest.mark.parametrize(
    ("prefix", "next_hop"),
    [
        ("0.0.0.0/0", "192.0.2.2"),
        ("::/0", "fd00::2"),
        ("0.0.0.0/1", "192.0.2.2"),
        ("169.254.0.0/16", "192.0.2.2"),
        ("fc00::/7", "fd00::2"),
        ("223.255.255.0/24", "192.0.2.2"),
    ],
)
def test_prefixes_that_are_not(prefix: str, next_hop: str) -> None:
    assert refuse_prefix(INSIDE, Prefix.parse(prefix), Address.parse(next_hop)) is None


def test_a_family_the_session_does_not_carry() -> None:
    v4_only = source(families=(4,))
    reason = refuse_prefix(v4_only, Prefix.parse("fd00:10::/122"), Address.parse("fd00::2"))
    assert reason == "IPv6 is not carried by this session"
