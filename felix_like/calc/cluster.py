"""Who is who: nodes behind addresses, AS numbers, listen ports, and what is wrong with them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from felix_like.calc.snapshot import Snapshot
from felix_like.model.address import Address, Asn, IpVersion
from felix_like.model.bgp import DEFAULT_ASN, DEFAULT_BGP_PORT, BgpConfiguration
from felix_like.model.desired import LocalNode
from felix_like.model.node import Node
from felix_like.model.verdict import No, Refusal, Yes

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_NO_CONFIGURATION = BgpConfiguration(name="default")
LARGEST_ASN = 0xFFFF_FFFF

RESERVED_ASNS = {
    0: "AS 0 is reserved (RFC 7607)",
    23456: "AS 23456 is AS_TRANS, a stand-in for AS numbers of four octets (RFC 6793)",
    65535: "AS 65535 is reserved (RFC 7300)",
    LARGEST_ASN: "AS 4294967295 is reserved (RFC 7300)",
}


def quoted(name: str) -> str:
    """A name from the datastore, safe in a sentence: odd ones in ASCII quotes and cut after 64 characters."""
    if _NAME.fullmatch(name):
        return name
    return ascii(name if len(name) <= 64 else name[:64] + "...")


def usable_name(name: str) -> Yes | No:
    """Calico's names are made of letters, digits, `-`, `.` and `_` (libcalico-go/lib/validator/v3)."""
    if _NAME.fullmatch(name):
        return Yes()
    return No(
        "its name may only have letters, digits, '-', '_' and '.', at most 253; it is left out. Rename it"
    )


def usable_asn(asn: int) -> Yes | No:
    """A peer's or our own AS number."""
    if not 0 <= asn <= LARGEST_ASN:
        return No(f"AS {asn} does not exist; use 1 to 4294967294")
    if asn in RESERVED_ASNS:
        return No(f"{RESERVED_ASNS[asn]}; use another from 1 to 4294967294")
    return Yes()


def usable_address(address: Address) -> Yes | No:
    """Can a BGP session end there?"""
    if not any(address):
        return No(f"{address} is the unspecified address, not a host's")
    multicast = address[0] == 0xFF if address.version == 6 else address[0] >= 224
    if multicast:
        return No(f"{address} is a multicast or reserved address, not a host's")
    return Yes()


def is_dotted_quad(text: str) -> bool:
    """A BGP identifier or cluster ID as Calico writes it (RFC 6286: not zero)."""
    try:
        return any(Address.parse(text)) and ":" not in text
    except ValueError:
        return False


def hashed_router_id(name: str) -> str:
    """CALICO_ROUTER_ID=hash (confd's HashToIPv4): the same for every reader of the node's name."""
    octets = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:4]
    first = octets[0] - 32 if octets[0] > 223 else octets[0]
    return str(Address(bytes((first, *octets[1:]))))


