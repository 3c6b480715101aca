"""Single fields of Calico's JSON: each reader returns a value or raises ValueError naming field and value."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import overload

from felix_like.datastore import shapes
from felix_like.datastore.keys import NAME_LIMIT, check_name, quoted
from felix_like.model.address import Address, Asn, IpVersion, Prefix
from felix_like.model.bgp import SecretRef

POOL_ROUTES = "tortie/pool-routes"
PREFIX_LIMIT = "tortie/prefix-limit"
ROUTER_ID = "tortie/router-id"
"""Of a Node: its BGP identifier, where that follows neither from its address nor from its name."""

MAX_POD_CIDRS = 64
"""Kubernetes itself allows one of each IP version."""

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,8})m)?(?:(\d{1,9})(?:\.\d+)?s)?", re.ASCII)
_DOTTED_ASN = re.compile(r"(\d{1,5})\.(\d{1,5})", re.ASCII)
_COMMUNITY = re.compile(r"\d{1,5}:\d{1,5}|\d{1,10}:\d{1,10}:\d{1,10}", re.ASCII)
_PEER_V4_PORT = re.compile(r"([^:\[\]]+):(\d{1,5})", re.ASCII)
_PEER_V6_PORT = re.compile(r"\[([^\[\]]+)\](?::(\d{1,5}))?", re.ASCII)
_MAX_ASN = 4_294_967_295


def prefix(field: str, text: str) -> Prefix:
    try:
        return Prefix.parse(text)
    except ValueError:
        raise ValueError(
            f"{field}: {quoted(text)} is not a network such as 10.0.0.0/16 or fd00::/48"
        ) from None


def ranges(field: str, cidrs: Sequence[shapes.Cidr] | None) -> tuple[Prefix, ...]:
    """A list of CIDRs, each once, in the order written."""
    return tuple(dict.fromkeys(prefix(field, item.cidr) for item in cidrs or ()))


def pod_cidrs(texts: Sequence[str] | None) -> tuple[Prefix, ...]:
    """`status.podCIDRs` of a Node. A bad one counts as absent: it must not cost the node its sessions."""
    found = set()
    for text in (texts or ())[:MAX_POD_CIDRS]:
        with contextlib.suppress(ValueError):
            found.add(Prefix.of(text))
    return tuple(sorted(found))


def kubernetes_name(references: Sequence[shapes.OrchRef]) -> str | None:
    """The node's name in Kubernetes, from spec.orchRefs (calico-node writes CALICO_K8S_NODE_REF there)."""
    for reference in references:
        if reference.orchestrator == "k8s" and reference.nodeName:
            return reference.nodeName[:NAME_LIMIT]
    return None


def node_address(field: str, text: str | None, version: IpVersion) -> tuple[Address | None, Prefix | None]:
    """`10.0.0.1/24`, or a bare address: then the network is the host route."""
    if not text:
        return None, None
    try:
        address, network = Address.parse(text.partition("/")[0]), Prefix.of(text)
    except ValueError:
        raise ValueError(f"{field}: {quoted(text)} is not an address such as 10.0.0.1/24") from None
    if address.version != version:
        raise ValueError(f"{field}: {quoted(text)} is not an IPv{version} address")
    if not any(address) or address[0] == 0xFF or (version == 4 and address[0] >= 224):
        raise ValueError(f"{field}: {quoted(text)} cannot be a node's own address")
    return address, network


def asn(field: str, value: int | str | None) -> Asn | None:
    """An AS number as an integer, as text, or dotted: `64.512` (RFC 5396)."""
    number: int | None = None
    if value is None or value == "":
        return None
    if isinstance(value, int):
        number = value
    elif dotted := _DOTTED_ASN.fullmatch(value):
        high, low = int(dotted[1]), int(dotted[2])
        number = high << 16 | low if max(high, low) <= 65_535 else None
    elif value.isascii() and value.isdigit() and len(value) <= 10:
        number = int(value)
    if number is None or not 1 <= number <= _MAX_ASN:
        raise ValueError(
            f"{field}: {quoted(value)} is not an AS number; use 1 to {_MAX_ASN} (AS 0: RFC 7607)"
        )
    return Asn(number)


def cluster_id(text: str | None) -> str:
    """An RFC 4456 cluster ID in dotted quad form; "" when there is none."""
    if not text:
        return ""
    try:
        address = Address.parse(text)
    except ValueError:
        address = Address(bytes(16))
    if address.version != 4:
        raise ValueError(f"spec.bgp.routeReflectorClusterID: {quoted(text)} is not a dotted quad")
    return str(address)


