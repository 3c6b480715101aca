"""Services in the graph: what waits for Kubernetes, what a change costs, what is explained."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from felix_like.calc import graph as graph_module
from felix_like.calc.kubernetes import PATIENCE
from felix_like.calc.services import Services
from felix_like.calc.snapshot import Change
from felix_like.model.bgp import ClusterInformation, PrefixAdvertisement
from felix_like.model.service import EXCLUDE_LABEL
from tests.support.hands import Hands, calculation
from tests.support.rib_world import Driver, ip, net, path, session
from tests.support.stories import (
    bgp_peer,
    block_on,
    configuration,
    endpoints,
    key_of,
    kubernetes_node,
    node,
    pool,
    service,
)

A, B, C = (node(name, f"192.0.2.{i}/24") for i, name in enumerate("abc", 1))
PODS = pool("pods", "10.1.0.0/16")
MINE = "10.1.0.0/26"
CLUSTER_IPS, BALANCERS = net("10.96.0.0/12"), net("198.51.100.0/24")
RANGES = configuration(service_cluster_ips=(CLUSTER_IPS,), service_load_balancer_ips=(BALANCERS,))
WEB = service("web", "10.96.0.10", local=True)
WEB_ALONE = "10.96.0.10/32"
B4, TOR = "192.0.2.2", "192.0.2.254"
STORE = (A, B, C, PODS, RANGES, *block_on("a", MINE))


def told(*values: Any, gone: tuple[Any, ...] = ()) -> list[Change]:
    return [*(Change(key_of(v), v, 1) for v in values), *(Change(key_of(v), None, 2) for v in gone)]


def started(*values: Any, kubernetes: bool = True, **settings: Any) -> Driver:
    """A node that has read the datastore at 1000 s, and nothing of Kubernetes."""
    world = Driver(kubernetes=kubernetes, **settings)
    world.graph.tick(1000.0)
    world.graph.on_datastore(told(*STORE, *values), True)
    return world.settle()


def originated(world: Driver) -> set[str]:
    desired = world.graph.desired
    assert desired is not None
    return {str(prefix) for prefix in desired.originated}


RANGES_ALONE = {str(CLUSTER_IPS), str(BALANCERS)}

# -- what waits -----------------------------------------------------------------------------------------


def test_until_kubernetes_is_heard_pods_are_announced_and_nothing_is_said_of_services() -> None:
    world = started()
    assert originated(world) == {MINE}
    assert world.fib() == {MINE: "blackhole"}
    assert world.outcome.authoritative
    assert world.outcome.holding == "services are not known: Kubernetes has not been heard"
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), True)
    assert originated(world.settle()) == {MINE, *RANGES_ALONE, WEB_ALONE}
    assert world.outcome.holding == ""


def test_the_wait_ends_by_the_clock() -> None:
    world = started()
    world.graph.on_kubernetes_stale("connection refused")
    assert world.settle().outcome.holding
    assert world.graph.tick(1000.0) == 1000.0 + PATIENCE
    assert world.graph.tick(1000.0 + PATIENCE) == 1000.0 + PATIENCE  # something to take
    world.settle()
    assert originated(world) == {MINE, *RANGES_ALONE}
    assert world.outcome.holding == ""
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), True)
    assert WEB_ALONE in originated(world.settle())


def test_the_end_of_the_wait_needs_no_other_reason_to_wake() -> None:
    world = Driver(kubernetes=True)
    world.graph.tick(1000.0)
    world.graph.on_datastore(told(A, PODS, RANGES), True)
    assert originated(world.settle()) == set()
    assert world.graph.tick(1000.0) == 1000.0 + PATIENCE
    assert world.graph.tick(1000.0 + PATIENCE) == 1000.0 + PATIENCE
    assert originated(world.settle()) == RANGES_ALONE
    assert world.graph.tick(1001.0 + PATIENCE) is None


def test_the_wait_begins_when_the_datastore_was_read() -> None:
    """Before it has named a range nobody asks Kubernetes, and it may be away for longer than the wait."""
    world = Driver(kubernetes=True)
    world.graph.tick(1000.0)
    world.graph.on_datastore_stale("no endpoint answers")
    world.graph.tick(1000.0 + PATIENCE)
    world.graph.on_datastore(told(*STORE), True)
    assert originated(world.settle()) == {MINE}
    assert world.outcome.holding
    assert world.graph.tick(2000.0) == 2000.0 + PATIENCE
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), True)
    assert originated(world.settle()) == {MINE, *RANGES_ALONE, WEB_ALONE}
    assert world.outcome.holding == ""


def test_a_copy_that_counts_goes_on_counting_when_kubernetes_answers_again() -> None:
    world = started()
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), False)
    world.graph.on_kubernetes_stale("connection refused")
    assert WEB_ALONE in originated(world.settle())
    world.graph.on_kubernetes_stale(None)
    assert WEB_ALONE in originated(world.settle())
    assert world.outcome.adverts == {}


def test_the_last_good_copy_counts_once_kubernetes_does_not_answer() -> None:
    world = started()
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), False)
    assert originated(world.settle()) == {MINE}, "the truth may be a moment away"
    world.graph.on_kubernetes_stale("connection refused")
    assert originated(world.settle()) == {MINE, *RANGES_ALONE, WEB_ALONE}
    assert world.outcome.holding == ""
    world.graph.on_kubernetes(told(endpoints("web", elsewhere=True)), True)
    assert originated(world.settle()) == {MINE, *RANGES_ALONE}


def test_a_copy_that_is_found_after_kubernetes_did_not_answer_counts_as_well() -> None:
    world = started()
    world.graph.on_kubernetes_stale("connection refused")
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), False)
    assert originated(world.settle()) == {MINE, *RANGES_ALONE, WEB_ALONE}
    assert world.outcome.holding == ""


def test_what_kubernetes_said_stays_while_it_is_away() -> None:
    world = started()
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), True)
    world.settle()
    world.graph.on_kubernetes_stale("connection refused")
    world.graph.tick(5000.0)
    assert world.settle().outcome.adverts == {}
    assert WEB_ALONE in originated(world)
    assert "Kubernetes cannot be followed: connection refused" in world.graph.explain(net(WEB_ALONE))


def test_where_there_is_no_kubernetes_nothing_waits() -> None:
    world = started(kubernetes=False)
    assert originated(world) == {MINE, *RANGES_ALONE}
    assert world.outcome.holding == ""
    assert "single services are not known: this agent has no access to Kubernetes" in world.graph.explain(
        net(WEB_ALONE)
    )


def test_where_no_service_is_advertised_nothing_waits() -> None:
    world = Driver(kubernetes=True)
    world.graph.tick(1000.0)
    world.graph.on_datastore(told(A, B, PODS), True)
    assert world.settle().outcome.holding == ""


def test_kubernetes_first_is_no_reason_to_act_before_the_datastore() -> None:
    world = Driver(kubernetes=True)
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), True)
    assert world.settle().graph.desired is None
    world.graph.on_datastore(told(*STORE), True)
    assert originated(world.settle()) == {MINE, *RANGES_ALONE, WEB_ALONE}


def test_a_locked_datastore_holds_the_rules_and_not_the_services() -> None:
    world = started()
    world.graph.on_kubernetes(told(WEB), True)
    world.graph.on_datastore(told(ClusterInformation(datastore_ready=False), configuration()), True)
    world.graph.on_kubernetes(told(endpoints("web", here=1)), True)
    assert originated(world.settle()) == {MINE, *RANGES_ALONE, WEB_ALONE}
    assert world.graph.desired is not None
    assert world.graph.desired.frozen
    world.graph.on_datastore(told(ClusterInformation()), True)
    assert originated(world.settle()) == {MINE}


async def test_the_speaker_drops_nothing_while_services_are_not_known() -> None:
    hands = Hands()
    made = calculation(hands, kubernetes=True)
    made.graph.tick(1000.0)
    made.graph.on_datastore(told(*STORE), True)
    made.speaker_replayed()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert hands.last("advertise") == {B4: [MINE], "192.0.2.3": [MINE]}, "pods wait for nobody"
    assert "full_sync_done" not in hands.names()
    made.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), True)
    made.told()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert WEB_ALONE in hands.last("advertise")[B4]
    assert hands.names()[-2:] == ["advertise", "full_sync_done"]


# -- what it costs --------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often the datastore's answer was calculated, and how many services were decided."""
    counts = {"desire": 0, "services": 0}
    desire, answer = graph_module.desire, Services._answer

    def count_desire(*args: Any) -> Any:
        counts["desire"] += 1
        return desire(*args)

    def count_answer(self: Services, name: Any) -> Any:
        counts["services"] += 1
        return answer(self, name)

    monkeypatch.setattr(graph_module, "desire", count_desire)
    monkeypatch.setattr(Services, "_answer", count_answer)
    return counts


