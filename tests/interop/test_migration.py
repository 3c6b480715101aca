"""From calico-node to Tortie and back, node by node, and not one packet is lost on the way.

There is traffic between all pods, and with a router outside. BIRD is killed, as it is when calico-node's pod
goes, and leaves its routes in the kernel (`persist`); Tortie gets SIGTERM, and leaves its own. What the one
left is taken over by the other.
"""

from __future__ import annotations

import re

import pytest

from tests.support.calico_node import NORMAL, UNSET
from tests.support.mixed import SECONDS, Host, Mixed, Router
from tests.support.system import block4, block6, until, v4

pytestmark = pytest.mark.interop

NUMBERS = (1, 2, 10)
"""As text 1, 10, 2: who is passive towards whom goes by text, and changes hands with the node."""


def destinations(cluster: Mixed) -> set[str]:
    """What every node has a route to: each node's blocks, its own among them, and the world outside."""
    blocks = {block for number in cluster.hosts for block in (block4(number), block6(number))}
    return blocks | ({Router.PREFIX4, Router.PREFIX6} if cluster.router else set())


def to_tortie(cluster: Mixed, host: Host, *, overlap: bool) -> None:
    """The switch itself. `overlap`: Tortie's pod is there before calico-node's has gone."""
    if overlap:
        host.start_tortie()
        until(lambda: host.tortie.status().get("speaker", {}).get("state") == "connected", seconds=SECONDS)
        host.calico.kill()
    else:
        host.calico.kill()
        for other in cluster.others(host):
            until(lambda other=other: not other.in_order([host]), other.complaint, SECONDS)
        host.start_tortie()
    until(lambda: host.in_order(cluster.others(host)), host.complaint, SECONDS)


def clean_up_after_bird(cluster: Mixed, host: Host) -> None:
    """What BIRD left is listed, named in the status, and taken over."""
    wanted = destinations(cluster)
    assert set(host.routes_of("bird")) == wanted
    until(lambda: named(host) == wanted, host.tortie.status, SECONDS)
    until(
        lambda: host.leftovers()[1].count("yes     Tortie has the same") == len(wanted),
        host.leftovers,
        SECONDS,
    )
    code, said = host.leftovers("--remove")
    assert code == 0, said
    assert f"{len(wanted)} of {len(wanted)} removed" in said
    assert host.routes_of("bird") == {}
    until(lambda: not named(host), host.tortie.status, SECONDS)
    assert "No route of BIRD's is left" in host.leftovers()[1]


def named(host: Host) -> set[str]:
    """Destinations of which the status says that BIRD's route is in the way."""
    conflicts = host.tortie.status().get("routes", {}).get("conflicts", ())
    return {entry["prefix"] for entry in conflicts if "tortiectl node leftovers" in entry["reason"]}


def to_calico(cluster: Mixed, host: Host) -> None:
    host.stop_tortie()
    host.start_calico()
    until(lambda: host.in_order(cluster.others(host)), host.complaint, SECONDS)
    wanted = destinations(cluster)
    until(
        lambda: host.leftovers("--of", "tortie")[1].count("yes     BIRD has the same") == len(wanted),
        lambda: host.leftovers("--of", "tortie"),
        SECONDS,
    )
    code, said = host.leftovers("--of", "tortie", "--remove")
    assert code == 0, said
    assert f"{len(wanted)} of {len(wanted)} removed; BIRD has them" in said
    assert host.routes_of("bgp") == {}
    assert set(host.routes_of("bird")) == wanted


@pytest.mark.parametrize(("metric", "numbers"), [(UNSET, NUMBERS), (NORMAL, NUMBERS[1:])])
def test_there_and_back_without_losing_a_packet(metric: int, numbers: tuple[int, ...]) -> None:
    with Mixed(*numbers, metric=metric, router=True) as cluster:
        cluster.wait()
        for number, host in cluster.hosts.items():
            with cluster.traffic():
                to_tortie(cluster, host, overlap=number == 2)
                clean_up_after_bird(cluster, host)
                cluster.wait()
        one, other, *_ = cluster.hosts.values()
        with cluster.traffic():
            a_block_moves(cluster, one, other)
        for host in cluster.hosts.values():
            with cluster.traffic():
                to_calico(cluster, host)
                cluster.wait()
        with cluster.traffic():
            a_block_moves(cluster, other, one)