def router_id(local: LocalNode, node: Node) -> str | No:
    """This node's BGP identifier, or why there is none (confd's populateNodeConfig and HashToIPv4)."""
    if local.router_id == "hash":
        return hashed_router_id(local.name)
    if local.router_id:
        if is_dotted_quad(local.router_id):
            return local.router_id
        return No(
            f"CALICO_ROUTER_ID is {local.router_id!a}, no dotted quad: no session is made. "
            "Set it to a dotted quad, to 'hash', or leave it out"
        )
    if node.ipv4 is None:
        return No(
            "it has no IPv4 address to take the router ID from: no session is made. "
            "Set CALICO_ROUTER_ID to 'hash' or to a dotted quad"
        )
    return str(node.ipv4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The nodes as this one sees them. Make it with `cluster`."""

    nodes: Mapping[str, Node]
    """Those with a usable name."""
    default: BgpConfiguration
    port: int
    """The port speakers listen on where nothing is said for the node."""
    ports: Mapping[str, int]
    """Listen ports set per node, by node name."""
    owners: Mapping[Address, tuple[str, ...]]
    """Names of the nodes that say an address is theirs, sorted; two or more: nobody can tell which it is."""

    def owner(self, address: Address) -> Node | None:
        """The node behind an address; None when there is none, or more than one."""
        names = self.owners.get(address, ())
        return self.nodes[names[0]] if len(names) == 1 else None

    @property
    def asn(self) -> Asn:
        """The AS number of nodes that do not say their own."""
        return DEFAULT_ASN if self.default.asn is None else self.default.asn

    def asn_of(self, node: Node) -> Asn:
        return self.asn if node.asn is None else node.asn

    def port_of(self, name: str) -> int:
        """The port a node's speaker listens on."""
        return self.ports.get(name, self.port)

    @property
    def mesh_enabled(self) -> bool:
        return self.default.mesh_enabled is not False

    def reachable(self, node: Node, version: IpVersion) -> Address | No:
        """Where this node's speaker is, for one family, or why nobody can tell."""
        address = node.address(version)
        if address is None:
            return No(f"it has no IPv{version} address")
        usable = usable_address(address)
        if isinstance(usable, No):
            return usable
        others = [name for name in self.owners.get(address, ()) if name != node.name]
        if others:
            return No(
                f"node {', '.join(others[:3])} has its address {address} too: nobody can tell them apart. "
                "Correct one of the Node resources"
            )
        return address


def cluster(snapshot: Snapshot) -> Cluster:
    """Read the nodes and the BGP configurations out of the snapshot."""
    nodes = {name: node for name, node in snapshot.nodes.items() if usable_name(name)}
    owners: dict[Address, list[str]] = {}
    for name in sorted(nodes):
        for address in nodes[name].addresses:
            owners.setdefault(address, []).append(name)
    default = snapshot.bgp_configurations.get("default", _NO_CONFIGURATION)
    ports = {
        name.removeprefix("node."): configuration.listen_port
        for name, configuration in snapshot.bgp_configurations.items()
        if name.startswith("node.") and configuration.listen_port and is_port(configuration.listen_port)
    }
    return Cluster(
        nodes=nodes,
        default=default,
        port=_port(default),
        ports=ports,
        owners={address: tuple(names) for address, names in owners.items()},
    )


def _port(configuration: BgpConfiguration) -> int:
    port = configuration.listen_port
    return port if port is not None and is_port(port) else DEFAULT_BGP_PORT


def is_port(port: int) -> bool:
    """A TCP port one can connect to."""
    return 0 < port < 65536


def cluster_refusals(snapshot: Snapshot, cluster: Cluster, local: LocalNode) -> Iterator[Refusal]:
    """What is wrong with nodes and BGP configurations, whatever peerings are wanted."""
    for name, node in snapshot.nodes.items():
        subject = f"Node {quoted(name)}"
        usable = usable_name(name)
        if isinstance(usable, No):
            yield Refusal(subject, usable.reason)
        elif not node.addresses:
            yield Refusal(subject, "it has no IPv4 and no IPv6 address: no node can make a session with it")
        elif name != local.name:
            yield from _neighbour_refusals(cluster, node, local, subject)
    for name, configuration in snapshot.bgp_configurations.items():
        yield from _configuration_refusals(name, configuration, local)


def _neighbour_refusals(cluster: Cluster, node: Node, local: LocalNode, subject: str) -> Iterator[Refusal]:
    for address in node.addresses:
        if local.name in cluster.owners[address]:
            yield Refusal(
                subject,
                f"it has this node's own address {address}: the other nodes make no session with either. "
                "Correct one of the Node resources",
            )
            continue
        place = cluster.reachable(node, address.version)
        if isinstance(place, No):
            yield Refusal(subject, place.reason)
    asn = usable_asn(cluster.asn_of(node))
    if isinstance(asn, No):
        yield Refusal(subject, asn.reason)


def _configuration_refusals(
    name: str, configuration: BgpConfiguration, local: LocalNode
) -> Iterator[Refusal]:
    subject = f"BGPConfiguration {quoted(name)}"
    port = configuration.listen_port
    if port is not None and not is_port(port):
        yield Refusal(subject, f"listenPort {port} does not exist; 179 is used. Set 1 to 65535")
    if name == "default":
        return
    if not name.startswith("node."):
        yield Refusal(subject, "only 'default' and 'node.<node name>' are read; it is left out")
    elif name == f"node.{local.name}":
        ignored = [
            field
            for field, value in (
                ("nodeToNodeMeshEnabled", configuration.mesh_enabled),
                ("asNumber", configuration.asn),
                ("nodeMeshPassword", configuration.mesh_password),
                ("nodeMeshMaxRestartTime", configuration.mesh_max_restart_time),
            )
            if value is not None
        ]
        if ignored:
            yield Refusal(subject, f"{' and '.join(ignored)} counts in 'default' only; it is left out here")
