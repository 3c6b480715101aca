"""Address autodetection over lists of interfaces."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from agent.autodetect import Method, NotDetected, detect, route_lookup, usable
from felix_like.model.address import Address, IpVersion


@dataclass(frozen=True)
class Interface:
    name: str
    addresses: tuple[tuple[Address, int], ...]
    up: bool = True


def interface(name: str, *addresses: str, up: bool = True) -> Interface:
    pairs = (address.split("/") for address in addresses)
    return Interface(name, tuple((Address.parse(a), int(n)) for a, n in pairs), up)


HOST = (
    interface("lo", "127.0.0.1/8", "::1/128"),
    interface("docker0", "172.17.0.1/16"),
    interface("cali1234", "169.254.1.1/32"),
    interface("eth0", "fe80::1/64", "192.0.2.10/24", "2001:db8::10/64"),
    interface("eth1", "10.0.0.1/16", "10.1.0.1/24", "fd00::1/64"),
    interface("ens5", up=True),
    interface("bond0", "198.51.100.1/24", up=False),
)


def no_route(destination: str, version: IpVersion) -> Address:
    raise OSError(101, "Network is unreachable")


@pytest.mark.parametrize(
    ("method", "version", "found"),
    [
        ("first-found", 4, "192.0.2.10/24"),
        ("first-found", 6, "2001:db8::10/64"),
        ("interface=eth1", 4, "10.0.0.1/16"),
        ("interface=eth1", 6, "fd00::1/64"),
        ("interface=eth.*", 4, "192.0.2.10/24"),
        ("interface=ens5, eth1", 4, "10.0.0.1/16"),
        ("interface=eth1,eth0", 4, "10.0.0.1/16"),
        ("interface=docker0", 4, "172.17.0.1/16"),  # asked for by name
        ("interface=bond.*", 4, "198.51.100.1/24"),  # without carrier, but the only one
        ("skip-interface=eth0", 4, "10.0.0.1/16"),
        ("skip-interface=eth0,eth1", 4, "198.51.100.1/24"),
        ("cidr=10.1.0.0/16,198.51.100.0/24", 4, "10.1.0.1/24"),
        ("cidr=fd00::/8", 6, "fd00::1/64"),
    ],
)
def test_a_method_finds(method: str, version: IpVersion, found: str) -> None:
    address, length = detect(Method.parse(method), version, HOST, no_route)
    assert f"{address}/{length}" == found


@pytest.mark.parametrize(
    ("method", "version"),
    [
        ("interface=eth9", 4),
        ("interface=lo", 4),
        ("interface=docker0", 6),
        ("skip-interface=eth,bond", 4),
        ("cidr=172.17.0.0/16", 4),  # docker0 is never searched
        ("cidr=203.0.113.0/24", 4),
        ("cidr=10.0.0.0/8", 6),
    ],
)
def test_nothing_found_lists_what_was_seen(method: str, version: IpVersion) -> None:
    with pytest.raises(NotDetected) as caught:
        detect(Method.parse(method), version, HOST, no_route)
    sentence = str(caught.value)
    assert f"method {method}" in sentence
    assert ("192.0.2.10/24" if version == 4 else "2001:db8::10/64") in sentence
    assert "bond0 (down)" in sentence


def test_no_interfaces_at_all() -> None:
    with pytest.raises(NotDetected, match="nothing"):
        detect(Method.parse("first-found"), 4, (), no_route)


def test_an_interface_that_works_beats_one_without_carrier() -> None:
    host = (interface("eth0", "192.0.2.1/24", up=False), interface("eth1", "192.0.2.2/24"))
    assert detect(Method.parse("first-found"), 4, host, no_route)[0] == Address.parse("192.0.2.2")
    assert detect(Method.parse("first-found"), 4, host[:1], no_route)[0] == Address.parse("192.0.2.1")


def test_can_reach_asks_for_the_route_and_takes_the_interfaces_length() -> None:
    asked: list[tuple[str, int]] = []

    def reach(destination: str, version: IpVersion) -> Address:
        asked.append((destination, version))
        return Address.parse("10.1.0.1")

    assert detect(Method.parse("can-reach=www.example.org"), 4, HOST, reach) == (
        Address.parse("10.1.0.1"),
        24,
    )
    assert asked == [("www.example.org", 4)]


def test_can_reach_without_a_route_or_by_the_loopback_is_said() -> None:
    with pytest.raises(NotDetected, match=r"no IPv4 route to 203\.0\.113\.1 \(Network is unreachable\)"):
        detect(Method.parse("can-reach=203.0.113.1"), 4, HOST, no_route)
    with pytest.raises(NotDetected, match="finds no usable"):
        detect(Method.parse("can-reach=127.0.0.1"), 4, HOST, lambda *_: Address.parse("127.0.0.1"))


def test_the_kernel_is_asked_for_the_route() -> None:
    assert route_lookup("127.0.0.1", 4) == Address.parse("127.0.0.1")
    with pytest.raises(OSError):  # noqa: PT011 - the resolver's own words differ
        route_lookup("not a host name", 4)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("10.0.0.1", True),
        ("203.0.113.1", True),
        ("127.0.0.2", False),
        ("0.0.0.0", False),
        ("169.254.1.1", False),
        ("224.0.0.5", False),
        ("255.255.255.255", False),
        ("fd00::1", True),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("ff02::1", False),
    ],
)
def test_usable_is_gos_global_unicast(text: str, yes: bool) -> None:
    address = Address.parse(text)
    assert usable(address, address.version) is yes
    assert not usable(address, 6 if address.version == 4 else 4)


@pytest.mark.parametrize(
    "text",
    ["", "first", "first-found=x", "interface", "interface=,", "interface=[", "cidr=10.0.0/8", "can-reach="],
)
def test_a_wrong_method_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"use first-found|is not"):
        Method.parse(text)


def test_kubernetes_internal_ip_says_what_to_do_instead() -> None:
    with pytest.raises(ValueError, match=r"needs the Kubernetes API.*status\.hostIP"):
        Method.parse("kubernetes-internal-ip")
