"""Host-local IPAM: podCIDRs stand in place of blocks, for adverts, blackholes and others' announcements."""

from __future__ import annotations

from typing import Any

import pytest

from felix_like.calc.snapshot import Change
from felix_like.model.bgp import ClusterInformation
from felix_like.model.block import AffinityState
from tests.support.kube_world import KubeWorld
from tests.support.rib_world import Driver, ip, net, path, session
from tests.support.stories import (
    affinity,
    block_on,
    every_telling,
    key_of,
    kubernetes_node,
    node,
    play,
    pool,
    scene,
)

B4 = "192.0.2.2"
A, B = node("a", "192.0.2.1/24", "fd00::1/64"), node("b", f"{B4}/24")
PODS, PODS6 = pool("pods", "10.244.0.0/16"), pool("pods6", "fd00:244::/48")
CLUSTER = (A, B, PODS, PODS6)
ON_A, ON_B = kubernetes_node("a", "10.244.1.0/24"), kubernetes_node("b", "10.244.2.0/24")
NONE = (
    "Node a: USE_POD_CIDR is set, but neither its Node in Kubernetes (spec.podCIDRs) nor its Calico Node "
    "(status.podCIDRs) has a podCIDR: no pod of it is announced. See that kube-controller-manager runs with "
    "--allocate-node-cidrs, and that CALICO_K8S_NODE_REF is the Kubernetes Node's name"
)
OTHERS = {B4: {"10.244.2.0/24": B4, "10.244.2.7/32": B4, "10.244.1.0/25": B4, "10.244.9.0/24": B4}}

both_ways = pytest.mark.parametrize("kubernetes_first", [True, False], ids=["k8s first", "store first"])


def status(name: str, *cidrs: str, **more: Any) -> Any:
    """A Calico Node with status.podCIDRs."""
    addresses = {"a": ("192.0.2.1/24", "fd00::1/64"), "b": (f"{B4}/24", None)}[name]
    return node(name, *addresses, pod_cidrs=tuple(map(net, cidrs)), **more)


POD_CIDRS = (
    scene(
        CLUSTER,
        [ON_A, ON_B],
        told=OTHERS,
        originated={"10.244.1.0/24"},
        blackholes={"10.244.1.0/24"},
        fib={"10.244.1.0/24": "blackhole", "10.244.2.0/24": f"via {B4}", "10.244.2.7/32": f"via {B4}"},
    ),
    # IPAM's blocks, left over from other days, count for nothing.
    scene(
        CLUSTER,
        [ON_A, ON_B],
        block_on("a", "10.244.3.0/26"),
        affinity("a", "10.244.3.64/26", AffinityState.PENDING),
        block_on("b", "10.244.1.0/26"),
        told=OTHERS,
        originated={"10.244.1.0/24"},
        blackholes={"10.244.1.0/24"},
        fib={"10.244.1.0/24": "blackhole", "10.244.2.0/24": f"via {B4}", "10.244.2.7/32": f"via {B4}"},
    ),
    # Changed, of both families, and wider than any block of IPAM's may be.
    scene(
        CLUSTER,
        [kubernetes_node("a", "10.244.16.0/20", "fd00:244:0:1::/64"), ON_B],
        originated={"10.244.16.0/20", "fd00:244:0:1::/64"},
        blackholes={"10.244.16.0/20", "fd00:244:0:1::/64"},
    ),
    # Kubernetes deletes the other node: its podCIDR may be anybody's.
    scene(
        CLUSTER,
        [ON_A],
        told=OTHERS,
        originated={"10.244.1.0/24"},
        blackholes={"10.244.1.0/24"},
        fib={"10.244.1.0/24": "blackhole"},
    ),
    # A podCIDR that no pool covers, and one of another node inside ours.
    scene(
        CLUSTER,
        [kubernetes_node("a", "10.99.1.0/24", "10.244.1.0/24"), kubernetes_node("b", "10.244.1.128/25")],
        originated={"10.244.1.0/24"},
        blackholes={"10.244.1.0/24"},
        refusals=[
            ("podCIDR 10.244.1.0/24: it overlaps podCIDR 10.244.1.128/25 of node b: packets may go to the "
            "wrong one. Two nodes must never share addresses; delete and recreate one of the Nodes"),
            ("podCIDR 10.99.1.0/24: it lies in no IP pool, so its pods are not announced. Create an IPPool "
            "that covers the cluster's pod network (kube-controller-manager's --cluster-cidr)"),
        ],
    ),
    scene(CLUSTER, [ON_B], refusals=[NONE]),
    # A node of Kubernetes' whose Node is gone there has no podCIDR, whatever its status still says.
    scene(
        [status("a", "10.244.1.0/24", kubernetes_name="a"), B, PODS, PODS6],
        [ON_B],
        refusals=[NONE],
    ),
    # A node that is none of Kubernetes' may have it in its status.
    scene(
        [status("a", "10.244.1.0/24"), B, PODS, PODS6],
        [ON_B],
        originated={"10.244.1.0/24"},
        blackholes={"10.244.1.0/24"},
    ),
    # What Kubernetes says wins over the status, by the name that the Calico Node has there.
    scene(
        [status("a", "10.244.7.0/24", kubernetes_name="worker-1"), B, PODS, PODS6],
        [kubernetes_node("worker-1", "10.244.1.0/24"), ON_B],
        originated={"10.244.1.0/24"},
        blackholes={"10.244.1.0/24"},
    ),
)  # fmt: skip


