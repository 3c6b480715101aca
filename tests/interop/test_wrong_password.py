"""A TCP MD5 password that is wrong, then right, then gone: the session follows, and the status says why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bird import Bird, bgp, static
from tests.support.system import STATIC, Node, System, block4, pinging, pod4, pod6, until, v4, v6

pytestmark = pytest.mark.interop

TOR = 7
RIGHT, WRONG, NEXT = "correct-horse #{battery};", "staple", "correct-horse 2"


def secret(name: str) -> dict[str, object]:
    return {"secretKeyRef": {"name": name, "key": "password"}}


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as made:
        for number in (1, 9):
            made.node(number)
        yield made


@pytest.fixture
def nodes(system: System) -> tuple[Node, Node]:
    one, other = system.nodes.values()
    one.wait_route(block4(9), v4(9), 40)
    other.wait_route(block4(1), v4(1), 40)
    return one, other


def test_a_wrong_password_is_said_and_a_corrected_one_is_taken(
    system: System, nodes: tuple[Node, Node]
) -> None:
    node, _ = nodes
    Bird(
        system.host(TOR),
        system.folder / "tor",
        v4(TOR),
        static("s4", ["203.0.113.0/24"]),
        bgp("tortie", v4(TOR), v4(1), local_as=64600, export=STATIC, password=RIGHT),
    )
    system.etcd.resource(
        "BGPPeer",
        "tor",
        {"peerIP": v4(TOR), "asNumber": 64600, "node": "node-1", "password": secret("tor")},
    )
    # No file at all: no session, and never one without a password.
    until(lambda: node.refusals("BGPPeer tor"), node.refusals)
    assert "password is missing" in node.refusals("BGPPeer tor")[0]
    assert "tor/password" in node.refusals("BGPPeer tor")[0]
    assert v4(TOR) not in node.peers()

    node.secret("tor", "password", WRONG + "\n")
    until(lambda: "password" in node.peers().get(v4(TOR), {}).get("info", ""), node.peers, 40)
    assert node.peers()[v4(TOR)]["state"] != "Established"
    assert "203.0.113.0/24" not in node.kernel()

    node.secret("tor", "password", RIGHT + "\n")
    node.wait_route("203.0.113.0/24", v4(TOR), 40)
    assert node.refusals() == []

    since = node.peers()[v4(9)]["since"]
    node.secret("tor", "password", WRONG + "\n")
    until(lambda: node.peers()[v4(TOR)]["state"] != "Established", node.peers, 40)
    # The router has not restarted: what it announced holds for its restart time, or the default of 120 s.
    assert node.path("203.0.113.0/24", v4(TOR))["stale"]
    assert node.kernel()["203.0.113.0/24"] == v4(TOR)
    node.secret("tor", "password", RIGHT + "\n")
    until(lambda: not node.path("203.0.113.0/24", v4(TOR))["stale"], node.peers, 40)
    assert node.peers()[v4(9)]["since"] == since, "the others do not notice"


def test_the_mesh_has_a_password(system: System, nodes: tuple[Node, Node]) -> None:
    """One that half of the nodes have wrong, then right, then another, node by node: no packet is lost."""
    one, other = nodes
    one.secret("mesh", "password", RIGHT)
    other.secret("mesh", "password", WRONG)
    pairs = [(one.where, at(1), at(9)) for at in (pod4, pod6)]
    pairs += [(other.where, at(9), at(1)) for at in (pod4, pod6)]
    with pinging(pairs):
        system.etcd.resource("BGPConfiguration", "default", {"nodeMeshPassword": secret("mesh")})
        # Node 9 connects, node 1 waits: both can say what may be wrong.
        until(lambda: "password" in other.peers()[v4(1)]["info"], other.peers, 40)
        assert not one.established(v4(9))
        other.secret("mesh", "password", RIGHT)
        wait_fresh(one, other)
        one.secret("mesh", "password", NEXT)
        until(lambda: not other.established(v4(1)), other.peers, 40)
        other.secret("mesh", "password", NEXT)
        wait_fresh(one, other)


def wait_fresh(one: Node, other: Node) -> None:
    """Sessions between the two, and nothing that waits for its announcement."""
    for node, peer in ((one, 9), (other, 1)):
        until(lambda node=node, peer=peer: node.established(v4(peer), v6(peer)), node.peers, 60)
        node.wait_route(block4(peer), v4(peer))
        until(lambda node=node: not any(p["stale"] for p in node.peers().values()), node.peers)


def test_no_password_is_ever_said(nodes: tuple[Node, Node]) -> None:
    for node in nodes:
        for text in (node.agent_log, node.speaker_log, str(node.status())):
            assert WRONG not in text
            assert "correct-horse" not in text
        assert (node.folder / "exabgp.conf").stat().st_mode & 0o077 == 0