def peer_ip(text: str) -> tuple[Address, int | None]:
    """`10.0.0.1`, `10.0.0.1:179`, `fd00::1` or `[fd00::1]:179`."""
    match = _PEER_V6_PORT.fullmatch(text) or _PEER_V4_PORT.fullmatch(text)
    host, port = (match[1], match[2]) if match else (text, None)
    try:
        address = Address.parse(host)
    except ValueError:
        address = None
    if address is None or (text.startswith("[") and address.version != 6) or not any(address):
        raise ValueError(f"spec.peerIP: {quoted(text)} is not an address, address:port or [IPv6]:port")
    return address, within("the port of spec.peerIP", int(port), 1, 65_535) if port else None


@overload
def within(field: str, value: int, least: int, most: int) -> int: ...
@overload
def within(field: str, value: int | None, least: int, most: int) -> int | None: ...
def within(field: str, value: int | None, least: int, most: int) -> int | None:
    if value is not None and not least <= value <= most:
        raise ValueError(f"{field}: {value} is not allowed; use {least} to {most}")
    return value


def choice(field: str, text: str | None, allowed: Sequence[str]) -> str:
    """The text when it is allowed, the first choice when it is not set."""
    if not text:
        return allowed[0]
    if text not in allowed:
        raise ValueError(f"{field}: {quoted(text)} is not allowed; use {', '.join(allowed)}")
    return text


def duration(field: str, text: str | None) -> int | None:
    """Go's `1h`, `1m30s`, `60s`, in whole seconds."""
    if not text:
        return None
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        raise ValueError(f"{field}: {quoted(text)} is not a duration such as 120s or 1m30s")
    hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def secret(field: str, password: shapes.Password | None) -> SecretRef | None:
    """Both parts become a path below the secrets directory, so neither may leave it."""
    if password is None or password.secretKeyRef is None:
        return None
    reference = password.secretKeyRef
    for part in (reference.name, reference.key):
        try:
            check_name(part)
        except ValueError as error:
            raise ValueError(f"{field}.secretKeyRef: {error}") from None
    return SecretRef(reference.name, reference.key)


def community(text: str) -> str:
    """`65000:1` (RFC 1997) or `65000:1:2` (RFC 8092)."""
    most = 65_535 if text.count(":") == 1 else _MAX_ASN
    if not _COMMUNITY.fullmatch(text) or any(int(part) > most for part in text.split(":")):
        raise ValueError(
            f"community {quoted(text)} is neither a known name nor a:b (RFC 1997) or a:b:c (RFC 8092)"
        )
    return text


def pool_routes(annotations: Mapping[str, str]) -> bool:
    value = annotations.get(POOL_ROUTES)
    if value not in (None, "", "accept"):
        raise ValueError(f"annotation {POOL_ROUTES}: {quoted(value)} is not allowed; use accept")
    return value == "accept"


def prefix_limit(annotations: Mapping[str, str]) -> int | None:
    value = annotations.get(PREFIX_LIMIT)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 8 and int(value)):
        raise ValueError(f"annotation {PREFIX_LIMIT}: {quoted(value)} is not allowed; use 1 to 99999999")
    return int(value)


def router_id(annotations: Mapping[str, str]) -> str | None:
    """A bad one counts as absent: the node is as good without, only its reflected paths are not known."""
    text = annotations.get(ROUTER_ID, "")
    try:
        address = Address.parse(text)
    except ValueError:
        return None
    return str(address) if address.version == 4 and any(address) else None


def node_name(field: str, name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def block_owner(affinity: str | None, host_affinity: object) -> str | None:
    """`host:x` -> x; `virtual:…` and nothing -> None; the deprecated hostAffinity is a bare name."""
    if affinity:
        kind, colon, name = affinity.partition(":")
        if not colon or kind not in ("host", "virtual"):
            raise ValueError(
                f"affinity {quoted(affinity)} is unknown; Calico writes host:<node> or virtual:<name>"
            )
        return node_name("affinity", name) if kind == "host" else None
    if not host_affinity:
        return None
    if not isinstance(host_affinity, str):
        raise ValueError(f"hostAffinity: {quoted(host_affinity)} is not a node name")
    return node_name("hostAffinity", host_affinity)
