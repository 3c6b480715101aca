"""Origin validation's verdicts and the sentences an operator reads, one row each."""

from __future__ import annotations

from typing import Any

import pytest

from felix_like.calc.cluster import hashed_router_id
from felix_like.calc.origin import OriginMode, Validator
from felix_like.calc.ownership import Ownership
from felix_like.calc.snapshot import Change, Snapshot
from felix_like.model.bgp import Peer, PeerType
from felix_like.model.block import AffinityState
from felix_like.model.desired import LocalNode
from felix_like.rib.import_policy import Source
from tests.support.rib_world import ip, net, path
from tests.support.stories import affinity, block, configuration, key_of, node, pool

B4, C4, TOR = "192.0.2.2", "192.0.2.3", "192.0.2.254"
STORE = (
    node("a", "192.0.2.1/24", "fd00::1/64"),
    node("b", f"{B4}/24", "fd00::2/64"),
    node("c", f"{C4}/24"),
    node("lone", "203.0.113.7"),
    node("six", ipv6="fd00::6/64", router_id="6.6.6.6"),
    node("twin-1", "192.0.2.50/24"),
    node("twin-2", "192.0.2.50/24"),
    pool("pods", "10.1.0.0/16"),
    pool("pods6", "fd00:10::/64"),
    pool("balancers", "198.51.100.0/24", allowed_uses=("LoadBalancer",)),
    configuration(service_cluster_ips=(net("10.96.0.0/12"), net("198.51.100.0/24"), net("10.0.0.0/8"))),
    block("198.51.100.0/26", None),
    block("10.1.0.0/26", "b", {"10.1.0.7": "c"}),
    block("10.1.0.64/26", "a"),
    block("10.1.0.128/26", None, {"10.1.0.130": "c"}),
    block("fd00:10::/122", "b"),
    block("fd00:10::40/122", "six"),
    affinity("c", "10.1.1.0/26"),
    affinity("c", "10.1.1.64/26", AffinityState.PENDING),
    affinity("b", "10.1.1.128/26"),
    affinity("c", "10.1.1.128/26"),
)


def ownership() -> Ownership:
    snapshot, held = Snapshot(), Ownership(LocalNode(name="a"))
    touched = snapshot.apply(Change(key_of(value), value, 1) for value in STORE)
    held.update_cluster(snapshot)
    held.update_blocks(snapshot, touched.blocks)
    return held


def peer(address: str, remote_node: str | None = None, asn: int = 64512, **more: Any) -> Source:
    one = Peer(
        address=ip(address),
        asn=asn,  # type: ignore[arg-type]
        local_address=ip("192.0.2.1"),
        local_asn=64512,  # type: ignore[arg-type]
        router_id="192.0.2.1",
        type=PeerType.MESH if remote_node else PeerType.GLOBAL,
        name="x",
        remote_node=remote_node,
        resource=None if remote_node else "tor",
        **more,
    )
    return Source(one.address, one, None)


NODE_B, NODE_C, OUT = peer(B4, "b"), peer(C4, "c"), peer(TOR, asn=65000)
TWINS = peer("192.0.2.50", accepts_pool_routes=True)
TRUSTED = peer(TOR, asn=65000, accepts_pool_routes=True)
HASH_B = hashed_router_id("b")


