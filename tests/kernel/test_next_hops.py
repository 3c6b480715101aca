"""Next hops and interfaces as a real kernel has them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping

import pytest
from support.kernel_ns import World, agent_life, made_world, settled, until, wanted

from agent.sinks.links import in_namespace, interfaces, link_writer
from agent.sinks.monitor import RouteMonitor
from agent.sinks.nexthops import NextHopResolver
from felix_like.model.address import Address
from felix_like.model.desired import NextHopState, Resolved, Unresolved

pytestmark = pytest.mark.kernel


@pytest.fixture
def world() -> Iterator[World]:
    with made_world() as made:
        yield made


class Told:
    """Records what the resolver reports."""

    def __init__(self) -> None:
        self.changes: list[Mapping[Address, NextHopState]] = []

    def __call__(self, changes: Mapping[Address, NextHopState]) -> None:
        self.changes.append(changes)


@contextlib.asynccontextmanager
async def resolver() -> AsyncIterator[tuple[NextHopResolver, Told, RouteMonitor]]:
    told, monitor = Told(), RouteMonitor()
    made = NextHopResolver(monitor, told)
    made.start()
    try:
        yield made, told, monitor
    finally:
        made.close()
        monitor.close()


def resolved(world: World, *gateways: str) -> Resolved:
    return Resolved(world.via(*gateways))


def one(resolver: NextHopResolver, text: str) -> NextHopState:
    address = Address.parse(text)
    return resolver.ask([address])[address]


async def test_answers_of_every_kind(world: World) -> None:
    for route in (
        "192.0.2.0/24 via 10.0.0.2",
        "198.51.100.0/24 nexthop via 10.0.0.3 nexthop via 10.0.0.2",
        "blackhole 203.0.113.0/25",
        "unreachable 203.0.113.128/26",
        "prohibit 203.0.113.192/26",
        "10.9.0.0/24 via 10.0.0.2 proto bgp metric 1024",
        "2001:db8:1::/48 via fd00::2",
        "2001:db8:2::/48 nexthop via fd00::3 nexthop via fd00::2",
        "blackhole 2001:db8:3::/48",
        "10.8.0.0/24 via inet6 fe80::7 dev eth0",
    ):
        world.ip(f"route add {route}")
    async with resolver() as (hops, _, _):
        assert one(hops, "10.0.0.2") == resolved(world, "10.0.0.2")
        assert one(hops, "192.0.2.9") == resolved(world, "10.0.0.2")
        assert one(hops, "198.51.100.9") == resolved(world, "10.0.0.2", "10.0.0.3")
        assert one(hops, "10.8.0.1") == resolved(world, "fe80::7")
        assert one(hops, "fd00::2") == resolved(world, "fd00::2")
        assert one(hops, "2001:db8:1::9") == resolved(world, "fd00::2")
        assert one(hops, "2001:db8:2::9") == resolved(world, "fd00::2", "fd00::3")
        for text, why in {
            "10.0.0.1": "is this node's own address",
            "fd00::1": "is this node's own address",
            "203.0.113.1": "lies in a blackhole route",
            "203.0.113.129": "lies in an unreachable route",
            "203.0.113.193": "lies in a prohibit route",
            "2001:db8:3::1": "lies in a blackhole route",
            "10.9.0.1": "resolves only through a BGP route",
            "100.64.0.1": "has no route to it",
            "2001:db8:9::1": "has no route to it",
            "10.0.0.255": "lies in a broadcast route",
            "fe80::9": "is link-local: it says nothing without its interface",
        }.items():
            assert one(hops, text) == Unresolved(f"the next hop {text} {why}")


async def test_a_bgp_route_over_a_next_hop_does_not_hide_the_route_below(world: World) -> None:
    world.ip("route add 10.0.0.0/25 via 10.0.0.200 proto bgp metric 1024")
    world.ip("route add default via 10.0.0.129")
    async with resolver() as (hops, _, _):
        assert one(hops, "10.0.0.2") == resolved(world, "10.0.0.2")
        assert one(hops, "192.0.2.1") == resolved(world, "10.0.0.129")


async def test_answers_follow_the_table(world: World) -> None:
    target, neighbour = Address.parse("192.0.2.9"), Address.parse("10.0.0.2")
    async with resolver() as (hops, told, _):
        assert isinstance(hops.ask([target, neighbour])[target], Unresolved)
        world.ip("route add default via 10.0.0.3")
        await until(lambda: hops.state(target) == resolved(world, "10.0.0.3"))
        assert told.changes == [{target: resolved(world, "10.0.0.3")}]
        world.ip("route add 192.0.2.0/24 via 10.0.0.2")
        await until(lambda: hops.state(target) == resolved(world, "10.0.0.2"))
        world.ip("link set eth0 down")
        await until(lambda: isinstance(hops.state(target), Unresolved))
        await until(lambda: isinstance(hops.state(neighbour), Unresolved))
        world.ip("link set eth0 up")
        await until(lambda: hops.state(neighbour) == resolved(world, "10.0.0.2"))
        world.ip("addr add 10.0.0.2/32 dev lo")
        await until(
            lambda: hops.state(neighbour) == Unresolved("the next hop 10.0.0.2 is this node's own address")
        )
        hops.forget([target])
        assert hops.state(target) is None


async def test_our_own_routes_change_no_answer(world: World) -> None:
    target = Address.parse("10.0.0.2")
    async with resolver() as (hops, told, monitor), agent_life(monitor) as sink:
        hops.ask([target])
        sink.want(wanted(world.learned("10.0.0.0/25", "10.0.0.200")))
        await until(lambda: settled(sink))
        await asyncio.sleep(0.2)
        assert told.changes == []
        assert hops.ask([target]) == {target: resolved(world, "10.0.0.2")}


async def test_an_underlay_s_bgp_routes_lead_to_next_hops(world: World) -> None:
    """Nodes that find each other by FRR's BGP: its routes have our protocol, but not our metric."""
    world.ip("route add 192.0.2.0/24 via 10.0.0.2 proto bgp metric 20")
    async with resolver() as (hops, told, _):
        assert one(hops, "192.0.2.7") == resolved(world, "10.0.0.2")
        world.ip("route replace 192.0.2.0/24 via 10.0.0.3 proto bgp metric 20")
        await until(lambda: told.changes)
        assert told.changes == [{Address.parse("192.0.2.7"): resolved(world, "10.0.0.3")}]


