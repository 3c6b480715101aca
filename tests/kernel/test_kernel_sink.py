"""The kernel sink on a real kernel: what is ours is kept, what is not is never touched."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
from collections.abc import Iterator

import pytest
from support.kernel_ns import World, agent_life, made_world, settled, until, wanted

from agent.sinks.kernel import dump_ours
from agent.sinks.monitor import RouteMonitor
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import PROTO_BGP, KernelNextHop, Route, RouteKey

pytestmark = pytest.mark.kernel


@pytest.fixture
def world() -> Iterator[World]:
    with made_world() as made:
        yield made


def every_kind(world: World) -> list[Route]:
    onlink = (KernelNextHop(Address.parse("172.31.0.1"), world.link, True),)
    onlink6 = (KernelNextHop(Address.parse("fd77::1"), world.link, True),)
    direct = (KernelNextHop(None, world.link),)

    def unicast(prefix: str, hops: tuple[KernelNextHop, ...]) -> Route:
        return Route(RouteKey(Prefix.parse(prefix)), "unicast", PROTO_BGP, hops)

    return [
        world.learned("10.1.0.0/26", "10.0.0.2"),
        world.learned("10.2.0.0/26", "10.0.0.2", "10.0.0.3"),
        world.learned("0.0.0.0/0", "10.0.0.2"),
        world.learned("10.9.0.1/32", "10.0.0.2"),
        world.blackhole("10.3.0.0/26"),
        world.learned("10.4.0.0/26", "fe80::1"),
        unicast("10.5.0.0/26", onlink),
        unicast("10.6.0.0/26", direct),
        world.learned("fd01::/64", "fd00::2"),
        world.learned("fd02::/64", "fd00::2", "fd00::3"),
        world.learned("::/0", "fd00::2"),
        world.learned("fd09::1/128", "fd00::2"),
        world.blackhole("fd03::/64"),
        world.learned("fd04::/64", "fe80::2"),
        unicast("fd05::/64", onlink6),
        unicast("fd06::/64", direct),
    ]


async def test_every_kind_of_route_comes_back_as_it_was_written(world: World) -> None:
    routes = every_kind(world)
    async with agent_life() as sink:
        sink.want(wanted(*routes))
        await until(lambda: settled(sink))
        assert sink.status().failed == ()
    assert {route.key: route for route in dump_ours()} == {route.key: route for route in routes}


async def test_a_restarted_agent_writes_nothing_when_nothing_differs(world: World) -> None:
    routes = every_kind(world)
    async with agent_life() as sink:
        sink.want(wanted(*routes))
        await until(lambda: settled(sink))
    async with agent_life() as sink:
        sink.want(wanted(*routes))
        sink.allow_sweep(True, frozenset(), frozenset())
        await until(lambda: settled(sink))
        await asyncio.sleep(0.3)
        assert sink.status().messages == 0


async def test_a_restarted_agent_writes_only_what_differs(world: World) -> None:
    async with agent_life() as sink:
        sink.want(wanted(*every_kind(world)))
        await until(lambda: settled(sink))
    async with agent_life() as sink:
        changed = [route for route in every_kind(world) if str(route.key.prefix) != "10.1.0.0/26"]
        sink.want(wanted(*changed, world.learned("10.1.0.0/26", "10.0.0.3")))
        await until(lambda: settled(sink))
        assert sink.status().messages == 2  # the new one appended, the old one deleted


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("10.0.0.2",), ("10.0.0.3",)),
        (("10.0.0.2",), ("10.0.0.2", "10.0.0.3")),
        (("10.0.0.2", "10.0.0.3"), ("10.0.0.3",)),
        (("10.0.0.2", "10.0.0.3"), ("10.0.0.3", "10.0.0.4")),
        (("10.0.0.2",), ()),
        ((), ("10.0.0.2", "10.0.0.3")),
    ],
    ids=lambda hops: "+".join(hop[-1] for hop in hops) or "blackhole",
)
@pytest.mark.parametrize("version", [4, 6])
async def test_a_route_changes_and_leaves_nothing_behind(
    world: World, before: tuple[str, ...], after: tuple[str, ...], version: int
) -> None:
    prefix = "10.1.0.0/26" if version == 4 else "fd01::/64"

    def route(hops: tuple[str, ...]) -> Route:
        there = hops if version == 4 else tuple(hop.replace("10.0.0.", "fd00::") for hop in hops)
        return world.learned(prefix, *there) if hops else world.blackhole(prefix)

    async with agent_life() as sink:
        sink.want(wanted(route(before)))
        await until(lambda: settled(sink))
        sink.want(wanted(route(after)))
        await until(lambda: settled(sink))
        assert dump_ours() == [route(after)]
        sink.want({route(after).key: None})
        await until(lambda: not dump_ours())
        assert sink.status().conflicts == ()


FOREIGN = {
    "same metric": "{prefix} via {gateway} metric 1024 proto static",
    "same metric, same gateway": "{prefix} via {ours} metric 1024 proto static",
    "same metric, blackhole": "blackhole {prefix} metric 1024 proto boot",
}


@pytest.mark.parametrize("form", FOREIGN)
@pytest.mark.parametrize("version", [4, 6])
async def test_a_foreign_route_that_is_there_first_is_a_conflict(
    world: World, form: str, version: int
) -> None:
    prefix, gateway, ours = (
        ("10.1.0.0/26", "10.0.0.3", "10.0.0.2") if version == 4 else ("fd01::/64", "fd00::3", "fd00::2")
    )
    text = FOREIGN[form].format(prefix=prefix, gateway=gateway, ours=ours)
    kind, spec = ("blackhole ", text[10:]) if text.startswith("blackhole") else ("", text)
    world.ip(f"-{version} route add {kind}{spec}")
    before = world.routes(prefix)
    async with agent_life() as sink:
        sink.allow_sweep(True, frozenset(), frozenset())
        sink.want(wanted(world.learned(prefix, ours)))
        await until(lambda: sink.status().conflicts)
        assert "foreign route" in sink.status().conflicts[0][1]
        assert world.routes(prefix) == before
        sink.want(wanted(world.blackhole(prefix)))
        await asyncio.sleep(0.2)
        assert world.routes(prefix) == before
        sink.want({RouteKey(Prefix.parse(prefix)): None})
        await until(lambda: not sink.status().conflicts)
        assert world.routes(prefix) == before
        sink.want(wanted(world.learned(prefix, ours)))
        await until(lambda: sink.status().conflicts)
        world.ip(f"-{version} route del {kind}{spec}")
        await until(lambda: settled(sink) and not sink.status().conflicts, 5)


@pytest.mark.parametrize("verb", ["append", "prepend"])
async def test_a_foreign_ipv4_route_beside_ours_survives_all_our_changes(world: World, verb: str) -> None:
    async with agent_life() as sink:
        sink.want(wanted(world.learned("10.1.0.0/26", "10.0.0.2")))
        await until(lambda: settled(sink))
        world.ip(f"route {verb} 10.1.0.0/26 via 10.0.0.9 metric 1024 proto static")
        await until(lambda: sink.status().conflicts)
        sink.want(wanted(world.learned("10.1.0.0/26", "10.0.0.3")))
        await until(
            lambda: sink.installed(RouteKey(Prefix.parse("10.1.0.0/26"))).next_hops == world.via("10.0.0.3")
        )
        assert world.ip("route show 10.1.0.0/26 proto static").split()[:3] == [
            "10.1.0.0/26",
            "via",
            "10.0.0.9",
        ]
        sink.want({RouteKey(Prefix.parse("10.1.0.0/26")): None})
        await until(lambda: not dump_ours())
        assert [route["gateway"] for route in world.routes("10.1.0.0/26")] == ["10.0.0.9"]


async def test_a_foreign_ipv6_next_hop_in_our_route_survives_all_our_changes(world: World) -> None:
    async with agent_life() as sink:
        sink.want(wanted(world.learned("fd01::/64", "fd00::2")))
        await until(lambda: settled(sink))
        world.ip("-6 route append fd01::/64 via fd00::9 metric 1024 proto static")
        await until(lambda: sink.status().conflicts)
        sink.want(wanted(world.learned("fd01::/64", "fd00::3")))
        await until(lambda: "fd00::3" in world.ip("-6 route show fd01::/64"))
        await until(lambda: "fd00::2" not in world.ip("-6 route show fd01::/64"))
        assert "fd00::9" in world.ip("-6 route show fd01::/64")
        sink.want({RouteKey(Prefix.parse("fd01::/64")): None})
        await until(lambda: "fd00::3" not in world.ip("-6 route show fd01::/64"))
        assert "fd00::9" in world.ip("-6 route show fd01::/64")


FRR = (
    "10.1.0.0/26 via 10.0.0.9 metric 20 proto bgp",
    "10.99.0.0/16 via 10.0.0.9 metric 20 proto bgp",
    "blackhole 10.98.0.0/16 metric 0 proto 80",
    "fd99::/64 via fd00::9 metric 20 proto bgp",
)


async def test_another_daemon_s_bgp_routes_are_foreign_by_their_metric(world: World) -> None:
    """FRR (beside MetalLB, say) marks its routes with protocol 186 as well; Felix has 80."""
    for route in FRR:
        world.ip(f"{'-6 ' if ':' in route else ''}route add {route}")
    before = world.ip("route show proto bgp metric 20") + world.ip("-6 route show proto bgp metric 20")
    async with agent_life() as sink:
        sink.allow_sweep(True, frozenset(), frozenset())
        sink.want(wanted(world.learned("10.1.0.0/26", "10.0.0.2")))
        await until(lambda: settled(sink))
        assert sink.status().inherited == 0
        world.ip("route add 10.97.0.0/16 via 10.0.0.9 metric 20 proto bgp")
        sink.want({world.learned("10.1.0.0/26", "10.0.0.2").key: None})
        await until(lambda: dump_ours() == [])
        await asyncio.sleep(0.3)
        assert sink.status().messages == 2
    world.ip("route del 10.97.0.0/16")
    after = world.ip("route show proto bgp metric 20") + world.ip("-6 route show proto bgp metric 20")
    assert after == before
    assert "blackhole 10.98.0.0/16" in world.ip("route show proto 80")


async def test_other_metrics_tables_and_protocols_are_left_alone(world: World) -> None:
    foreign = [
        "10.1.0.0/26 via 10.0.0.9 metric 50 proto static",
        "10.1.0.0/26 via 10.0.0.9 metric 1024 proto bgp table 100",
        "10.1.0.0/26 via 10.0.0.9 metric 1024 proto bgp table 10000",
        "10.8.0.0/26 via 10.0.0.9 metric 1024 proto bird",
        "10.7.0.0/26 via 10.0.0.9 metric 1024 proto 80",
        "blackhole 10.7.0.64/26 metric 1024 proto 80",
        "fd01::/64 via fd00::9 metric 50 proto static",
        "fd01::/64 via fd00::9 metric 1024 proto bgp table 100",
    ]
    for route in foreign:
        world.ip(f"route add {route}")

    def tables() -> str:
        return "".join(world.ip(f"-{version} route show table all proto {proto}")
                       for version in (4, 6) for proto in ("static", "bgp", "bird", "80"))  # fmt: skip

    before = tables()
    async with agent_life() as sink:
        sink.allow_sweep(True, frozenset(), frozenset())
        mine = [world.learned("10.1.0.0/26", "10.0.0.2"), world.learned("fd01::/64", "fd00::2")]
        sink.want(wanted(*mine))
        await until(lambda: settled(sink))
        sink.want({route.key: None for route in mine})
        await until(lambda: not sink.status().wanted and tables() == before)


async def test_felix_beside_us_has_nothing_of_ours_to_delete(world: World) -> None:
    """It deletes what it does not want of protocol 80 in the main table, at each of its resyncs."""
    async with agent_life() as sink:
        mine = [
            world.blackhole("10.3.0.0/26"),
            world.blackhole("fd03::/64"),
            world.learned("10.1.0.0/26", "10.0.0.2"),
        ]
        sink.want(wanted(*mine))
        await until(lambda: settled(sink))
        before = world.ip("route show"), world.ip("-6 route show")
        world.ip("route flush proto 80")
        world.ip("-6 route flush proto 80")
        assert (world.ip("route show"), world.ip("-6 route show")) == before


@pytest.mark.parametrize(
    "deed",
    [
        "route del 10.1.0.0/26 metric 1024",
        "route replace 10.1.0.0/26 via 10.0.0.9 metric 1024 proto bgp",
        "route flush proto bgp",
        "-6 route del fd01::/64",
        "-6 route del fd02::/64 via fd00::3",
        "-6 route replace fd01::/64 via fd00::9 metric 1024 proto bgp",
        "-6 route flush proto bgp",
        "route del blackhole 10.3.0.0/26",
        "-6 route del blackhole fd03::/64",
    ],
)
async def test_what_another_program_does_to_ours_is_undone_within_a_second(world: World, deed: str) -> None:
    routes = every_kind(world)
    async with agent_life() as sink:
        sink.want(wanted(*routes))
        await until(lambda: settled(sink))
        before = world.routes()
        world.ip(deed)
        assert world.routes() != before
        mine = {route.key: route for route in routes}
        await until(lambda: {route.key: route for route in dump_ours()} == mine, 1.0)
        await until(lambda: sink.status().repaired)


async def test_a_foreign_replace_of_ours_becomes_a_conflict_and_heals(world: World) -> None:
    async with agent_life() as sink:
        sink.want(wanted(world.learned("10.1.0.0/26", "10.0.0.2")))
        await until(lambda: settled(sink))
        world.ip("route replace 10.1.0.0/26 via 10.0.0.9 metric 1024 proto static")
        await until(lambda: sink.status().conflicts)
        assert [route["gateway"] for route in world.routes("10.1.0.0/26")] == ["10.0.0.9"]
        world.ip("route del 10.1.0.0/26 metric 1024")
        await until(lambda: settled(sink) and not sink.status().conflicts, 2)


async def test_a_fight_is_conceded_and_said(world: World) -> None:
    async with agent_life() as sink:
        sink.want(wanted(world.learned("10.1.0.0/26", "10.0.0.2")))
        for repaired in range(5):
            await until(lambda before=repaired: settled(sink) and sink.status().repaired == before)
            world.ip("route del 10.1.0.0/26 metric 1024")
        await until(lambda: sink.status().repaired == 5)
        world.ip("route del 10.1.0.0/26 metric 1024")
        await until(lambda: sink.status().conflicts)
        assert "another program" in sink.status().conflicts[0][1]
        assert not world.routes("10.1.0.0/26")
        assert sink.status().repaired == 5


async def test_routes_return_after_their_link_was_down(world: World) -> None:
    routes = [world.learned("10.1.0.0/26", "10.0.0.2"), world.learned("10.2.0.0/26", "10.0.0.2", "10.0.0.3"),
              world.blackhole("10.3.0.0/26"), world.learned("fd01::/64", "fd00::2")]  # fmt: skip
    world.ip("link set dev eth0 addrgenmode none")
    async with agent_life() as sink:
        sink.want(wanted(*routes))
        await until(lambda: settled(sink))
        world.ip("link set eth0 down")
        await until(lambda: len(sink.status().failed) == 3)
        assert any("invalid gateway" in why or "down" in why for _, why in sink.status().failed)
        world.ip("link set eth0 up")
        world.ip("addr replace fd00::1/64 dev eth0 nodad")
        await until(lambda: settled(sink) and not sink.status().failed, 5)
    assert {route.key: route for route in dump_ours()} == {route.key: route for route in routes}


async def test_routes_return_after_their_last_address_went(world: World) -> None:
    async with agent_life() as sink:
        sink.want(wanted(world.learned("10.1.0.0/26", "10.0.0.2")))
        await until(lambda: settled(sink))
        world.ip("addr del 10.0.0.1/24 dev eth0")
        await until(lambda: sink.status().failed)
        world.ip("addr add 10.0.0.1/24 dev eth0")
        await until(lambda: settled(sink) and not sink.status().failed, 5)


async def test_one_failing_route_among_a_thousand_is_named_and_the_others_go_in(world: World) -> None:
    good = [world.learned(f"10.{64 + (i >> 8)}.{i & 255}.0/24", "10.0.0.2") for i in range(999)]
    bad = world.learned("10.200.0.0/24", "192.0.2.1")
    async with agent_life() as sink:
        sink.want(wanted(*good[:500], bad, *good[500:]))
        await until(lambda: sink.status().installed == 999)
        assert sink.status().failed == ((bad.key, "the kernel says: Nexthop has invalid gateway"),)
        assert sink.state(bad.key) == "failed: the kernel says: Nexthop has invalid gateway"
        assert sink.state(good[0].key) == "installed"
        world.ip("addr add 192.0.2.2/24 dev eth0")
        await until(lambda: settled(sink) and not sink.status().failed)


async def test_inherited_routes_go_only_when_nobody_may_want_them_any_more(world: World) -> None:
    first, second = world.learned("10.1.0.0/26", "10.0.0.2"), world.learned("10.2.0.0/26", "10.0.0.3")
    odd, block = world.learned("10.4.0.0/26", "10.0.0.9"), world.blackhole("10.3.0.0/26")
    async with agent_life() as sink:
        sink.want(wanted(first, second, odd, block))
        await until(lambda: settled(sink))
    one, two = (Address.parse(text) for text in ("10.0.0.2", "10.0.0.3"))

    def there() -> set[str]:
        return {str(route.key.prefix) for route in dump_ours()}

    async with agent_life() as sink:
        await until(lambda: sink.status().inherited == 4)
        sink.allow_sweep(False, frozenset(), frozenset({one, two}))
        await asyncio.sleep(0.2)
        assert len(there()) == 4
        sink.allow_sweep(True, frozenset({two}), frozenset({one, two}))
        await until(lambda: there() == {"10.2.0.0/26", "10.4.0.0/26"})
        sink.want(wanted(second))
        sink.allow_sweep(True, frozenset(), frozenset({one, two}))
        await until(lambda: there() == {"10.2.0.0/26"})
        assert sink.status().inherited == 0


async def test_lost_events_are_made_good_by_reading_back(world: World) -> None:
    lines = [
        f"route add 172.{16 + (i >> 12)}.{(i >> 4) & 255}.{(i & 15) << 4}/28 via 10.0.0.9"
        for i in range(20000)
    ]
    monitor = RouteMonitor(receive_octets=4096)
    async with agent_life(monitor) as sink:
        sink.want(wanted(world.learned("10.1.0.0/26", "10.0.0.2")))
        await until(lambda: settled(sink))
        world.batch([*lines, "route del 10.1.0.0/26 metric 1024"])  # the loop stands still meanwhile
        await until(lambda: world.routes("10.1.0.0/26"), 5)
        assert monitor.overruns > 0
        assert sink.status().repaired == 1


async def test_a_hundred_thousand_routes_in_and_out(world: World) -> None:
    hops = world.via("10.0.0.2")
    keys = [RouteKey(Prefix(Address((0x14000000 + (i << 6)).to_bytes(4, "big")), 26)) for i in range(100_000)]
    async with agent_life() as sink:
        sink.want({key: Route(key, "unicast", PROTO_BGP, hops) for key in keys})
        await until(lambda: settled(sink), 30, every=0.3)
        assert len(dump_ours()) == 100_000
        sink.want(dict.fromkeys(keys))
        await until(lambda: not sink.installed(keys[-1]) and not dump_ours(), 30, every=0.3)


async def test_no_packet_is_lost_while_the_agent_restarts_and_changes_the_route(world: World) -> None:
    world.ip("addr add 10.1.0.1/32 dev lo", world.far)
    world.ip("addr add fd01::1/128 dev lo", world.far)
    here = [world.learned("10.1.0.0/26", "10.0.0.2"), world.learned("fd01::/64", "fd00::2")]
    there = [world.learned("10.1.0.0/26", "10.0.0.3"), world.learned("fd01::/64", "fd00::3")]
    async with agent_life() as sink:
        sink.want(wanted(*here))
        await until(lambda: settled(sink))
        pings = [
            subprocess.Popen(  # noqa: ASYNC220 (starts in a millisecond)
                ["ping", "-n", "-i", "0.005", "-c", "500", "-q", target], stdout=subprocess.PIPE, text=True
            )
            for target in ("10.1.0.1", "fd01::1")
        ]
        for turn in range(20):
            sink.want(wanted(*(there if turn % 2 == 0 else here)))
            await until(lambda: settled(sink))
            await asyncio.sleep(0.05)
    for _ in range(3):
        async with agent_life() as sink:
            sink.want(wanted(*here))
            await until(lambda: settled(sink))
            await asyncio.sleep(0.05)
    for ping in pings:
        said = await asyncio.to_thread(ping.communicate)
        assert re.search(r"500 packets transmitted, 500 received, 0% packet loss", said[0]), said[0]


async def test_an_agent_that_died_between_append_and_delete_leaves_nothing_behind(world: World) -> None:
    for gateway in ("10.0.0.3", "10.0.0.2"):
        world.ip(f"route append 10.1.0.0/26 via {gateway} metric 1024 proto bgp")
        world.ip(f"route append 10.2.0.0/26 via {gateway} metric 1024 proto bgp")
    route = world.learned("10.1.0.0/26", "10.0.0.2")
    async with agent_life() as sink:
        sink.want(wanted(route))
        await until(lambda: [seen for seen in dump_ours() if seen.key == route.key] == [route])
        assert len(world.routes("10.2.0.0/26")) == 2
        sink.allow_sweep(True, frozenset(), frozenset())
        await until(lambda: dump_ours() == [route])


async def test_two_programs_in_the_same_tables_both_end_as_wanted(world: World) -> None:
    """Seeded chaos: another program deletes, replaces and adds while we change; then all comes to rest."""
    dice = random.Random(7)
    prefixes = [f"10.{number}.0.0/26" for number in range(1, 25)] + [f"fd0{n:x}::/64" for n in range(1, 16)]
    foreign = ["10.30.0.0/26", "fd30::/64"]
    for prefix in foreign:
        world.ip(
            f"route add {prefix} via {'fd00::9' if ':' in prefix else '10.0.0.9'} metric 1024 proto static"
        )

    def gateway(prefix: str) -> str:
        return ("fd00::%d" if ":" in prefix else "10.0.0.%d") % dice.randint(2, 5)

    async with agent_life() as sink:
        last: dict[RouteKey, Route | None] = {}
        for _ in range(60):
            for prefix in dice.sample([*prefixes, *foreign], 8):
                gateways = sorted({gateway(prefix) for _ in range(dice.randint(1, 3))})
                route = world.blackhole(prefix) if dice.random() < 0.2 else world.learned(prefix, *gateways)
                last[route.key] = route if dice.random() < 0.8 else None
                sink.want({route.key: last[route.key]})
            prefix = dice.choice(prefixes)
            version = 6 if ":" in prefix else 4
            deed = dice.choice(["del {p} metric 1024", "replace {p} via {g} metric 1024 proto bgp",
                                "append {p} via {g} metric 1024 proto bgp",
                                "flush {p} proto bgp"])  # fmt: skip
            command = f"-{version} route " + deed.format(p=prefix, g=gateway(prefix))
            await asyncio.to_thread(
                subprocess.run, ["ip", *command.split()], capture_output=True, check=False
            )
            await asyncio.sleep(dice.choice([0, 0, 0.01, 0.2]))
        sink.allow_sweep(True, frozenset(), frozenset())
        rest = {key: route for key, route in last.items() if route and str(key.prefix) not in foreign}
        await until(lambda: sorted(dump_ours(), key=str) == sorted(rest.values(), key=str), 15)
    for prefix in foreign:
        assert [route["protocol"] for route in world.routes(prefix)] == ["4"]
