"""Pools, communities, and that no value in the datastore can break the calculation."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from felix_like.calc.advertise import Occupied, parse_community
from felix_like.calc.desire import desire, secret_refs
from felix_like.calc.pools import pools
from felix_like.calc.snapshot import Change, Malformed, Snapshot
from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.bgp import (
    BgpConfiguration,
    BgpPeer,
    ClusterInformation,
    PrefixAdvertisement,
    SecretRef,
)
from felix_like.model.block import AffinityState, Block, BlockAffinity
from felix_like.model.desired import LocalNode
from felix_like.model.ippool import IPPool
from felix_like.model.node import Node
from tests.support.stories import node, pool


def names(found):
    return [one.name for one in found]


def test_overlapping_pools_are_chosen_alike_in_every_order():
    wide, inner, copy = pool("wide", "10.0.0.0/8"), pool("inner", "10.1.0.0/16"), pool("copy", "10.0.0.0/8")
    other, six = pool("other", "172.16.0.0/12"), pool("six", "fd00::/64")
    every = [wide, inner, copy, other, six]
    for order in (every, every[::-1], sorted(every, key=lambda p: p.name)):
        chosen = pools(order)
        assert names(chosen.accepted) == ["copy", "other", "six"]
        assert sorted(names(chosen.overlapping)) == ["inner", "wide"]
        assert sorted(refusal.subject for refusal in chosen.refusals) == ["IPPool inner", "IPPool wide"]


def test_a_pool_that_asks_for_a_tunnel_counts_and_says_that_it_gets_none():
    asks = [
        pool("plain", "10.1.0.0/16"),
        pool("ipip", "10.2.0.0/16", ipip_mode="Always"),
        pool("vxlan", "10.3.0.0/16", vxlan_mode="CrossSubnet"),
    ]
    chosen = pools(asks)
    assert names(chosen.accepted) == ["plain", "ipip", "vxlan"]
    assert [refusal.subject for refusal in chosen.refusals] == ["IPPool ipip", "IPPool vxlan"]
    assert all("without a tunnel" in refusal.reason for refusal in chosen.refusals)


def test_where_prefixes_lie():
    chosen = pools([pool("a", "10.1.0.0/16"), pool("b", "fd00::/64", disable_bgp_export=True)])
    a, b = chosen.accepted
    assert chosen.covering(Prefix.parse("10.1.2.0/26")) == a
    assert chosen.covering(Prefix.parse("10.0.0.0/8")) is None
    assert chosen.unexported(Prefix.parse("fd00::/122")) == b
    assert chosen.unexported(Prefix.parse("10.1.2.0/26")) is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (pool("p", "10.0.0.0/8", block_size=19), "blockSize 19 is not from 20 to 32; it is left out"),
        (pool("p", "10.0.0.0/8", block_size=33), "blockSize 33 is not from 20 to 32; it is left out"),
        (pool("p", "fd00::/64", block_size=26), "blockSize 26 is not from 116 to 128; it is left out"),
        (pool("p", "10.0.0.0/27"), "its blocks of /26 are wider than its CIDR 10.0.0.0/27; it is left out"),
    ],
)
def test_pools_that_make_no_sense_do_not_stand_in_the_way_of_others(wrong, reason):
    chosen = pools([wrong, pool("q", str(wrong.cidr), block_size=wrong.cidr.bits - 4)])
    assert names(chosen.accepted) == ["q"]
    assert [(refusal.subject, refusal.reason) for refusal in chosen.refusals] == [("IPPool p", reason)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64512:100", (64512, 100)),
        ("0:0", (0, 0)),
        ("65535:65535", (65535, 65535)),
        ("65536:1", None),
        ("4294967295:0:4294967295", (4294967295, 0, 4294967295)),
        ("4294967296:0:0", None),
        ("1", None),
        ("1:2:3:4", None),
        ("-1:2", None),
        ("1 :2", None),
        ("\u0661:2", None),
        ("1:2\n", None),
        ("", None),
        (":", None),
        ("9" * 40 + ":1", None),
    ],
)
def test_communities(text, value):
    assert parse_community(text) == value


def test_node_addresses_inside_a_block():
    occupied = Occupied([node("b", "10.1.0.70", "fd00::1"), node("a", "10.1.0.65"), node("none")])
    assert occupied.inside(Prefix.parse("10.1.0.64/26")) == Address.parse("10.1.0.65")
    assert occupied.inside(Prefix.parse("10.1.0.0/26")) is None
    assert occupied.inside(Prefix.parse("fd00::/122")) == Address.parse("fd00::1")
    assert occupied.inside(Prefix.parse("10.1.0.0/24")) == Address.parse("10.1.0.65")


# -- hostile values ---------------------------------------------------------------------------------

TEXT = st.text(max_size=12)
NAMES = st.one_of(st.sampled_from(["a", "b", "node.a", "default", "../x", "x'\n{{"]), TEXT)
ODD_ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.9.9.9", "fd00::1", "0.0.0.0", "ff02::1")
ODD_PREFIXES = ("10.1.0.0/26", "10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/26", "0.0.0.0/0", "fd00::/122")
ADDRESSES = st.one_of(
    st.sampled_from([Address.parse(text) for text in ODD_ADDRESSES]),
    st.binary(min_size=4, max_size=4).map(Address),
    st.binary(min_size=16, max_size=16).map(Address),
)
V4 = st.one_of(st.none(), st.sampled_from([Address.parse("10.0.0.1"), Address.parse("10.0.0.2")]))
V6 = st.one_of(st.none(), st.binary(min_size=16, max_size=16).map(Address))
PREFIXES = st.one_of(
    st.sampled_from([Prefix.parse(text) for text in ODD_PREFIXES]),
    st.builds(
        lambda address, part: Prefix.within(address, round(part * 8 * len(address))),
        ADDRESSES,
        st.floats(0, 1),
    ),
)
NUMBERS = st.sampled_from([None, None, None, 0, 1, 2, 179, 64512, 65535, 65536, 2**32 - 1, 2**32, -5])
SECRETS = st.one_of(st.none(), st.none(), st.builds(SecretRef, NAMES, NAMES))
SELECTORS = st.sampled_from([None, None, None, "", "all()", "has(x)", "!has(x)", "("])

RESOURCES = st.one_of(
    st.builds(
        Node, name=NAMES, ipv4=V4, ipv6=V6, asn=NUMBERS, labels=st.dictionaries(st.just("x"), TEXT),
        route_reflector_cluster_id=st.one_of(st.just(""), st.just("244.0.0.1"), TEXT),
    ),
    st.builds(
        IPPool, name=NAMES, cidr=PREFIXES, block_size=st.sampled_from([26, 122, 32, 0, -1, 200]),
        disable_bgp_export=st.booleans(),
    ),
    st.builds(
        Block, cidr=PREFIXES, affinity=st.one_of(st.none(), NAMES), borrowed=st.dictionaries(ADDRESSES, NAMES)
    ),
    st.builds(BlockAffinity, node=NAMES, cidr=PREFIXES, state=st.sampled_from(list(AffinityState))),
    st.builds(
        BgpConfiguration, name=NAMES, mesh_enabled=st.one_of(st.none(), st.booleans()), asn=NUMBERS,
        listen_port=NUMBERS, mesh_password=SECRETS, mesh_max_restart_time=NUMBERS,
        prefix_advertisements=st.lists(
            st.builds(PrefixAdvertisement, cidr=PREFIXES, communities=st.lists(TEXT, max_size=2).map(tuple)),
            max_size=2,
        ).map(tuple),
    ),
    st.builds(
        BgpPeer, name=NAMES, node=st.one_of(st.none(), st.none(), NAMES), node_selector=SELECTORS,
        peer_ip=st.one_of(st.none(), ADDRESSES), peer_port=NUMBERS, asn=NUMBERS, peer_selector=SELECTORS,
        local_asn=NUMBERS, password=SECRETS, max_restart_time=NUMBERS, keepalive_time=NUMBERS,
        ttl_security=NUMBERS, next_hop_mode=TEXT, reverse_peering=TEXT,
    ),
    st.builds(ClusterInformation, datastore_ready=st.booleans()),
    st.builds(Malformed, st.just("BGPPeer x"), st.just("it does not parse")),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), RESOURCES), max_size=12), st.randoms())
def test_whatever_stands_in_the_datastore_the_answer_is_sound_and_the_order_does_not_matter(values, random):
    local = LocalNode(name="a")
    changes = [Change(key, value, number) for number, (key, value) in enumerate(dict(values).items())]
    snapshot, other = Snapshot(), Snapshot()
    snapshot.apply([Change("0 own", Node(name="a", ipv4=Address.parse("10.0.0.1")), 0), *changes])
    random.shuffle(changes)
    other.apply([Change("0 own", Node(name="a", ipv4=Address.parse("10.0.0.1")), 0), *changes])
    secrets = dict.fromkeys(secret_refs(snapshot, local), "secret")
    answer = desire(snapshot, local, secrets)
    assert desire(other, local, secrets) == answer
    assert list(answer.refusals) == sorted(set(answer.refusals))
    for refusal in answer.refusals:
        assert str(refusal).isprintable()
    for address, peer in answer.peers.items():
        assert address == peer.address != peer.local_address
        assert 0 < peer.asn < 2**32 - 1
        assert 0 < peer.port < 65536
        assert 0 < peer.listen_port < 65536
        assert peer.hold_time == 0 or 3 <= peer.hold_time <= 65535
        assert 0 <= peer.restart_time <= 4095
        assert peer.password in (None, "secret")
        assert set(peer.name) <= set("abcdefghijklmnopqrstuvwxyzMGN_0123456789")
    for prefix in answer.blackholes:
        assert prefix.length >= 20
        assert not prefix.contains(Address.parse("10.0.0.1"))
    for prefix, attributes in answer.originated.items():
        assert attributes.next_hop.version == prefix.version
        assert isinstance(Asn(answer.asn), int)
