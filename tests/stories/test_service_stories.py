"""Which services' addresses a node advertises, as stories of the datastore and of Kubernetes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felix_like.calc.snapshot import Change, Malformed
from felix_like.model.address import Prefix
from felix_like.model.service import EXCLUDE_LABEL
from tests.support.kube_world import KubeWorld
from tests.support.rib_world import path
from tests.support.stories import (
    Act,
    bgp_peer,
    block_on,
    configuration,
    endpoints,
    every_telling,
    key_of,
    kubernetes_node,
    node,
    play,
    pool,
    scene,
    service,
)


def nets(*texts: str) -> tuple[Prefix, ...]:
    return tuple(map(Prefix.parse, texts))


A, B = node("a", "192.0.2.1/24", "fd00::1/64"), node("b", "192.0.2.2/24")
PODS = pool("pods", "10.1.0.0/16")
WHOLE = {"10.96.0.0/12", "203.0.113.0/24", "198.51.100.0/24", "fd00:96::/112"}
RANGES: dict[str, Any] = {
    "service_cluster_ips": nets("10.96.0.0/12", "fd00:96::/112"),
    "service_external_ips": nets("203.0.113.0/24", "192.0.2.77/32"),
    "service_load_balancer_ips": nets("198.51.100.0/24", "198.51.99.9/32"),
}
CLUSTER = (A, B, PODS, configuration(**RANGES))
EXCLUDED = {EXCLUDE_LABEL: "true"}

both_ways = pytest.mark.parametrize("kubernetes_first", [True, False], ids=["k8s first", "store first"])

WEB = service("web", "10.96.0.10", local=True, external=["203.0.113.5"], balancer=["198.51.100.5"])
WEB_ALONE = {"10.96.0.10/32", "203.0.113.5/32", "198.51.100.5/32"}

LOCAL = (
    scene(CLUSTER, WEB, originated=WHOLE),
    scene(CLUSTER, WEB, endpoints("web", here=1), originated=WHOLE | WEB_ALONE),
    scene(CLUSTER, WEB, endpoints("web", elsewhere=True), originated=WHOLE),
    scene(CLUSTER, WEB, endpoints("web", here=2, elsewhere=True), originated=WHOLE | WEB_ALONE),
    # Two slices: one ready endpoint in either is enough.
    scene(
        CLUSTER, WEB, endpoints("web"), endpoints("web", here=1, part="2"), originated=WHOLE | WEB_ALONE
    ),
    # Of the other IP version: nothing to serve an IPv4 address with.
    scene(CLUSTER, WEB, endpoints("web", here=1, version=6), originated=WHOLE),
    # Slices before their service, and left behind by it.
    scene(CLUSTER, endpoints("web", here=1), originated=WHOLE),
    scene(WEB, endpoints("web", here=1), refusals=[("Node a: this node has no (usable) Node resource in the "
          "datastore: no session is made")]),
)  # fmt: skip


@both_ways
@every_telling
def test_policy_local_follows_the_ready_endpoints_on_this_node(telling, order, kubernetes_first):
    play(telling(LOCAL), order, KubeWorld(kubernetes_first=kubernetes_first))


DUAL = service("dual", "10.96.0.20", "fd00:96::20", local=True)
FAMILIES = (
    scene(CLUSTER, DUAL, endpoints("dual", here=1), originated={*WHOLE, "10.96.0.20/32"}),
    scene(CLUSTER, DUAL, endpoints("dual", here=1, version=6), originated={*WHOLE, "fd00:96::20/128"}),
    scene(
        CLUSTER,
        DUAL,
        [endpoints("dual", here=1), endpoints("dual", here=1, version=6)],
        originated={*WHOLE, "10.96.0.20/32", "fd00:96::20/128"},
    ),
    scene(
        [node("a", "192.0.2.1/24"), B, PODS, configuration(**RANGES)],
        DUAL,
        [endpoints("dual", here=1), endpoints("dual", here=1, version=6)],
        originated={*WHOLE, "10.96.0.20/32"} - {"fd00:96::/112"},
        refusals=[
            (
                "BGPConfiguration default: service range fd00:96::/112 is not advertised: "
                "this node has no IPv6 address to be the next hop"
            ),
            (
                "Service default/dual: cluster IP fd00:96::20 is not advertised: "
                "this node has no IPv6 address to be the next hop"
            ),
        ],
    ),
)


@every_telling
def test_each_ip_version_follows_its_own_endpoints(telling, order):
    play(telling(FAMILIES), order, KubeWorld())


SINGLE = service("one", "10.96.0.30", external=["192.0.2.77"], balancer=["198.51.99.9", "198.51.100.6"])
SINGLY = configuration(**RANGES, load_balancer_aggregation=False)
CLUSTERWIDE = (
    # Listed by itself: while there is such a service, wherever its endpoints are.
    scene(CLUSTER, SINGLE, originated=WHOLE | {"192.0.2.77/32", "198.51.99.9/32"}),
    scene(
        CLUSTER,
        SINGLE,
        endpoints("one", elsewhere=True),
        originated=WHOLE | {"192.0.2.77/32", "198.51.99.9/32"},
    ),
    # By policy Local a listed address is nothing special.
    scene(
        CLUSTER,
        service("one", "10.96.0.30", local=True, external=["192.0.2.77"], balancer=["198.51.99.9"]),
        endpoints("one", elsewhere=True),
        originated=WHOLE,
    ),
    # Not aggregated: each load balancer's address by itself, while somebody can serve it.
    scene(
        [A, B, PODS, SINGLY],
        SINGLE,
        originated=WHOLE - {"198.51.100.0/24"} | {"192.0.2.77/32", "198.51.99.9/32"},
    ),
    scene(
        [A, B, PODS, SINGLY],
        SINGLE,
        endpoints("one", elsewhere=True),
        originated=WHOLE - {"198.51.100.0/24"} | {"192.0.2.77/32", "198.51.99.9/32", "198.51.100.6/32"},
    ),
)


@both_ways
@every_telling
def test_policy_cluster_advertises_what_no_range_does(telling, order, kubernetes_first):
    play(telling(CLUSTERWIDE), order, KubeWorld(kubernetes_first=kubernetes_first))


SHARED = [
    service("first", "10.96.0.41", local=True, external=["203.0.113.9"]),
    service("second", "10.96.0.42", local=True, external=["203.0.113.9"]),
]
REFERENCES = (
    scene(
        CLUSTER,
        SHARED,
        [endpoints("first", here=1), endpoints("second", here=1)],
        originated=WHOLE | {"10.96.0.41/32", "10.96.0.42/32", "203.0.113.9/32"},
    ),
    scene(
        CLUSTER,
        SHARED,
        [endpoints("first", elsewhere=True), endpoints("second", here=1)],
        originated=WHOLE | {"10.96.0.42/32", "203.0.113.9/32"},
    ),
    scene(
        CLUSTER,
        SHARED[0],
        [endpoints("first", here=1)],
        originated=WHOLE | {"10.96.0.41/32", "203.0.113.9/32"},
    ),
    scene(CLUSTER, SHARED, originated=WHOLE),
)


@every_telling
def test_an_address_of_two_services_stays_while_either_wants_it(telling, order):
    play(telling(REFERENCES), order, KubeWorld())


LABELLED = node("a", "192.0.2.1/24", "fd00::1/64", labels=EXCLUDED)
EXCLUSION = (
    scene(CLUSTER, WEB, endpoints("web", here=1), originated=WHOLE | WEB_ALONE),
    scene([LABELLED, B, PODS, configuration(**RANGES)], WEB, endpoints("web", here=1)),
    scene(CLUSTER, WEB, endpoints("web", here=1), kubernetes_node("a", **EXCLUDED)),
    # Another node's label, and another value: nothing to us.
    scene(
        CLUSTER,
        WEB,
        endpoints("web", here=1),
        [kubernetes_node("b", **EXCLUDED), kubernetes_node("a", **{EXCLUDE_LABEL: ""})],
        originated=WHOLE | WEB_ALONE,
    ),
)


@both_ways
@every_telling
def test_the_label_takes_a_node_out_wherever_it_stands(telling, order, kubernetes_first):
    play(telling(EXCLUSION), order, KubeWorld(kubernetes_first=kubernetes_first))


ODD = service(
    "odd", "172.16.0.1", local=True, external=["203.0.114.1", "10.1.0.7", "192.0.2.2"], balancer=["192.0.2.9"]
)
OUTSIDE = (
    scene(
        [A, B, PODS],
        configuration(service_external_ips=nets("203.0.113.0/24", "10.0.0.0/8", "192.0.2.0/24")),
        ODD,
        endpoints("odd", here=1),
        originated={"203.0.113.0/24", "10.0.0.0/8", "192.0.2.0/24"},
        refusals=[
            ("Service default/odd: external IP 10.1.0.7 is not advertised: "
            "it lies in the pods' IP pool 10.1.0.0/16, which is more specific than the service range"),
            ("Service default/odd: external IP 192.0.2.2 is not advertised: "
            "it would take the traffic of node b's own address 192.0.2.2"),
            ("Service default/odd: external IP 203.0.114.1 is not advertised: it lies outside "
            "serviceExternalIPs of BGPConfiguration default (203.0.113.0/24, 10.0.0.0/8, 192.0.2.0/24). "
            "Add its range there, or take the address off the service"),
        ],
    ),
    # Nobody asked for anything: then there is nothing to complain of.
    scene([A, B, PODS], ODD, endpoints("odd", here=1)),
    scene([A, B, PODS], service("odd", "10.96.0.1", ignored=("it is odd",))),
    scene(
        [A, B, PODS, configuration(service_cluster_ips=nets("10.96.0.0/12"))],
        service("odd", "10.96.0.1", ignored=("it is odd",)),
        originated={"10.96.0.0/12"},
        refusals=["Service default/odd: it is odd"],
    ),
    scene(
        [A, B, PODS, configuration(service_load_balancer_ips=nets("192.0.2.0/25"))],
        originated=set(),
        refusals=[
            ("BGPConfiguration default: service range 192.0.2.0/25 is not advertised: "
            "it would take the traffic of node a's own address 192.0.2.1")
        ],
    ),
    scene(
        [A, B, PODS, configuration(service_external_ips=nets("203.0.113.0/24"))],
        [("kube/services/default/bad", Malformed("Service default/bad", "it is bad"))],
        originated={"203.0.113.0/24"},
        refusals=["Service default/bad: it is bad"],
    ),
)  # fmt: skip


@both_ways
@every_telling
def test_what_would_do_harm_or_is_not_allowed_is_refused_by_name(telling, order, kubernetes_first):
    play(telling(OUTSIDE), order, KubeWorld(kubernetes_first=kubernetes_first))


NEAR = service("near", "10.96.0.60", local=True, external=["192.0.2.3", "10.1.0.9", "172.16.0.9"])
NEAR_RANGES = configuration(service_external_ips=nets("192.0.2.0/24", "192.0.2.0/28", "10.0.0.0/8"))
NEAR_RANGES_TOO = configuration(
    service_external_ips=nets("192.0.2.0/24", "192.0.2.0/28", "10.0.0.0/8", "172.16.0.0/12")
)
ALONE = {"192.0.2.0/24", "192.0.2.0/28", "10.0.0.0/8", "192.0.2.3/32", "10.1.0.9/32"}
FAR = node("a", "198.18.0.1/24")
OUT_OF_RANGE = (
    "Service default/near: external IP 172.16.0.9 is not advertised: it lies outside serviceExternalIPs of "
    "BGPConfiguration default (192.0.2.0/24, 192.0.2.0/28, 10.0.0.0/8). Add its range there, or take the "
    "address off the service"
)
IN_THE_POOL = (
    "Service default/near: external IP 10.1.0.9 is not advertised: "
    "it lies in the pods' IP pool 10.1.0.0/16, which is more specific than the service range"
)
NEWCOMERS = (
    scene([FAR, NEAR_RANGES], NEAR, endpoints("near", here=1), originated=ALONE, refusals=[OUT_OF_RANGE]),
    scene(
        [FAR, NEAR_RANGES, node("c", "192.0.2.3/24")],
        NEAR,
        endpoints("near", here=1),
        originated=ALONE - {"192.0.2.0/28", "192.0.2.3/32"},
        refusals=[
            (
                "BGPConfiguration default: service range 192.0.2.0/28 is not advertised: "
                "it would take the traffic of node c's own address 192.0.2.3"
            ),
            OUT_OF_RANGE,
            (
                "Service default/near: external IP 192.0.2.3 is not advertised: "
                "it would take the traffic of node c's own address 192.0.2.3"
            ),
        ],
    ),
    scene(
        [FAR, NEAR_RANGES, PODS],
        NEAR,
        endpoints("near", here=1),
        originated=ALONE - {"10.1.0.9/32"},
        refusals=[IN_THE_POOL, OUT_OF_RANGE],
    ),
    scene(
        [FAR, NEAR_RANGES_TOO],
        NEAR,
        endpoints("near", here=1),
        originated={*ALONE, "172.16.0.0/12", "172.16.0.9/32"},
    ),
)


@both_ways
@every_telling
def test_nodes_and_pools_that_come_and_go_take_service_routes_along(telling, order, kubernetes_first):
    play(telling(NEWCOMERS), order, KubeWorld(kubernetes_first=kubernetes_first))


ANYWHERE = configuration(service_external_ips=nets("0.0.0.0/0"))


def test_the_whole_address_space_is_a_permission_and_not_announced() -> None:
    sentence = (
        "BGPConfiguration default: service range 0.0.0.0/0 is not advertised: "
        "it is the whole address space. List the ranges that services have"
    )
    only = scene(
        [A, B, PODS, ANYWHERE],
        WEB,
        endpoints("web", here=1),
        originated={"203.0.113.5/32"},
        refusals=[sentence],
    )
    play([Act((only,))], lambda batch: [batch], KubeWorld())


def test_of_many_bad_services_some_are_named_and_the_others_counted() -> None:
    many = [service(f"s{i:03}", f"10.96.1.{i}", external=["203.0.114.1"]) for i in range(60)]
    broken = [
        (f"kube/services/default/b{i}", Malformed(f"Service default/b{i:03}", "it is bad")) for i in range(60)
    ]
    world = KubeWorld()
    play([Act((scene(CLUSTER, many, broken),), checked=False)], lambda batch: [batch], world)
    refusals = [str(r) for r in world.driver.graph.desired.refusals]  # type: ignore[union-attr]
    assert len(refusals) == 102
    assert "Kubernetes: 10 more addresses of services are not advertised, for reasons like these" in refusals
    assert "Kubernetes: 10 more objects are left out, for reasons like these" in refusals


# -- what the other nodes announce --------------------------------------------------------------------

B4, TOR = "192.0.2.2", "192.0.2.254"
HEARD = (
    scene(
        CLUSTER,
        block_on("b"),
        bgp_peer("tor", TOR, 65000),
        told={
            B4: {"10.1.0.0/26": B4, "10.96.0.10/32": B4, "203.0.113.5/32": B4},
            TOR: {"203.0.113.6/32": path(TOR, 65000), "0.0.0.0/0": path(TOR, 65000)},
        },
        originated=WHOLE,
        # Neither what a node announces of services nor what a stranger does gets into the kernel.
        fib={"10.1.0.0/26": f"via {B4}", "0.0.0.0/0": f"via {TOR}"},
    ),
    scene(
        CLUSTER,
        block_on("b"),
        bgp_peer("tor", TOR, 65000),
        WEB,
        endpoints("web", here=1),
        told={B4: {"10.96.0.10/32": B4}},
        originated=WHOLE | WEB_ALONE,
        fib={},
    ),
)


@both_ways
@every_telling
def test_service_routes_of_others_are_known_but_never_installed(telling, order, kubernetes_first):
    play(telling(HEARD), order, KubeWorld(kubernetes_first=kubernetes_first))


# -- any history --------------------------------------------------------------------------------------

ADDRESSES = ("203.0.113.5", "203.0.113.6", "198.51.100.5", "198.51.99.9", "10.1.0.7", "192.0.2.2", "8.8.8.8")
some = st.lists(st.sampled_from(ADDRESSES), max_size=3, unique=True)
NEWS: dict[str, st.SearchStrategy[Any]] = {
    **{
        f"kube/services/default/{name}": st.none()
        | st.builds(
            service,
            st.just(name),
            st.sampled_from(["10.96.0.1", "10.96.0.2"]),
            local=st.booleans(),
            external=some,
            balancer=some,
        )
        for name in ("one", "two", "three")
    },
    **{
        f"kube/endpointslices/default/{name}-4-{part}": st.none()
        | st.builds(
            endpoints, st.just(name), st.integers(0, 1), st.booleans(), st.just(4), part=st.just(part)
        )
        for name in ("one", "two", "three")
        for part in ("1", "2")
    },
    "kube/nodes/a": st.sampled_from([None, kubernetes_node("a"), kubernetes_node("a", **EXCLUDED)]),
    key_of(A): st.sampled_from([None, A, FAR, LABELLED]),
    key_of(B): st.sampled_from([None, B]),
    key_of(PODS): st.sampled_from([None, PODS, replace(PODS, disable_bgp_export=True)]),
    key_of(configuration()): st.sampled_from(
        [
            None,
            configuration(**RANGES),
            SINGLY,
            NEAR_RANGES,
            ANYWHERE,
        ]
    ),
}


def ends_as(world: KubeWorld) -> Any:
    desired = world.driver.graph.desired
    assert desired is not None
    return (replace(desired, revision=0), world.driver.adverts(), world.driver.fib())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(sorted(NEWS)).flatmap(lambda key: st.tuples(st.just(key), NEWS[key])), max_size=40
    )
)
def test_whatever_happened_before_only_the_present_counts(history: list[tuple[str, Any]]) -> None:
    told, fresh = KubeWorld(), KubeWorld(kubernetes_first=False)
    told.tell([Change(key_of(value), value, 1) for value in (A, B, PODS, configuration(**RANGES))])
    for key, value in history:
        told.tell([Change(key, value, 1)])
    present = {key_of(value): value for value in (A, B, PODS, configuration(**RANGES))} | dict(history)
    fresh.tell([Change(key, value, 1) for key, value in present.items()])
    assert ends_as(told) == ends_as(fresh)
