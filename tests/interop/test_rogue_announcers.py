"""What peers may not announce is rejected with a reason, and what they may is in the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.bird import Bird, bgp, static
from tests.support.system import (
    STATIC,
    Node,
    System,
    block4,
    block6,
    holds,
    until,
    v4,
    v6,
)

pytestmark = pytest.mark.interop

ROGUE, VICTIM, UPSTREAM, FLOOD = 3, 4, 7, 8
ENFORCING, OBSERVING = 1, 2

LIES = {
    "0.0.0.0/0": "default route",
    f"{v4(VICTIM)}/32": "node victim's own address",
    block4(VICTIM): f"victim holds block {block4(VICTIM)}, but rogue announces it",
    "10.65.4.8/29": f"victim holds block {block4(VICTIM)}, but rogue announces it",
    "10.65.4.1/32": f"victim holds block {block4(VICTIM)}, but rogue announces it",
    "10.65.0.0/16": "announces more than a block",
    "10.0.0.0/8": "more than the whole IPPool four",
    "172.20.0.0/24": "outside every pool and service range",
    "::/0": "default route",
    f"{v6(VICTIM)}/128": "node victim's own address",
    block6(VICTIM): f"victim holds block {block6(VICTIM)}, but rogue announces it",
    "2001:db8:77::/64": "outside every pool and service range",
}
"""Prefix -> what the reason must say."""
RELEASED = block4(ROGUE, 2)


@dataclass
class World:
    system: System
    rogue: Bird
    upstream: Bird

    @property
    def enforcing(self) -> Node:
        return self.system.nodes[ENFORCING]

    @property
    def observing(self) -> Node:
        return self.system.nodes[OBSERVING]


def peer_of(prefix: str, number: int) -> str:
    return v6(number) if ":" in prefix else v4(number)


def rogue_parts(*prefixes: str) -> list[str]:
    numbers = (ENFORCING, OBSERVING)
    return [
        static("s4", [p for p in prefixes if ":" not in p]),
        static("s6", [p for p in prefixes if ":" in p]),
        *(bgp(f"four{n}", v4(ROGUE), v4(n), export=STATIC) for n in numbers),
        *(bgp(f"six{n}", v6(ROGUE), v6(n), export=STATIC) for n in numbers),
    ]


OWN = (block4(ROGUE), block6(ROGUE))
OUTSIDE = "203.0.113.0/24"
INSIDE = "10.65.200.0/26"
UPSTREAM_ROUTES = (OUTSIDE, INSIDE, block4(VICTIM), f"{v4(VICTIM)}/32", block4(ENFORCING))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with System() as system:
        etcd, folder = system.etcd, system.folder
        for name, number in (("rogue", ROGUE), ("victim", VICTIM)):
            etcd.node(name, number)
            etcd.claim(name, block4(number), block6(number))
        etcd.claim("rogue", RELEASED)
        etcd.release("rogue", RELEASED)
        etcd.resource("BGPPeer", "upstream", {"peerIP": v4(UPSTREAM), "asNumber": 64600})
        rogue = Bird(system.host(ROGUE), folder / "rogue", v4(ROGUE), *rogue_parts(*OWN, *LIES, RELEASED))
        upstream = Bird(
            system.host(UPSTREAM),
            folder / "upstream",
            v4(UPSTREAM),
            static("s4", UPSTREAM_ROUTES),
            *(
                bgp(f"tortie{n}", v4(UPSTREAM), v4(n), local_as=64600, export=STATIC).replace(
                    "multihop;", "direct;"
                )
                for n in (ENFORCING, OBSERVING)
            ),
        )
        system.node(ENFORCING)
        system.node(OBSERVING, TORTIE_ORIGIN_VALIDATION="observe")
        made = World(system, rogue, upstream)
        for node in (made.enforcing, made.observing):
            for prefix in OWN:
                node.wait_route(prefix, peer_of(prefix, ROGUE), 40)
            node.wait_route(OUTSIDE, v4(UPSTREAM), 40)
        yield made


@pytest.mark.parametrize("prefix", LIES)
def test_a_mesh_peers_lie_is_rejected_with_its_reason(world: World, prefix: str) -> None:
    node, peer = world.enforcing, peer_of(prefix, ROGUE)
    path = until(lambda: node.path(prefix, peer), lambda: node.explain(prefix))
    assert path["validity"] == "invalid"
    assert LIES[prefix] in path["reason"]
    assert not path["best"]
    explained = node.explain(prefix)
    assert LIES[prefix] in explained
    assert "not used" in explained
    assert prefix not in node.kernel()


def test_the_status_says_it_once_per_peer(world: World) -> None:
    node = world.enforcing
    said = until(lambda: node.refusals("rogue"), node.refusals)
    assert len(said) == 2, "one sentence for each session, however much is announced"
    assert all("refused" in sentence and "more prefixes" in sentence for sentence in said)
    peer = node.peers()[v4(ROGUE)]
    four = [prefix for prefix in LIES if ":" not in prefix]
    assert peer["rejected"] == len(four)
    assert peer["accepted"] == 1
    assert peer["received"] == len(four) + 2, "the released block waits"


def test_a_released_block_waits_for_the_datastore(world: World) -> None:
    path = world.enforcing.path(RELEASED, v4(ROGUE))
    assert path["validity"] == "unknown"
    assert "no block is known for it" in path["reason"]
    assert RELEASED not in world.enforcing.kernel()


def test_observe_only_says_so(world: World) -> None:
    node = world.observing
    for prefix, reason in LIES.items():
        path = until(lambda prefix=prefix: node.path(prefix, peer_of(prefix, ROGUE)), prefix)
        assert path["validity"] == "invalid"
        assert reason in path["reason"]
        gateways = (peer_of(prefix, ROGUE), peer_of(prefix, UPSTREAM))
        until(
            lambda p=prefix, g=gateways: node.kernel().get(p) in g,
            lambda p=prefix: (node.kernel(), node.explain(p)),
        )
    assert node.status()["origin_validation"] == "observe"


def test_an_external_peer(world: World) -> None:
    node = world.enforcing
    assert node.kernel()[OUTSIDE] == v4(UPSTREAM)
    for prefix, reason in {
        INSIDE: "BGPPeer upstream does not allow that",
        block4(VICTIM): "BGPPeer upstream does not allow that",
        block4(ENFORCING): "BGPPeer upstream does not allow that",
        f"{v4(VICTIM)}/32": "node victim's own address",
    }.items():
        path = node.path(prefix, v4(UPSTREAM))
        assert path["validity"] == "invalid"
        assert reason in path["reason"]
        assert node.kernel().get(prefix) != v4(UPSTREAM)

    def stats() -> str:
        return world.upstream.ask("show", "protocols", "all", "tortie1").split("Export updates:")[1][:60]

    before, since = stats(), world.upstream.since("tortie1")
    world.system.etcd.resource(
        "BGPPeer",
        "upstream",
        {"peerIP": v4(UPSTREAM), "asNumber": 64600},
        annotations={"tortie/pool-routes": "accept"},
    )
    node.wait_route(INSIDE, v4(UPSTREAM))
    # What is allowed to it now: the pools; still no node's address, and not what this node itself holds.
    assert node.path(f"{v4(VICTIM)}/32", v4(UPSTREAM))["validity"] == "invalid"
    assert f"this node itself holds block {block4(ENFORCING)}" in node.explain(block4(ENFORCING))
    assert node.kernel()[block4(ENFORCING)] == "blackhole"
    assert (stats(), world.upstream.since("tortie1")) == (before, since), "no new UPDATE, no new session"
    world.system.etcd.resource("BGPPeer", "upstream", {"peerIP": v4(UPSTREAM), "asNumber": 64600})
    until(lambda: INSIDE not in node.kernel(), node.kernel)


def test_a_route_that_is_early_becomes_valid_without_a_new_update(world: World) -> None:
    node, early = world.enforcing, RELEASED
    before = world.rogue.ask("show", "protocols", "all", "four1").split("Export updates:")[1][:60]
    assert node.path(early, v4(ROGUE))["validity"] == "unknown"
    world.system.etcd.claim("rogue", early)
    node.wait_route(early, v4(ROGUE))
    assert node.path(early, v4(ROGUE))["validity"] == "valid"
    world.system.etcd.release("rogue", early)
    until(lambda: early not in node.kernel(), node.kernel)
    assert node.path(early, v4(ROGUE))["validity"] == "unknown"
    after = world.rogue.ask("show", "protocols", "all", "four1").split("Export updates:")[1][:60]
    assert after == before


def test_a_borrowed_address_is_its_borrowers(world: World) -> None:
    node = world.enforcing
    borrowed = "10.65.4.9/32"
    world.rogue.configure(*rogue_parts(*OWN, *LIES, RELEASED, borrowed))
    assert until(lambda: node.path(borrowed, v4(ROGUE)))["validity"] == "invalid"
    block = lent(VICTIM, 9, "rogue")
    world.system.etcd.put(f"/calico/ipam/v2/assignment/ipv4/block/{block4(VICTIM).replace('/', '-')}", block)
    node.wait_route(borrowed, v4(ROGUE))
    assert "borrows it" in node.path(borrowed, v4(ROGUE))["reason"]
    world.system.etcd.claim("victim", block4(VICTIM))
    until(lambda: borrowed not in node.kernel(), node.kernel)


def lent(number: int, ordinal: int, borrower: str) -> dict[str, object]:
    """The victim's block with one address given to another node's pod."""
    allocations: list[int | None] = [None] * 64
    allocations[ordinal] = 0
    return {
        "cidr": block4(number),
        "affinity": "host:victim",
        "allocations": allocations,
        "unallocated": [n for n in range(64) if n != ordinal],
        "attributes": [{"handle_id": "pod", "secondary": {"node": borrower}}],
        "sequenceNumber": 2,
        "sequenceNumberForAllocation": {},
        "deleted": False,
    }


def test_a_flood_is_bounded_and_the_others_go_on(world: World) -> None:
    node, system = world.enforcing, world.system
    since = {address: peer["since"] for address, peer in node.peers().items()}
    flood = [f"100.{64 + (n >> 8)}.{n & 255}.0/24" for n in range(5000)]
    system.etcd.resource(
        "BGPPeer",
        "flood",
        {"peerIP": v4(FLOOD), "asNumber": 64700, "node": node.name},
        annotations={"tortie/prefix-limit": "1000"},
    )
    loud = Bird(
        system.host(FLOOD),
        system.folder / "flood",
        v4(FLOOD),
        static("s4", flood),
        bgp("tortie", v4(FLOOD), v4(ENFORCING), local_as=64700, export=STATIC),
    )
    said = until(lambda: node.refusals("its limit of 1000"), node.refusals, 40)
    assert len(said) == 1
    assert v4(FLOOD) in said[0]
    assert "tortie/prefix-limit" in said[0]
    until(lambda: not node.peers()[v4(FLOOD)]["received"], node.peers)
    until(lambda: not [p for p in node.kernel() if p.startswith("100.")], "nothing of it stays")
    assert node.peers()[v4(FLOOD)]["state"] == "Idle"
    assert "Maximum number of prefixes" in loud.log
    # The others: same sessions, and still heard.
    world.rogue.configure(*rogue_parts(*OWN))
    until(lambda: not node.path("10.65.4.1/32", v4(ROGUE)), node.peers)
    assert {a: p["since"] for a, p in node.peers().items() if a in since} == since
    # A limit that fits is taken at once, not after the hold-down.
    system.etcd.resource(
        "BGPPeer",
        "flood",
        {"peerIP": v4(FLOOD), "asNumber": 64700, "node": node.name},
        annotations={"tortie/prefix-limit": "6000"},
    )
    until(lambda: len([p for p in node.kernel() if p.startswith("100.")]) == 5000, node.peers, 30)
    assert not node.refusals("its limit")
    holds(lambda: node.established(v4(FLOOD)), 1)
