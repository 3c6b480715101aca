"""Stories of whom node `a` (192.0.2.1, fd00::1) peers with."""

from __future__ import annotations

from felix_like.calc.snapshot import Malformed
from felix_like.model.bgp import SecretRef
from tests.support.stories import CalcWorld, bgp_peer, configuration, every_telling, node, play, scene

A = node("a", "192.0.2.1/24", "fd00::1/64", labels={"rack": "r1"})
B = node("b", "192.0.2.2/24", "fd00::2/64", labels={"rack": "r1"})
C = node("c", "192.0.2.3/24", labels={"rack": "r2"})
MESH_B = {
    "192.0.2.2": "Mesh_192_0_2_2 64512 (b) passive",
    "fd00::2": "Mesh_fd00__2 64512 (b) passive",
}
MESH_C = {"192.0.2.3": "Mesh_192_0_2_3 64512 (c) passive"}
NO_MESH = configuration(mesh_enabled=False)

JOIN_AND_LEAVE = (
    scene(A),
    scene(A, B, peers=MESH_B),
    scene(A, B, C, peers=MESH_B | MESH_C),
    scene(A, C, peers=MESH_C),
    scene(A, node("c", "192.0.2.33"), peers={"192.0.2.33": "Mesh_192_0_2_33 64512 (c) passive"}),
)


@every_telling
def test_nodes_join_move_and_leave(telling, order):
    play(telling(JOIN_AND_LEAVE), order, CalcWorld())


MESH_SWITCHED = (
    scene(A, B, peers=MESH_B),
    scene(A, B, NO_MESH),
    scene(A, B, configuration(mesh_enabled=True), peers=MESH_B),
    scene(
        A,
        B,
        configuration(asn=64600, listen_port=1790, mesh_max_restart_time=60),
        peers={
            "192.0.2.2": "Mesh_192_0_2_2 64600 as 64600 (b) port 1790 listen 1790 passive restart 60",
            "fd00::2": "Mesh_fd00__2 64600 as 64600 (b) port 1790 listen 1790 passive restart 60",
        },
    ),
    scene(
        A,
        node("b", "192.0.2.2", asn=65001),
        configuration("node.b", listen_port=1179),
        configuration("node.a", listen_port=1180),
        configuration(listen_port=1790),
        C,
        peers={
            "192.0.2.2": "Mesh_192_0_2_2 65001 (b) port 1179 listen 1180 passive",
            "192.0.2.3": "Mesh_192_0_2_3 64512 (c) port 1790 listen 1180 passive",
        },
    ),
)


@every_telling
def test_the_mesh_is_switched_off_and_on_and_retuned(telling, order):
    play(telling(MESH_SWITCHED), order, CalcWorld())


RR = node("b", "192.0.2.2/24", "fd00::2/64", labels={"rr": ""}, rr="244.0.0.1")
TO_REFLECTORS = bgp_peer("to-reflectors", node_selector="!has(rr)", peer_selector="has(rr)")
REFLECTOR_APPEARS = (
    scene(A, B, C, peers=MESH_B | MESH_C),
    scene(A, RR, C, peers=MESH_C),
    scene(
        A,
        RR,
        C,
        TO_REFLECTORS,
        peers=MESH_C | {"192.0.2.2": "Node_192_0_2_2 64512 (b)", "fd00::2": "Node_fd00__2 64512 (b)"},
    ),
    scene(
        A,
        RR,
        C,
        TO_REFLECTORS,
        NO_MESH,
        peers={"192.0.2.2": "Node_192_0_2_2 64512 (b)", "fd00::2": "Node_fd00__2 64512 (b)"},
    ),
)


@every_telling
def test_a_route_reflector_appears(telling, order):
    play(telling(REFLECTOR_APPEARS), order, CalcWorld())


OTHER_RR = node("c", "192.0.2.3", labels={"rr": ""}, rr="244.0.0.1")
FAR_RR = node("c", "192.0.2.3", labels={"rr": ""}, rr="244.0.0.2")
AMONG_REFLECTORS = bgp_peer("among-reflectors", node_selector="has(rr)", peer_selector="has(rr)")
CLIENT = "Node_192_0_2_1 64512 (a) client cluster 244.0.0.1"
AS_REFLECTOR = (
    scene(A, RR),
    scene(
        A,
        RR,
        TO_REFLECTORS,
        peers={"192.0.2.1": CLIENT, "fd00::1": "Node_fd00__1 64512 (a) client cluster 244.0.0.1"},
    ),
    scene(
        A,
        RR,
        OTHER_RR,
        TO_REFLECTORS,
        AMONG_REFLECTORS,
        peers={
            "192.0.2.1": CLIENT,
            "192.0.2.3": "Node_192_0_2_3 64512 (c) cluster 244.0.0.1",
            "fd00::1": "Node_fd00__1 64512 (a) client cluster 244.0.0.1",
        },
    ),
    scene(
        RR,
        FAR_RR,
        AMONG_REFLECTORS,
        peers={"192.0.2.3": "Node_192_0_2_3 64512 (c) client cluster 244.0.0.1"},
    ),
    scene(
        RR,
        A,
        bgp_peer("manual", node="a", peer_selector="has(rr)", reverse_peering="Manual"),
    ),
    scene(
        node("b", "192.0.2.2", rr="one"),
        A,
        bgp_peer("by-ip", "192.0.2.2", 64512, node="a"),
        peers={"192.0.2.1": "Node_192_0_2_1 64512 (a)"},
        refusals=[
            (
                "Node b: routeReflectorClusterID 'one' is no dotted quad: it reflects nothing. "
                "Use one like 244.0.0.1"
            )
        ],
    ),
)