@both_ways
@every_telling
def test_pod_cidrs_stand_in_place_of_blocks(telling, order, kubernetes_first):
    play(telling(POD_CIDRS), order, KubeWorld(kubernetes_first=kubernetes_first, use_pod_cidr=True))


def told(*values: Any) -> list[Change]:
    return [Change(key_of(value), value, 1) for value in values]


def verdict(world: Driver, prefix: str) -> str:
    ((first, *_),) = [[view.path.origin for view in world.graph.paths(net(prefix))]]
    return f"{first.validity}: {first.reason}"


def test_what_others_announce_is_judged_by_their_pod_cidrs() -> None:
    world = Driver(kubernetes=True, use_pod_cidr=True)
    world.graph.on_kubernetes(told(ON_A, ON_B), True)
    world.graph.on_datastore(told(*CLUSTER), True)
    world.graph.on_peer_up(ip(B4), session(B4), 0.0)
    world.graph.on_learned(ip(B4), path(B4), [net(p) for p in OTHERS[B4]])
    world.settle()
    assert verdict(world, "10.244.2.0/24") == "valid: b holds podCIDR 10.244.2.0/24"
    assert verdict(world, "10.244.2.7/32") == "valid: b holds podCIDR 10.244.2.0/24"
    assert verdict(world, "10.244.1.0/25") == ("invalid: a holds podCIDR 10.244.1.0/24, but b announces it")
    # Wider than a block, but of a size a podCIDR may have: it waits, and is judged when its node is known.
    assert verdict(world, "10.244.9.0/24") == "unknown: no block is known for it in IPPool pods"
    world.graph.on_kubernetes(told(kubernetes_node("b", "10.244.2.0/24", "10.244.9.0/24")), True)
    world.settle()
    assert verdict(world, "10.244.9.0/24") == "valid: b holds podCIDR 10.244.9.0/24"
    assert "podCIDR 10.244.2.0/24 belongs to b" in world.graph.explain(net("10.244.2.0/24"))[0]


def test_before_kubernetes_is_heard_nothing_goes_that_was_there_before_our_start() -> None:
    """The others' podCIDRs are not known, so neither is which inherited routes are right."""
    world = Driver(kubernetes=True, use_pod_cidr=True)
    world.graph.tick(1000.0)
    world.graph.on_datastore(told(*CLUSTER), True)
    world.graph.on_peer_up(ip(B4), session(B4), 1000.0)
    world.graph.on_learned(ip(B4), path(B4), [net("10.244.2.0/24")])
    world.graph.tick(9000.0)
    outcome = world.settle().outcome
    assert not outcome.authoritative
    assert outcome.holding == "the nodes' podCIDRs are not known: Kubernetes has not been heard"
    assert not any(outcome.holding in str(refusal) for refusal in world.graph.refusals()), (
        "who follows Kubernetes says that, after a moment"
    )
    world.graph.on_kubernetes(told(ON_A, ON_B), True)
    world.settle()
    assert world.outcome.authoritative
    assert world.outcome.holding == ""
    assert world.fib() == {"10.244.1.0/24": "blackhole", "10.244.2.0/24": f"via {B4}"}


def test_until_then_the_calico_nodes_own_word_serves() -> None:
    world = Driver(kubernetes=True, use_pod_cidr=True)
    world.graph.on_datastore(told(status("a", "10.244.1.0/24"), status("b", "10.244.2.0/24"), PODS), True)
    world.graph.on_peer_up(ip(B4), session(B4), 0.0)
    world.graph.on_learned(ip(B4), path(B4), [net("10.244.2.0/24")])
    assert world.settle().fib() == {"10.244.1.0/24": "blackhole", "10.244.2.0/24": f"via {B4}"}
    world.graph.on_kubernetes(told(ON_A), True)
    assert world.settle().fib() == {"10.244.1.0/24": "blackhole", "10.244.2.0/24": f"via {B4}"}
    world.graph.on_datastore(told(status("b", "10.244.2.0/24", kubernetes_name="b")), True)
    assert world.settle().fib() == {"10.244.1.0/24": "blackhole"}, "Kubernetes has no such node"


