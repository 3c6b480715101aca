"""Calico's etcd keys: paths <-> (kind, name), both ways.

Sources: libcalico-go/lib/backend/model/{resource,block,block_affinity,ipam_handle,ipam_host}.go. A CIDR in
a key is the network address with its first `/` written `-`: `10.0.0.0-26`, `fd00:1::-122`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from felix_like.model.address import Prefix

RESOURCES = "/calico/resources/v3/projectcalico.org/"
BLOCKS = "/calico/ipam/v2/assignment/"
IPAM_HOSTS = "/calico/ipam/v2/host/"
HANDLES = "/calico/ipam/v2/handle/"
IPAM_CONFIG = "/calico/ipam/v2/config"

NAME_LIMIT = 253
"""Octets in a name at most (RFC 1123 subdomain)."""
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_BLOCK = re.compile(r"ipv([46])/block/([^/]+)")


class Kind(StrEnum):
    """What a key holds; for resources the word of the JSON's own `kind`."""

    NODE = "Node"
    IP_POOL = "IPPool"
    BGP_CONFIGURATION = "BGPConfiguration"
    BGP_PEER = "BGPPeer"
    CLUSTER_INFORMATION = "ClusterInformation"
    BLOCK = "IPAM block"
    AFFINITY = "block affinity"


PLURALS = {
    "Node": "nodes",
    "IPPool": "ippools",
    "BGPConfiguration": "bgpconfigurations",
    "BGPPeer": "bgppeers",
    "BGPFilter": "bgpfilters",
    "ClusterInformation": "clusterinformations",
    "IPReservation": "ipreservations",
    "FelixConfiguration": "felixconfigurations",
    "HostEndpoint": "hostendpoints",
    "CalicoNodeStatus": "caliconodestatuses",
    "KubeControllersConfiguration": "kubecontrollersconfigurations",
    "GlobalNetworkPolicy": "globalnetworkpolicies",
    "GlobalNetworkSet": "globalnetworksets",
    "Profile": "profiles",
    "Tier": "tiers",
}
"""Kinds of cluster-scoped v3 resources and the path segment of each."""

NAMESPACED = {
    "NetworkPolicy": "networkpolicies",
    "NetworkSet": "networksets",
    "WorkloadEndpoint": "workloadendpoints",
}
"""The same for kinds that live in a namespace."""

_KIND_OF = {
    PLURALS[kind]: kind
    for kind in (Kind.NODE, Kind.IP_POOL, Kind.BGP_CONFIGURATION, Kind.BGP_PEER, Kind.CLUSTER_INFORMATION)
}

WATCHED = (
    RESOURCES + "nodes/",
    RESOURCES + "ippools/",
    RESOURCES + "bgpconfigurations/",
    RESOURCES + "bgppeers/",
    RESOURCES + "clusterinformations/",
    BLOCKS,
    IPAM_HOSTS,
)
"""The prefixes an agent lists and watches."""

VITAL = (RESOURCES + "nodes/", RESOURCES + "ippools/", BLOCKS)
"""A cluster that routes anything has something under each of these."""


@dataclass(frozen=True, slots=True)
class Key:
    """A parsed key. `name`: the resource's, or the affinity's node; "" for a block."""

    kind: Kind
    name: str = ""
    cidr: Prefix | None = None
    """Of blocks and affinities."""

    @property
    def path(self) -> str:
        if self.kind is Kind.BLOCK:
            assert self.cidr is not None
            return block_key(self.cidr)
        if self.kind is Kind.AFFINITY:
            assert self.cidr is not None
            return affinity_key(self.name, self.cidr)
        return resource_key(self.kind, self.name)

    def __str__(self) -> str:
        """As an operator knows it: `Node node-1`, `IPAM block 10.0.0.0/26`."""
        if self.kind is Kind.BLOCK:
            return f"{self.kind} {self.cidr}"
        if self.kind is Kind.AFFINITY:
            return f"{self.kind} {self.cidr} of node {self.name}"
        return f"{self.kind} {self.name}"


def resource_key(kind: str, name: str) -> str:
    """Path of a cluster-scoped v3 resource. Raises ValueError for a kind or name that cannot be stored."""
    plural = PLURALS.get(kind)
    if plural is None:
        raise ValueError(f"kind {quoted(kind)} is not one this datastore knows; use {', '.join(PLURALS)}")
    return f"{RESOURCES}{plural}/{check_name(name)}"