@every_telling
def test_a_reflector_makes_its_side_of_the_sessions_and_knows_its_clients(telling, order):
    play(telling(AS_REFLECTOR), order, CalcWorld("b"))


KINDS = (
    scene(A, bgp_peer("tor", "192.0.2.254", 64600), peers={"192.0.2.254": "Global_192_0_2_254 64600"}),
    scene(A, bgp_peer("tor", "192.0.2.254", 64600, node="b")),
    scene(
        A,
        bgp_peer("tor", "192.0.2.254", 64600, node="a", local_asn=65010, ttl_security=1),
        peers={"192.0.2.254": "Node_192_0_2_254 64600 as 65010 ttl 1"},
    ),
    scene(
        A,
        bgp_peer("tor", "192.0.2.254", 64600, node_selector="rack == 'r1'", peer_port=1790),
        peers={"192.0.2.254": "Node_192_0_2_254_port_1790 64600 port 1790"},
    ),
    scene(A, bgp_peer("tor", "192.0.2.254", 64600, node_selector="rack == 'r2'")),
    scene(
        A,
        bgp_peer("tor", "fd00::fe", 64600, keepalive_time=1, max_restart_time=5000, next_hop_mode="Self"),
        peers={"fd00::fe": "Global_fd00__fe 64600 hold 3 restart 4095 next hop Self"},
        refusals=["BGPPeer tor: maxRestartTime 5000 s is longer than BGP can say (RFC 4724); 4095 is used"],
    ),
    scene(
        A,
        bgp_peer("tor", "192.0.2.254", 0, node="a"),
        refusals=[
            "BGPPeer tor: no session is made: AS 0 is reserved (RFC 7607); use another from 1 to 4294967294"
        ],
    ),
    scene(
        A,
        bgp_peer("tor", node_selector="rack = 'r1'", peer_selector="all()"),
        refusals=[
            (
                "BGPPeer tor: its nodeSelector matches nothing, as it cannot be read: "
                "column 6: expected an operator after the label"
            )
        ],
    ),
)


@every_telling
def test_the_kinds_of_bgppeer(telling, order):
    play(telling(KINDS), order, CalcWorld())


EXPLICIT_AND_MESH = (
    scene(A, C, peers=MESH_C),
    scene(
        A,
        C,
        bgp_peer("direct", "192.0.2.3", 64512, node="a"),
        peers={"192.0.2.3": "Node_192_0_2_3 64512 (c)"},
        refusals=[
            (
                "Node c: no mesh session with 192.0.2.3 is made: BGPPeer direct makes the one session to "
                "this address. Delete one of the two peerings"
            )
        ],
    ),
    scene(
        A,
        C,
        bgp_peer("direct", "192.0.2.3", 64512, node="a"),
        bgp_peer("everybody", "192.0.2.3", 64512, peer_port=1790),
        NO_MESH,
        peers={"192.0.2.3": "Global_192_0_2_3_port_1790 64512 (c) port 1790 passive"},
        refusals=[
            (
                "BGPPeer direct: no session with 192.0.2.3 is made: BGPPeer everybody makes the one session "
                "to this address. Delete one of the two peerings"
            )
        ],
    ),
    scene(
        A,
        C,
        bgp_peer("theirs", "192.0.2.1", 64512, node="c"),
        NO_MESH,
        peers={"192.0.2.3": "Node_192_0_2_3 64512 (c)"},
    ),
    scene(A, C, bgp_peer("other-as", "192.0.2.1", 64599, node="c"), NO_MESH),
    scene(A, C, bgp_peer("other-port", "192.0.2.1", 64512, node="c", peer_port=1790), NO_MESH),
    scene(
        A,
        C,
        bgp_peer("to-a", "192.0.2.1", 64512),
        NO_MESH,
        peers={"192.0.2.3": "Node_192_0_2_3 64512 (c)"},
    ),
    scene(
        A,
        bgp_peer("self", "192.0.2.1", 64512, node="a"),
        refusals=["BGPPeer self: 192.0.2.1 is this node's own address: no node peers with itself"],
    ),
    scene(
        A,
        C,
        bgp_peer("shown-as", node="c", peer_selector="rack == 'r1'", local_asn=65003),
        NO_MESH,
        peers={"192.0.2.3": "Node_192_0_2_3 65003 (c)"},
    ),
)


