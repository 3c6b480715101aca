"""Whatever order etcd, Kubernetes, the speaker and the kernel tell their news in, the end is the same.

Each key, each peer and each next hop has news of its own, in its own order; hypothesis shuffles them
together, repeats batches and takes outcomes at odd moments. The final kernel table, adverts, verdicts and
Desired must be those of a graph that was told only the last state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from felix_like.calc.snapshot import Change
from felix_like.model.bgp import ClusterInformation
from felix_like.model.service import EXCLUDE_LABEL
from tests.support.rib_world import Driver, ip, net, path, session, unrevised
from tests.support.stories import (
    affinity,
    bgp_peer,
    block,
    configuration,
    endpoints,
    key_of,
    kubernetes_node,
    node,
    pool,
    service,
)

X, Y, Z, X6 = "10.1.0.0/26", "10.1.0.64/26", "10.1.0.128/26", "fd00:10::/122"
A4, B4, C4, R4, TOR, B6 = "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9", "192.0.2.254", "fd00::2"
TELL = Callable[[Driver], None]


def store(*values: Any) -> list[TELL]:
    """The values one key has, one after the other; None deletes it."""
    key = next(key_of(value) for value in values if value is not None)

    def tell(value: Any, revision: int) -> TELL:
        return lambda world: world.graph.on_datastore([Change(key, value, revision)], True)

    return [tell(value, revision) for revision, value in enumerate(values, 1)]


def kube(*values: Any) -> list[TELL]:
    """The same for a key of Kubernetes."""
    key = next(key_of(value) for value in values if value is not None)

    def tell(value: Any) -> TELL:
        return lambda world: world.graph.on_kubernetes([Change(key, value)], True)

    return [tell(value) for value in values]


def kube_stale(reason: str | None) -> TELL:
    return lambda world: world.graph.on_kubernetes_stale(reason)


def learned(peer: str, attributes: Any, *prefixes: str) -> TELL:
    return lambda world: world.graph.on_learned(ip(peer), attributes, [net(p) for p in prefixes])


def withdrawn(peer: str, *prefixes: str) -> TELL:
    return lambda world: world.graph.on_withdrawn(ip(peer), [net(p) for p in prefixes])


def up(peer: str, now: float = 0.0, **more: Any) -> TELL:
    return lambda world: world.graph.on_peer_up(ip(peer), session(peer, **more), now)


def down(peer: str, now: float, *, graceful: bool) -> TELL:
    return lambda world: world.graph.on_peer_down(ip(peer), now, graceful=graceful)


def end_of_rib(peer: str, version: Any = 4) -> TELL:
    return lambda world: world.graph.on_end_of_rib(ip(peer), version, 0.0)


def cut(address: str, *, off: bool) -> TELL:
    def tell(world: Driver) -> None:
        (world.unreachable.add if off else world.unreachable.discard)(address)
        world.graph.on_next_hops({ip(address): world.resolve(ip(address))})

    return tell


def reflect(next_hop: str, **more: Any) -> Any:
    return path(next_hop, originator_id=next_hop, cluster_list=("1.0.0.1",), **more)


NEWS: tuple[list[TELL], ...] = (
    store(node("a", f"{A4}/24", "fd00::1/64")),
    store(node("b", "192.0.2.22/24"), node("b", f"{B4}/24", f"{B6}/64")),
    store(node("c", f"{C4}/24"), None, node("c", f"{C4}/24")),
    store(node("r", f"{R4}/24", rr="1.0.0.1", labels={"rr": ""})),
    store(pool("pods", "10.1.0.0/17"), pool("pods", "10.1.0.0/16")),
    store(pool("pods6", "fd00:10::/64"), None, pool("pods6", "fd00:10::/64")),
    store(pool("late", "10.7.0.0/16")),
    store(*(configuration(service_cluster_ips=(net(cidr),)) for cidr in ("10.96.0.0/12", "10.98.0.0/16"))),
    store(ClusterInformation(datastore_ready=False), ClusterInformation()),
    store(bgp_peer("tor", TOR, 65001), bgp_peer("tor", TOR, 65000, accepts_pool_routes=True)),
    store(bgp_peer("rr", peer_selector="has(rr)")),
    store(block(X, "c"), block(X, "b", {"10.1.0.7": "c"})),
    store(affinity("b", X)),
    store(block(Y, "a"), block(Y, "c")),
    store(affinity("a", Y), None),
    store(block(Z, "a")),
    store(affinity("a", Z)),
    store(block(X6, None), block(X6, "b")),
    [up(B4), learned(B4, path(B4), X, Y), withdrawn(B4, Y), learned(B4, path(B4, med=3), X), end_of_rib(B4)],
    [up(C4), learned(C4, path(C4), X, Y, "10.1.0.7/32", "0.0.0.0/0", "10.97.0.1/32"), withdrawn(C4, X)],
    [up(B6), learned(B6, path(B6), X6), down(B6, 0.0, graceful=False), up(B6), learned(B6, path(B6), X6)],
    [
        up(TOR, asn=65000),
        learned(TOR, path(TOR, 65000, 65009), "0.0.0.0/0", "10.7.0.0/24", Z),
        learned(TOR, path(TOR, 65000), "203.0.113.0/24", f"{C4}/32"),
        down(TOR, 0.0, graceful=True),
        up(TOR, asn=65000),
        learned(TOR, path(TOR, 65000), "203.0.113.0/24", Z),
        end_of_rib(TOR),
    ],
    [up(R4), learned(R4, reflect(B4), X), learned(R4, reflect(C4), Y, X), learned(R4, reflect(B4), X)],
    [cut(B4, off=True), cut(B4, off=False)],
    [cut(C4, off=True)],
    kube(service("web", "10.98.0.10"), service("web", "10.98.0.10", "fd00:98::10", local=True)),
    kube(endpoints("web", elsewhere=True), endpoints("web", here=1), endpoints("web", here=2)),
    kube(endpoints("web", here=1, part="2"), None),
    kube(service("gone", "10.98.0.11", local=True), None),
    kube(endpoints("gone", here=1)),
    kube(service("far", "10.98.0.12", local=True)),
    kube(endpoints("far", here=1), endpoints("far", elsewhere=True)),
    kube(kubernetes_node("a", **{EXCLUDE_LABEL: "true"}), kubernetes_node("a")),
    [kube_stale("connection refused"), kube_stale(None)],
)  # fmt: skip
TURNS = [number for number, news in enumerate(NEWS) for _ in news]


def told(turns: list[int], takes: set[int], twice: set[int]) -> Driver:
    world = Driver(kubernetes=True)
    left = [iter(news) for news in NEWS]
    for moment, number in enumerate(turns):
        tell = next(left[number])
        tell(world)
        if moment in twice:
            tell(world)
        if moment in takes:
            world.settle()
    return world.settle()


PLAIN = told(TURNS, set(), set())


def test_the_end_that_all_orders_must_reach() -> None:
    """Written out, so that the comparison below cannot hold by everything being empty."""
    assert PLAIN.fib() == {
        X: f"via {B4}",
        Z: "blackhole",
        X6: f"via {B6}",
        "203.0.113.0/24": f"via {TOR}",
    }
    range_of_services, web = "10.98.0.0/16", "10.98.0.10/32"
    mine = {Z, range_of_services, web}
    assert PLAIN.adverts() == {B4: mine, C4: mine, R4: mine, TOR: {X, *mine}}
    verdicts = PLAIN.verdicts()
    assert verdicts[f"{B4} {X}"] == "valid"
    assert verdicts[f"{C4} {Y}"] == "valid"  # and yet not installed: c is unreachable
    assert verdicts[f"{C4} 0.0.0.0/0"] == "invalid"
    assert verdicts[f"{TOR} {Z}"] == "invalid"


@settings(max_examples=120, deadline=None)
@given(
    st.permutations(TURNS),
    st.sets(st.integers(0, len(TURNS) - 1)),
    st.sets(st.integers(0, len(TURNS) - 1), max_size=5),
)
def test_any_order_ends_the_same(turns: list[int], takes: set[int], twice: set[int]) -> None:
    assert unrevised(told(turns, takes, twice)) == unrevised(PLAIN)
