"""Clients of a route reflector that believes everything: each judges what it reflects for itself.

The reflector only observes, so lies pass it; its clients must tell by next hop and ORIGINATOR_ID who
announces (RFC 4456 section 8). One client's router ID is neither its address nor its name's hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from felix_like.datastore.keys import resource_key
from tests.support.bird import Bird, bgp, static
from tests.support.system import STATIC, Node, System, block4, block6, pinging, pod4, pod6, until, v4, v6

pytestmark = pytest.mark.interop

REFLECTOR, CLIENTS = 5, (1, 9)
LIAR, MASKED = 3, 4
"""BIRD both: one announces what another node holds, one goes by another node's router ID."""
ROUTER_ID, CLUSTER_ID = "9.9.9.9", "244.0.0.1"
PIECE = "10.65.9.16/28"


@dataclass
class World:
    system: System
    liar: Bird

    @property
    def reflector(self) -> Node:
        return self.system.nodes[REFLECTOR]

    @property
    def clients(self) -> list[Node]:
        return [self.system.nodes[number] for number in CLIENTS]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with System() as system:
        etcd = system.etcd
        etcd.resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False})
        etcd.resource(
            "Node",
            f"node-{REFLECTOR}",
            {
                "bgp": {
                    "ipv4Address": f"{v4(REFLECTOR)}/24",
                    "ipv6Address": f"{v6(REFLECTOR)}/64",
                    "routeReflectorClusterID": CLUSTER_ID,
                }
            },
            labels={"route-reflector": "true"},
        )
        selectors = {
            "nodeSelector": "!has(route-reflector)",
            "peerSelector": "route-reflector == 'true'",
        }
        etcd.resource("BGPPeer", "reflectors", selectors)
        for name, number in (("liar", LIAR), ("masked", MASKED)):
            etcd.node(name, number)
            etcd.claim(name, block4(number))
        system.node(REFLECTOR, TORTIE_ORIGIN_VALIDATION="observe")
        system.node(1)
        system.node(9, CALICO_ROUTER_ID=ROUTER_ID)
        made = World(system, bird(system, "liar", LIAR, v4(LIAR), block4(LIAR), PIECE))
        bird(system, "masked", MASKED, v4(9), block4(MASKED))
        yield made


def bird(system: System, name: str, number: int, router_id: str, *prefixes: str) -> Bird:
    """A client that is BIRD."""
    return Bird(
        system.host(number), system.folder / name, router_id, static("s4", prefixes),
        bgp("reflector", v4(number), v4(REFLECTOR), export=STATIC),
    )  # fmt: skip


def wait_routes(world: World) -> None:
    """Every Tortie has every other one's blocks, by the way of that node itself."""
    for number, node in world.system.nodes.items():
        for other in world.system.nodes.keys() - {number}:
            node.wait_route(block4(other), v4(other), 40)
            node.wait_route(block6(other), v6(other), 40)


def test_reflected_blocks_reach_the_kernels(world: World) -> None:
    wait_routes(world)
    for node in world.clients:
        assert set(node.peers()) == {v4(REFLECTOR), v6(REFLECTOR)}, "no session between the clients"
        other = sum(CLIENTS) - node.number
        for prefix, at in ((block4(other), v4), (block6(other), v6)):
            path = node.path(prefix, at(REFLECTOR))
            assert path["best"]
            assert (path["validity"], path["next_hop"]) == ("valid", at(other))
            assert path["reason"] == f"node-{other} holds block {prefix}"


def test_packets_go_between_the_clients(world: World) -> None:
    wait_routes(world)
    pairs = [
        (world.system.nodes[a].where, at(a), at(b))
        for a, b in (CLIENTS, CLIENTS[::-1])
        for at in (pod4, pod6)
    ]
    with pinging(pairs):
        pass


def test_a_router_id_of_ones_own_is_in_the_datastore(world: World) -> None:
    wait_routes(world)
    node = world.system.etcd.get(resource_key("Node", "node-9"))
    assert f'"tortie/router-id":"{ROUTER_ID}"' in node.replace(" ", "")
    assert "tortie/router-id" not in world.system.etcd.get(resource_key("Node", "node-1"))


def test_a_reflected_lie_is_rejected_with_its_reason(world: World) -> None:
    """The reflector passes on a piece of node 9's block: it only observes."""
    node = world.system.nodes[1]
    node.wait_route(block4(LIAR), v4(LIAR), 40)
    assert node.path(block4(LIAR), v4(REFLECTOR))["validity"] == "valid"
    path = until(lambda: node.path(PIECE, v4(REFLECTOR)), node.peers)
    reason = f"node-9 holds block {block4(9)}, but liar announces it"
    assert (path["validity"], path["next_hop"]) == ("invalid", v4(LIAR))
    assert path["reason"] == reason
    assert not path["best"]
    assert PIECE not in node.kernel()
    assert reason in node.explain(PIECE)
    said = until(lambda: node.refusals(f"node-{REFLECTOR}"), node.refusals)
    assert len(said) == 1, "one sentence for the session"
    assert "refused" in said[0]
    assert PIECE in world.reflector.kernel(), "the reflector believed it"


def test_the_victim_rejects_it_as_well(world: World) -> None:
    node = world.system.nodes[9]
    path = until(lambda: node.path(PIECE, v4(REFLECTOR)), node.peers)
    assert path["validity"] == "invalid"
    assert node.kernel()[block4(9)] == "blackhole"
    assert PIECE not in node.kernel()


def test_an_originator_that_is_not_the_next_hop_is_rejected(world: World) -> None:
    """The block is its announcer's, but it says it is node 9: nobody can be held to that."""
    node = world.system.nodes[1]
    path = until(lambda: node.path(block4(MASKED), v4(REFLECTOR)), node.peers, 40)
    assert (path["validity"], path["next_hop"]) == ("invalid", v4(MASKED))
    assert path["reason"] == (
        f"its ORIGINATOR_ID {v4(9)} is node-9's, but its next hop {v4(MASKED)} masked's"
    )
    assert block4(MASKED) not in node.kernel()


def test_a_router_id_that_is_given_up(world: World) -> None:
    """Back to the address as router ID: the note goes, and no path is held to it any more."""
    wait_routes(world)
    node, other = world.system.nodes[9], world.system.nodes[1]
    assert f"ORIGINATOR_ID {ROUTER_ID}" in other.explain(block4(9))
    del node.settings["CALICO_ROUTER_ID"]
    node.kill_agent()
    node.start_agent()
    until(
        lambda: "tortie/router-id" not in world.system.etcd.get(resource_key("Node", "node-9")), node.status
    )
    until(
        lambda: f"ORIGINATOR_ID {v4(9)}" in other.explain(block4(9)),
        lambda: (other.explain(block4(9)), node.peers()),
        40,
    )
    wait_routes(world)
    assert other.path(block4(9), v4(REFLECTOR))["validity"] == "valid"


def test_a_lie_that_ends_leaves_the_truth_alone(world: World) -> None:
    node = world.system.nodes[1]
    wait_routes(world)
    world.liar.configure(
        static("s4", [block4(LIAR)]), bgp("reflector", v4(LIAR), v4(REFLECTOR), export=STATIC)
    )
    until(lambda: not node.path(PIECE, v4(REFLECTOR)), node.peers)
    assert node.kernel()[block4(9)] == v4(9)
    assert node.kernel()[block4(LIAR)] == v4(LIAR)
