"""Stories of datastore and BGP together, as node `a` (192.0.2.1, fd00::1) sees them."""

from __future__ import annotations

import pytest

from felix_like.calc.graph import OriginMode
from tests.support.rib_world import RibWorld, path
from tests.support.stories import (
    bgp_peer,
    block,
    block_on,
    configuration,
    every_telling,
    node,
    play,
    pool,
    scene,
)

A = node("a", "192.0.2.1/24", "fd00::1/64")
B = node("b", "192.0.2.2/24", "fd00::2/64")
C = node("c", "192.0.2.3/24", "fd00::3/64")
PODS = pool("pods", "10.1.0.0/16")
PODS6 = pool("pods6", "fd00:10::/64")
CLUSTER = (A, B, C, PODS, PODS6)
X, X6, Y = "10.1.0.0/26", "fd00:10::/122", "10.1.0.64/26"
B4, C4, B6 = "192.0.2.2", "192.0.2.3", "fd00::2"

both_ways = pytest.mark.parametrize("bgp_first", [True, False], ids=["BGP first", "datastore first"])

MOVE = (
    scene(CLUSTER, block_on("b"), told={B4: {X: B4}, C4: {}}, fib={X: f"via {B4}"}),
    # The block has moved, the announcements lag: the old holder is refused, nothing is installed.
    scene(CLUSTER, block_on("c"), told={B4: {X: B4}, C4: {}}, fib={}, verdicts={f"{B4} {X}": "invalid"}),
    # Both announce: only the holder's counts.
    scene(
        CLUSTER,
        block_on("c"),
        told={B4: {X: B4}, C4: {X: C4}},
        fib={X: f"via {C4}"},
        verdicts={f"{B4} {X}": "invalid", f"{C4} {X}": "valid"},
    ),
    scene(CLUSTER, block_on("c"), told={B4: {}, C4: {X: C4}}, fib={X: f"via {C4}"}),
    # It comes to this node.
    scene(
        CLUSTER,
        block_on("a"),
        told={B4: {}, C4: {X: C4}},
        fib={X: "blackhole"},
        verdicts={f"{C4} {X}": "invalid"},
        adverts={B4: {X}, C4: {X}},
    ),
    scene(CLUSTER, block_on("a"), told={B4: {}}, fib={X: "blackhole"}, adverts={B4: {X}, C4: {X}}),
    scene(CLUSTER, told={B4: {}}, fib={}, adverts={}),
)


@both_ways
@every_telling
def test_a_block_that_moves_takes_its_route_along(telling, order, bgp_first):
    play(telling(MOVE), order, RibWorld(bgp_first=bgp_first))


EARLY = (
    scene(
        CLUSTER, told={B4: {X: B4}, B6: {X6: B6}}, verdicts={f"{B4} {X}": "unknown", f"{B6} {X6}": "unknown"}
    ),
    scene(
        CLUSTER,
        block_on("b"),
        block_on("b", X6),
        told={B4: {X: B4}, B6: {X6: B6}},
        fib={X: f"via {B4}", X6: f"via {B6}"},
    ),
)


@both_ways
@every_telling
def test_a_route_that_is_earlier_than_its_block_waits_for_it(telling, order, bgp_first):
    play(telling(EARLY), order, RibWorld(bgp_first=bgp_first))


JOIN_AND_LEAVE = (
    scene(A, PODS, block_on("a"), block_on("b", Y), fib={X: "blackhole"}, adverts={}),
    scene(A, B, PODS, block_on("a"), block_on("b", Y), fib={X: "blackhole"}, adverts={B4: {X}}),
    scene(
        A, B, PODS, block_on("a"), block_on("b", Y),
        told={B4: {Y: B4}}, fib={X: "blackhole", Y: f"via {B4}"}, adverts={B4: {X}},
    ),
    # The Node resource is deleted while its session is still up: its paths go at once.
    scene(
        A, PODS, block_on("a"), block_on("b", Y), told={B4: {Y: B4}}, fib={X: "blackhole"}, adverts={},
        verdicts={f"{B4} {Y}": "its sender is not among this node's peers (any more)"},
    ),
)  # fmt: skip


@both_ways
@every_telling
def test_a_node_joins_and_leaves(telling, order, bgp_first):
    play(telling(JOIN_AND_LEAVE), order, RibWorld(bgp_first=bgp_first))


LENT = "10.1.0.7/32"  # an address of X