def a_block_moves(cluster: Mixed, one: Host, other: Host) -> None:
    """Nothing old is left that would hold packets back."""
    for prefix in (block4(7), block6(7)):
        cluster.etcd.claim(one.name, prefix)
        cluster.reaches(prefix, one)
        cluster.etcd.release(one.name, prefix)
        cluster.etcd.claim(other.name, prefix)
        cluster.reaches(prefix, other)
        cluster.etcd.release(other.name, prefix)
        cluster.forgets(prefix)


def test_what_bird_left_goes_stale_and_is_never_removed_by_mistake() -> None:
    """A block moves after BIRD has gone: its old route (IPv4) comes before ours and leads astray."""
    with Mixed(*NUMBERS) as cluster:
        host, one, other = cluster.hosts.values()
        moving, lost = block4(7), block4(8)
        cluster.etcd.claim(one.name, moving, lost)
        cluster.wait()
        cluster.reaches(moving, one)
        cluster.reaches(lost, one)
        to_tortie(cluster, host, overlap=False)
        cluster.etcd.release(one.name, moving, lost)
        cluster.etcd.claim(other.name, moving)
        until(
            lambda: f"via {v4(other.number)} dev eth0 proto bgp" in host.where.ip("route", "show", moving),
            lambda: host.where.ip("route"),
            SECONDS,
        )
        assert f"via {v4(one.number)}" in host.where.ip("route", "get", moving.replace("0/26", "1"))
        until(lambda: moving in named(host), host.tortie.status, SECONDS)
        host.where.ip("route", "add", "203.0.113.0/24", "via", v4(one.number), "proto", "bird")
        host.where.ip("route", "add", "10.65.200.0/26", "via", v4(one.number), "proto", "static")
        before = host.routes_of("static") | host.routes_of("boot")
        code, said = host.leftovers("--remove")
        assert code == 0, said
        assert re.search(rf"^{moving} .* no +Tortie has it by another way$", said, re.MULTILINE), said
        assert re.search(rf"^{lost} .* no +Tortie has no route to {lost}$", said, re.MULTILINE), said
        assert re.search(r"^203\.0\.113\.0/24 .* no +Tortie has no route", said, re.MULTILINE), said
        assert "3 stay" in said
        assert set(host.routes_of("bird")) == {moving, lost, "203.0.113.0/24"}
        assert host.routes_of("static") | host.routes_of("boot") == before, "nobody else's was touched"
        # The operator decides, and types what the command says.
        host.where.ip("route", "del", moving, "proto", "bird")
        assert f"via {v4(other.number)}" in host.where.ip("route", "get", moving.replace("0/26", "1"))
        until(lambda: moving not in named(host), host.tortie.status, SECONDS)


def test_leftovers_come_back_while_bird_runs() -> None:
    """Where BIRD's control socket is not to be seen, its own deed tells: it writes its routes again."""
    with Mixed(*NUMBERS[:2]) as cluster:
        host, _ = cluster.hosts.values()
        cluster.wait()
        host.start_tortie()
        until(lambda: host.tortie.status().get("datastore", {}).get("state") == "in-sync", seconds=SECONDS)
        until(lambda: host.tortie.status()["speaker"]["state"] == "connected", seconds=SECONDS)
        code, said = host.leftovers("--remove")
        assert (code, "BIRD still runs on this node" in said) == (1, True)
        until(lambda: "Tortie has the same" in host.leftovers()[1], host.leftovers, SECONDS)

        def noticed() -> bool:
            """On a busy machine BIRD may take longer than the command looks; then the next call sees it."""
            code, said = host.leftovers("--remove", "--bird-sockets", "/nowhere")
            return code == 1 and "came back: BIRD still runs on this node" in said

        until(noticed, host.leftovers, SECONDS)
