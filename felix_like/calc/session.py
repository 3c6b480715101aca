"""From a wanted peering to a BGP session, complete, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from felix_like.calc.cluster import (
    Cluster,
    is_dotted_quad,
    quoted,
    usable_address,
    usable_asn,
    usable_name,
)
from felix_like.model.address import Address, Asn, IpVersion
from felix_like.model.bgp import DEFAULT_BGP_PORT, BgpPeer, Peer, PeerType, SecretRef
from felix_like.model.desired import LocalNode
from felix_like.model.node import Node
from felix_like.model.verdict import No, Refusal, Yes

DEFAULT_HOLD_TIME = 90
DEFAULT_RESTART_TIME = 120
LONGEST_HOLD_TIME = 65535
"""Two octets in OPEN (RFC 4271 section 4.2)."""
LONGEST_RESTART_TIME = 4095
"""Twelve bits (RFC 4724 section 3)."""
LONGEST_PASSWORD = 80
"""Octets the kernel takes for TCP MD5 (TCP_MD5SIG_MAXKEYLEN)."""
NEXT_HOP_MODES = ("Auto", "Self", "Keep")

Secrets = Mapping[SecretRef, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """This node as its sessions present it."""

    node: Node
    cluster: Cluster
    local: LocalNode
    asn: Asn
    router_id: str

    def address(self, version: IpVersion) -> Address | None:
        """Our end of a session of this family."""
        address = self.node.address(version)
        return address if address is not None and usable_address(address) else None

    @property
    def versions(self) -> tuple[IpVersion, ...]:
        both: tuple[IpVersion, IpVersion] = (4, 6)
        return tuple(version for version in both if self.address(version) is not None)

    @property
    def cluster_id(self) -> str:
        """Our RFC 4456 cluster ID; empty when we do not reflect, or it is unusable."""
        text = self.node.route_reflector_cluster_id
        return text if is_dotted_quad(text) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A peering somebody wants: a BGPPeer, its reverse, or the mesh."""

    address: Address
    asn: Asn
    port: int
    type: PeerType
    node: Node | None
    """The Calico node behind the address, when exactly one says the address is its own."""
    resource: BgpPeer | None = None
    """None: the mesh."""
    reverse: bool = False
    """Another node's BGPPeer names us; this is our side of it."""

    @property
    def subject(self) -> str:
        if self.resource is not None:
            return f"BGPPeer {quoted(self.resource.name)}"
        return f"Node {quoted(self.node.name if self.node else str(self.address))}"

    @property
    def name(self) -> str:
        """Calico's protocol name (confd's buildPeerFromData)."""
        kind = {PeerType.MESH: "Mesh", PeerType.GLOBAL: "Global", PeerType.NODE: "Node"}[self.type]
        name = f"{kind}_{self.address}".replace(".", "_").replace(":", "_")
        if self.resource is None or self.port == DEFAULT_BGP_PORT:
            return name
        return f"{name}_port_{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What one BGPPeer, or the mesh, says for all its sessions."""

    password: str | None
    hold_time: int
    restart_time: int
    ttl_security: int | None = None
    next_hop_mode: str = "Auto"
    prefix_limit: int | None = None


def mesh_terms(own: Own, secrets: Secrets) -> tuple[Terms | None, list[Refusal]]:
    """The mesh's terms; None when no mesh session may be made. The refusals also name what is left out."""
    configuration = own.cluster.default
    notes: list[str] = []
    hold = _hold_time(own.local, None, notes)
    restart = _restart_time(configuration.mesh_max_restart_time, "nodeMeshMaxRestartTime", notes)
    password = find_password(configuration.mesh_password, secrets)
    if isinstance(password, No):
        notes.append(f"no mesh session is made: {password.reason}")
    subject = "BGPConfiguration default"
    refusals = [Refusal(subject, note) for note in notes]
    if isinstance(password, No):
        return None, refusals
    return Terms(password=password, hold_time=hold, restart_time=restart), refusals


def peer_terms(resource: BgpPeer, own: Own, secrets: Secrets) -> tuple[Terms | None, list[Refusal]]:
    """A BGPPeer's terms; None when no session may be made of it.

    What protects a session (password, TTL security) must be right; what tunes it falls back to its default.
    """
    notes: list[str] = []
    hold = _hold_time(own.local, resource.keepalive_time, notes)
    restart = _restart_time(resource.max_restart_time, "maxRestartTime", notes)
    if resource.ignored:
        notes.append(f"{' and '.join(resource.ignored)}: not supported, so without effect")
    mode = resource.next_hop_mode
    if mode not in NEXT_HOP_MODES:
        notes.append(f"nextHopMode {mode[:32]!a} is unknown, Auto is used; use Auto, Self or Keep")
        mode = "Auto"
    limit = resource.prefix_limit
    if limit is not None and limit < 1:
        notes.append(f"tortie/prefix-limit {limit} is left out; use 1 or more")
        limit = None
    subject = f"BGPPeer {quoted(resource.name)}"
    ttl = resource.ttl_security or None
    password = find_password(resource.password, secrets)
    terms = None
    if ttl is not None and not 1 <= ttl <= 255:
        notes.append(f"ttlSecurity {ttl} is no number of hops, no session is made; use 1 to 255 (RFC 5082)")
    elif isinstance(password, No):
        notes.append(f"no session is made: {password.reason}")
    else:
        terms = Terms(
            password=password,
            hold_time=hold,
            restart_time=restart,
            ttl_security=ttl,
            next_hop_mode=mode,
            prefix_limit=limit,
        )
    return terms, [Refusal(subject, note) for note in notes]