BORROWED = (
    scene(CLUSTER, block_on("b"), told={B4: {X: B4}, C4: {LENT: C4}}, fib={X: f"via {B4}"}),
    scene(
        CLUSTER,
        block_on("b", borrowed={"10.1.0.7": "c"}),
        told={B4: {X: B4}, C4: {LENT: C4, "10.1.0.8/32": C4}},
        fib={X: f"via {B4}", LENT: f"via {C4}"},
        verdicts={f"{B4} {X}": "valid", f"{C4} {LENT}": "valid", f"{C4} 10.1.0.8/32": "invalid"},
    ),
    # The affinity was given up while an address is still in use.
    scene(
        CLUSTER,
        block(X, None, {"10.1.0.7": "c"}),
        told={B4: {X: B4}, C4: {LENT: C4}},
        fib={LENT: f"via {C4}"},
        verdicts={f"{B4} {X}": "invalid", f"{C4} {LENT}": "valid"},
    ),
)


@both_ways
@every_telling
def test_a_borrowed_address_is_its_borrowers(telling, order, bgp_first):
    play(telling(BORROWED), order, RibWorld(bgp_first=bgp_first))


TOR, TOR_2 = "192.0.2.254", "192.0.2.253"
OUTSIDE = path(TOR, 65000)

EXTERNAL = (
    scene(
        CLUSTER,
        bgp_peer("tor", TOR, 65000),
        block_on("a"),
        told={TOR: {"0.0.0.0/0": OUTSIDE, "203.0.113.0/24": OUTSIDE, Y: OUTSIDE, "192.0.2.2/32": OUTSIDE}},
        fib={X: "blackhole", "0.0.0.0/0": f"via {TOR}", "203.0.113.0/24": f"via {TOR}"},
        verdicts={
            f"{TOR} 0.0.0.0/0": "valid",
            f"{TOR} 203.0.113.0/24": "valid",
            f"{TOR} {Y}": "invalid",
            f"{TOR} 192.0.2.2/32": "invalid",
        },
    ),
    scene(
        CLUSTER,
        bgp_peer("tor", TOR, 65000, accepts_pool_routes=True),
        block_on("a"),
        told={TOR: {X: OUTSIDE, Y: OUTSIDE}},
        fib={X: "blackhole", Y: f"via {TOR}"},
        verdicts={f"{TOR} {X}": "invalid", f"{TOR} {Y}": "valid"},
        adverts={B4: {X, Y}, C4: {X, Y}, TOR: {X}},
    ),
    # Two of them: equal paths share the traffic; MED and AS_PATH are theirs to use.
    scene(
        CLUSTER,
        bgp_peer("tor", TOR, 65000),
        bgp_peer("tor-2", TOR_2, 65000),
        told={
            TOR: {"203.0.113.0/24": OUTSIDE, "198.51.100.0/24": path(TOR, 65000, 65009)},
            TOR_2: {"203.0.113.0/24": path(TOR_2, 65000), "198.51.100.0/24": path(TOR_2, 65000)},
        },
        fib={"203.0.113.0/24": f"via {TOR_2} {TOR}", "198.51.100.0/24": f"via {TOR_2}"},
        adverts={},
    ),
)


@both_ways
@every_telling
def test_an_external_peer_may_announce_what_is_outside_the_pools(telling, order, bgp_first):
    play(telling(EXTERNAL), order, RibWorld(bgp_first=bgp_first))


SERVICES = configuration(service_cluster_ips=(PODS.cidr.parse("10.96.0.0/12"),))

ROGUE = (
    scene(
        CLUSTER,
        SERVICES,
        block_on("a"),
        block_on("b", Y),
        told={
            C4: {
                "0.0.0.0/0": C4,  # the default route
                "192.0.2.2/32": C4,  # another node's address
                "192.0.2.1/32": C4,  # ours
                "192.0.2.0/26": C4,  # better than the connected subnet
                X: C4,  # our block
                Y: C4,  # another node's block
                "10.1.0.65/32": C4,  # an address in it
                "10.0.0.0/8": C4,  # more than a pool
                "10.1.0.0/17": C4,  # more than a block
                "172.16.0.0/24": C4,  # nobody's
                "10.1.1.0/26": "192.0.2.77",  # through somebody unknown
                "10.96.0.10/32": C4,  # a service: allowed, but each node serves it itself
            }
        },
        fib={X: "blackhole"},
        verdicts={
            f"{C4} 0.0.0.0/0": "invalid",
            f"{C4} 192.0.2.2/32": "invalid",
            f"{C4} 192.0.2.1/32": "invalid",
            f"{C4} 192.0.2.0/26": "invalid",
            f"{C4} {X}": "invalid",
            f"{C4} {Y}": "invalid",
            f"{C4} 10.1.0.65/32": "invalid",
            f"{C4} 10.0.0.0/8": "invalid",
            f"{C4} 10.1.0.0/17": "invalid",
            f"{C4} 172.16.0.0/24": "invalid",
            f"{C4} 10.1.1.0/26": "unknown",
            f"{C4} 10.96.0.10/32": "valid",
        },
    ),
)


