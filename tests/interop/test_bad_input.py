"""What somebody wrote into etcd by mistake, or in malice: refused with a reason, and nothing else stops."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from felix_like.datastore.keys import BLOCKS, IPAM_HOSTS, RESOURCES
from felix_like.model.address import Prefix
from tests.support.system import System, block, block4, block6, pinging, pod4, until, v4, v6

pytestmark = pytest.mark.interop

EVIL = 'x"; } process evil { run /bin/false; encoder text; }\nneighbor 192.0.2.66 {'


def bad(kind: str, plural: str, name: str, spec: object) -> tuple[str, str, str]:
    return f"{plural}/{name}", resource(kind, name, spec), f"{kind} {name}"


def node(name: str, **bgp: object) -> str:
    return resource("Node", name, {"bgp": bgp})


def resource(kind: str, name: str, spec: object, **metadata: object) -> str:
    return json.dumps(
        {
            "kind": kind,
            "apiVersion": "projectcalico.org/v3",
            "metadata": {"name": name, **metadata},
            "spec": spec,
        }
    )


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "no JSON": ("nodes/torn", '{"kind": "Node", "spec": {', "Node torn"),
    "no UTF-8": ("nodes/binary", b"\xff\xfe\x00\x80", "Node binary"),
    "an empty value": ("ippools/empty", "", "IPPool empty"),
    "another type": ("ippools/number", resource("IPPool", "number", {"cidr": 7}), "IPPool number"),
    "nested deeply": ("bgppeers/deep", "[" * 100_000, "BGPPeer deep"),
    "no CIDR": ("ippools/text", resource("IPPool", "text", {"cidr": EVIL}), "IPPool text"),
    "an evil name": (f"nodes/{EVIL}", node(EVIL, ipv4Address="192.0.2.66/24"), "process evil"),
    "an evil metadata.name": ("nodes/plain", node(EVIL, ipv4Address="192.0.2.67/24"), "Node plain"),
    "an evil address": ("nodes/spelled", node("spelled", ipv4Address=EVIL), "Node spelled"),
    "a node without an address": ("nodes/homeless", node("homeless"), "Node homeless"),
    "a twin": ("nodes/twin-a", node("twin-a", ipv4Address="192.0.2.70/24"), "Node twin-a"),
    "its twin": ("nodes/twin-b", node("twin-b", ipv4Address="192.0.2.70/24"), "Node twin-b"),
    "AS 0": ("nodes/zero", node("zero", ipv4Address="192.0.2.71/24", asNumber=0), "Node zero"),
    "an AS number too large": (
        "nodes/large",
        node("large", ipv4Address="192.0.2.72/24", asNumber=2**40),
        "Node large",
    ),
    "a multicast address": ("nodes/many", node("many", ipv4Address="224.0.0.5/24"), "Node many"),
    "a pool inside a pool": (
        "ippools/inner",
        resource("IPPool", "inner", {"cidr": "10.65.128.0/20"}),
        "IPPool inner",
    ),
    "a peer without an AS": (
        "bgppeers/nobody",
        resource("BGPPeer", "nobody", {"peerIP": "192.0.2.80"}),
        "BGPPeer nobody",
    ),
    "a peer without an address": bad("BGPPeer", "bgppeers", "nowhere", {}),
    "an evil selector": (
        "bgppeers/select",
        resource("BGPPeer", "select", {"nodeSelector": EVIL, "peerIP": "192.0.2.81", "asNumber": 1}),
        "BGPPeer select",
    ),
    "a secret that leads out": (
        "bgppeers/secret",
        resource(
            "BGPPeer",
            "secret",
            {
                "peerIP": "192.0.2.82",
                "asNumber": 64600,
                "password": {"secretKeyRef": {"name": "../../../etc", "key": "passwd"}},
            },
        ),
        "BGPPeer secret",
    ),
    "a port that is none": (
        "bgpconfigurations/default",
        resource("BGPConfiguration", "default", {"listenPort": 70_000}),
        "BGPConfiguration default",
    ),
}
"""What is wrong -> key under the resources, value, what the refusal's sentence has in it."""