def test_interfaces_are_listed_with_their_addresses(world: World) -> None:
    world.ip("addr add 10.0.0.9/32 dev eth0")
    listed = {interface.name: interface for interface in interfaces()}
    eth0 = listed["eth0"]
    assert (eth0.index, eth0.mtu, eth0.up) == (world.link, 1500, True)
    assert [f"{address}/{length}" for address, length in eth0.addresses][:3] == [
        "10.0.0.1/24",
        "10.0.0.9/32",
        "fd00::1/64",
    ]
    assert (Address.parse("127.0.0.1"), 8) in listed["lo"].addresses
    assert {interface.name for interface in in_namespace(world.far, interfaces)} >= {"lo", "eth0"}


def test_links_addresses_and_neighbours_are_written_and_doubled_writes_do_no_harm(world: World) -> None:
    address, far = Address.parse("169.254.1.1"), Address.parse("fd05::1")
    with link_writer() as writer:
        for _ in range(2):
            writer.add_veth("cali1", "pod0", world.far, mtu=1400)
            writer.set_up("cali1")
            writer.add_address("cali1", address, 32)
            writer.add_address("cali1", far, 128)
            writer.set_neighbour("cali1", Address.parse("10.5.0.1"), "ee:ee:ee:ee:ee:ee")
        cali = next(interface for interface in interfaces() if interface.name == "cali1")
        assert cali.mtu == 1400
        assert (address, 32) in cali.addresses
        assert (far, 128) in cali.addresses
        assert "lladdr ee:ee:ee:ee:ee:ee PERMANENT" in world.ip("neigh show 10.5.0.1")
        assert "pod0" in {interface.name for interface in in_namespace(world.far, interfaces)}
        for _ in range(2):
            writer.delete_address("cali1", address, 32)
        for _ in range(2):
            writer.delete_link("cali1")
        with pytest.raises(OSError, match="there is no interface 'cali1'"):
            writer.set_up("cali1")


def test_a_namespace_that_is_not_there_is_named(world: World) -> None:
    with pytest.raises(FileNotFoundError, match="tt-nowhere"):
        in_namespace("tt-nowhere", interfaces)