@every_telling
def test_one_session_per_address_and_the_other_sides_wish(telling, order):
    play(telling(EXPLICIT_AND_MESH), order, CalcWorld())


REF = SecretRef("bgp", "tor")
WITH_PASSWORD = bgp_peer("tor", "192.0.2.3", 64512, node="a", password=REF)
MESH_TAKEN = (
    "Node c: no mesh session with 192.0.2.3 is made: BGPPeer tor makes the one session to this address. "
    "Delete one of the two peerings"
)
MISSING = (
    "BGPPeer tor: no session is made: its password is missing (secret bgp key tor). "
    "Put it into the file bgp/tor of the secrets directory"
)
PASSWORDS = (
    scene(A, C, WITH_PASSWORD, refusals=[MISSING, MESH_TAKEN]),
    scene(
        A,
        C,
        WITH_PASSWORD,
        secrets={REF: "s3cret"},
        peers={"192.0.2.3": "Node_192_0_2_3 64512 (c) password"},
        refusals=[MESH_TAKEN],
    ),
    scene(
        A,
        C,
        WITH_PASSWORD,
        secrets={REF: ""},
        refusals=[
            (
                "BGPPeer tor: no session is made: its password (secret bgp key tor) is empty, has control "
                "characters or more than 80 octets"
            ),
            MESH_TAKEN,
        ],
    ),
    scene(
        A,
        B,
        C,
        configuration(mesh_password=REF),
        refusals=[
            (
                "BGPConfiguration default: no mesh session is made: its password is missing (secret bgp key "
                "tor). Put it into the file bgp/tor of the secrets directory"
            )
        ],
    ),
    scene(
        A,
        C,
        configuration(mesh_password=REF),
        secrets={REF: "s3cret"},
        peers={"192.0.2.3": "Mesh_192_0_2_3 64512 (c) passive password"},
    ),
)


@every_telling
def test_a_password_file_appears_and_never_falls_back_to_no_password(telling, order):
    play(telling(PASSWORDS), order, CalcWorld())


BAD_C = Malformed("Node c", "spec.bgp.ipv4Address '192.0.2.300' is not an IP address")
NO_ADDRESS = "Node c: it has no IPv4 and no IPv6 address: no node can make a session with it"
REPAIRED = (
    scene(A, C, peers=MESH_C),
    scene(A, BAD_C, refusals=["Node c: spec.bgp.ipv4Address '192.0.2.300' is not an IP address"]),
    scene(A, node("c"), refusals=[NO_ADDRESS]),
    scene(A, C, peers=MESH_C),
    scene(BAD_C, refusals=[
        "Node a: this node has no (usable) Node resource in the datastore: no session is made",
        "Node c: spec.bgp.ipv4Address '192.0.2.300' is not an IP address",
    ]),
)  # fmt: skip


@every_telling
def test_a_value_that_does_not_parse_counts_as_absent_until_repaired(telling, order):
    play(telling(REPAIRED), order, CalcWorld())


TWIN = node("twin", "192.0.2.3", "fd00::3")
CLASH = "node {} has its address 192.0.2.3 too: nobody can tell them apart. Correct one of the Node resources"
OWN_CLASH = (
    "Node thief: it has this node's own address 192.0.2.1: the other nodes make no session with either. "
    "Correct one of the Node resources"
)
SAME_ADDRESS = (
    scene(A, C, peers=MESH_C),
    scene(
        A,
        C,
        TWIN,
        peers={"fd00::3": "Mesh_fd00__3 64512 (twin) passive"},
        refusals=[f"Node c: {CLASH.format('twin')}", f"Node twin: {CLASH.format('c')}"],
    ),
    scene(
        A,
        C,
        TWIN,
        NO_MESH,
        bgp_peer("by-ip", "192.0.2.3", 64512),
        peers={"192.0.2.3": "Global_192_0_2_3 64512"},
        refusals=[f"Node c: {CLASH.format('twin')}", f"Node twin: {CLASH.format('c')}"],
    ),
    scene(A, C, node("thief", "192.0.2.1"), peers=MESH_C, refusals=[OWN_CLASH]),
    scene(A, TWIN, peers={
        "192.0.2.3": "Mesh_192_0_2_3 64512 (twin) passive",
        "fd00::3": "Mesh_fd00__3 64512 (twin) passive",
    }),
)  # fmt: skip


@every_telling
def test_two_nodes_with_one_address(telling, order):
    play(telling(SAME_ADDRESS), order, CalcWorld())
