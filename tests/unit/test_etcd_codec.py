"""Calico's JSON, good and hostile: the codec answers everything and raises for nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felix_like.calc.snapshot import Malformed
from felix_like.datastore import blocks
from felix_like.datastore.cas import encode
from felix_like.datastore.codec import decode
from felix_like.datastore.keys import (
    BLOCKS,
    IPAM_HOSTS,
    RESOURCES,
    WATCHED,
    affinity_key,
    block_key,
    handle_key,
    namespaced_key,
    parse_key,
    resource_key,
)
from felix_like.model.address import Address, Prefix
from felix_like.model.bgp import BgpConfiguration, BgpPeer, ClusterInformation, SecretRef
from felix_like.model.block import AffinityState, Block, BlockAffinity
from felix_like.model.ippool import IPPool
from felix_like.model.node import Node

CIDR = Prefix.parse("10.1.0.0/28")


def resource(kind: str, spec: dict[str, Any], name: str = "x", **metadata: Any) -> Any:
    value = {"kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}
    return decode(resource_key(kind, name), json.dumps(value).encode())


def malformed(value: object, *words: str) -> None:
    assert isinstance(value, Malformed), value
    for word in words:
        assert word in value.reason, value.reason
    assert (value.subject + value.reason).isascii()
    assert (value.subject + value.reason).isprintable()


# -- keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/calico/resources/v3/projectcalico.org/nodes/kube-node-1", "Node kube-node-1"),
        ("/calico/resources/v3/projectcalico.org/bgpconfigurations/node.n-1", "BGPConfiguration node.n-1"),
        ("/calico/ipam/v2/assignment/ipv4/block/192.168.1.0-26", "IPAM block 192.168.1.0/26"),
        ("/calico/ipam/v2/assignment/ipv6/block/fd00:1::-122", "IPAM block fd00:1::/122"),
        ("/calico/ipam/v2/host/n1/ipv6/block/fd00:1::-122", "block affinity fd00:1::/122 of node n1"),
    ],
)
def test_keys_are_read_and_written_alike(path: str, shown: str) -> None:
    key = parse_key(path)
    assert key is not None
    assert key.path == path
    assert str(key) == shown


@pytest.mark.parametrize(
    "path",
    [
        RESOURCES + "nodes/",
        RESOURCES + "nodes/a/b",
        RESOURCES + 'nodes/x"; }} {{ 7',
        RESOURCES + "nodes/new\nline",
        RESOURCES + "nodes/-a",
        RESOURCES + "nodes/" + "a" * 254,
        RESOURCES + "networkpolicies/default/x",
        BLOCKS + "ipv4/block/10.0.0.1-26",
        BLOCKS + "ipv6/block/10.0.0.0-26",
        BLOCKS + "ipv6/block/FD00::-122",
        BLOCKS + "ipv4/block/10.0.0.0-33",
        BLOCKS + "ipv4/block/10.0.0.0/26",
        IPAM_HOSTS + "n1/ipv4/10.0.0.0-26",
        IPAM_HOSTS,
        "/elsewhere",
    ],
)
def test_keys_that_should_not_be_there_are_malformed(path: str) -> None:
    malformed(decode(path, b"{}"))


def test_the_legacy_host_key_is_nothing_to_an_agent() -> None:
    assert decode(IPAM_HOSTS + "n1", b"{}") is None


@pytest.mark.parametrize("handle", ["", "a/b", "a b", "a\n", "é"])
def test_handles_that_cannot_be_keys_are_refused(handle: str) -> None:
    with pytest.raises(ValueError, match="handle"):
        handle_key(handle)


# -- resources ----------------------------------------------------------------------------------------


def test_a_node_with_everything() -> None:
    bgp = {
        "asNumber": "64.512",
        "ipv4Address": "10.0.0.3/16",
        "ipv6Address": "fd00::3",
        "routeReflectorClusterID": "1.0.0.1",
    }
    node = resource("Node", {"bgp": bgp, "futureField": [1]}, labels={"rack": "r1"})
    assert node == Node(
        name="x",
        ipv4=Address.parse("10.0.0.3"),
        ipv4_network=Prefix.parse("10.0.0.0/16"),
        ipv6=Address.parse("fd00::3"),
        ipv6_network=Prefix.of("fd00::3/128"),
        asn=64 << 16 | 512,
        labels={"rack": "r1"},
        route_reflector_cluster_id="1.0.0.1",
    )


def test_a_node_without_an_address_still_counts() -> None:
    assert resource("Node", {}) == Node(name="x")
    assert decode(resource_key("Node", "x"), b"{}") == Node(name="x")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("9.9.9.9", "9.9.9.9"),
        ("0.0.0.0", None),
        ("009.9.9.9", None),
        ("fd00::1", None),
        ("hash", None),
        ("9.9.9.9\n", None),
        ("", None),
    ],
)
def test_a_router_id_is_a_dotted_quad_or_counts_as_absent(text: str, read: str | None) -> None:
    """It is an annotation that only helps: a bad one must not take the whole node away."""
    node = resource("Node", {}, annotations={"tortie/router-id": text, "other": "x"})
    assert node == Node(name="x", router_id=read)


def test_a_bare_address_has_the_host_route_as_its_network() -> None:
    node = resource("Node", {"bgp": {"ipv4Address": "10.0.0.3"}})
    assert node.ipv4_network == Prefix.parse("10.0.0.3/32")


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"bgp": {"ipv4Address": "fd00::1/64"}}, "IPv4"),
        ({"bgp": {"ipv4Address": "10.0.0.1/33"}}, "10.0.0.1/33"),
        ({"bgp": {"ipv4Address": "10.0.0.1; rm -rf /"}}, "not an address"),
        ({"bgp": {"ipv4Address": "0.0.0.0/0"}}, "own address"),
        ({"bgp": {"ipv4Address": "224.0.0.5"}}, "own address"),
        ({"bgp": {"asNumber": 0}}, "AS number"),
        ({"bgp": {"asNumber": 4294967296}}, "AS number"),
        ({"bgp": {"asNumber": "70000.1"}}, "AS number"),
        ({"bgp": {"asNumber": True}}, "asNumber"),
        ({"bgp": {"routeReflectorClusterID": "1.0.0"}}, "dotted quad"),
        ({"bgp": []}, "bgp"),
    ],
)
def test_malformed_nodes_name_the_field(spec: dict[str, Any], word: str) -> None:
    malformed(resource("Node", spec), word, "counts as absent")


def test_a_name_that_disagrees_with_its_key_is_malformed() -> None:
    value = decode(resource_key("Node", "x"), b'{"metadata":{"name":"y\\"\\n{{"}}')
    malformed(value, "metadata.name")


def test_pools_get_calicos_defaults() -> None:
    four, six = resource("IPPool", {"cidr": "10.0.0.0/16"}), resource("IPPool", {"cidr": "fd00::/48"})
    assert isinstance(four, IPPool)
    assert (four.block_size, six.block_size) == (26, 122)
    assert (four.ipip_mode, four.vxlan_mode, four.node_selector) == ("Never", "Never", "all()")
    assert four.allowed_uses == ("Workload", "Tunnel")
    malformed(resource("IPPool", {"cidr": "10.0.0.0/16", "blockSize": 33}), "20 to 32")
    malformed(resource("IPPool", {"cidr": "10.0.0.0/28", "blockSize": 26}), "does not fit")
    malformed(resource("IPPool", {"cidr": "10.0.0.1/16"}), "not a network")
    malformed(resource("IPPool", {}), "cidr")


def test_bgp_configuration() -> None:
    value = resource(
        "BGPConfiguration",
        {
            "nodeToNodeMeshEnabled": False,
            "asNumber": 64513,
            "listenPort": 1790,
            "communities": [{"name": "edge", "value": "64512:100"}],
            "prefixAdvertisements": [{"cidr": "10.0.0.0/16", "communities": ["edge", "1:2:3"]}],
            "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}],
            "serviceExternalIPs": None,
            "nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "mesh"}},
            "nodeMeshMaxRestartTime": "1m30s",
        },
        name="default",
    )
    assert isinstance(value, BgpConfiguration)
    assert value.prefix_advertisements[0].communities == ("64512:100", "1:2:3")
    assert value.mesh_max_restart_time == 90
    assert value.mesh_password == SecretRef("bgp", "mesh")
    assert value.service_cluster_ips == (Prefix.parse("10.96.0.0/12"),)
    assert resource("BGPConfiguration", {}).mesh_enabled is None
    escape = {"nodeMeshPassword": {"secretKeyRef": {"name": "..", "key": "../../etc/shadow"}}}
    malformed(resource("BGPConfiguration", escape), "secretKeyRef")


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [("10.0.0.1", "10.0.0.1", None), ("10.0.0.1:1790", "10.0.0.1", 1790), ("fd00::1", "fd00::1", None),
     ("[fd00::1]:179", "fd00::1", 179), ("[fd00::1]", "fd00::1", None)],
)  # fmt: skip
def test_peer_addresses(text: str, address: str, port: int | None) -> None:
    peer = resource("BGPPeer", {"peerIP": text, "asNumber": 64600})
    assert isinstance(peer, BgpPeer)
    assert (str(peer.peer_ip), peer.peer_port) == (address, port)


@pytest.mark.parametrize(
    "text", ["10.0.0.1:0", "10.0.0.1:65536", "[10.0.0.1]:179", "host:179", "0.0.0.0", "1:2:3"]
)
def test_peer_addresses_that_are_none(text: str) -> None:
    malformed(resource("BGPPeer", {"peerIP": text}), "peerIP")


def test_fields_of_a_bgp_peer_that_have_no_effect_are_named() -> None:
    spec: dict[str, Any] = {"peerIP": "10.0.0.1", "asNumber": 64600}
    assert resource("BGPPeer", spec | {"filters": [], "sourceAddress": "UseNodeIP"}).ignored == ()
    spec |= {"filters": ["no-default"], "reachableBy": "10.0.0.254", "sourceAddress": "None"}
    assert resource("BGPPeer", spec).ignored == ("filters", "reachableBy", "sourceAddress None")


def test_bgp_peer_options() -> None:
    notes = {"tortie/pool-routes": "accept", "tortie/prefix-limit": "1000"}
    spec: dict[str, Any] = {"nodeSelector": "rack == 'r1'", "peerIP": "10.0.0.1", "asNumber": "64600"}
    spec |= {"keepOriginalNextHop": True, "maxRestartTime": "60s", "ttlSecurity": 1}
    spec |= {"password": {"secretKeyRef": {"name": "a", "key": "b"}}}
    peer = resource("BGPPeer", spec, annotations=notes)
    assert peer.accepts_pool_routes
    assert peer.prefix_limit == 1000
    assert peer.next_hop_mode == "Keep"
    assert peer.max_restart_time == 60
    malformed(resource("BGPPeer", spec, annotations={"tortie/prefix-limit": "0"}), "prefix-limit")
    malformed(resource("BGPPeer", spec, annotations={"tortie/pool-routes": "yes"}), "use accept")
    malformed(resource("BGPPeer", {"maxRestartTime": "soon"}), "duration")
    malformed(resource("BGPPeer", {"node": "a", "nodeSelector": "all()"}), "both set")
    malformed(resource("BGPPeer", {"sourceAddress": "eth0"}), "UseNodeIP")


def test_cluster_information() -> None:
    key = resource_key("ClusterInformation", "default")
    value = decode(key, b'{"spec":{"datastoreReady":false,"clusterGUID":"abc"}}')
    assert value == ClusterInformation(guid="abc", datastore_ready=False)
    assert decode(key, b'{"spec":{}}') == ClusterInformation()


# -- IPAM ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [b"", b"  ", b"{}", b'{"state":""}', b'{"state":"confirmed","deleted":false}']
)
def test_old_affinities_are_confirmed(value: bytes) -> None:
    assert decode(affinity_key("n1", CIDR), value) == BlockAffinity(
        node="n1", cidr=CIDR, state=AffinityState.CONFIRMED
    )


def test_unknown_states_of_an_affinity() -> None:
    malformed(decode(affinity_key("n1", CIDR), b'{"state":"maybe\\n"}'), "pendingDeletion")


def raw_block(**changes: Any) -> dict[str, Any]:
    block = blocks.new_block(CIDR, "n1", 1, "2026-01-01T00:00:00Z")
    blocks.assign(block, CIDR, 2, "h1", {"node": "n1"})
    blocks.assign(block, CIDR, 1, "h2", {"node": "n2"})
    return {**block, **changes}


def of_block(block: dict[str, Any]) -> Any:
    return decode(block_key(CIDR), json.dumps(block).encode())


def test_a_block_tells_who_borrows() -> None:
    assert of_block(raw_block()) == Block(
        cidr=CIDR, affinity="n1", borrowed={Address.parse("10.1.0.2"): "n2"}, in_use=3
    )


@pytest.mark.parametrize(
    ("changes", "owner"),
    [
        ({"affinity": "host:n9"}, "n9"),
        ({"affinity": "virtual:load-balancer"}, None),
        ({"affinity": None}, None),
        ({"affinity": "", "hostAffinity": "n7"}, "n7"),
    ],
)
def test_owners_of_blocks(changes: dict[str, Any], owner: str | None) -> None:
    assert of_block(raw_block(**changes)).affinity == owner


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"allocations": [None] * 15}, "15 entries"),
        ({"allocations": None}, "0 entries"),
        ({"allocations": [5] + [None] * 15}, "attributes"),
        ({"allocations": [-1] + [None] * 15}, "attributes"),
        ({"allocations": ["0"] + [None] * 15}, "allocations"),
        ({"cidr": "10.1.0.16/28"}, "the key says"),
        ({"affinity": "n1"}, "host:<node>"),
        ({"affinity": "host:n1 }}\n"}, "affinity"),
        ({"attributes": [{"secondary": {"node": "{{x}}"}}] * 2}, "secondary.node"),
    ],
)
def test_damaged_blocks(changes: dict[str, Any], word: str) -> None:
    malformed(of_block(raw_block(**changes)), word)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 15), st.sampled_from(["h1", "h2", "h3"])), max_size=40)
)
def test_assigning_and_releasing_keeps_a_block_consistent(steps: list[tuple[bool, int, str]]) -> None:
    block = blocks.new_block(CIDR, "n1", 1, "2026-01-01T00:00:00Z")
    taken: dict[Address, str] = {}
    for assign, number, handle in steps:
        if assign:
            got = blocks.assign(block, CIDR, number % 4, handle, {"node": "n1", "pod": handle})
            assert not set(got) & set(taken)
            taken.update(dict.fromkeys(got, handle))
        else:
            lost = blocks.release(block, [number])
            assert lost.total() == (taken.pop(blocks.address_at(CIDR, number), None) is not None)
        blocks.bump(block)
        assert blocks.problems(block, CIDR) == []
        assert of_block(block).in_use == len(taken)


# -- anything -----------------------------------------------------------------------------------------

_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
_fields = st.sampled_from(
    ["metadata", "spec", "name", "bgp", "cidr", "asNumber", "ipv4Address", "peerIP", "state", "affinity",
     "allocations", "attributes", "labels", "annotations", "communities", "prefixAdvertisements", "secondary",
     "nodeMeshPassword", "secretKeyRef", "key", "maxRestartTime", "blockSize", "hostAffinity"]
)  # fmt: skip
_json = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_fields | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=25,
)
_paths = st.sampled_from(
    [resource_key(k, "x") for k in ("Node", "IPPool", "BGPConfiguration", "BGPPeer", "ClusterInformation")]
    + [block_key(CIDR), affinity_key("n1", CIDR)]
) | st.builds(lambda prefix, rest: prefix + rest, st.sampled_from(WATCHED), st.text(max_size=30))


@settings(max_examples=400)
@given(_paths, _json.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
def test_nothing_makes_the_codec_raise(path: str, value: bytes) -> None:
    answer = decode(path, value)
    if isinstance(answer, Malformed):
        malformed(answer)


def test_deep_nesting_and_huge_numbers_do_not_harm() -> None:
    key = resource_key("Node", "x")
    malformed(decode(key, b'{"spec":' + b"[" * 100_000))
    malformed(decode(key, b'{"spec":{"bgp":{"asNumber":' + b"9" * 5_000 + b"}}}"))
    malformed(decode(key, b" " * (3 << 20)), "octets")
    unread = decode(key, b'{"status":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    assert isinstance(unread, Node | Malformed)


def test_what_is_written_is_octet_for_octet_what_calico_writes() -> None:
    """Go's encoder escapes <, >, & and two line separators, and nothing else beyond ASCII."""
    value = {"selector": "a == '<x>' && b", "name": "Zoë\u2028\u2029\u00e9", "n": [1, None, True]}
    text = (
        r"""{"selector":"a == '\u003cx\u003e' \u0026\u0026 b","name":"Zoë\u2028\u2029é","n":[1,null,true]}"""
    )
    assert encode(value) == text.encode()
    assert json.loads(encode(value)) == value


def test_a_namespaced_key_is_checked() -> None:
    key = namespaced_key("NetworkPolicy", "default", "knp.default.web")
    assert key == "/calico/resources/v3/projectcalico.org/networkpolicies/default/knp.default.web"
    for kind, namespace, name in (
        ("Node", "default", "a"),
        ("NetworkPolicy", "", "a"),
        ("NetworkPolicy", "a/b", "a"),
        ("NetworkPolicy", "a", "../b"),
    ):
        with pytest.raises(ValueError, match=r"."):
            namespaced_key(kind, namespace, name)