@pytest.mark.parametrize("away", [True, False], ids=["does not answer", "is in sync"])
def test_the_last_good_copy_counts_once_kubernetes_does_not_answer_or_confirms_it(away: bool) -> None:
    world = Driver(kubernetes=True, use_pod_cidr=True)
    world.graph.on_datastore(told(*CLUSTER), True)
    world.graph.on_kubernetes(told(ON_A), False)
    assert world.settle().fib() == {}
    assert not world.outcome.authoritative
    if away:
        world.graph.on_kubernetes_stale("connection refused")
    else:
        world.graph.on_kubernetes((), True)
    assert world.settle().fib() == {"10.244.1.0/24": "blackhole"}
    assert world.outcome.authoritative


def test_podcidrs_that_come_while_the_datastore_is_locked_do_not_end_the_wait_without_them() -> None:
    """The agent starts with its copy of the datastore, finds it locked, and only then hears Kubernetes."""
    world = Driver(kubernetes=True, use_pod_cidr=True)
    world.graph.on_datastore(told(*CLUSTER), False)
    world.graph.on_datastore(told(ClusterInformation(datastore_ready=False)), True)
    world.graph.on_kubernetes(told(ON_A, ON_B), True)
    assert world.settle().fib() == {}
    held = "the nodes' podCIDRs are not acted on before the datastore is unlocked"
    assert world.outcome.holding == held
    assert f"Node a: {held}" in map(str, world.graph.refusals())
    world.graph.on_datastore(told(ClusterInformation()), True)
    assert world.settle().fib() == {"10.244.1.0/24": "blackhole"}
    assert world.outcome.holding == ""
    assert world.outcome.authoritative
    assert not any(held in str(refusal) for refusal in world.graph.refusals())


def test_kubernetes_without_a_single_node_is_not_believed() -> None:
    """So it looks to an agent that is not allowed to read Nodes."""
    world = Driver(kubernetes=True, use_pod_cidr=True)
    world.graph.on_datastore(told(*CLUSTER), True)
    world.graph.on_kubernetes((), True)
    assert world.settle().outcome.holding == "the nodes' podCIDRs are not known: Kubernetes shows no Node"
    assert not world.outcome.authoritative
    world.graph.on_datastore(told(status("a", "10.244.1.0/24", kubernetes_name="a")), True)
    assert world.settle().fib() == {"10.244.1.0/24": "blackhole"}
    world.graph.on_kubernetes(told(ON_B), True)
    assert world.settle().fib() == {}, "Kubernetes has no such node"
    assert world.outcome.holding == ""


def test_this_node_s_name_in_kubernetes_is_what_its_settings_say() -> None:
    world = Driver(kubernetes=True, use_pod_cidr=True, kubernetes_name="worker-1")
    world.graph.on_datastore(told(*CLUSTER), True)
    world.graph.on_kubernetes(told(kubernetes_node("worker-1", "10.244.5.0/24"), ON_A), True)
    assert world.settle().fib() == {"10.244.5.0/24": "blackhole"}


def test_without_access_to_kubernetes_the_status_is_all_there_is() -> None:
    world = Driver(use_pod_cidr=True)
    world.graph.on_datastore(told(status("a", "10.244.1.0/24"), B, PODS), True)
    assert world.settle().fib() == {"10.244.1.0/24": "blackhole"}
    assert world.outcome.authoritative
    assert world.outcome.holding == ""


def test_two_nodes_with_one_pod_cidr_are_told_and_believed_neither() -> None:
    world = Driver(kubernetes=True, use_pod_cidr=True)
    world.graph.on_datastore(told(*CLUSTER, node("c", "192.0.2.3/24")), True)
    same = (kubernetes_node("b", "10.244.2.0/24"), kubernetes_node("c", "10.244.2.0/24"))
    world.graph.on_kubernetes(told(ON_A, *same), True)
    world.graph.on_peer_up(ip(B4), session(B4), 0.0)
    world.graph.on_learned(ip(B4), path(B4), [net("10.244.2.0/24")])
    assert world.settle().fib() == {"10.244.1.0/24": "blackhole"}
    assert verdict(world, "10.244.2.0/24").startswith("unknown")
