"""Stories of whole states: what the datastore says in each scene, and what must follow from it.

A story is a tuple of scenes. `every_telling` runs a test with the story told in many ways, and with the
changes of each batch in many orders: whatever way it is told, each scene that is played must hold.

    MOVE = (
        scene(node_a, block_on("a"), blackholes={"10.1.0.0/26"}),
        scene(node_a, block_on("b")),
    )

    @every_telling
    def test_a_block_moves(telling, order):
        play(telling(MOVE), order, CalcWorld("a"))

What a scene expects and what else happens in it (secrets, learned paths) are keyword arguments; the world
that plays it knows them. `CalcWorld` plays the calculation; other worlds need `enter`, `tell` and `check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pytest

from felix_like.calc.desire import desire
from felix_like.calc.snapshot import Change, Malformed, Resource, Snapshot
from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.bgp import BgpConfiguration, BgpPeer, ClusterInformation, Peer
from felix_like.model.block import AffinityState, Block, BlockAffinity
from felix_like.model.desired import Desired, LocalNode
from felix_like.model.ippool import IPPool
from felix_like.model.node import Node
from felix_like.model.path import Attributes
from felix_like.model.service import EndpointSlice, KubernetesNode, Service, TrafficPolicy

Value = Resource | Malformed


@dataclass(frozen=True)
class Scene:
    """One state of the datastore by etcd key, and the facts the world checks or needs."""

    state: Mapping[str, Value]
    facts: Mapping[str, Any] = field(default_factory=dict)


Story = Sequence[Scene]


@dataclass(frozen=True)
class Act:
    """Scenes that reach the world as one batch; only the last is checked, if any."""

    scenes: tuple[Scene, ...]
    checked: bool = True


Telling = Callable[[Story], list[Act]]
Order = Callable[[list[Change]], list[list[Change]]]


class World(Protocol):
    """What a story is played on."""

    def enter(self, scene: Scene) -> None:
        """Take in the facts of the scene that the next changes lead to."""

    def tell(self, changes: list[Change]) -> None:
        """Take in one batch from the datastore."""

    def check(self, scene: Scene) -> None:
        """Assert that everything is as the scene says, and nothing more."""


def scene(*values: Value | tuple[str, Value] | Iterable[Any], **facts: Any) -> Scene:
    """A state of the datastore: resources, `(key, value)` pairs, or collections of those."""
    state: dict[str, Value] = {}
    for value in values:
        if isinstance(value, tuple) and isinstance(value[0], str):
            state[value[0]] = value[1]
        elif isinstance(value, Iterable):
            state.update(scene(*value).state)
        else:
            state[key_of(value)] = value
    return Scene(state, facts)


def key_of(value: Value) -> str:
    """The etcd key Calico gives a resource, or the key of an object of Kubernetes."""
    resources = "/calico/resources/v3/projectcalico.org"
    match value:
        case BlockAffinity():
            cidr = f"{value.cidr.network}-{value.cidr.length}"
            return f"/calico/ipam/v2/host/{value.node}/ipv{value.cidr.version}/block/{cidr}"
        case Block():
            cidr = f"{value.cidr.network}-{value.cidr.length}"
            return f"/calico/ipam/v2/assignment/ipv{value.cidr.version}/block/{cidr}"
        case ClusterInformation():
            return f"{resources}/clusterinformations/default"
        case Malformed():
            kind, _, name = value.subject.partition(" ")
            return f"{resources}/{kind.lower()}s/{name}"
        case Service():
            return f"kube/services/{value.namespace}/{value.name}"
        case EndpointSlice():
            return f"kube/endpointslices/{value.namespace}/{value.name}"
        case KubernetesNode():
            return f"kube/nodes/{value.name}"
        case Node() | IPPool() | BgpPeer() | BgpConfiguration():
            return f"{resources}/{type(value).__name__.lower()}s/{value.name}"


# -- tellings ---------------------------------------------------------------------------------------


def _each(scenes: Iterable[Scene]) -> list[Act]:
    return [Act((one,)) for one in scenes]


EMPTY = Scene({})

TELLINGS: dict[str, Telling] = {
    "as told": _each,
    "backwards": lambda story: _each(reversed(story)),
    "there and back": lambda story: _each([*story, *reversed(story)]),
    "only the end": lambda story: _each([story[-1]]),
    "with gaps": lambda story: _each([*story[:-1:2], story[-1]]),
    "with other gaps": lambda story: _each([*story[1:-1:2], story[-1]]),
    "squashed": lambda story: [Act(tuple(story))],
    "squashed backwards": lambda story: [Act(tuple(reversed(story)))],
    "squashed in pairs": lambda story: [Act(tuple(story[i : i + 2])) for i in range(0, len(story), 2)],
    "twice": lambda story: _each([*story, *story]),
    "from nothing each": lambda story: [
        a for one in story for a in (Act((EMPTY,), checked=False), Act((one,)))
    ],
}

ORDERS: dict[str, Order] = {
    "keys in order": lambda batch: [batch],
    "keys reversed": lambda batch: [batch[::-1]],
    "doubled": lambda batch: [[change for change in batch for _ in range(2)]],
    "batch repeated": lambda batch: [batch, batch],
    "one by one": lambda batch: [[change] for change in batch],
    "one by one, reversed": lambda batch: [[change] for change in reversed(batch)],
}


def every_telling(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run a test `(telling, order)` with every telling and every order of the keys inside a batch."""
    told = pytest.mark.parametrize("telling", [pytest.param(t, id=n) for n, t in TELLINGS.items()])
    ordered = pytest.mark.parametrize("order", [pytest.param(o, id=n) for n, o in ORDERS.items()])
    wrapped: Callable[..., Any] = told(ordered(test))
    return wrapped


