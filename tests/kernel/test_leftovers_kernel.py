"""BIRD's leftovers on a real kernel: the sink names them, and `node leftovers` takes away exactly those."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.kernel_ns import World, agent_life, made_world, settled, until, wanted

from agent.cli.leftover_routes import Heir, Leftover, by_prefix, judge
from agent.cli.leftovers import take_away
from agent.netlink.neighbours import neighbours
from agent.netlink.rtnetlink import KernelRoute
from agent.netlink.sockets import dump_routes
from agent.sinks.kernel import KernelSink
from felix_like.model.desired import MAIN_TABLE, PROTO_BIRD

pytestmark = pytest.mark.kernel


@pytest.fixture
def world() -> Iterator[World]:
    with made_world() as made:
        yield made


def left() -> list[KernelRoute]:
    return [route for family in (2, 10) for route in dump_routes(family, PROTO_BIRD)]


def found(sink: KernelSink) -> list[Leftover]:
    """Judged as the command does, by what this agent wants."""
    heirs = by_prefix(Heir(route, sink.installed(route.key) == route) for route in sink.wanted.values())
    table = [route for family in (2, 10) for route in dump_routes(family, table=MAIN_TABLE)]
    return judge(left(), lambda route: heirs.get(route.key.prefix), "Tortie", neighbours(), table)


def named(sink: KernelSink) -> set[str]:
    status = sink.status()
    return {str(key.prefix) for key, reason in (*status.conflicts, *status.shadowed) if "leftovers" in reason}


@pytest.mark.parametrize("metric", [None, 1024])
async def test_every_kind_of_leftover_is_named_and_becomes_ours(world: World, metric: int | None) -> None:
    """Without a metric (IPv6: 1024 then) and with ours; single ways, several, blackholes; both families."""
    tail = f"proto bird {f'metric {metric}' if metric else ''}"
    world.batch(
        [
            f"route add 10.1.0.0/26 via 10.0.0.2 dev eth0 {tail}",
            f"route add 10.2.0.0/26 {tail} nexthop via 10.0.0.2 dev eth0 nexthop via 10.0.0.3 dev eth0",
            f"route add blackhole 10.3.0.0/26 {tail}",
            f"route add fd01::/64 via fd00::2 dev eth0 {tail}",
            f"route add fd02::/64 {tail} nexthop via fd00::2 dev eth0 nexthop via fd00::3 dev eth0",
            f"route add blackhole fd03::/64 {tail}",
        ]
    )
    routes = [
        world.learned("10.1.0.0/26", "10.0.0.2"),
        world.learned("10.2.0.0/26", "10.0.0.2", "10.0.0.3"),
        world.blackhole("10.3.0.0/26"),
        world.learned("fd01::/64", "fd00::2"),
        world.learned("fd02::/64", "fd00::2", "fd00::3"),
        world.blackhole("fd03::/64"),
    ]
    every = {str(route.key.prefix) for route in routes}
    async with agent_life() as sink:
        sink.want(wanted(*routes))
        await until(lambda: named(sink) == every)
        await until(lambda: [bool(one.verdict) for one in found(sink)] == [True] * 6)
        assert take_away(found(sink)) == []
        assert left() == []
        await until(lambda: settled(sink) and not named(sink))
        assert sink.status().conflicts == ()
    kept = {(route["dst"], str(route.get("protocol"))) for route in world.routes()}
    assert {(route["dst"]) for route in world.routes() if str(route.get("protocol")) == "186"} == every
    assert not [one for one in kept if one[1] == "12"]


async def test_only_the_judged_route_goes(world: World) -> None:
    """Other routes to the same destination stay, BIRD's own with another metric or way among them."""
    world.ip("route add 10.1.0.0/26 via 10.0.0.2 dev eth0 proto bird")
    others = [
        "10.1.0.0/26 via 10.0.0.3 dev eth0 proto bird metric 2000",
        "10.1.0.0/26 via 10.0.0.2 dev eth0 proto static metric 60",
        "10.1.0.0/25 via 10.0.0.2 dev eth0 proto bird",
        "fd01::/64 via fd00::3 dev eth0 proto bird metric 50",
    ]
    for other in others:
        world.ip(f"{'-6 ' if ':' in other else ''}route add {other}")
    before = world.routes()
    async with agent_life() as sink:
        sink.want(wanted(world.learned("10.1.0.0/26", "10.0.0.2"), world.learned("fd01::/64", "fd00::2")))
        await until(lambda: settled(sink))
        verdicts = {
            (str(one.route.key.prefix), one.route.key.priority): bool(one.verdict) for one in found(sink)
        }
        assert verdicts == {
            ("10.1.0.0/25", 0): False,
            ("10.1.0.0/26", 0): True,
            ("10.1.0.0/26", 2000): False,
            ("fd01::/64", 50): False,
        }
        assert take_away([one for one in found(sink) if one.verdict]) == []
    after = world.routes()
    gone = [route for route in before if route not in after]
    assert [(route["dst"], route["protocol"], route.get("metric")) for route in gone] == [
        ("10.1.0.0/26", "12", None)
    ]