@both_ways
@every_telling
def test_a_rogue_node_gets_nothing_into_the_kernel(telling, order, bgp_first):
    play(telling(ROGUE), order, RibWorld(bgp_first=bgp_first))


OBSERVED = (
    scene(
        CLUSTER,
        block_on("b"),
        told={C4: {X: C4, "172.16.0.0/24": C4}},
        fib={X: f"via {C4}", "172.16.0.0/24": f"via {C4}"},
        verdicts={f"{C4} {X}": "invalid", f"{C4} 172.16.0.0/24": "invalid"},
    ),
    scene(CLUSTER, block_on("c"), told={C4: {X: C4}}, fib={X: f"via {C4}"}, verdicts={f"{C4} {X}": "valid"}),
)


@every_telling
def test_observing_keeps_the_verdict_and_installs_all(telling, order):
    play(telling(OBSERVED), order, RibWorld(mode=OriginMode.OBSERVE))


R4 = "192.0.2.9"
R = node("r", "192.0.2.9/24", rr="1.0.0.1")
TO_REFLECTORS = bgp_peer("rr", peer_selector="has(rr)")
R_LABELLED = node("r", "192.0.2.9/24", rr="1.0.0.1", labels={"rr": ""})


def reflected(next_hop: str, originator: str) -> object:
    return path(next_hop, originator_id=originator, cluster_list=("1.0.0.1",), local_pref=100)


REFLECTED = (
    scene(
        CLUSTER, R_LABELLED, TO_REFLECTORS, block_on("b"), block_on("c", Y),
        told={
            R4: {
                X: reflected(B4, "192.0.2.2"),
                Y: reflected(C4, "192.0.2.2"),  # ORIGINATOR_ID and next hop name two nodes
                "10.1.1.0/26": reflected("192.0.2.1", "192.0.2.1"),  # our own, come back
            }
        },
        fib={X: f"via {B4}"},
        verdicts={
            f"{R4} {X}": "valid",
            f"{R4} {Y}": "invalid",
            f"{R4} 10.1.1.0/26": "reflected back to us: ORIGINATOR_ID 192.0.2.1 is our router ID",
        },
    ),
    scene(
        CLUSTER, R_LABELLED, TO_REFLECTORS, block_on("b"),
        told={R4: {X: reflected(B4, "203.0.113.1")}},  # a router ID nobody has
        fib={},
        verdicts={f"{R4} {X}": "unknown"},
    ),
    scene(
        A, node("b", "192.0.2.2/24", router_id="203.0.113.1"), C, PODS,  # ... until a node says it is its own
        R_LABELLED, TO_REFLECTORS, block_on("b"),
        told={R4: {X: reflected(B4, "203.0.113.1")}},
        fib={X: f"via {B4}"},
        verdicts={f"{R4} {X}": "valid"},
    ),
)  # fmt: skip


@both_ways
@every_telling
def test_a_reflected_path_is_its_originators(telling, order, bgp_first):
    play(telling(REFLECTED), order, RibWorld(bgp_first=bgp_first))


A_REFLECTS = node("a", "192.0.2.1/24", rr="1.0.0.7", labels={"rr": ""})
REFLECTOR = (
    scene(
        A_REFLECTS, B, C, PODS, TO_REFLECTORS, block_on("b"),
        told={B4: {X: B4}}, fib={X: f"via {B4}"}, adverts={C4: {X}},
    ),
    scene(A, B, C, PODS, TO_REFLECTORS, block_on("b"), told={B4: {X: B4}}, fib={X: f"via {B4}"}, adverts={}),
)  # fmt: skip


@both_ways
@every_telling
def test_this_node_reflects_while_it_is_a_reflector(telling, order, bgp_first):
    play(telling(REFLECTOR), order, RibWorld(bgp_first=bgp_first))


TWINS = (
    scene(CLUSTER, block_on("b"), told={B4: {X: B4}}, fib={X: f"via {B4}"}),
    # Somebody gives a second node b's address: no session can be with either, so nothing is taken.
    scene(CLUSTER, node("evil", "192.0.2.2/24"), block_on("b"), told={B4: {X: B4}}, fib={}),
)


@both_ways
@every_telling
def test_two_nodes_with_one_address_are_nobody(telling, order, bgp_first):
    play(telling(TWINS), order, RibWorld(bgp_first=bgp_first))