def test_a_change_costs_its_own_service_and_nothing_else(counted: dict[str, int]) -> None:
    world = started()
    services = [service(f"s{i}", f"10.96.1.{i}", local=True) for i in range(50)]
    world.graph.on_kubernetes(told(*services, endpoints("s7", elsewhere=True)), True)
    world.settle()
    before = world.graph.desired
    counted.update(desire=0, services=0)

    world.graph.on_kubernetes(told(endpoints("s7", elsewhere=True)), True)  # the same once more
    assert (counted, world.graph.desired is before) == ({"desire": 0, "services": 0}, True)

    world.graph.on_kubernetes(told(endpoints("s7")), True)  # its last endpoint, elsewhere, is gone
    assert (counted, world.graph.desired is before) == ({"desire": 0, "services": 1}, True)
    assert world.graph.tick(1001.0) != 1001.0, "nothing to take"

    world.graph.on_kubernetes(told(kubernetes_node("b", "10.244.2.0/24", team="red")), True)
    assert (counted, world.graph.desired is before) == ({"desire": 0, "services": 1}, True)

    world.graph.on_kubernetes(told(endpoints("s7", here=1)), True)
    assert counted == {"desire": 0, "services": 2}
    outcome = world.settle().outcome
    assert outcome.fib == {}
    assert {str(peer): list(map(str, table)) for peer, table in outcome.adverts.items()} == {
        B4: ["10.96.1.7/32"],
        "192.0.2.3": ["10.96.1.7/32"],
    }
    assert world.graph.tick(1002.0) != 1002.0