def play(acts: Iterable[Act], order: Order, world: World) -> None:
    """Lead the world from scene to scene and check each act's last one.

    The order applies to the changes that lead from one scene to the next: two values of one key never swap,
    as etcd never swaps them.
    """
    have: dict[str, Value] = {}
    revision = 0
    for act in acts:
        world.enter(act.scenes[-1])
        steps: list[list[Change]] = []
        for one in act.scenes:
            changes = []
            for key in sorted({*have, *one.state}):
                if have.get(key) != one.state.get(key):
                    revision += 1
                    changes.append(Change(key, one.state.get(key), revision))
            have = dict(one.state)
            steps.extend(order(changes))
        if len(act.scenes) > 1:
            world.tell([change for step in steps for change in step])
        else:
            for step in steps:
                world.tell(step)
        if act.checked:
            world.check(act.scenes[-1])


# -- the calculation's world ------------------------------------------------------------------------


class CalcWorld:
    """Plays a story on Snapshot and `desire`, as one node sees it.

    Facts of a scene: `secrets`; and expected, empty where they are not named: `peers` (address -> `brief`),
    `originated` (a set of prefixes, or prefix -> next hop and communities), `blackholes`, `refusals` (all
    sentences, as `subject: reason`), `frozen`.
    """

    def __init__(self, node: str = "a", **settings: Any) -> None:
        self.local = LocalNode(name=node, **settings)
        self.snapshot = Snapshot()
        self._secrets: Mapping[Any, str] = {}

    def enter(self, scene: Scene) -> None:
        self._secrets = scene.facts.get("secrets", {})

    def desired(self, snapshot: Snapshot) -> Desired:
        return replace(desire(snapshot, self.local, self._secrets), revision=0)

    def tell(self, changes: list[Change]) -> None:
        """Take in a batch; what it does not concern must not change the answer."""
        before = self.desired(self.snapshot)
        touched = self.snapshot.apply(changes)
        if not touched.concerns(self.local.name):
            assert self.desired(self.snapshot) == before

    def check(self, scene: Scene) -> None:
        desired = self.desired(self.snapshot)
        fresh = Snapshot()
        fresh.apply(Change(key, value, 1) for key, value in scene.state.items())
        assert desired == self.desired(fresh), "the answer depends on history"
        expected = {
            "peers": {}, "originated": {}, "blackholes": set(), "refusals": [], "frozen": None
        } | {name: fact for name, fact in scene.facts.items() if name != "secrets"}  # fmt: skip
        originated: Any = {str(p): described(a) for p, a in desired.originated.items()}
        if isinstance(expected["originated"], set):
            originated = set(originated)
        assert {
            "peers": {str(address): brief(peer) for address, peer in desired.peers.items()},
            "originated": originated or type(expected["originated"])(),
            "blackholes": {str(prefix) for prefix in desired.blackholes},
            "refusals": [str(refusal) for refusal in desired.refusals],
            "frozen": desired.frozen,
        } == expected


def described(attributes: Attributes) -> str:
    """Next hop and communities on one line."""
    return " ".join([str(attributes.next_hop), *attributes.communities, *attributes.large_communities])


