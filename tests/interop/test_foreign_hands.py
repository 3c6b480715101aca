"""Others work on the kernel's table, too: ours is repaired, theirs is never touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.system import Node, System, block4, block6, holds, until, v4, v6

pytestmark = pytest.mark.interop

METRIC = "1024"


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as made:
        for number in (1, 9):
            made.node(number)
        yield made


@pytest.fixture
def node(system: System) -> Node:
    first = system.nodes[1]
    first.wait_route(block4(9), v4(9), 40)
    first.wait_route(block6(9), v6(9), 40)
    return first


@pytest.mark.parametrize(
    "change",
    [
        ("-4", "route", "del", block4(9), "metric", METRIC),
        ("-6", "route", "del", block6(9), "metric", METRIC),
        ("-4", "route", "del", block4(1), "metric", METRIC),
        ("-4", "route", "replace", block4(9), "via", v4(77), "metric", METRIC, "proto", "bgp"),
        ("-4", "route", "replace", "blackhole", block4(9), "metric", METRIC, "proto", "bgp"),
        ("-6", "route", "replace", block6(9), "via", v6(77), "metric", METRIC, "proto", "bgp"),
    ],
    ids=lambda words: "-".join(words[:3]),
)
def test_what_others_do_to_our_routes_is_repaired(node: Node, change: tuple[str, ...]) -> None:
    before = node.kernel()
    repaired = node.status()["routes"]["repaired"]
    node.where.ip(*change)
    # The change itself may already be undone when we look: the agent counts it.
    until(lambda: node.status()["routes"]["repaired"] > repaired and node.kernel() == before, node.kernel, 3)


def test_all_routes_are_flushed_at_once(node: Node) -> None:
    before = node.kernel()
    node.where.ip("route", "flush", "proto", "bgp")
    node.where.ip("-6", "route", "flush", "proto", "bgp")
    until(lambda: node.kernel() == before, node.kernel, 3)


def test_a_link_that_goes_down_and_up(node: Node) -> None:
    before = node.kernel()
    node.where.ip("link", "set", "eth0", "down")
    until(lambda: block4(9) not in node.kernel(), node.kernel)
    node.where.ip("link", "set", "eth0", "up")
    node.where.ip("-6", "addr", "replace", f"{v6(1)}/64", "dev", "eth0", "nodad")
    until(lambda: node.kernel() == before, lambda: (before, node.kernel(), node.peers(), node.status()), 40)


@pytest.mark.parametrize(("kind", "mine"), [("4", block4(9, 1)), ("6", block6(9, 1))])
def test_a_foreign_route_in_our_place_is_left_alone_and_said(
    system: System, node: Node, kind: str, mine: str
) -> None:
    gateway = v4(88) if kind == "4" else v6(88)
    via = v4(9) if kind == "4" else v6(9)
    node.where.ip(f"-{kind}", "route", "add", mine, "via", gateway, "metric", METRIC, "proto", "static")
    system.etcd.claim("node-9", mine)
    until(
        lambda: any(
            c["prefix"] == mine and gateway in c["reason"] for c in node.status()["routes"]["conflicts"]
        ),
        lambda: node.status()["routes"],
    )
    holds(lambda: node.kernel()[mine] == gateway, 1.5, node.kernel)
    node.where.ip(f"-{kind}", "route", "del", mine, "proto", "static")
    node.wait_route(mine, via, 3)
    until(lambda: not node.status()["routes"]["conflicts"], lambda: node.status()["routes"])
    system.etcd.release("node-9", mine)
    until(lambda: mine not in node.kernel(), node.kernel)


def test_a_foreign_route_beside_ours_stays(system: System, node: Node) -> None:
    """Another metric, another table, or a more specific prefix: none of it is our business."""
    where = node.where
    where.ip("route", "add", block4(9), "via", v4(88), "metric", "2000", "proto", "static")
    where.ip("route", "add", "10.65.9.4/32", "via", v4(88), "proto", "bird")
    where.ip("route", "add", block4(9), "via", v4(88), "table", "77", "proto", "bgp")
    node.kill_agent()
    node.start_agent()
    until(lambda: node.status().get("routes", {}).get("inherited") == 0, node.status, 40)
    ours = f"{block4(9)} via {v4(9)} dev eth0 proto bgp metric {METRIC}"
    until(lambda: ours in where.ip("route"), lambda: where.ip("route"))
    table = where.ip("route")
    assert f"10.65.9.4 via {v4(88)} dev eth0 proto bird" in table
    assert f"{block4(9)} via {v4(88)} dev eth0 proto static metric 2000" in table
    assert block4(9) in where.ip("route", "show", "table", "77")
    assert node.status()["routes"]["conflicts"] == []
    where.ip("route", "del", block4(9), "metric", "2000")
    where.ip("route", "del", "10.65.9.4/32")
