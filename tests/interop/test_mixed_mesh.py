"""One mesh of nodes that run Tortie and nodes that run BIRD as calico-node does, over one etcd.

IPv4 and IPv6, a password on the mesh, a pod behind each node, and traffic between all pods while nodes of
either kind claim blocks and restart.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.mixed import MESH, PASSWORD, SECONDS, Host, Mixed
from tests.support.system import block4, block6, until, v4, v6

pytestmark = pytest.mark.interop

TORTIE, CALICO = (2, 9), (1, 10)
"""Text and number order 1, 2, 9 and 10 differently: who waits for whom goes by text."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mixed]:
    with Mixed(*CALICO, *TORTIE, tortie=TORTIE) as made:
        made.wait()
        yield made


def test_sessions_have_calicos_names_and_the_same_side_waits(mesh: Mixed) -> None:
    def names(*numbers: int) -> set[str]:
        addresses = [address for n in numbers for address in (v4(n), v6(n))]
        return {f"Mesh_{address}".replace(".", "_").replace(":", "_") for address in addresses}

    calico, tortie = mesh.hosts[1].calico, mesh.hosts[2].tortie
    assert set(calico.sessions(4)) | set(calico.sessions(6)) == names(2, 9, 10)
    assert {peer["name"] for peer in tortie.peers().values()} == names(1, 9, 10)


def test_pods_reach_each_other(mesh: Mixed) -> None:
    with mesh.traffic():
        until(lambda: all(host.in_order(mesh.others(host)) for host in mesh.hosts.values()), seconds=SECONDS)


@pytest.mark.parametrize("number", [CALICO[0], TORTIE[0]])
def test_a_block_of_either_kind_reaches_all_and_is_given_up_again(mesh: Mixed, number: int) -> None:
    holder = mesh.hosts[number]
    blocks = (block4(number, 1), block6(number, 1))
    with mesh.traffic():
        mesh.etcd.claim(holder.name, *blocks)
        for prefix in blocks:
            mesh.reaches(prefix, holder)
            until(lambda prefix=prefix: holder.routes().get(prefix) == "blackhole", holder.routes, SECONDS)
        mesh.etcd.release(holder.name, *blocks)
        for prefix in blocks:
            mesh.forgets(prefix)


def test_a_pods_own_route_stays_on_its_node(mesh: Mixed) -> None:
    for host in mesh.hosts.values():
        for other in mesh.others(host):
            assert f"{other.pod4}/32" not in host.routes()
            assert f"{other.pod6}/128" not in host.routes()


def test_a_calico_node_is_killed_and_comes_back(mesh: Mixed) -> None:
    host = mesh.hosts[CALICO[0]]
    with mesh.traffic():
        host.calico.kill()
        for number in TORTIE:
            tortie = mesh.hosts[number].tortie
            until(lambda tortie=tortie: tortie.peers()[v4(host.number)]["stale"] == 1, tortie.peers, SECONDS)
        host.start_calico()
        mesh.wait()


def test_a_tortie_node_is_restarted(mesh: Mixed) -> None:
    host = mesh.hosts[TORTIE[1]]
    with mesh.traffic():
        host.stop_tortie()
        host.start_tortie()
        mesh.wait()


@pytest.mark.parametrize("reflector", [TORTIE[0], CALICO[0]])
def test_a_reflector_of_either_kind_joins_both_kinds(mesh: Mixed, reflector: int) -> None:
    """The mesh gives way to a reflector, and comes back."""
    node = mesh.hosts[reflector]
    etcd = mesh.etcd
    node_key = {"bgp": {"ipv4Address": f"{v4(reflector)}/24", "ipv6Address": f"{v6(reflector)}/64"}}
    cluster = {"bgp": {**node_key["bgp"], "routeReflectorClusterID": "244.0.0.1"}}
    etcd.resource("Node", node.name, cluster, labels={"reflector": "yes"})
    etcd.resource(
        "BGPPeer",
        "reflectors",
        {
            "nodeSelector": "all()",
            "peerSelector": "has(reflector)",
            "password": {"secretKeyRef": PASSWORD},
        },
    )
    etcd.resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False, "asNumber": 64512})
    clients = mesh.others(node)
    for client in clients:
        until(
            lambda client=client: client.in_order([node]) and sessions(client) == 2, client.complaint, SECONDS
        )
    until(lambda: node.in_order(clients), node.complaint, SECONDS)
    for host in mesh.hosts.values():
        for other in mesh.others(host):
            for prefix, via in (
                (block4(other.number), v4(other.number)),
                (block6(other.number), v6(other.number)),
            ):
                until(
                    lambda host=host, prefix=prefix, via=via: host.routes().get(prefix) == via,
                    lambda host=host, prefix=prefix: (host.name, prefix, host.routes(), host.complaint()),
                    SECONDS,
                )
    with mesh.traffic():
        pass
    etcd.resource("Node", node.name, node_key)
    etcd.resource("BGPConfiguration", "default", MESH)
    etcd.drop("BGPPeer", "reflectors")
    mesh.wait()


def sessions(host: Host) -> int:
    if host.is_tortie:
        return len(host.tortie.peers())
    return len(host.calico.sessions(4)) + len(host.calico.sessions(6))
