"""The mesh is switched off and on, a reflector takes its place, a node is cut off: the kernels follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import permutations
from typing import Any

import pytest

from tests.support.bird import Bird, bgp, static
from tests.support.netns import Namespace
from tests.support.system import STATIC, Node, System, block4, block6, pinging, pod4, pod6, until, v4, v6

pytestmark = pytest.mark.interop

REFLECTOR, CLIENTS, BIRD = 5, (1, 9), 3
NUMBERS = (*CLIENTS, REFLECTOR)
LABELS = {"route-reflector": "true"}


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System(TORTIE_HOLD_TIME="9") as made:
        for number in NUMBERS:
            made.node(number)
        wait_routes(made)
        yield made


def wait_routes(system: System, seconds: float = 40) -> None:
    """Every node has every other node's blocks, by the way of that node itself."""
    for number, node in system.nodes.items():
        for other in system.nodes.keys() - {number}:
            node.wait_route(block4(other), v4(other), seconds)
            node.wait_route(block6(other), v6(other), seconds)


def pairs(system: System, numbers: Iterable[int]) -> list[tuple[Namespace, str, str]]:
    """From every one of these nodes' pods to every other's, by both families."""
    return [(system.nodes[a].where, at(a), at(b)) for a, b in permutations(numbers, 2) for at in (pod4, pod6)]


def mesh(system: System, *, on: bool) -> int:
    return system.etcd.resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": on})


def told(system: System, revision: int) -> None:
    """Wait until every node has heard what was written, and its speaker, too."""
    for node in system.nodes.values():
        until(lambda node=node: heard(node.status(), revision), node.status)


def heard(status: dict[str, Any], revision: int) -> bool:
    return status["datastore"]["revision"] >= revision and bool(status["speaker"]["configured"])


def sessions(node: Node) -> list[tuple[str, float]]:
    """State and beginning of its sessions with the two clients."""
    peers = node.peers()
    return [(peers[at(n)]["state"], peers[at(n)]["since"]) for n in CLIENTS for at in (v4, v6)]


def test_a_block_that_moves_takes_its_route_along(system: System) -> None:
    one, nine, five = (system.nodes[number] for number in (1, 9, REFLECTOR))
    moving = block4(1, 2)
    system.etcd.claim("node-1", moving)
    for node in (nine, five):
        node.wait_route(moving, v4(1))
    since = {address: peer["since"] for address, peer in five.peers().items()}
    for owner, gateway, other in (("node-9", v4(9), one), ("node-1", v4(1), nine)):
        system.etcd.release("node-1" if owner == "node-9" else "node-9", moving)
        system.etcd.claim(owner, moving)
        other.wait_route(moving, gateway)
        five.wait_route(moving, gateway)
        assert system.nodes[int(owner[-1])].kernel()[moving] == "blackhole"
    system.etcd.release("node-1", moving)
    for node in (one, nine, five):
        until(lambda node=node: moving not in node.kernel(), node.kernel)
    assert {address: peer["since"] for address, peer in five.peers().items()} == since


def test_the_mesh_is_switched_off_and_on(system: System) -> None:
    told(system, mesh(system, on=False))
    for number, node in system.nodes.items():
        assert not node.peers()
        until(
            lambda node=node, number=number: set(node.kernel()) == {block4(number), block6(number)},
            node.kernel,
        )
    told(system, mesh(system, on=True))
    wait_routes(system)


