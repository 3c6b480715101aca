"""A Kubernetes NetworkPolicy as the Calico NetworkPolicy that Felix enforces.

Source: libcalico-go/lib/backend/k8s/conversion/conversion.go, kube-controllers/pkg/converter; what a field of
the policy means: k8s.io/api, networking/v1. The result is what calico-kube-controllers stores: a cluster that
changes from one to the other sees no document change.

What cannot be converted never widens what a policy allows: a peer that is not understood is left out, a rule
with ports that are not, or with no peer left, too, each with a reason; a policy whose podSelector is not
understood is not converted at all. (Calico's converter lets a rule with a broken CIDR match every address;
the API server refuses such a policy, so that the two differ only for what never gets this far.)
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from felix_like.calc.snapshot import Malformed
from felix_like.datastore.keys import quoted
from felix_like.datastore.kube.copies import Copy, Json, reason
from felix_like.datastore.kube.label_selector import namespace_selector, pod_selector

PREFIX = "knp.default."
"""Before the name of every policy that was copied from Kubernetes; what has it is ours."""
ORDER = 1000

_PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_PROTOCOLS = {name.upper(): name for name in ("TCP", "UDP", "SCTP")}
_PEER = frozenset(("podSelector", "namespaceSelector", "ipBlock"))
_DIRECTIONS = (("Ingress", "ingress", "from"), ("Egress", "egress", "to"))

Ports = list[int | str]


class Unclear(ValueError):
    """A part of a policy that cannot be converted; the sentence names the field."""


def network_policy(namespace: str, name: str, raw: Json) -> Copy | Malformed:
    """Never raises: for whatever object."""
    try:
        policy = raw.get("spec")
        if not isinstance(policy, dict):
            raise Unclear(f"spec: {quoted(policy)} is not a policy")
        left_out: list[str] = []
        spec: Json = {"order": ORDER}
        for _, direction, peers in _DIRECTIONS:
            rules = _rules(direction, peers, policy.get(direction), left_out)
            if rules:
                spec[direction] = rules
        spec["selector"] = pod_selector("spec.podSelector", policy.get("podSelector"))
        spec["types"] = _types(policy, left_out)
        return Copy.of("NetworkPolicy", namespace, PREFIX + name, spec, tuple(left_out))
    except (ValueError, RecursionError) as error:
        return Malformed(f"NetworkPolicy {quoted(f'{namespace}/{name}')}", reason(error))


def _types(policy: Json, left_out: list[str]) -> list[str]:
    """Which directions it restricts. The API server fills in what is not said, as it is done here."""
    said = policy.get("policyTypes")
    if not isinstance(said, list | None):
        raise Unclear(f"spec.policyTypes: {quoted(said)} is not a list")
    if not said:
        said = ["Ingress", "Egress"] if policy.get("egress") else ["Ingress"]
    known = [kind for kind, _, _ in _DIRECTIONS if kind in said]
    if not known:
        raise Unclear(f"spec.policyTypes: {quoted(said)} has neither Ingress nor Egress")
    left_out += [
        f"spec.policyTypes: {quoted(kind)} is not known here; it is left out"
        for kind in said
        if kind not in known
    ]
    return known


def _rules(direction: str, peers: str, rules: object, left_out: list[str]) -> list[Json]:
    if not isinstance(rules, list | None):
        raise Unclear(f"spec.{direction}: {quoted(rules)} is not a list of rules")
    converted: list[Json] = []
    for number, rule in enumerate(rules or ()):
        where = f"spec.{direction}[{number}]"
        try:
            if not isinstance(rule, dict) or not rule.keys() <= {peers, "ports"}:
                raise Unclear(f"{where}: {quoted(rule)} is not a rule of {peers} and ports")
            ends = _ends(f"{where}.{peers}", rule.get(peers), left_out)
            services = _services(f"{where}.ports", rule.get("ports"))
        except Unclear as error:
            left_out.append(f"{error}; the rule is left out")
            continue
        converted += [_rule(direction, protocol, ports, end) for protocol, ports in services for end in ends]
    return converted


def _rule(direction: str, protocol: str, ports: Ports, end: Json) -> Json:
    rule: Json = {"action": "Allow"}
    if protocol:
        rule["protocol"] = protocol
    there = {"ports": ports} if ports else {}
    if direction == "ingress":
        return rule | {"source": end, "destination": there}
    order = ("nets", "selector", "namespaceSelector", "ports", "notNets")
    both = end | there
    return rule | {"source": {}, "destination": {name: both[name] for name in order if name in both}}


# -- who: from and to --------------------------------------------------------------------------------------


def _ends(where: str, peers: object, left_out: list[str]) -> list[Json]:
    """The other end, once for each peer. No peers means everybody, so that losing all of them is no rule."""
    if not isinstance(peers, list | None):
        raise Unclear(f"{where}: {quoted(peers)} is not a list of peers")
    if not peers:
        return [{}]
    ends = []
    for number, peer in enumerate(peers):
        try:
            ends.append(_end(f"{where}[{number}]", peer))
        except ValueError as error:
            left_out.append(f"{error}; the peer is left out")
    if not ends:
        raise Unclear(f"{where}: no peer is left")
    return ends


def _end(where: str, peer: object) -> Json:
    """One peer. A field that a later version of the API may add must not count as absent."""
    if not isinstance(peer, dict) or not peer.keys() <= _PEER:
        raise Unclear(f"{where}: {quoted(peer)} is not a peer of podSelector, namespaceSelector or ipBlock")
    block, pods, namespaces = peer.get("ipBlock"), peer.get("podSelector"), peer.get("namespaceSelector")
    if block is not None:
        if pods is not None or namespaces is not None:
            raise Unclear(f"{where}: ipBlock does not go with a selector")
        return _block(f"{where}.ipBlock", block)
    if pods is None and namespaces is None:
        raise Unclear(f"{where}: it has neither podSelector nor namespaceSelector nor ipBlock")
    end = {"selector": pod_selector(f"{where}.podSelector", pods)}
    if selector := namespace_selector(f"{where}.namespaceSelector", namespaces):
        end["namespaceSelector"] = selector
    return end


def _block(where: str, block: object) -> Json:
    if not isinstance(block, dict) or not block.keys() <= {"cidr", "except"}:
        raise Unclear(f"{where}: {quoted(block)} is not a block of cidr and except")
    excepted = block.get("except")
    if not isinstance(excepted, list | None):
        raise Unclear(f"{where}.except: {quoted(excepted)} is not a list of networks")
    end: Json = {"nets": [_network(f"{where}.cidr", block.get("cidr"))]}
    if excepted:
        end["notNets"] = [_network(f"{where}.except", network) for network in excepted]
    return end


def _network(where: str, text: object) -> str:
    """The canonical text of a network, host bits cleared, as Go writes it."""
    try:
        if not isinstance(text, str):
            raise ValueError
        address, slash, length = text.partition("/")
        if not slash or "%" in address or not (length.isascii() and length.isdigit() and len(length) <= 3):
            raise ValueError
        network = ipaddress.ip_network((address, int(length)), strict=False)
    except ValueError:
        raise Unclear(f"{where}: {quoted(text)} is not a network such as 10.0.0.0/16") from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return f"{mapped}/{network.prefixlen - 96}"
    return str(network)


# -- what: ports -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Service:
    """The ports of one protocol."""

    every: bool = False
    ports: list[str | range] = field(default_factory=list)


def _services(where: str, ports: object) -> list[tuple[str, Ports]]:
    """Protocols with their ports, in order; ("", []) is everything, (protocol, []) every port of it."""
    if not isinstance(ports, list | None):
        raise Unclear(f"{where}: {quoted(ports)} is not a list of ports")
    services: dict[str, _Service] = {}
    for number, port in enumerate(ports or ()):
        protocol, span = _port(f"{where}[{number}]", port)
        service = services.setdefault(protocol, _Service())
        if span is None:
            service.every = True
        else:
            service.ports.append(span)
    if not services:
        return [("", [])]
    return [
        (protocol, [] if service.every else list(_joined(service.ports)))
        for protocol, service in sorted(services.items())
    ]


def _port(where: str, port: object) -> tuple[str, str | range | None]:
    """Protocol, and a name, a range of numbers, or None for every port."""
    if not isinstance(port, dict) or not port.keys() <= {"protocol", "port", "endPort"}:
        raise Unclear(f"{where}: {quoted(port)} is not a port of protocol, port and endPort")
    said = port.get("protocol")
    protocol = _PROTOCOLS.get(("TCP" if said is None else str(said)).upper())
    if protocol is None:
        raise Unclear(f"{where}.protocol: {quoted(said)} is not TCP, UDP or SCTP")
    first, last = port.get("port"), port.get("endPort")
    if first is None:
        if last is not None:
            raise Unclear(f"{where}: endPort needs port")
        return protocol, None
    if isinstance(first, str) and not (first.isascii() and first.isdigit()):
        if last is not None or not _PORT_NAME.fullmatch(first):
            raise Unclear(f"{where}: {quoted(first)} with endPort {quoted(last)} is not a named port")
        return protocol, first
    low = _number(f"{where}.port", int(first) if isinstance(first, str) and len(first) <= 5 else first)
    high = low if last is None else _number(f"{where}.endPort", last)
    if high < low:
        raise Unclear(f"{where}: endPort {high} is below port {low}")
    return protocol, range(low, high + 1)


def _number(where: str, number: Any) -> int:
    if type(number) is not int or not 1 <= number <= 65_535:
        raise Unclear(f"{where}: {quoted(number)} is not a port; use 1 to 65535 or a name")
    return number


def _joined(ports: list[str | range]) -> Iterator[int | str]:
    """As few entries as possible, in Calico's order: names, then ranges; one number stays where it was."""
    spans = sorted((port for port in ports if isinstance(port, range)), key=lambda span: span.start)
    if sum(map(len, spans)) <= 1:
        yield from (port if isinstance(port, str) else port.start for port in ports)
        return
    yield from (port for port in ports if isinstance(port, str))
    start, stop = spans[0].start, spans[0].stop
    for span in (*spans[1:], range(70_000, 70_001)):
        if span.start > stop:
            yield start if stop == start + 1 else f"{start}:{stop - 1}"
            start = span.start
            stop = span.stop
        else:
            stop = max(stop, span.stop)