def test_one_endpoint_more_or_less_is_nothing_new(counted: dict[str, int]) -> None:
    world = started()
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), True)
    world.settle()
    before = world.graph.desired
    world.graph.on_kubernetes(told(endpoints("web", here=3, elsewhere=True)), True)
    assert world.graph.desired is before
    assert world.settle().outcome.adverts == {}


# -- attributes and their way through the cluster -------------------------------------------------------


def test_communities_of_prefix_advertisements_go_with_service_routes() -> None:
    tagged = configuration(
        service_cluster_ips=(CLUSTER_IPS,),
        prefix_advertisements=(PrefixAdvertisement(cidr=net("10.96.0.0/16"), communities=("64512:7",)),),
    )
    world = started(tagged)
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), True)
    desired = world.settle().graph.desired
    assert desired is not None
    assert desired.originated[net(WEB_ALONE)].communities == ("64512:7",)
    assert desired.originated[CLUSTER_IPS].communities == ()
    assert str(desired.originated[net(WEB_ALONE)].next_hop) == "192.0.2.1"


def test_other_communities_and_another_address_reach_routes_that_are_advertised_already() -> None:
    world = started()
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), True)
    world.settle()
    tagged = configuration(
        service_cluster_ips=(CLUSTER_IPS,),
        service_load_balancer_ips=(BALANCERS,),
        prefix_advertisements=(PrefixAdvertisement(cidr=net(WEB_ALONE), communities=("64512:8",)),),
    )
    world.graph.on_datastore(told(tagged, node("a", "192.0.2.11/24")), True)
    world.settle()
    sent = {str(prefix): attributes for prefix, attributes in world.told[ip(B4)].items()}
    assert {p: (str(a.next_hop), a.communities) for p, a in sent.items() if p != MINE} == {
        WEB_ALONE: ("192.0.2.11", ("64512:8",)),
        str(CLUSTER_IPS): ("192.0.2.11", ()),
        str(BALANCERS): ("192.0.2.11", ()),
    }


def test_a_pool_that_is_not_exported_keeps_its_services_at_home() -> None:
    balancers = pool("balancers", "198.51.100.0/24", allowed_uses=("LoadBalancer",), disable_bgp_export=True)
    world = started(balancers)
    world.graph.on_kubernetes(
        told(service("web", "10.96.0.10", local=True, balancer=["198.51.100.5"]), endpoints("web", here=1)),
        True,
    )
    assert originated(world.settle()) == {MINE, str(CLUSTER_IPS), WEB_ALONE}
    assert [str(refusal) for refusal in world.graph.refusals()] == [
        (
            "BGPConfiguration default: service range 198.51.100.0/24 is not advertised: "
            "IPPool balancers has disableBGPExport"
        ),
        (
            "Service default/web: load balancer IP 198.51.100.5 is not advertised: "
            "IPPool balancers has disableBGPExport"
        ),
    ]