def test_a_reflector_in_the_place_of_the_mesh(system: System) -> None:
    """In deploy/README's order: BGPPeer, label, cluster ID; then the mesh goes. No packet is lost on the way,
    and no session with the reflector: those of the mesh go on as the BGPPeer's."""
    etcd, reflector = system.etcd, system.nodes[REFLECTOR]
    others = [system.nodes[number] for number in CLIENTS]
    since = sessions(reflector)
    with pinging(pairs(system, NUMBERS)):
        told(
            system,
            etcd.resource(
                "BGPPeer", "clients", {"nodeSelector": "all()", "peerSelector": "has(route-reflector)"}
            ),
        )
        told(system, etcd.node(reflector.name, REFLECTOR, labels=LABELS))
        for node in others:
            assert node.peers()[v4(REFLECTOR)]["type"] == "node specific"
        told(
            system,
            etcd.node(reflector.name, REFLECTOR, labels=LABELS, routeReflectorClusterID="244.0.0.1"),
        )
        for node in others:
            other = 10 - node.number
            until(lambda node=node, other=other: node.path(block4(other), v4(REFLECTOR)), node.peers)
            until(lambda node=node, other=other: node.path(block6(other), v6(REFLECTOR)), node.peers)
        assert sessions(reflector) == since
        mesh(system, on=False)
        for node in others:
            until(lambda node=node: set(node.peers()) == {v4(REFLECTOR), v6(REFLECTOR)}, node.peers)
            wait_routes(system)
            path = node.path(block4(10 - node.number), v4(REFLECTOR))
            assert (path["validity"], path["next_hop"]) == ("valid", v4(10 - node.number))
            assert path["best"]
    # A reflector's client that is BIRD, which lies through the reflector: the next hop tells who announces.
    etcd.node("bird", BIRD)
    etcd.claim("bird", block4(BIRD))
    Bird(
        system.host(BIRD),
        system.folder / "bird",
        v4(BIRD),
        static("s4", [block4(BIRD), "10.65.9.16/28"]),
        bgp("reflector", v4(BIRD), v4(REFLECTOR), export=STATIC),
    )
    node = system.nodes[1]
    node.wait_route(block4(BIRD), v4(BIRD), 40)
    # The reflector judges, too, and does not pass it on.
    until(lambda: reflector.path("10.65.9.16/28", v4(BIRD)), reflector.peers)
    assert reflector.path("10.65.9.16/28", v4(BIRD))["validity"] == "invalid"
    assert "10.65.9.16/28" not in reflector.kernel()
    assert not node.path("10.65.9.16/28", v4(REFLECTOR))
    assert "10.65.9.16/28" not in node.kernel()
    with pinging(pairs(system, CLIENTS)):
        reflector.kill_speaker()
        until(lambda: node.path(block4(9), v4(REFLECTOR)).get("stale"), node.peers)
        reflector.start_speaker()
        until(lambda: not node.path(block4(9), v4(REFLECTOR)).get("stale"), node.peers, 40)
        wait_routes(system)


def test_a_node_that_is_cut_off_comes_back(system: System) -> None:
    """Its sessions time out (hold time 9 s), its routes go, and all of it returns by itself."""
    one, nine = system.nodes[1], system.nodes[9]
    system.fabric.unplug(9)
    until(lambda: block4(9) not in one.kernel() and block6(9) not in one.kernel(), one.kernel, 40)
    until(lambda: not any(p["state"] == "Established" for p in nine.peers().values()), nine.peers, 40)
    until(lambda: nine.status()["datastore"]["state"] == "stale", nine.status, 60)
    assert nine.kernel()[block4(9)] == "blackhole"
    system.fabric.plug(9)
    wait_routes(system, 60)
    until(lambda: nine.status()["datastore"]["state"] == "in-sync", nine.status, 40)
    with pinging([(one.where, pod4(1), pod4(9))]):
        pass


def test_an_agent_without_a_speaker_says_so(system: System) -> None:
    node = system.nodes[9]
    node.kill_agent()
    node.kill_speaker()
    node.start_agent()
    until(lambda: node.status().get("datastore", {}).get("state") == "in-sync", node.status, 40)
    assert node.status()["speaker"]["state"] == "down"
    assert "speaker.sock" in node.status()["speaker"]["reason"]
    assert node.kernel()[block4(9)] == "blackhole"
    # What it inherited stays until its peers have had their say.
    assert node.kernel()[block4(1)] == v4(1)
    node.start_speaker()
    wait_routes(system)


def test_back_to_the_mesh(system: System) -> None:
    """The same way back: the mesh, then the cluster ID, the label and the BGPPeer go. Nothing is lost."""
    etcd, reflector = system.etcd, system.nodes[REFLECTOR]
    others = [system.nodes[number] for number in CLIENTS]
    until(lambda: reflector.established(*(at(n) for n in CLIENTS for at in (v4, v6))), reflector.peers)
    since = sessions(reflector)
    with pinging(pairs(system, NUMBERS)):
        mesh(system, on=True)
        one, nine = others
        until(lambda: one.established(v4(9), v6(9)) and nine.established(v4(1), v6(1)), one.peers)
        for node in others:
            other = 10 - node.number
            until(lambda node=node, other=other: node.path(block4(other), v4(other)), node.peers)
            until(lambda node=node, other=other: node.path(block6(other), v6(other)), node.peers)
        told(system, etcd.node(reflector.name, REFLECTOR, labels=LABELS))
        told(system, etcd.node(reflector.name, REFLECTOR))
        told(system, etcd.drop("BGPPeer", "clients"))
        wait_routes(system)
    for node in others:
        assert node.peers()[v4(REFLECTOR)]["type"] == "node-to-node mesh"
    assert sessions(reflector) == since