@pytest.mark.parametrize(
    ("source", "attributes", "prefix", "verdict"),
    [
        (NODE_B, path(B4), "10.1.0.0/26", "valid: b holds block 10.1.0.0/26"),
        (NODE_B, path(B4), "10.1.0.32/28", "valid: b holds block 10.1.0.0/26"),
        (NODE_B, path("fd00::2"), "fd00:10::/122", "valid: b holds block fd00:10::/122"),
        (NODE_C, path(C4), "10.1.0.0/26", "invalid: b holds block 10.1.0.0/26, but c announces it"),
        (NODE_C, path(C4), "10.1.0.7/32", "valid: c borrows it from block 10.1.0.0/26"),
        (NODE_C, path(C4), "10.1.0.6/31", "invalid: b holds block"),
        (NODE_C, path(C4), "10.1.0.64/26", "invalid: a holds block 10.1.0.64/26, but c announces it"),
        (NODE_C, path(C4), "10.1.0.130/32", "valid: c borrows it"),
        (NODE_B, path(B4), "10.1.0.130/32", "which lends it to c, but b announces it"),
        (NODE_B, path(B4), "10.1.0.128/26", "invalid: no node holds block"),
        # Only an affinity, because the block does not parse.
        (NODE_C, path(C4), "10.1.1.0/26", "valid: c holds block 10.1.1.0/26"),
        (NODE_C, path(C4), "10.1.1.64/26", "unknown: no block is known for it in IPPool pods"),
        (NODE_C, path(C4), "10.1.1.128/26", "unknown: no block is known"),
        # Who announces: the next hop's owner.
        (NODE_C, path(B4), "10.1.0.0/26", "valid: b holds block"),
        (NODE_C, path("192.0.2.99"), "10.1.0.0/26", "unknown: its next hop 192.0.2.99 belongs to no node"),
        (NODE_C, path("192.0.2.50"), "10.1.0.0/26", "192.0.2.50 belongs to twin-1 and twin-2"),
        (NODE_C, path(B4, originator_id=B4), "10.1.0.0/26", "valid"),
        (NODE_C, path(B4, originator_id=HASH_B), "10.1.0.0/26", "valid"),
        (NODE_C, path(B4, originator_id=C4), "10.1.0.0/26", "ORIGINATOR_ID 192.0.2.3 is c's, but"),
        (NODE_C, path(B4, originator_id="7.7.7.7"), "10.1.0.0/26", "unknown: its ORIGINATOR_ID 7.7.7.7 is"),
        (NODE_C, path("fd00::6", originator_id="6.6.6.6"), "fd00:10::40/122", "valid: six holds block"),
        (NODE_C, path(B4, originator_id="6.6.6.6"), "10.1.0.0/26", "ORIGINATOR_ID 6.6.6.6 is six's, but"),
        (peer(C4, "c", asn=65003), path(B4, originator_id="7.7.7.7"), "10.1.0.0/26", "valid"),  # eBGP
        # What is nobody's to announce.
        (NODE_C, path(C4), "0.0.0.0/0", "invalid: node c announces the default route"),
        (NODE_C, path(C4), "::/0", "invalid: node c announces the default route"),
        (NODE_C, path(C4), "192.0.2.2/32", "the traffic of node b's own address 192.0.2.2"),
        (NODE_C, path(C4), "192.0.2.0/25", "the traffic of node a's own address 192.0.2.1"),
        (NODE_C, path(C4), "192.0.2.0/24", "invalid: node c announces what is outside"),
        (NODE_C, path(C4), "fd00::/65", "the traffic of node a's own address fd00::1"),
        (NODE_C, path(C4), "10.0.0.0/7", "announces more than the whole IPPool pods (10.1.0.0/16)"),
        (NODE_C, path(C4), "10.1.0.0/16", "invalid: c announces more than a block (/26) of IPPool pods"),
        (NODE_C, path(C4), "10.96.0.10/32", "valid: inside a service range"),
        (NODE_C, path("192.0.2.99"), "10.96.0.10/32", "unknown: its next hop"),
        (NODE_C, path(C4), "198.51.100.0/24", "valid: inside a service range"),  # a pool, too
        (NODE_C, path(C4), "198.51.100.7/32", "valid: inside a service range"),
        (NODE_C, path(C4), "172.16.0.0/12", "invalid: node c announces what is outside every pool"),
        # A BGPPeer at an address of two nodes: which of them is not known, but it is no stranger.
        (TWINS, path("192.0.2.50"), "0.0.0.0/0", "announces the default route"),
        (TWINS, path("192.0.2.50"), "172.16.0.0/12", "outside every pool and service range"),
        (TWINS, path("192.0.2.50"), "10.1.0.0/26", "unknown: its next hop 192.0.2.50 belongs to twin-1 and"),
        # From outside.
        (OUT, path(TOR, 65000), "0.0.0.0/0", "valid: outside every pool"),
        (OUT, path(TOR, 65000), "10.0.0.0/7", "valid: outside every pool"),
        # Only nodes announce services: whoever else did would draw their traffic elsewhere.
        (OUT, path(TOR, 65000), "10.96.0.10/32", "inside service range 10.96.0.0/12, and BGPPeer tor"),
        (OUT, path(TOR, 65000), "198.51.100.7/32", "inside service range 198.51.100.0/24, and BGPPeer tor"),
        (TRUSTED, path(TOR, 65000), "10.96.0.10/32", "valid: inside a service range"),
        (TRUSTED, path(C4, 65000), "10.96.0.10/32", "valid: inside a service range"),
        (TRUSTED, path("192.0.2.50", 65000), "10.96.0.10/32", "192.0.2.50 belongs to twin-1 and twin-2"),
        (OUT, path(TOR, 65000), "192.0.2.0/24", "valid: outside every pool"),
        (OUT, path(TOR, 65000), "192.0.2.0/25", "invalid: it would take the traffic of node a's"),
        (OUT, path(TOR, 65000), "192.0.2.128/25", "valid: outside every pool"),
        (OUT, path(TOR, 65000), "203.0.113.0/24", "valid: outside every pool"),  # lone's subnet is not known
        (OUT, path(TOR, 65000), "203.0.113.7/32", "invalid: it would take the traffic of node lone's"),
        (OUT, path(TOR, 65000), "10.1.9.0/26", "BGPPeer tor does not allow that (annotation"),
        (TRUSTED, path(TOR, 65000), "10.1.9.0/26", "valid: BGPPeer tor allows it"),
        (TRUSTED, path(TOR, 65000), "10.1.0.0/26", "valid: BGPPeer tor allows it"),
        (TRUSTED, path(TOR, 65000), "10.1.0.64/26", "invalid: this node itself holds block 10.1.0.64/26"),
        (TRUSTED, path(C4, 65000), "10.1.0.0/26", "invalid: b holds block 10.1.0.0/26, but c announces it"),
        (TRUSTED, path(TOR, 65000), "192.0.2.2/32", "invalid: it would take the traffic of node b's"),
    ],
)  # fmt: skip
def test_a_verdict_and_its_reason(source: Source, attributes: Any, prefix: str, verdict: str) -> None:
    judge = Validator(ownership(), OriginMode.ENFORCE, "a").judge(source, attributes)
    origin = judge(net(prefix))
    assert verdict in f"{origin.validity}: {origin.reason}"


def test_the_hashed_router_id_is_calicos() -> None:
    assert hashed_router_id("kube-master") == "25.79.212.8"  # computed by confd's HashToIPv4
