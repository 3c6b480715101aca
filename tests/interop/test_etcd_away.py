"""etcd dies, is locked and returns: forwarding goes on as last known, and the status says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.system import Node, System, block4, block6, holds, pinging, pod4, pod6, until, v4, v6

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as made:
        for number in (1, 9):
            made.node(number)
        yield made


@pytest.fixture
def nodes(system: System) -> tuple[Node, Node]:
    one, other = system.nodes.values()
    for node, peer in ((one, other.number), (other, one.number)):
        node.wait_route(block4(peer), v4(peer), 40)
        node.wait_route(block6(peer), v6(peer), 40)
        until(lambda node=node: node.status()["datastore"]["state"] == "in-sync", node.status)
    return one, other


def both_ways(one: Node, other: Node):  # type: ignore[no-untyped-def]
    return pinging(
        [
            (node.where, at(node.number), at(peer.number))
            for node, peer in ((one, other), (other, one))
            for at in (pod4, pod6)
        ]
    )


def test_etcd_is_killed_and_everything_of_a_node_restarted_without_it(
    system: System, nodes: tuple[Node, Node]
) -> None:
    one, other = nodes
    system.etcd.claim(other.name, block4(9, 1))
    one.wait_route(block4(9, 1), v4(9))
    # Saved two seconds after the last change.
    until(
        lambda: b"10.65.9.64-26" in saved(one) and b"10.65.9.64-26" in saved(other), "the snapshot is on disk"
    )
    with both_ways(one, other):
        system.etcd.kill()
        for node in nodes:
            until(lambda node=node: node.status()["datastore"]["state"] == "stale", node.status)
            assert node.status()["datastore"]["reason"]
        before = one.kernel()
        one.kill_agent()
        one.start_agent()
        until(lambda: one.status().get("datastore", {}).get("state") == "stale", one.status, 40)
        until(lambda: one.established(v4(9), v6(9)), one.peers, 40)
        until(
            lambda: one.path(block4(9, 1), v4(9)).get("validity") == "valid",
            lambda: one.explain(block4(9, 1)),
        )
        assert one.kernel() == before
        # Now all of the other node's processes: its peers must hear the same from it as before.
        before = other.kernel()
        other.kill_agent()
        other.kill_speaker()
        other.start_speaker()
        other.start_agent()
        until(lambda: other.established(v4(1), v6(1)), other.peers, 60)
        until(lambda: other.status()["routes"]["inherited"] == 0, other.status)
        until(lambda: not any(peer["stale"] for peer in one.peers().values()), one.peers)
        assert one.kernel()[block4(9, 1)] == v4(9)
        assert other.kernel() == before
        assert other.status()["datastore"]["state"] == "stale"

        system.etcd.start()
        for node in nodes:
            until(lambda node=node: node.status()["datastore"]["state"] == "in-sync", node.status, 40)
        system.etcd.claim(other.name, block4(9, 2))
        one.wait_route(block4(9, 2), v4(9))
        system.etcd.release(other.name, block4(9, 1), block4(9, 2))
        until(lambda: not {block4(9, 1), block4(9, 2)} & one.kernel().keys(), one.kernel)
    assert one.refusals() == other.refusals() == []


def saved(node: Node) -> bytes:
    file = node.folder / "last-good-snapshot"
    return file.read_bytes() if file.exists() else b""


def test_a_locked_datastore_is_not_followed(system: System, nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    with both_ways(one, other):
        system.etcd.resource("ClusterInformation", "default", {"datastoreReady": False})
        for node in nodes:
            until(lambda node=node: node.status()["datastore"]["state"] == "frozen", node.status)
            assert "datastoreReady" in node.status()["datastore"]["reason"]
        # As an upgrade of the datastore does: half of it is away while it is locked.
        system.etcd.claim(other.name, block4(9, 1))
        system.etcd.release(one.name, block4(1))
        system.etcd.drop("Node", other.name)
        revision = one.status()["datastore"]["revision"]
        until(lambda: one.status()["datastore"]["revision"] >= revision, "seen")
        holds(
            lambda: (
                block4(9, 1) not in one.kernel()
                and other.kernel().get(block4(1)) == v4(1)
                and one.established(v4(9), v6(9))
            ),
            1.5,
            lambda: (one.kernel(), other.kernel(), one.peers()),
        )
        system.etcd.node(other.name, 9)
        system.etcd.claim(one.name, block4(1))
        system.etcd.resource("ClusterInformation", "default", {"datastoreReady": True})
        one.wait_route(block4(9, 1), v4(9))
        assert one.status()["datastore"]["state"] == "in-sync"
    system.etcd.release(other.name, block4(9, 1))


def test_an_agent_that_starts_on_a_locked_datastore_forwards_on(
    system: System, nodes: tuple[Node, Node]
) -> None:
    one, other = nodes
    with both_ways(one, other):
        system.etcd.resource("ClusterInformation", "default", {"datastoreReady": False})
        until(lambda: one.status()["datastore"]["state"] == "frozen", one.status)
        system.etcd.release(other.name, block4(9))
        before = one.kernel()
        one.kill_agent()
        one.start_agent()
        until(lambda: one.status().get("datastore", {}).get("state") == "frozen", one.status, 40)
        holds(lambda: one.kernel() == before, 1.5, one.kernel)
        system.etcd.claim(other.name, block4(9))
        system.etcd.resource("ClusterInformation", "default", {"datastoreReady": True})
        until(lambda: one.status()["datastore"]["state"] == "in-sync", one.status)
        until(lambda: one.status()["routes"]["inherited"] == 0, one.status, 40)
        holds(lambda: one.kernel() == before, 1, one.kernel)
