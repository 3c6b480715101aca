"""Nodes join and leave: nobody else's session is reset, and no packet is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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

BIRD, NEW = 3, 5


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as made:
        yield made


@pytest.fixture(scope="module")
def mesh(system: System) -> tuple[Node, Node, Bird]:
    """Two of ours and a BIRD, settled."""
    where = system.host(BIRD)
    system.etcd.node("bird", BIRD)
    system.etcd.claim("bird", block4(BIRD), block6(BIRD))
    bird = Bird(
        where,
        system.folder / "bird",
        v4(BIRD),
        KERNEL,
        static("s4", [block4(BIRD)]),
        static("s6", [block6(BIRD)]),
        *(bgp(f"four{n}", v4(BIRD), v4(n), export=STATIC, graceful=60) for n in (1, 9, NEW)),
        *(bgp(f"six{n}", v6(BIRD), v6(n), export=STATIC, graceful=60) for n in (1, 9, NEW)),
    )
    nodes = (system.node(1), system.node(9))
    for node in nodes:
        for other in {1, 9, BIRD} - {node.number}:
            node.wait_route(block4(other), v4(other), 40)
            node.wait_route(block6(other), v6(other), 40)
    ours = {block4(n): v4(n) for n in (1, 9)} | {block6(n): v6(n) for n in (1, 9)}
    until(lambda: ours.items() <= kernel_routes(where).items(), lambda: kernel_routes(where), 40)
    return (*nodes, bird)


def sessions(nodes: tuple[Node, ...], bird: Bird) -> dict[str, object]:
    """When each session between the first three began, as both of its sides say."""
    old = {at(n) for n in (1, 9, BIRD) for at in (v4, v6)}
    said: dict[str, object] = {}
    for node in nodes:
        for address, peer in node.peers().items():
            if address in old:
                said[f"{node.name} {address}"] = (peer["state"], peer["since"])
    for name in ("four1", "four9", "six1", "six9"):
        # A reset session, or a route announced twice, shows in the counters.
        lines = [line.split() for line in bird.ask("show", "protocols", "all", name).splitlines()]
        counters = [line for line in lines if line[:2] in (["Import", "updates:"], ["Import", "withdraws:"])]
        said[f"bird {name}"] = (bird.state(name), bird.since(name), counters)
    assert len(said) == 12, said
    return said


def test_a_node_that_joins_and_leaves_resets_nobody(system: System, mesh: tuple[Node, Node, Bird]) -> None:
    first, second, bird = mesh
    before = sessions((first, second), bird)
    numbers = {first: 1, second: 9}
    with pinging(
        [
            (node.where, at(mine), at(other))
            for node, mine in numbers.items()
            for other in {1, 9, BIRD} - {mine}
            for at in (pod4, pod6)
        ]
    ):
        new = system.node(NEW)
        for node in (first, second):
            node.wait_route(block4(NEW), v4(NEW), 40)
            node.wait_route(block6(NEW), v6(NEW))
        for other in (1, 9, BIRD):
            new.wait_route(block4(other), v4(other))
            new.wait_route(block6(other), v6(other))
        assert sessions((first, second), bird) == before

        # It leaves as a drained node does: processes first, then its blocks and its resource.
        new.kill_agent()
        new.kill_speaker()
        system.etcd.release(new.name, block4(NEW), block6(NEW))
        system.etcd.drop("Node", new.name)
        for node in (first, second):
            until(
                lambda node=node: not {block4(NEW), block6(NEW)} & node.kernel().keys(),
                lambda node=node: (node.name, node.kernel()),
            )
            until(lambda node=node: v4(NEW) not in node.peers(), "the peer is forgotten")
        assert sessions((first, second), bird) == before


def test_a_changed_resource_that_means_nothing_resets_nobody(
    system: System, mesh: tuple[Node, Node, Bird]
) -> None:
    first, second, bird = mesh
    before = sessions((first, second), bird)
    system.etcd.resource(
        "Node",
        "bird",
        {"bgp": {"ipv4Address": f"{v4(BIRD)}/24", "ipv6Address": f"{v6(BIRD)}/64"}},
        labels={"a": "b"},
    )
    system.etcd.resource("BGPConfiguration", "default", {"logSeverityScreen": "Info", "asNumber": 64512})
    system.etcd.resource("IPPool", "more", {"cidr": "10.99.0.0/16", "blockSize": 26})
    revision = first.status()["datastore"]["revision"]
    system.etcd.claim("bird", "10.99.0.0/26")
    for node in (first, second):
        until(lambda node=node: node.status()["datastore"]["revision"] > revision, "the change was seen")
    assert sessions((first, second), bird) == before
