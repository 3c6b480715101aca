"""Peers one by one, and what holds between every two nodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felix_like.calc.cluster import (
    hashed_router_id,
    quoted,
    router_id,
    usable_address,
    usable_asn,
    usable_name,
)
from felix_like.calc.desire import desire, secret_refs
from felix_like.calc.snapshot import Change, Snapshot
from felix_like.model.address import Address, Asn
from felix_like.model.bgp import BgpPeer, SecretRef
from felix_like.model.desired import Desired, LocalNode
from felix_like.model.verdict import No
from tests.support.stories import bgp_peer, block, block_on, brief, configuration, key_of, node, pool, scene


def snapshot_of(*values) -> Snapshot:
    snapshot = Snapshot()
    snapshot.apply(Change(key, value, 1) for key, value in scene(*values).state.items())
    return snapshot


def desired(*values, name="a", secrets=None, **settings) -> Desired:
    return desire(snapshot_of(*values), LocalNode(name=name, **settings), secrets or {})


def sentences(answer: Desired) -> list[str]:
    return [str(refusal) for refusal in answer.refusals]


A = node("a", "10.0.0.9")


def test_addresses_are_compared_as_text_to_find_the_passive_side():
    b = node("b", "10.0.0.10")
    (at_a,) = desired(A, b).peers.values()
    (at_b,) = desired(A, b, name="b").peers.values()
    assert (at_a.passive, at_b.passive) == (False, True), '"10.0.0.9" > "10.0.0.10"'


def test_a_field_without_effect_is_said_and_the_session_is_made():
    answer = desired(A, bgp_peer("tor", "10.9.9.9", 65001, ignored=("filters", "reachableBy")))
    assert len(answer.peers) == 1
    assert sentences(answer) == ["BGPPeer tor: filters and reachableBy: not supported, so without effect"]


@pytest.mark.parametrize(
    ("hold", "keepalive", "expected", "said"),
    [
        (90, None, 90, None),
        (0, None, 0, None),
        (3, None, 3, None),
        (2, None, 90, "hold time 2 is not allowed, 90 is used"),
        (65536, None, 90, "hold time 65536 is not allowed"),
        (90, 30, 90, None),
        (90, 1, 3, None),
        (90, 0, 90, "keepaliveTime 0 s is not allowed"),
        (240, 21846, 240, "keepaliveTime 21846 s is not allowed"),
    ],
)
def test_hold_time(hold, keepalive, expected, said):
    answer = desired(A, bgp_peer("p", "10.9.9.9", 65001, keepalive_time=keepalive), hold_time=hold)
    assert [peer.hold_time for peer in answer.peers.values()] == [expected]
    assert bool(sentences(answer)) == bool(said)
    assert (said or "") in "".join(sentences(answer))


@pytest.mark.parametrize(
    ("wanted", "expected", "said"),
    [
        (None, 120, False),
        (0, 0, False),
        (4095, 4095, False),
        (4096, 4095, True),
        (-1, 120, True),
    ],
)
def test_restart_time(wanted, expected, said):
    answer = desired(A, bgp_peer("p", "10.9.9.9", 65001, max_restart_time=wanted))
    assert [peer.restart_time for peer in answer.peers.values()] == [expected]
    assert bool(answer.refusals) == said
    mesh = desired(A, node("b", "10.0.0.2"), configuration(mesh_max_restart_time=wanted))
    assert [peer.restart_time for peer in mesh.peers.values()] == [expected]
    assert bool(mesh.refusals) == said


@pytest.mark.parametrize("asn", [0, 23456, 65535, 4294967295, 4294967296, -1])
def test_reserved_as_numbers_make_no_session(asn):
    assert isinstance(usable_asn(asn), No)
    answer = desired(A, node("b", "10.0.0.2", asn=asn), bgp_peer("p", "10.9.9.9", asn))
    assert answer.peers == {}
    assert [refusal.subject for refusal in answer.refusals] == ["BGPPeer p", "Node b"]
    own = desired(node("a", "10.0.0.9", asn=asn), node("b", "10.0.0.2"))
    assert own.peers == {}
    assert [refusal.subject for refusal in own.refusals] == ["Node a"]


@pytest.mark.parametrize("asn", [1, 64512, 65534, 65536, 4294967294])
def test_other_as_numbers_do(asn):
    assert [peer.asn for peer in desired(A, bgp_peer("p", "10.9.9.9", asn)).peers.values()] == [asn]


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.5", "255.255.255.255", "::", "ff02::1"])
def test_no_session_ends_at_an_address_that_is_nobodys(address):
    assert isinstance(usable_address(Address.parse(address)), No)
    both = node("a", "10.0.0.9", "fd00::9")
    assert desired(both, bgp_peer("p", address, 65001)).peers == {}
    other = node("b", **{"ipv6" if ":" in address else "ipv4": address})
    answer = desired(both, other)
    assert answer.peers == {}
    assert [refusal.subject for refusal in answer.refusals] == ["Node b"]


def test_the_router_id_is_the_ipv4_address_a_hash_or_as_set():
    assert hashed_router_id("kube-master") == "25.79.212.8", "as Calico's own test has it"
    assert int(hashed_router_id("node-3").partition(".")[0]) < 224
    assert all(int(hashed_router_id(f"n{i}").partition(".")[0]) < 224 for i in range(100))
    assert router_id(LocalNode(name="a"), A) == "10.0.0.9"
    assert router_id(LocalNode(name="kube-master", router_id="hash"), A) == "25.79.212.8"
    assert router_id(LocalNode(name="a", router_id="1.2.3.4"), A) == "1.2.3.4"
    for wrong in ("0.0.0.0", "1.2.3", "::1", "Hash"):
        assert isinstance(router_id(LocalNode(name="a", router_id=wrong), A), No)


def test_a_node_with_ipv6_only_says_what_it_needs():
    six, other = node("a", ipv6="fd00::1"), node("b", ipv6="fd00::2")
    answer = desired(six, other)
    assert answer.peers == {}
    assert sentences(answer) == [
        (
            "Node a: it has no IPv4 address to take the router ID from: no session is made. "
            "Set CALICO_ROUTER_ID to 'hash' or to a dotted quad"
        )
    ]
    (peer,) = desired(six, other, router_id="hash").peers.values()
    assert (brief(peer), peer.families, str(peer.local_address), peer.router_id) == (
        "Mesh_fd00__2 64512 (b) passive",
        (6,),
        "fd00::1",
        hashed_router_id("a"),
    )


def test_nodes_without_a_common_family_make_no_session():
    answer = desired(A, node("b", ipv6="fd00::2"))
    assert answer.peers == {}
    assert sentences(answer) == [
        "Node b: no mesh session is made: it has no IPv4 address, and this node no other"
    ]
    explicit = desired(A, bgp_peer("p", "fd00::2", 65001))
    assert sentences(explicit) == [
        "BGPPeer p: no session with fd00::2 is made: this node has no IPv6 address"
    ]


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (bgp_peer("p", "10.9.9.9", 1, node="a", node_selector="all()"), "both node and nodeSelector"),
        (bgp_peer("p", "10.9.9.9", 1, peer_selector="all()"), "both peerIP and peerSelector"),
        (bgp_peer("p"), "names no peer"),
        (bgp_peer("p", "10.9.9.9", 1, peer_port=0), "port 0 in its peerIP does not exist"),
        (bgp_peer("p", "10.9.9.9", 1, peer_port=65536), "port 65536 in its peerIP does not exist"),
        (bgp_peer("p", "10.9.9.9"), "it has no asNumber and 10.9.9.9 is no node"),
        (bgp_peer("p", "10.0.0.9", 65001), "10.0.0.9 is this node's own address: its asNumber is 65001"),
        (bgp_peer("p", "10.9.9.9", 1, ttl_security=256), "ttlSecurity 256"),
        (bgp_peer("p", "10.9.9.9", 1, ttl_security=-1), "ttlSecurity -1"),
        (bgp_peer("p", "10.9.9.9", 1, local_asn=Asn(0)), "AS 0 is reserved"),
        (bgp_peer("p", "10.9.9.9", 1, password=SecretRef("..", "x")), "not a usable name"),
        (bgp_peer("p", "10.9.9.9", 1, password=SecretRef("a/b", "x")), "not a usable name"),
        (bgp_peer("p", peer_selector="has("), "its peerSelector matches nothing"),
        (bgp_peer("p'; {\n", "10.9.9.9", 1), "its name may only have letters"),
    ],
)
def test_bgppeers_of_which_no_session_can_be_made(peer, reason):
    answer = desired(A, peer)
    assert answer.peers == {}
    (refusal,) = answer.refusals
    assert reason in refusal.reason
    assert refusal.subject in ("BGPPeer p", 'BGPPeer "p\'; {\\n"')


def test_the_same_no_for_both_families_is_said_once():
    both = [node("a", "10.0.0.9", "fd00::9"), node("b", "10.0.0.2", "fd00::2", labels={"x": ""})]
    answer = desired(
        *both, bgp_peer("p", peer_selector="has(x)", local_asn=0), configuration(mesh_enabled=False)
    )
    assert answer.peers == {}
    assert len(answer.refusals) == 1


def test_unknown_modes_fall_back_and_say_so():
    answer = desired(A, bgp_peer("p", "10.9.9.9", 1, next_hop_mode="Sideways"))
    assert [peer.next_hop_mode for peer in answer.peers.values()] == ["Auto"]
    assert sentences(answer) == [
        "BGPPeer p: nextHopMode 'Sideways' is unknown, Auto is used; use Auto, Self or Keep"
    ]


def test_what_a_bgppeer_says_reaches_the_session():
    answer = desired(
        A,
        bgp_peer("p", "10.9.9.9", 65001, accepts_pool_routes=True, prefix_limit=7, num_allowed_local_asns=2),
        bgp_peer("q", "10.9.9.8", 65001, num_allowed_local_asns=-2),
    )
    assert {
        peer.resource: (peer.accepts_pool_routes, peer.prefix_limit, peer.allowed_local_asns)
        for peer in answer.peers.values()
    } == {"p": (True, 7, 2), "q": (False, None, 0)}


def test_ports_and_configurations_that_cannot_be():
    answer = desired(
        A, node("b", "10.0.0.2"), configuration(listen_port=70000),
        configuration("node.a", mesh_enabled=False, asn=Asn(65001)),
        configuration("node.b", listen_port=0), configuration("other"),
    )  # fmt: skip
    (peer,) = answer.peers.values()
    assert (peer.port, peer.listen_port, peer.local_asn) == (179, 179, 64512)
    assert sentences(answer) == [
        "BGPConfiguration default: listenPort 70000 does not exist; 179 is used. Set 1 to 65535",
        (
            "BGPConfiguration node.a: nodeToNodeMeshEnabled and asNumber counts in 'default' only; "
            "it is left out here"
        ),
        "BGPConfiguration node.b: listenPort 0 does not exist; 179 is used. Set 1 to 65535",
        "BGPConfiguration other: only 'default' and 'node.<node name>' are read; it is left out",
    ]


def test_a_listen_port_that_cannot_be_is_not_dialled():
    answer = desired(A, node("b", "10.0.0.2"), configuration("node.b", listen_port=70000))
    assert [peer.port for peer in answer.peers.values()] == [179]


def test_a_bgppeer_without_a_port_finds_the_port_of_a_node_but_of_no_other_speaker():
    off, b_port = configuration(mesh_enabled=False), configuration("node.b", listen_port=1180)
    values = [A, node("b", "10.0.0.2"), off, b_port]
    cases = {
        bgp_peer("p", "10.0.0.2", 64512): 1180,
        bgp_peer("p", "10.0.0.2"): 1180,
        bgp_peer("p", "10.0.0.2", 65001): 179,
        bgp_peer("p", "10.0.0.2", 64512, peer_port=179): 179,
        bgp_peer("p", "10.9.9.9", 64512): 179,
    }
    ports = {peer: [p.port for p in desired(*values, peer).peers.values()] for peer in cases}
    assert ports == {peer: [port] for peer, port in cases.items()}


def test_an_own_address_that_is_no_hosts_carries_no_session_and_no_route():
    odd = node("a", "224.0.0.1", "fd00::1")
    answer = desired(odd, node("b", "10.0.0.2", "fd00::2"), pool("p", "10.1.0.0/16"), block_on("a"))
    assert [str(address) for address in answer.peers] == ["fd00::2"]
    assert answer.originated == {}
    assert sentences(answer) == [
        "IPAM block 10.1.0.0/26: not advertised: this node has no IPv4 address to be the next hop",
        "Node a: 224.0.0.1 is a multicast or reserved address, not a host's",
    ]


def test_an_address_cannot_be_borrowed_from_a_block_it_is_not_in():
    lender = block("10.1.7.0/26", "b", {"10.1.9.9": "a", "10.1.7.9": "a"})
    answer = desired(A, pool("p", "10.1.0.0/16"), lender)
    assert [str(prefix) for prefix in answer.originated] == ["10.1.7.9/32"]


def test_secret_refs_names_what_concerns_this_node_and_nothing_else():
    tor, far, mesh, odd = (SecretRef(n, "k") for n in ("tor", "far", "mesh", "../odd"))
    values = [
        A,
        node("b", "10.0.0.2"),
        bgp_peer("tor", "10.9.9.9", 1, node="a", password=tor),
        bgp_peer("far", "10.9.9.8", 1, node="b", password=far),
        bgp_peer("odd", "10.9.9.7", 1, password=odd),
        configuration(mesh_password=mesh),
    ]
    assert secret_refs(snapshot_of(*values), LocalNode(name="a")) == {tor, mesh}
    assert secret_refs(snapshot_of(*values), LocalNode(name="b")) == {far, mesh}
    assert secret_refs(snapshot_of(*values), LocalNode(name="elsewhere")) == frozenset()
    alone = [value for value in values if key_of(value) != key_of(values[1])]
    assert secret_refs(snapshot_of(*alone), LocalNode(name="a")) == {tor}


@pytest.mark.parametrize("password", ["", "a\nb", "x" * 81, "é" * 41, "\x00"])
def test_passwords_the_kernel_or_a_template_cannot_take(password):
    ref = SecretRef("s", "k")
    answer = desired(A, bgp_peer("p", "10.9.9.9", 1, password=ref), secrets={ref: password})
    assert answer.peers == {}
    assert len(answer.refusals) == 1
    assert password not in sentences(answer)[0] or not password
    good = desired(A, bgp_peer("p", "10.9.9.9", 1, password=ref), secrets={ref: "x" * 80})
    assert [peer.password for peer in good.peers.values()] == ["x" * 80]


@pytest.mark.parametrize("name", ["", "a b", "a'", "{{x}}", "a\nb", "a/b", "é", "x" * 254])
def test_names_are_quoted_before_anybody_reads_them(name):
    assert isinstance(usable_name(name), No)
    assert quoted(name).isascii()
    assert quoted(name).isprintable()
    assert len(quoted(name)) < 300
    assert sentences(desired(A, node(name, "10.0.0.2")))[0].startswith(f"Node {quoted(name)}: its name")


# -- between every two nodes ------------------------------------------------------------------------

NAMES = ("a", "b", "c")
SELECTORS = st.sampled_from(["all()", "has(rr)", "!has(rr)", "rack == '1'", "rack != '1'", "has("])


@st.composite
def nodes(draw):
    made = []
    for number, name in enumerate(NAMES, 9):  # 9 and 10: text and number disagree
        labels = {"rack": draw(st.sampled_from("12"))} | ({"rr": ""} if draw(st.booleans()) else {})
        families = draw(st.sampled_from([(1, 1), (1, 0), (0, 1)]))
        made.append(
            node(
                name,
                f"10.0.0.{number}" if families[0] else None,
                f"fd00::{number:x}" if families[1] else None,
                labels=labels,
                rr=draw(st.sampled_from(["", "", "244.0.0.1", "244.0.0.2"])),
                asn=draw(st.sampled_from([None, None, Asn(65001)])),
            )
        )
    return made


@st.composite
def peer_resources(draw):
    name = draw(st.sampled_from(["p", "q", "r"]))
    where = draw(st.sampled_from([{}, {"node": "a"}, {"node": "b"}, {"node_selector": None}]))
    if "node_selector" in where:
        where = {"node_selector": draw(SELECTORS)}
    if draw(st.booleans()):
        return BgpPeer(name=name, peer_selector=draw(SELECTORS), **where)
    address = draw(st.sampled_from(["10.0.0.9", "10.0.0.10", "fd00::b", "10.9.9.9"]))
    return bgp_peer(name, address, draw(st.sampled_from([None, 64512])), **where)


CONFIGURATIONS = st.sampled_from(
    [configuration(), configuration(mesh_enabled=False), configuration(listen_port=1790)]
)


@given(nodes(), st.lists(peer_resources(), max_size=3), CONFIGURATIONS, st.booleans())
def test_what_one_side_makes_the_other_side_makes_too(made, resources, default, own_port):
    values = [*made, *resources, default] + ([configuration("node.b", listen_port=1180)] if own_port else [])
    sessions = {}
    for name in NAMES:
        for peer in desired(*values, name=name, router_id="hash").peers.values():
            assert peer.local_address != peer.address
            assert peer.families == (peer.version,)
            sessions[peer.local_address, peer.address] = peer
    asns = {n.name: n.asn or 64512 for n in made}
    for (local, remote), peer in sessions.items():
        back = sessions.get((remote, local))
        ends = [end for end in (peer, back) if end is not None]
        if any(end.remote_node is None or end.asn != asns[end.remote_node] for end in ends):
            continue  # an outside peer, or a BGPPeer with another AS number than the node has
        assert back is not None, f"{peer.name} has no other side"
        assert (peer.asn, peer.local_asn) == (back.local_asn, back.asn)
        assert (peer.port, peer.listen_port) == (back.listen_port, back.port)
        assert not (peer.passive and back.passive), "both would wait for ever"