BAD_IPAM: dict[str, tuple[str, object, str]] = {
    "a block outside every pool": (
        BLOCKS + "ipv4/block/10.200.0.0-26",
        block("node-1", Prefix.parse("10.200.0.0/26")),
        "10.200.0.0/26",
    ),
    "a block that is torn": (BLOCKS + "ipv4/block/10.65.77.0-26", '{"cidr": "10.65.77', "10.65.77.0/26"),
    "a block that is another": (
        BLOCKS + "ipv4/block/10.65.78.0-26",
        block("node-1", Prefix.parse("10.65.79.0/26")),
        "10.65.78.0/26",
    ),
    "allocations too short": (
        BLOCKS + "ipv4/block/10.65.80.0-26",
        block("node-9", Prefix.parse("10.65.80.0/26")) | {"allocations": [0, 1]},
        "10.65.80.0/26",
    ),
    "an affinity in a state of its own": (
        IPAM_HOSTS + "node-9/ipv4/block/10.65.81.0-26",
        {"state": EVIL},
        "10.65.81.0/26",
    ),
    "an affinity to no network": (IPAM_HOSTS + "node-9/ipv4/block/10.65.81.300-26", {}, "10.65.81.300-26"),
    "its affinity": (IPAM_HOSTS + "node-1/ipv4/block/10.200.0.0-26", {"state": "confirmed"}, "10.200.0.0/26"),
}

GOOD = resource(
    "Node",
    "newer",
    {
        "bgp": {"ipv4Address": f"{v4(90)}/24", "quantum": True},
        "addresses": [{"address": "x", "type": "y"}],
        "z": [None],
    },
    labels={"a": "b"},
    managedFields=[{"manager": "kubectl"}],
)
"""A newer Calico's fields are nothing to complain about."""


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as made:
        for number in (1, 9):
            made.node(number)
        for number, other in ((1, 9), (9, 1)):
            made.nodes[number].wait_route(block4(other), v4(other), 40)
            made.nodes[number].wait_route(block6(other), v6(other), 40)
        yield made


@pytest.fixture(scope="module")
def spoilt(system: System) -> System:
    """The same with all of it in etcd; nobody's session or packet may suffer."""
    one, other = system.nodes.values()
    since = {node: {a: p["since"] for a, p in node.peers().items()} for node in (one, other)}
    with pinging([(one.where, pod4(1), pod4(9)), (other.where, pod4(9), pod4(1))]):
        for key, value, _ in BAD.values():
            system.etcd.put(RESOURCES + key, value)
        for key, given, _ in BAD_IPAM.values():
            system.etcd.put(key, given)  # type: ignore[arg-type]
        system.etcd.put(RESOURCES + "nodes/newer", GOOD)
        for node in (one, other):
            until(lambda node=node: v4(90) in node.peers(), node.peers)
    for node, before in since.items():
        assert {a: p["since"] for a, p in node.peers().items() if a in before} == before
    return system


@pytest.mark.parametrize("wrong", [*BAD, *BAD_IPAM])
def test_it_is_refused_with_a_reason_once(spoilt: System, wrong: str) -> None:
    _, _, words = (BAD | BAD_IPAM)[wrong]
    first = spoilt.nodes[1]
    said = until(lambda: first.refusals(words), first.refusals)
    assert len(said) == len(set(said))
    for sentence in said:
        assert sentence.isprintable()
        assert sentence.isascii() or "…" in sentence
        assert len(sentence) < 900


def test_no_session_is_made_of_what_is_wrong(spoilt: System) -> None:
    for one in spoilt.nodes.values():
        other = {1: 9, 9: 1}[one.number]
        assert set(one.peers()) == {v4(other), v6(other), v4(90)}
        conf = (one.folder / "exabgp.conf").read_text()
        assert "process evil" not in conf
        assert "192.0.2.66" not in conf
        assert one.established(v4(other), v6(other))