@pytest.mark.parametrize("prefix", ["10.1.0.0/26", "fd01::/64"])
@pytest.mark.parametrize("whose", ["bird", "static"])
async def test_packets_never_fall_to_a_third_route(world: World, prefix: str, whose: str) -> None:
    """It lies between BIRD's and ours, and leads elsewhere."""
    near, far = ("fd00::2", "fd00::3") if ":" in prefix else ("10.0.0.2", "10.0.0.3")
    ip = "-6 route" if ":" in prefix else "route"
    inside = prefix.replace("::/64", "::7").replace("0/26", "7")
    world.ip(f"{ip} add {prefix} via {near} dev eth0 proto bird metric 32")
    world.ip(f"{ip} add {prefix} via {far} dev eth0 proto {whose} metric 50")
    async with agent_life() as sink:
        sink.want(wanted(world.learned(prefix, near)))
        await until(lambda: settled(sink))
        [first, *_] = found(sink)
        assert first.route.key.priority == 32
        assert not first.verdict
        assert "packets would follow another route then" in str(first.verdict.reason)
        assert f"via {near}" in world.ip(f"{ip} get {inside}")
        world.ip(f"{ip} del {prefix} via {far} dev eth0 metric 50")
        [first] = found(sink)
        assert first.verdict
        assert take_away([first]) == []
        assert f"via {near}" in world.ip(f"{ip} get {inside}")


async def test_who_is_gone_in_the_meantime_is_no_trouble(world: World) -> None:
    world.ip("route add 10.1.0.0/26 via 10.0.0.2 dev eth0 proto bird")
    world.ip("-6 route add fd01::/64 via fd00::2 dev eth0 proto bird")
    async with agent_life() as sink:
        sink.want(wanted(world.learned("10.1.0.0/26", "10.0.0.2"), world.learned("fd01::/64", "fd00::2")))
        await until(lambda: named(sink) == {"10.1.0.0/26", "fd01::/64"})
        both = found(sink)
        for command in ("route flush proto bird", "-6 route flush proto bird"):
            world.ip(command)
        await until(lambda: settled(sink) and not named(sink))
        assert take_away(both) == []
        await until(lambda: settled(sink) and not named(sink))
    assert len(world.routes("10.1.0.0/26") + world.routes("fd01::/64")) == 2


async def test_bird_went_by_the_routers_link_local_address(world: World) -> None:
    """As where a router tells it; Tortie goes by the global one. The kernel knows both as one machine."""
    hardware = json.loads(world.ip("-j link show eth0", world.far))[0]["address"]
    for address in ("fe80::77", "fd00::2"):
        world.ip(f"-6 neigh replace {address} lladdr {hardware} dev eth0 nud permanent")
    world.ip("-6 neigh replace fd00::3 lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
    for prefix in ("fd01::/64", "fd02::/64"):
        world.ip(f"-6 route add {prefix} via fe80::77 dev eth0 proto bird")
    routes = [world.learned("fd01::/64", "fd00::2"), world.learned("fd02::/64", "fd00::3")]
    async with agent_life() as sink:
        sink.want(wanted(*routes))
        await until(lambda: named(sink) == {"fd01::/64", "fd02::/64"})
        assert [bool(one.verdict) for one in found(sink)] == [True, False]
        assert take_away([one for one in found(sink) if one.verdict]) == []
        await until(lambda: named(sink) == {"fd02::/64"})
        assert sink.installed(routes[0].key) == routes[0]
        # The other one goes by hand: ours takes its place.
        world.ip("-6 route del fd02::/64 proto bird")
        await until(lambda: settled(sink) and not named(sink))


async def test_what_comes_and_goes_later_is_heard(world: World) -> None:
    async with agent_life() as sink:
        sink.want(wanted(world.learned("10.1.0.0/26", "10.0.0.2")))
        await until(lambda: settled(sink))
        assert named(sink) == set()
        world.ip("route add 10.1.0.0/26 via 10.0.0.3 dev eth0 proto bird metric 32")
        await until(lambda: named(sink) == {"10.1.0.0/26"})
        [(_, reason)] = sink.status().shadowed
        assert "via 10.0.0.3" in reason
        assert "metric 32" in reason
        world.ip("route add 10.1.0.0/26 via 10.0.0.3 dev eth0 proto bird metric 2000")
        world.ip("route del 10.1.0.0/26 via 10.0.0.3 dev eth0 proto bird metric 32")
        await until(lambda: named(sink) == set())
        assert settled(sink)