def usable_secret(ref: SecretRef) -> Yes | No:
    """Name and key become a path: nothing may lead out of the secrets directory."""
    for part in (ref.name, ref.key):
        if not usable_name(part) or part in (".", ".."):
            return No(f"its password's secret {quoted(ref.name)} key {quoted(ref.key)} is not a usable name")
    return Yes()


def find_password(ref: SecretRef | None, secrets: Secrets) -> str | No | None:
    """The password a reference stands for. Never an empty one: that would be no password."""
    if ref is None:
        return None
    usable = usable_secret(ref)
    if isinstance(usable, No):
        return usable
    where = f"secret {ref.name} key {ref.key}"
    password = secrets.get(ref)
    if password is None:
        return No(
            f"its password is missing ({where}). Put it into the file {ref.name}/{ref.key} "
            "of the secrets directory"
        )
    if not password or not password.isprintable() or len(password.encode()) > LONGEST_PASSWORD:
        return No(
            f"its password ({where}) is empty, has control characters or more than {LONGEST_PASSWORD} octets"
        )
    return password


def _hold_time(local: LocalNode, keepalive: int | None, notes: list[str]) -> int:
    """Seconds to offer: three keepalives (RFC 4271 section 10), else the agent's own setting."""
    hold = local.hold_time
    if hold != 0 and not 3 <= hold <= LONGEST_HOLD_TIME:
        hold = DEFAULT_HOLD_TIME
        notes.append(
            f"hold time {local.hold_time} is not allowed, {hold} is used; use 0 or 3 to 65535 seconds"
        )
    if keepalive is None:
        return hold
    if not 1 <= keepalive <= LONGEST_HOLD_TIME // 3:
        notes.append(f"keepaliveTime {keepalive} s is not allowed and left out; use 1 to 21845 seconds")
        return hold
    return 3 * keepalive


def _restart_time(seconds: int | None, field: str, notes: list[str]) -> int:
    if seconds is None:
        return DEFAULT_RESTART_TIME
    if seconds < 0:
        notes.append(f"{field} {seconds} s is negative and left out; use 0 to {LONGEST_RESTART_TIME} seconds")
        return DEFAULT_RESTART_TIME
    if seconds > LONGEST_RESTART_TIME:
        notes.append(
            f"{field} {seconds} s is longer than BGP can say (RFC 4724); {LONGEST_RESTART_TIME} is used"
        )
        return LONGEST_RESTART_TIME
    return seconds


def session(candidate: Candidate, terms: Terms, own: Own) -> Peer | No:
    """The session for a candidate that has its address to itself, or why there is none."""
    local_asn = own.asn
    resource = candidate.resource
    if resource is not None and resource.local_asn is not None and not candidate.reverse:
        local_asn = resource.local_asn
    for asn in (candidate.asn, local_asn):
        verdict = usable_asn(asn)
        if isinstance(verdict, No):
            return No(f"no session is made: {verdict.reason}")
    address = candidate.address
    usable = usable_address(address)
    if isinstance(usable, No):
        return No(f"no session is made: {usable.reason}")
    local_address = own.address(address.version)
    if local_address is None:
        return No(f"no session with {address} is made: this node has no IPv{address.version} address")
    remote_cluster_id = candidate.node.route_reflector_cluster_id if candidate.node else ""
    return Peer(
        address=address,
        asn=candidate.asn,
        local_address=local_address,
        local_asn=local_asn,
        router_id=own.router_id,
        type=candidate.type,
        name=candidate.name,
        resource=resource.name if resource else None,
        remote_node=candidate.node.name if candidate.node else None,
        port=candidate.port,
        listen_port=own.cluster.port_of(own.node.name),
        passive=is_passive(candidate, local_address),
        password=terms.password,
        hold_time=terms.hold_time,
        restart_time=terms.restart_time,
        ttl_security=terms.ttl_security,
        families=(address.version,),
        route_reflector_client=bool(own.cluster_id)
        and candidate.asn == local_asn
        and remote_cluster_id != own.cluster_id,
        cluster_id=own.cluster_id,
        next_hop_mode=terms.next_hop_mode,
        allowed_local_asns=max(0, resource.num_allowed_local_asns) if resource else 0,
        accepts_pool_routes=resource.accepts_pool_routes if resource else False,
        prefix_limit=terms.prefix_limit,
    )


def is_passive(candidate: Candidate, local_address: Address) -> bool:
    """Between Calico nodes one side waits, or both would connect at once (confd's bird.cfg).

    The addresses are compared as text, as Calico compares them: "10.0.0.9" is greater than "10.0.0.10".
    Node-specific peerings have no reverse that is bound to wait, so neither side does.
    """
    if candidate.node is None or candidate.type is PeerType.NODE:
        return False
    return str(candidate.address) > str(local_address)
