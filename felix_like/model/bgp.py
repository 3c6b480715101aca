"""BGPConfiguration, BGPPeer and ClusterInformation resources, and the session they lead to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from felix_like.model.address import Address, Asn, IpVersion, Prefix

DEFAULT_ASN = Asn(64512)
DEFAULT_BGP_PORT = 179


@dataclass(frozen=True, slots=True, order=True)
class SecretRef:
    """A key of a Kubernetes Secret; on hosts without Kubernetes the file `<secrets dir>/<name>/<key>`."""

    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAdvertisement:
    """Communities put on advertised routes inside `cidr`: `a:b` (RFC 1997) or `a:b:c` (RFC 8092)."""

    cidr: Prefix
    communities: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BgpConfiguration:
    """`bgpconfigurations/default` or `node.<NODE>`; None means "not set here"."""

    name: str
    mesh_enabled: bool | None = None
    asn: Asn | None = None
    listen_port: int | None = None
    log_severity: str | None = None
    prefix_advertisements: tuple[PrefixAdvertisement, ...] = ()
    service_cluster_ips: tuple[Prefix, ...] = ()
    service_external_ips: tuple[Prefix, ...] = ()
    service_load_balancer_ips: tuple[Prefix, ...] = ()
    load_balancer_aggregation: bool = True
    """False: serviceLoadBalancerAggregation is Disabled; addresses of load balancers are advertised one by
    one, their ranges are not."""
    mesh_password: SecretRef | None = None
    mesh_max_restart_time: int | None = None
    """Seconds; the graceful restart time offered to mesh peers (RFC 4724 section 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BgpPeer:
    """A BGPPeer resource (api/pkg/apis/projectcalico/v3/bgppeer.go)."""

    name: str
    node: str | None = None
    node_selector: str | None = None
    """Neither `node` nor `node_selector`: a global peer, for every node."""
    peer_ip: Address | None = None
    peer_port: int | None = None
    asn: Asn | None = None
    peer_selector: str | None = None
    local_asn: Asn | None = None
    password: SecretRef | None = None
    source_address: str = "UseNodeIP"
    max_restart_time: int | None = None
    keepalive_time: int | None = None
    ttl_security: int | None = None
    num_allowed_local_asns: int = 0
    next_hop_mode: str = "Auto"
    """Auto, Self or Keep (keepOriginalNextHop reads as Keep)."""
    reverse_peering: str = "Auto"
    accepts_pool_routes: bool = False
    """Annotation `tortie/pool-routes: accept`: this outside peer may announce prefixes inside pools."""
    prefix_limit: int | None = None
    """Annotation `tortie/prefix-limit: "1000"`: at most so many prefixes from this peer."""
    ignored: tuple[str, ...] = ()
    """Fields that are set and that nothing here acts on: to be said, or an operator would rely on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterInformation:
    guid: str = ""
    version: str = ""
    datastore_ready: bool = True


class PeerType(StrEnum):
    """As `calicoctl node status` words it."""

    MESH = "node-to-node mesh"
    NODE = "node specific"
    GLOBAL = "global"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A BGP session this node should hold, complete: what the renderer, the speaker and the RIB need.

    Peers are keyed by their address: two sessions to one address cannot be told apart on the wire.
    """

    address: Address
    asn: Asn
    local_address: Address
    local_asn: Asn
    router_id: str
    """Dotted quad (RFC 6286)."""
    type: PeerType
    name: str
    """Calico's protocol name: `Mesh_10_0_0_1`, `Global_…`, `Node_…`."""
    resource: str | None = None
    """Name of the BGPPeer it comes from; None in the mesh."""
    remote_node: str | None = None
    """Name of the Calico node behind the address, when it is one of ours."""
    port: int = DEFAULT_BGP_PORT
    listen_port: int = DEFAULT_BGP_PORT
    passive: bool = False
    password: str | None = field(default=None, repr=False)
    hold_time: int = 90
    """Seconds offered in OPEN; 0 turns KEEPALIVE off (RFC 4271 section 4.2)."""
    restart_time: int = 120
    """Seconds of graceful restart offered (RFC 4724); 0 turns it off. At most 4095."""
    ttl_security: int | None = None
    """Hops away at most (GTSM, RFC 5082); None: off, and eBGP is multihop, as in Calico."""
    families: tuple[IpVersion, ...] = (4, 6)
    route_reflector_client: bool = False
    cluster_id: str = ""
    """Our RFC 4456 cluster ID (dotted quad) when we reflect."""
    next_hop_mode: str = "Auto"
    allowed_local_asns: int = 0
    accepts_pool_routes: bool = False
    prefix_limit: int | None = None

    @property
    def is_ebgp(self) -> bool:
        return self.asn != self.local_asn

    @property
    def version(self) -> IpVersion:
        return self.address.version
