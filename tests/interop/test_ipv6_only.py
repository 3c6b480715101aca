"""Nodes that have no IPv4 at all, not even towards etcd: sessions, routes and packets by IPv6 alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from felix_like.calc.cluster import hashed_router_id
from tests.support.bird import Bird, bgp, static
from tests.support.routers import KERNEL
from tests.support.system import (
    STATIC,
    Node,
    System,
    block4,
    block6,
    kernel_routes,
    pinging,
    pod4,
    pod6,
    until,
    v4,
    v6,
)

pytestmark = pytest.mark.interop

TORTIES, BIRD = (1, 9), 3


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System(IP="none", CALICO_ROUTER_ID="hash") as made:
        for number in TORTIES:
            node = made.node(number, start=False, ETCD_ENDPOINTS=made.etcd.endpoint6)
            made.etcd.release(node.name, block4(number))
            node.where.ip("addr", "del", f"{pod4(number)}/32", "dev", "lo")
            node.where.ip("addr", "del", f"{v4(number)}/24", "dev", "eth0")
            node.start_speaker()
            node.start_agent()
        yield made


def wait_routes(system: System) -> list[Node]:
    for number, other in (TORTIES, TORTIES[::-1]):
        system.nodes[number].wait_route(block6(other), v6(other), 40)
    return list(system.nodes.values())


def test_the_blocks_reach_the_kernels(system: System) -> None:
    for node in wait_routes(system):
        other = sum(TORTIES) - node.number
        assert set(node.peers()) == {v6(other)}
        assert node.established(v6(other))
        assert node.kernel() == {block6(node.number): "blackhole", block6(other): v6(other)}
        path = node.path(block6(other), v6(other))
        assert (path["validity"], path["next_hop"]) == ("valid", v6(other))
        status = node.status()
        assert status["refusals"] == []
        assert status["routes"]["failed"] == []
        assert status["datastore"]["endpoints"] == [system.etcd.endpoint6]


def test_packets_go_across(system: System) -> None:
    one, nine = wait_routes(system)
    with pinging([(one.where, pod6(1), pod6(9)), (nine.where, pod6(9), pod6(1))]):
        pass


def test_the_node_resource_has_no_ipv4_address(system: System) -> None:
    for node in wait_routes(system):
        stored = system.etcd.get(f"/calico/resources/v3/projectcalico.org/nodes/{node.name}")
        assert "ipv6Address" in stored
        assert "ipv4Address" not in stored


def test_another_implementation_sees_the_hashed_router_id(system: System) -> None:
    """BIRD is the third node of the mesh, told apart by a router ID that is no address of its own."""
    nodes = wait_routes(system)
    system.etcd.resource("Node", "bird", {"bgp": {"ipv6Address": f"{v6(BIRD)}/64"}})
    system.etcd.claim("bird", block6(BIRD))
    where = system.host(BIRD)
    where.ip("addr", "del", f"{v4(BIRD)}/24", "dev", "eth0")
    bird = Bird(
        where,
        system.folder / "bird",
        hashed_router_id("bird"),
        KERNEL,
        static("s6", [block6(BIRD)]),
        *(bgp(f"six{n}", v6(BIRD), v6(n), export=STATIC) for n in TORTIES),
    )
    for node in nodes:
        node.wait_route(block6(BIRD), v6(BIRD), 40)
    ours = {block6(n): v6(n) for n in TORTIES}
    until(lambda: ours.items() <= kernel_routes(where).items(), lambda: bird.ask("show", "route", "all"))
    for node in nodes:
        session = bird.ask("show", "protocols", "all", f"six{node.number}")
        assert f"Neighbor ID:      {hashed_router_id(node.name)}" in session