def namespaced_key(kind: str, namespace: str, name: str) -> str:
    """Path of a v3 resource in a namespace. Raises ValueError as `resource_key`."""
    plural = NAMESPACED.get(kind)
    if plural is None:
        raise ValueError(f"kind {quoted(kind)} has no namespace; use {', '.join(NAMESPACED)}")
    return f"{RESOURCES}{plural}/{check_name(namespace)}/{check_name(name)}"


def resource_prefix(kind: str) -> str:
    """Prefix of all resources of a kind, with its closing slash."""
    return resource_key(kind, "x")[:-1]


def block_key(cidr: Prefix) -> str:
    return f"{BLOCKS}ipv{cidr.version}/block/{_dashed(cidr)}"


def affinity_key(node: str, cidr: Prefix) -> str:
    return f"{IPAM_HOSTS}{check_name(node)}/ipv{cidr.version}/block/{_dashed(cidr)}"


def affinity_prefix(node: str, version: int | None = None) -> str:
    """Prefix of a node's affinities, of one IP version or of both."""
    family = f"ipv{version}/block/" if version else ""
    return f"{IPAM_HOSTS}{check_name(node)}/{family}"


def ipam_host_key(node: str) -> str:
    return f"{IPAM_HOSTS}{check_name(node)}"


def handle_key(handle: str) -> str:
    """Path of an IPAM handle. Raises ValueError for one with a slash, a space or control characters."""
    if not handle or "/" in handle or not handle.isascii() or not handle.isprintable() or " " in handle:
        raise ValueError(f"handle {quoted(handle)} cannot be a key; use printable ASCII without / and spaces")
    return HANDLES + handle


def parse_key(path: str) -> Key | None:
    """Read a path under the watched prefixes; None: known, but nothing an agent uses.

    Raises ValueError with the reason for what should not be there.
    """
    if path.startswith(RESOURCES):
        plural, slash, name = path.removeprefix(RESOURCES).partition("/")
        kind = _KIND_OF.get(plural)
        if kind is None or not slash:
            raise ValueError("this kind of resource is not one an agent reads")
        return Key(kind, check_name(name))
    if path.startswith(BLOCKS):
        return Key(Kind.BLOCK, "", _cidr_of(path.removeprefix(BLOCKS)))
    if path.startswith(IPAM_HOSTS):
        node, slash, rest = path.removeprefix(IPAM_HOSTS).partition("/")
        check_name(node)
        return Key(Kind.AFFINITY, node, _cidr_of(rest)) if slash else None
    raise ValueError("the key is under none of the prefixes an agent reads")


def check_name(name: str) -> str:
    """The name itself when it may stand in a key, a template and a log line; ValueError otherwise."""
    if len(name) > NAME_LIMIT or not _NAME.fullmatch(name):
        raise ValueError(
            f"name {quoted(name)} is not allowed; use at most {NAME_LIMIT} letters, digits, '-', '_' and '.',"
            " with a letter or digit at both ends"
        )
    return name


def quoted(text: object, limit: int = 80) -> str:
    """A hostile value for an operator's eyes: one line, printable ASCII, quoted, cut."""
    shown = (
        ascii(text if len(text) <= limit else text[:limit] + "…") if isinstance(text, str) else ascii(text)
    )
    return shown if len(shown) <= 4 * limit else shown[: 4 * limit] + "…'"


def _dashed(cidr: Prefix) -> str:
    return f"{cidr.network}-{cidr.length}"


def _cidr_of(rest: str) -> Prefix:
    """Read `ipv4/block/10.0.0.0-26`."""
    match = _BLOCK.fullmatch(rest)
    if match is None:
        raise ValueError("the key does not end in ipv4/block/<network>-<length> or its IPv6 twin")
    network, dash, length = match[2].rpartition("-")
    if not dash:
        raise ValueError(f"{quoted(match[2])} has no -<length>")
    cidr = Prefix.parse(f"{network}/{length}")
    if str(cidr.version) != match[1]:
        raise ValueError(f"{cidr} is not an IPv{match[1]} network")
    if _dashed(cidr) != match[2]:
        raise ValueError(f"{quoted(match[2])} is not how Calico writes {cidr} in a key ({_dashed(cidr)})")
    return cidr