def test_calico_advertise_cluster_ips_stands_in_place_of_the_configuration() -> None:
    world = started(cluster_ips=(net("10.100.0.0/16"),))
    world.graph.on_kubernetes(
        told(WEB, service("x", "10.100.0.1", local=True), *(endpoints(n, here=1) for n in ("web", "x"))), True
    )
    assert originated(world.settle()) == {MINE, "10.100.0.0/16", "10.100.0.1/32", str(BALANCERS)}


def test_the_label_is_looked_for_at_this_node_s_name_in_kubernetes() -> None:
    world = started(kubernetes_name="worker-1")
    world.graph.on_kubernetes(told(kubernetes_node("a", **{EXCLUDE_LABEL: "true"})), True)
    assert originated(world.settle()) == {MINE, *RANGES_ALONE}
    world.graph.on_kubernetes(told(kubernetes_node("worker-1", **{EXCLUDE_LABEL: "true"})), True)
    assert originated(world.settle()) == {MINE}


@pytest.mark.parametrize(
    ("peer", "passed_on"),
    [
        ({}, set()),  # with this node as next hop, which could not deliver
        ({"next_hop_mode": "Keep"}, {"198.51.100.5/32"}),
        ({"next_hop_mode": "Self"}, set()),
    ],
)
def test_a_service_of_another_node_is_never_passed_on_with_this_node_as_next_hop(
    peer: dict[str, Any], passed_on: set[str]
) -> None:
    world = started(bgp_peer("tor", TOR, 65000, **peer), *block_on("b", "10.1.0.64/26"), kubernetes=False)
    world.graph.on_peer_up(ip(B4), session(B4), 1000.0)
    world.graph.on_learned(ip(B4), path(B4), [net("198.51.100.5/32"), net("10.1.0.64/26")])
    world.settle()
    assert world.adverts()[TOR] == {MINE, *RANGES_ALONE, "10.1.0.64/26"} | passed_on
    explained = world.graph.explain(net("198.51.100.5/32"))
    assert "route: none, it is inside a service range, which every node serves itself" in explained
    if not passed_on:
        assert (
            "not advertised to tor: a service of other nodes is passed on with its own next hop only, "
            "never with this node"
        ) in explained


def test_a_reflector_passes_service_routes_on_as_they_are() -> None:
    reflector = node("a", "192.0.2.1/24", rr="1.0.0.1")
    world = Driver(kubernetes=False)
    world.graph.tick(1000.0)
    clients = bgp_peer("clients", peer_selector="all()", node="a")
    world.graph.on_datastore(told(reflector, B, C, PODS, RANGES, clients), True)
    world.graph.on_peer_up(ip(B4), session(B4), 1000.0)
    world.graph.on_learned(ip(B4), path(B4), [net("198.51.100.5/32")])
    world.settle()
    reflected = world.told[ip("192.0.2.3")][net("198.51.100.5/32")]
    assert (str(reflected.next_hop), reflected.originator_id) == (B4, B4)


def test_a_range_of_load_balancers_that_is_a_pool_as_well_is_routed_as_a_range() -> None:
    balancers = pool("balancers", str(BALANCERS), allowed_uses=("LoadBalancer",))
    world = started(balancers, kubernetes=False)
    world.graph.on_peer_up(ip(B4), session(B4), 1000.0)
    world.graph.on_learned(ip(B4), path(B4), [net("198.51.100.5/32")])
    assert world.settle().fib() == {MINE: "blackhole"}
    assert world.verdicts() == {f"{B4} 198.51.100.5/32": "valid"}


def test_a_pool_more_specific_than_a_service_range_is_routed_as_a_pool() -> None:
    """A range as wide as 10.0.0.0/8 must not take the pods' routes out of the kernel."""
    world = started(
        configuration(service_cluster_ips=(net("10.0.0.0/8"),)),
        *block_on("b", "10.1.0.64/26"),
        kubernetes=False,
    )
    world.graph.on_peer_up(ip(B4), session(B4), 1000.0)
    world.graph.on_learned(ip(B4), path(B4), [net("10.1.0.64/26"), net("10.96.0.10/32")])
    assert world.settle().fib() == {MINE: "blackhole", "10.1.0.64/26": f"via {B4}"}


# -- what is explained ----------------------------------------------------------------------------------