def test_log_lines_are_printable_and_not_repeated(spoilt: System) -> None:
    for one in spoilt.nodes.values():
        before = one.agent_log, one.speaker_log
        # Changes that have nothing to do with it, and some time.
        for index in (1, 2):
            spoilt.etcd.claim("node-9", block4(9, index))
            spoilt.etcd.release("node-9", block4(9, index))
        time.sleep(2.5)
        news = one.agent_log[len(before[0]) :] + one.speaker_log[len(before[1]) :]
        wrong = [line for line in news.splitlines() if "WARNING" in line or "ERROR" in line]
        assert wrong == []
        for line in one.agent_log.splitlines():
            assert line.isprintable()
            assert not line.startswith("neighbor"), "a newline in a name begins no line of its own"
        assert "Traceback" not in one.agent_log + one.speaker_log


def test_everything_else_goes_on(spoilt: System) -> None:
    one = spoilt.nodes[1]
    spoilt.etcd.claim("node-9", block4(9, 3))
    one.wait_route(block4(9, 3), v4(9))
    spoilt.etcd.release("node-9", block4(9, 3))
    until(lambda: block4(9, 3) not in one.kernel(), one.kernel)
    assert "10.200.0.0/26" not in one.kernel()


def test_an_agent_starts_on_it(spoilt: System) -> None:
    one = spoilt.nodes[1]
    said, kernel = one.refusals(), one.kernel()
    one.kill_agent()
    one.start_agent()
    until(lambda: one.status().get("datastore", {}).get("state") == "in-sync", one.status, 40)
    until(lambda: one.refusals() == said, lambda: (said, one.refusals()))
    until(lambda: one.established(v4(9), v6(9)), one.peers)
    assert one.kernel() == kernel


def test_corrected_it_is_forgotten(spoilt: System) -> None:
    for key, *_ in BAD.values():
        spoilt.etcd.delete(RESOURCES + key)
    for key, *_ in BAD_IPAM.values():
        spoilt.etcd.delete(key)
    spoilt.etcd.drop("Node", "newer")
    for one in spoilt.nodes.values():
        until(lambda one=one: not one.refusals(), one.refusals)
        assert one.established(v4(10 - one.number), v6(10 - one.number))


def test_a_node_that_claims_our_own_address(system: System) -> None:
    one, other = system.nodes.values()
    system.etcd.put(RESOURCES + "nodes/thief", node("thief", ipv4Address=f"{v4(1)}/24"))
    said = until(lambda: one.refusals("Node thief"), one.refusals)
    assert "this node's own address" in said[0]
    until(lambda: other.refusals("nobody can tell them apart"), other.refusals)
    system.etcd.drop("Node", "thief")
    for mine, peer in ((one, 9), (other, 1)):
        mine.wait_route(block4(peer), v4(peer), 40)
        until(lambda mine=mine: not mine.refusals(), mine.refusals)


def test_our_own_node_is_spoilt_or_deleted(system: System) -> None:
    """An operator's slip: the agent says so and recovers; a deleted node comes back with its agent."""
    one = system.nodes[1]
    whole = system.etcd.get(RESOURCES + "nodes/node-1")
    system.etcd.put(RESOURCES + "nodes/node-1", '{"spec":')
    until(lambda: one.refusals("Node node-1"), one.refusals)
    assert one.kernel()[block4(1)] == "blackhole", "its pods' addresses do not leave by the default route"
    system.etcd.put(RESOURCES + "nodes/node-1", whole)
    one.wait_route(block4(9), v4(9), 40)
    until(lambda: not one.refusals(), one.refusals)
    system.etcd.drop("Node", "node-1")
    until(lambda: one.refusals("Node node-1"), one.refusals)
    one.kill_agent(signal.SIGTERM)
    one.start_agent()
    one.wait_route(block4(9), v4(9), 40)
    system.nodes[9].wait_route(block4(1), v4(1))
    until(lambda: not one.refusals(), one.refusals)