def brief(peer: Peer) -> str:
    """A session on one line: name, AS number, and what is not as usual."""
    words = [peer.name, str(peer.asn)]
    if peer.local_asn != 64512:
        words.append(f"as {peer.local_asn}")
    if peer.remote_node is not None:
        words.append(f"({peer.remote_node})")
    words += [f"port {peer.port}"] if peer.port != 179 else []
    words += [f"listen {peer.listen_port}"] if peer.listen_port != 179 else []
    words += ["passive"] if peer.passive else []
    words += ["client"] if peer.route_reflector_client else []
    words += [f"cluster {peer.cluster_id}"] if peer.cluster_id else []
    words += ["password"] if peer.password is not None else []
    words += [f"hold {peer.hold_time}"] if peer.hold_time != 90 else []
    words += [f"restart {peer.restart_time}"] if peer.restart_time != 120 else []
    words += [f"ttl {peer.ttl_security}"] if peer.ttl_security is not None else []
    words += [f"next hop {peer.next_hop_mode}"] if peer.next_hop_mode != "Auto" else []
    words += ["pool routes"] if peer.accepts_pool_routes else []
    return " ".join(words)


# -- resources in short -----------------------------------------------------------------------------


def node(name: str, ipv4: str | None = None, ipv6: str | None = None, **more: Any) -> Node:
    """A node; addresses as text, with or without their subnet. `rr` is the cluster ID."""
    if "rr" in more:
        more["route_reflector_cluster_id"] = more.pop("rr")
    return Node(
        name=name,
        ipv4=Address.parse(ipv4.partition("/")[0]) if ipv4 else None,
        ipv4_network=Prefix.of(ipv4) if ipv4 else None,
        ipv6=Address.parse(ipv6.partition("/")[0]) if ipv6 else None,
        ipv6_network=Prefix.of(ipv6) if ipv6 else None,
        **more,
    )


def pool(name: str, cidr: str, **more: Any) -> IPPool:
    prefix = Prefix.parse(cidr)
    more.setdefault("block_size", 26 if prefix.version == 4 else 122)
    return IPPool(name=name, cidr=prefix, **more)


def block(cidr: str, owner: str | None, borrowed: Mapping[str, str] | None = None, in_use: int = 0) -> Block:
    lent = {Address.parse(address): name for address, name in (borrowed or {}).items()}
    return Block(cidr=Prefix.parse(cidr), affinity=owner, borrowed=lent, in_use=in_use)


def affinity(owner: str, cidr: str, state: AffinityState = AffinityState.CONFIRMED) -> BlockAffinity:
    return BlockAffinity(node=owner, cidr=Prefix.parse(cidr), state=state)


def block_on(owner: str, cidr: str = "10.1.0.0/26", **more: Any) -> list[Value]:
    """A block that a node holds: the block and the confirmed affinity."""
    return [affinity(owner, cidr), block(cidr, owner, **more)]


def bgp_peer(name: str, ip: str | None = None, asn: int | None = None, **more: Any) -> BgpPeer:
    return BgpPeer(
        name=name,
        peer_ip=Address.parse(ip) if ip else None,
        asn=Asn(asn) if asn is not None else None,
        **more,
    )


def configuration(name: str = "default", **more: Any) -> BgpConfiguration:
    return BgpConfiguration(name=name, **more)


def service(name: str, *cluster_ips: str, local: bool = False, **more: Any) -> Service:
    """A service of namespace `default`; `external`, `balancer`: addresses as text."""
    return Service(
        namespace=more.pop("namespace", "default"),
        name=name,
        policy=TrafficPolicy.LOCAL if local else TrafficPolicy.CLUSTER,
        cluster_ips=tuple(map(Address.parse, cluster_ips)),
        external_ips=tuple(map(Address.parse, more.pop("external", ()))),
        load_balancer_ips=tuple(map(Address.parse, more.pop("balancer", ()))),
        **more,
    )


def endpoints(
    service_name: str, here: int = 0, elsewhere: bool = False, version: Any = 4, part: str = "1"
) -> EndpointSlice:
    """A slice of a service of namespace `default`."""
    return EndpointSlice(
        namespace="default",
        name=f"{service_name}-{version}-{part}",
        service=service_name,
        version=version,
        here=here,
        elsewhere=elsewhere,
    )


def kubernetes_node(name: str, *pod_cidrs: str, **labels: str) -> KubernetesNode:
    return KubernetesNode(name=name, labels=labels, pod_cidrs=tuple(map(Prefix.parse, pod_cidrs)))
