"""One full mesh of Tortie, BIRD, GoBGP and FRR, with an iBGP and an eBGP neighbour beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.bird import Bird, bgp, static
from tests.support.netns import Namespace
from tests.support.routers import KERNEL, Frr, GoBgp
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

BIRD, GOBGP, FRR, IBGP, TOR = 3, 4, 5, 6, 7
TORTIES = (1, 9)
"""By Calico's comparison of addresses as strings, 1 waits for everybody and 9 connects to everybody."""
PASSWORD = "tor {secret}; #1"


@dataclass
class Mesh:
    system: System
    hosts: dict[int, Namespace]
    bird: Bird
    gobgp: GoBgp
    frr: Frr
    ibgp: Bird
    tor: Bird

    @property
    def nodes(self) -> list[Node]:
        return list(self.system.nodes.values())


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with System() as system:
        etcd = system.etcd
        hosts = {number: system.host(number) for number in (BIRD, GOBGP, FRR, IBGP, TOR)}
        for number, name in ((BIRD, "bird"), (GOBGP, "gobgp"), (FRR, "frr")):
            etcd.node(name, number)
            etcd.claim(name, block4(number), block6(number))
        etcd.resource("BGPPeer", "inside", {"peerIP": v4(IBGP), "asNumber": 64512})
        etcd.resource(
            "BGPPeer",
            "tor",
            {
                "peerIP": f"{v4(TOR)}:1790",
                "asNumber": 64600,
                "node": "node-1",
                "password": {"secretKeyRef": {"name": "tor", "key": "password"}},
            },
        )
        for number in TORTIES:
            node = system.node(number, start=False)
            node.secret("tor", "password", PASSWORD + "\n")
            node.start_speaker()
            node.start_agent()
        folder = system.folder
        made = Mesh(
            system,
            hosts,
            bird=Bird(
                hosts[BIRD],
                folder / "bird",
                v4(BIRD),
                KERNEL,
                static("s4", [block4(BIRD)]),
                static("s6", [block6(BIRD)]),
                *(bgp(f"four{n}", v4(BIRD), v4(n), export=STATIC, graceful=60) for n in TORTIES),
                *(bgp(f"six{n}", v6(BIRD), v6(n), export=STATIC, graceful=60) for n in TORTIES),
            ),
            gobgp=GoBgp(
                hosts[GOBGP],
                folder / "gobgp",
                v4(GOBGP),
                {v4(n): v4(GOBGP) for n in TORTIES} | {v6(n): v6(GOBGP) for n in TORTIES},
            ),
            frr=Frr(
                hosts[FRR],
                folder / "frr",
                v4(FRR),
                [at(n) for n in TORTIES for at in (v4, v6)],
                [block4(FRR), block6(FRR)],
            ),
            ibgp=Bird(
                hosts[IBGP],
                folder / "ibgp",
                v4(IBGP),
                KERNEL,
                static("s4", ["172.30.0.0/24"]),
                *(bgp(f"tortie{n}", v4(IBGP), v4(n), export=STATIC) for n in TORTIES),
            ),
            tor=Bird(
                hosts[TOR],
                folder / "tor",
                v4(TOR),
                KERNEL,
                static("s4", ["0.0.0.0/0", "203.0.113.0/24"]),
                bgp("tortie", v4(TOR), v4(1), local_as=64600, export=STATIC, password=PASSWORD)
                .replace(f"local {v4(TOR)} as", f"local {v4(TOR)} port 1790 as")
                .replace("multihop;", "direct;"),
            ),
        )
        made.gobgp.originate(block4(GOBGP), block6(GOBGP))
        yield made


@pytest.mark.parametrize("number", TORTIES)
def test_every_neighbours_blocks_reach_our_kernel(mesh: Mesh, number: int) -> None:
    node = mesh.system.nodes[number]
    for other in (BIRD, GOBGP, FRR, *(n for n in TORTIES if n != number)):
        node.wait_route(block4(other), v4(other), 40)
        node.wait_route(block6(other), v6(other), 40)
    assert node.kernel()[block4(number)] == "blackhole"
    assert node.kernel()[block6(number)] == "blackhole"
    for other in (BIRD, GOBGP, FRR):
        for prefix, peer in ((block4(other), v4(other)), (block6(other), v6(other))):
            assert node.path(prefix, peer)["validity"] == "valid"


def test_our_blocks_reach_every_neighbour(mesh: Mesh) -> None:
    ours = {block4(n): v4(n) for n in TORTIES} | {block6(n): v6(n) for n in TORTIES}
    for number in (BIRD, FRR):
        until(
            lambda number=number: ours.items() <= kernel_routes(mesh.hosts[number]).items(),
            lambda number=number: (number, kernel_routes(mesh.hosts[number])),
            40,
        )
    until(
        lambda: all(
            via in (mesh.gobgp.rib("ipv6" if ":" in prefix else "ipv4").get(prefix) or ())
            for prefix, via in ours.items()
        ),
        lambda: (mesh.gobgp.rib("ipv4"), mesh.gobgp.rib("ipv6"), mesh.gobgp.ask("neighbor")),
        40,
    )


def test_packets_go_both_ways_in_both_families(mesh: Mesh) -> None:
    test_our_blocks_reach_every_neighbour(mesh)
    pairs = []
    for node in mesh.nodes:
        others = {BIRD, FRR, *TORTIES} - {node.number}
        for other in others:
            node.wait_route(block4(other), v4(other), 40)
            node.wait_route(block6(other), v6(other), 40)
            pairs += [
                (node.where, pod4(node.number), pod4(other)),
                (node.where, pod6(node.number), pod6(other)),
            ]
    with pinging(pairs, least=5):
        pass


def test_an_ibgp_neighbour_of_a_bgppeer(mesh: Mesh) -> None:
    for node in mesh.nodes:
        node.wait_route("172.30.0.0/24", v4(IBGP), 40)
        assert node.peers()[v4(IBGP)]["type"] == "global"
    ours = {block4(n): v4(n) for n in TORTIES}
    until(
        lambda: ours.items() <= kernel_routes(mesh.hosts[IBGP]).items(),
        lambda: kernel_routes(mesh.hosts[IBGP]),
    )


def test_a_top_of_rack_router_with_password_and_port(mesh: Mesh) -> None:
    node = mesh.system.nodes[1]
    node.wait_route("203.0.113.0/24", v4(TOR), 40)
    node.wait_route("0.0.0.0/0", v4(TOR))
    peer = node.peers()[v4(TOR)]
    assert (peer["port"], peer["type"], peer["asn"]) == (1790, "node specific", 64600)
    # By eBGP we pass on what the mesh announces, with ourselves as the next hop, and our AS once.
    wanted = dict.fromkeys((block4(1), block4(9), block4(BIRD)), v4(1))
    until(
        lambda: wanted.items() <= kernel_routes(mesh.hosts[TOR]).items(),
        lambda: mesh.tor.ask("show", "route"),
    )
    assert "BGP.as_path: 64512\n" in mesh.tor.route(block4(1))
    assert v4(TOR) not in mesh.system.nodes[9].peers(), "the BGPPeer is for node-1 only"
    assert "203.0.113.0/24" not in kernel_routes(mesh.hosts[BIRD]), "outside the pools nothing leaves us"


def test_nothing_is_refused_in_a_mesh_that_is_right(mesh: Mesh) -> None:
    for node in mesh.nodes:
        assert node.refusals() == []
        assert node.status()["routes"]["failed"] == []
