"""Route messages as octets, without a kernel."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.netlink.rtnetlink import (
    APPEND,
    CREATE,
    DELETE,
    HEADER,
    NLM_F_ACK,
    NLM_F_REPLACE,
    NLMSG_ERROR,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    Message,
    attribute,
    hop_order,
    messages,
    pack_batch,
    pack_dump,
    pack_lookup,
    pack_route,
    parse_error,
    parse_route,
)
from agent.sinks.rtlink import AddressSeen, LinkSeen, RouteSeen, parse_address, parse_event, parse_link
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import KernelNextHop, Route, RouteKey


def addresses(octets: int) -> st.SearchStrategy[Address]:
    return st.binary(min_size=octets, max_size=octets).map(Address)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    octets = draw(st.sampled_from([4, 16]))
    prefix = Prefix.within(draw(addresses(octets)), draw(st.integers(0, octets * 8)))
    key = RouteKey(
        prefix, draw(st.integers(1, 2**32 - 1)), draw(st.sampled_from([254, 100, 10000, 2**32 - 1]))
    )
    if draw(st.booleans()):
        return Route(key, "blackhole", 80)
    hop = st.builds(
        KernelNextHop,
        st.one_of(st.none(), addresses(octets), addresses(16)),
        st.integers(1, 2**31 - 1),
        st.booleans(),
    )
    hops = draw(st.lists(hop, min_size=1, max_size=8, unique=True))
    return Route(key, "unicast", draw(st.sampled_from([80, 186])), tuple(sorted(hops, key=hop_order)))


@given(routes(), st.sampled_from([CREATE, APPEND, DELETE]))
def test_a_packed_route_parses_back_to_itself(route: Route, operation: tuple[int, int]) -> None:
    octets = pack_route(*operation, 7, route)
    (message,) = messages(octets)
    assert (message.type, message.flags, message.sequence) == (*operation, 7)
    seen = parse_route(octets, message.start, message.end)
    assert seen is not None
    assert seen.as_wanted() == route


@given(routes(), st.data())
def test_a_message_cut_anywhere_is_refused_and_never_raises(route: Route, data: st.DataObject) -> None:
    octets = pack_route(*CREATE, 1, route)
    cut = octets[: data.draw(st.integers(16, len(octets) - 1))]
    parse_route(cut, 16, len(cut))
    assert list(messages(cut)) == []


@given(st.binary(max_size=200))
def test_noise_never_raises(noise: bytes) -> None:
    for message in messages(noise):
        parse_event(noise, message)
        parse_error(noise, message)
    parse_route(noise, 0, len(noise))
    parse_link(noise, 0, len(noise))
    parse_address(noise, 0, len(noise))


def test_a_route_is_laid_out_as_linux_rtnetlink_h_says() -> None:
    """The message of `ip route add 10.1.0.0/26 via 10.0.0.2 dev <3> metric 1024 proto bgp`."""
    hop = KernelNextHop(Address.parse("10.0.0.2"), 3)
    route = Route(RouteKey(Prefix.parse("10.1.0.0/26")), "unicast", 186, (hop,))
    expected = (
        struct.pack("=IHHII", 60, 24, 0x601, 5, 0)
        + bytes([2, 26, 0, 0, 254, 186, 0, 1, 0, 0, 0, 0])
        + struct.pack("=HH4B", 8, 1, 10, 1, 0, 0)
        + struct.pack("=HHI", 8, 6, 1024)
        + struct.pack("=HH4B", 8, 5, 10, 0, 0, 2)
        + struct.pack("=HHI", 8, 4, 3)
    )
    assert pack_route(*CREATE, 5, route) == expected


def test_a_delete_names_protocol_metric_and_next_hop() -> None:
    hop = KernelNextHop(Address.parse("fd00::2"), 3)
    route = Route(RouteKey(Prefix.parse("fd01::/64")), "unicast", 186, (hop,))
    octets = pack_route(*DELETE, 1, route)
    assert attribute(6, struct.pack("=I", 1024)) in octets
    assert attribute(5, hop.gateway or b"") in octets
    assert octets[16 + 5] == 186


def test_only_the_last_message_of_a_batch_asks_for_an_acknowledgement() -> None:
    one = Route(RouteKey(Prefix.parse("10.1.0.0/26")), "blackhole", 80)
    told = list(messages(pack_batch([(CREATE, one), (APPEND, one), (DELETE, one)])))
    assert [message.sequence for message in told] == [1, 2, 3]
    assert [message.flags & NLM_F_ACK for message in told] == [0, 0, NLM_F_ACK]
    assert not any(message.flags & NLM_F_REPLACE for message in told)


@pytest.mark.parametrize("capped", [True, False])
def test_an_error_carries_the_kernels_own_sentence(capped: bool) -> None:
    request = HEADER.pack(36, RTM_NEWROUTE, 1, 9, 0)
    echo = request if capped else request + bytes(20)
    text = attribute(1, b"Nexthop has invalid gateway\0")
    payload = struct.pack("=i", -errno.ENETUNREACH) + echo + text
    flags = 0x200 | (0x100 if capped else 0)
    octets = HEADER.pack(16 + len(payload), NLMSG_ERROR, flags, 9, 0) + payload
    (message,) = messages(octets)
    assert parse_error(octets, message) == (9, errno.ENETUNREACH, "Nexthop has invalid gateway")


def test_a_route_with_tos_or_source_is_not_plain() -> None:
    octets = bytearray(pack_route(*CREATE, 1, Route(RouteKey(Prefix.parse("10.1.0.0/26")), "blackhole", 80)))
    octets[16 + 3] = 8
    seen = parse_route(bytes(octets), 16, len(octets))
    assert seen is not None
    assert not seen.plain
    assert seen.as_wanted() is None


def test_transient_flags_and_weights_of_next_hops_do_not_count() -> None:
    hop = struct.pack("=HBBi", 16, 1 | 16, 4, 3) + attribute(
        5, bytes([10, 0, 0, 2])
    )  # dead, link down, weight 5
    tail = attribute(1, bytes([10, 1, 0, 0])) + attribute(9, hop)
    octets = bytes([2, 26, 0, 0, 254, 186, 0, 1, 0, 0, 0, 0]) + tail
    seen = parse_route(octets, 0, len(octets))
    assert seen is not None
    assert seen.next_hops == (KernelNextHop(Address.parse("10.0.0.2"), 3),)


def test_dumps_are_filtered_by_the_kernel() -> None:
    octets = pack_dump(2, 186, 10000)
    assert octets[16:28] == bytes([2, 0, 0, 0, 252, 186, 0, 0, 0, 0, 0, 0])
    assert octets[28:] == attribute(15, struct.pack("=I", 10000))
    assert len(pack_lookup(Address.parse("fd00::1"))) == 48


def event(kind: int, flags: int, payload: bytes) -> object:
    octets = bytes(16) + payload
    return parse_event(octets, Message(kind, flags, 0, 0, 16, len(octets)))


def test_events_say_what_came_and_what_went() -> None:
    payload = pack_route(*CREATE, 1, Route(RouteKey(Prefix.parse("10.1.0.0/26")), "blackhole", 80))[16:]
    came, replaced, gone = (
        event(kind, flags, payload)
        for kind, flags in ((RTM_NEWROUTE, 0), (RTM_NEWROUTE, NLM_F_REPLACE), (RTM_DELROUTE, 0))
    )
    assert isinstance(came, RouteSeen)
    assert isinstance(replaced, RouteSeen)
    assert isinstance(gone, RouteSeen)
    assert [(seen.gone, seen.replaced) for seen in (came, replaced, gone)] == [
        (False, False), (False, True), (True, False)]  # fmt: skip
    link = (
        struct.pack("=BBHiII", 0, 0, 1, 7, 0x41, 0)
        + attribute(3, b"cali1\0")
        + attribute(4, struct.pack("=I", 1400))
    )
    assert event(16, 0, link) == LinkSeen(7, "cali1", True, True, 1400)
    assert event(17, 0, link) == LinkSeen(7, "cali1", True, True, 1400, gone=True)
    assert event(16, 0, b"\x07" + link[1:]) is None  # a bridge port's own message
    remote = attribute(1, bytes([10, 0, 0, 9])) + attribute(2, bytes([10, 0, 0, 1]))
    address = struct.pack("=BBBBI", 2, 32, 0, 0, 7) + remote
    assert event(20, 0, address) == AddressSeen(7, Address.parse("10.0.0.1"), 32, 0)