def explained(world: Driver, prefix: str) -> list[str]:
    """The lines that speak of services."""
    words = ("service", "cluster IP", "external IP", "load balancer IP")
    return [line for line in world.graph.explain(net(prefix))[1:] if line.startswith(words)]


def test_an_address_is_explained_by_its_services() -> None:
    world = started()
    assert explained(world, "10.96.0.10/32") == [
        "service: Kubernetes has not been heard yet; what was advertised before stays so"
    ]
    shared = service("api", "10.96.0.11", balancer=["198.51.100.5"])
    wish = service("wish", "10.96.0.12", requested_ip=ip("198.51.100.6"))
    slices = [endpoints("web", here=2, elsewhere=True), endpoints("api", elsewhere=True)]
    world.graph.on_kubernetes(told(WEB, shared, wish, *slices), True)
    world.settle()
    (line,) = explained(world, WEB_ALONE)
    assert line == (
        "cluster IP of service default/web, externalTrafficPolicy Local, 2 ready endpoints are here, some "
        "elsewhere: advertised from this node: externalTrafficPolicy is Local, and 2 ready endpoints are on "
        "this node"
    )
    (line,) = explained(world, "198.51.100.5/32")
    assert line == (
        "load balancer IP of service default/api, externalTrafficPolicy Cluster, no ready endpoints are here,"
        " some elsewhere: not advertised on its own: externalTrafficPolicy is Cluster, and every node "
        "advertises its range 198.51.100.0/24"
    )
    (line,) = explained(world, "198.51.100.6/32")
    assert line == (
        "service default/wish asks for it (spec.loadBalancerIP), but has not been given it "
        "(status.loadBalancer): not advertised"
    )
    assert explained(world, "10.96.9.9/32") == ["service: none is known that has this address"]
    assert explained(world, "10.96.0.0/12") == ["service range: advertised by every node"]
    assert explained(world, MINE) == []
    world.graph.on_kubernetes(told(endpoints("web", elsewhere=True)), True)
    world.settle()
    assert "none of its endpoints on this node is ready" in explained(world, WEB_ALONE)[0]
    world.graph.on_kubernetes(told(kubernetes_node("a", **{EXCLUDE_LABEL: "true"})), True)
    world.settle()
    label = f'this node has the label {EXCLUDE_LABEL}: "true", so it advertises no service'
    assert explained(world, WEB_ALONE)[0].endswith(f"not advertised on its own: {label}")
    assert explained(world, "10.96.0.0/12") == [f"service range: not advertised: {label}"]


def test_a_name_that_kubernetes_does_not_know_is_said() -> None:
    world = started()
    world.graph.on_kubernetes(told(WEB, endpoints("web", elsewhere=True)), True)
    assert any("Kubernetes shows no Node a:" in line for line in world.graph.explain(net(WEB_ALONE)))
    assert not any("shows no Node" in line for line in world.graph.explain(net(MINE)))
    world.graph.on_kubernetes(told(kubernetes_node("a")), True)
    assert not any("shows no Node" in line for line in world.graph.explain(net(WEB_ALONE)))


def test_an_address_that_is_advertised_as_one_thing_is_not_refused_as_another() -> None:
    world = started(
        configuration(service_load_balancer_ips=(BALANCERS,), service_external_ips=(net("203.0.113.0/24"),))
    )
    both = service("web", "10.96.0.10", local=True, external=["198.51.100.5"], balancer=["198.51.100.5"])
    world.graph.on_kubernetes(told(both, endpoints("web", here=1)), True)
    assert "198.51.100.5/32" in originated(world.settle())
    assert world.graph.refusals() == ()
    world.graph.on_kubernetes(told(service("web", "10.96.0.10", external=["198.51.100.5"])), True)
    assert "198.51.100.5/32" not in originated(world.settle())
    assert len(world.graph.refusals()) == 1


def test_a_service_that_is_gone_leaves_nothing() -> None:
    world = started()
    world.graph.on_kubernetes(told(WEB, endpoints("web", here=1)), True)
    world.settle()
    world.graph.on_kubernetes(told(gone=(WEB, endpoints("web", here=1))), True)
    assert originated(world.settle()) == {MINE, *RANGES_ALONE}
    assert explained(world, WEB_ALONE) == ["service: none is known that has this address"]
    world.graph.on_kubernetes(told(WEB), True)  # without its slice
    assert originated(world.settle()) == {MINE, *RANGES_ALONE}
