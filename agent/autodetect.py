"""Finding this node's address as calico-node does (node/pkg/lifecycle/startup/autodetection).

The methods work on a list of interfaces, so they run in a test without any; only `can-reach` asks the
kernel's routing table, through a function that comes in by the signature.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from felix_like.model.address import Address, IpVersion, Prefix

Kind = Literal["first-found", "can-reach", "interface", "skip-interface", "cidr"]
METHODS = (
    "first-found, can-reach=ADDRESS, interface=REGEX[,REGEX…], skip-interface=REGEX[,REGEX…] "
    "or cidr=CIDR[,CIDR…]"
)

NOT_THE_NODES_OWN: tuple[str, ...] = (
    r"^docker", r"^cbr", r"^dummy", r"^virbr", r"^lxcbr", r"^veth", r"^lo", r"^cali", r"^tunl", r"^flannel",
    r"^kube-ipvs", r"^cni", r"^vxlan\.calico", r"^vxlan-v6\.calico", r"^wireguard\.cali", r"^wg-v6\.cali",
    r"^nodelocaldns", r"^podman",
)  # fmt: skip
"""Interfaces that carry pods, containers and services: never searched unless `interface=` names them."""


class Interface(Protocol):
    """What is asked of an interface; `agent.sinks.links.Interface` fits."""

    @property
    def name(self) -> str: ...

    @property
    def up(self) -> bool: ...

    @property
    def addresses(self) -> Sequence[tuple[Address, int]]:
        """Address and prefix length."""
        ...


Reach = Callable[[str, IpVersion], Address]
"""The local address that packets to a destination would carry. Raises OSError when there is no route."""


class NotDetected(Exception):
    """No address matches: the sentence says what was looked for, what was seen and what to set."""


@dataclass(frozen=True, slots=True)
class Method:
    """A parsed autodetection method."""

    kind: Kind
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}={','.join(self.arguments)}" if self.arguments else self.kind

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read IP_AUTODETECTION_METHOD. Raises ValueError saying what is allowed."""
        name, equals, rest = text.strip().partition("=")
        if text.strip() == "first-found":
            return cls("first-found")
        if name == "kubernetes-internal-ip":
            raise ValueError(
                "kubernetes-internal-ip needs the Kubernetes API, which this agent does not read; "
                f"use {METHODS}, or put the address into IP or IP6 (downward API: status.hostIP)"
            )
        arguments = tuple(part.strip() for part in rest.split(",") if part.strip())
        if not equals or not arguments:
            raise ValueError(f"use {METHODS}")
        if name in ("interface", "skip-interface"):
            for argument in arguments:
                _regex(argument)
        elif name == "cidr":
            try:
                arguments = tuple(str(Prefix.of(argument)) for argument in arguments)
            except ValueError as error:
                raise ValueError(f"{error}; use {METHODS}") from None
        elif name == "can-reach" and len(arguments) == 1:
            pass
        else:
            raise ValueError(f"use {METHODS}")
        return cls(name, arguments)  # type: ignore[arg-type] # one of the four, by the branches above


FIRST_FOUND = Method("first-found")


def detect(
    method: Method, version: IpVersion, interfaces: Sequence[Interface], reach: Reach
) -> tuple[Address, int]:
    """The address with its prefix length, chosen from what the interfaces hold. Raises NotDetected."""
    if method.kind == "can-reach":
        return _by_route(method, version, interfaces, reach)
    for name_matches, networks in _passes(method):
        # An interface without carrier is better than none, but not than one that works.
        for wanted_up in (True, False):
            for interface in interfaces:
                if interface.up is not wanted_up or not name_matches(interface.name):
                    continue
                for address, length in interface.addresses:
                    if usable(address, version) and (
                        not networks or any(network.contains(address) for network in networks)
                    ):
                        return address, length
    raise NotDetected(_nothing(method, version, interfaces))


def length_on(address: Address, interfaces: Sequence[Interface]) -> int | None:
    """The prefix length that an interface gives an address; None when no interface has it."""
    for interface in interfaces:
        for held, length in interface.addresses:
            if held == address:
                return length
    return None


def usable(address: Address, version: IpVersion) -> bool:
    """Whether other nodes could send to it: global unicast in Go's sense (net.IP.IsGlobalUnicast)."""
    if address.version != version:
        return False
    ip = ipaddress.ip_address(bytes(address))
    return not (
        ip.is_unspecified
        or ip.is_loopback
        or ip.is_multicast
        or ip.is_link_local
        or bytes(address) == b"\xff\xff\xff\xff"
    )


def route_lookup(destination: str, version: IpVersion) -> Address:
    """Ask the kernel by connecting a UDP socket, which sends nothing. Raises OSError."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    target = socket.getaddrinfo(destination, 80, family, socket.SOCK_DGRAM)[0][4]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return Address.parse(str(probe.getsockname()[0]))


def _passes(method: Method) -> Iterator[tuple[Callable[[str], bool], tuple[Prefix, ...]]]:
    """Which interfaces and networks to look at, in order of preference."""
    if method.kind == "interface":
        for argument in method.arguments:  # the first expression that finds something decides
            yield _matcher(argument), ()
        return
    skipped = NOT_THE_NODES_OWN
    networks: tuple[Prefix, ...] = ()
    if method.kind == "skip-interface":
        skipped += method.arguments
    elif method.kind == "cidr":
        networks = tuple(Prefix.of(argument) for argument in method.arguments)
    expressions = [re.compile(expression) for expression in skipped]
    yield (lambda name: not any(expression.search(name) for expression in expressions)), networks


def _by_route(
    method: Method, version: IpVersion, interfaces: Sequence[Interface], reach: Reach
) -> tuple[Address, int]:
    destination = method.arguments[0]
    try:
        address = reach(destination, version)
    except OSError as error:
        raise NotDetected(
            f"no IPv{version} route to {destination} ({error.strerror or error}); "
            "add the route, name another address, or set the node's own one"
        ) from None
    length = length_on(address, interfaces)
    if length is None or not usable(address, version):
        raise NotDetected(_nothing(method, version, interfaces))
    return address, length


def _nothing(method: Method, version: IpVersion, interfaces: Sequence[Interface]) -> str:
    seen = [
        f"{interface.name}{'' if interface.up else ' (down)'} "
        + (", ".join(f"{a}/{n}" for a, n in interface.addresses if a.version == version) or "none")
        for interface in interfaces
    ]
    return (
        f"method {method} finds no usable IPv{version} address; "
        f"the interfaces have: {'; '.join(seen) or 'nothing'}; "
        "give the address itself or a method that matches"
    )


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression ({error}); use {METHODS}") from None


def _matcher(text: str) -> Callable[[str], bool]:
    expression = _regex(text)
    return lambda name: expression.search(name) is not None
