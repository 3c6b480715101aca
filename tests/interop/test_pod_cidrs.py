"""Host-local IPAM between real agents: podCIDRs from Kubernetes, and a restart that cannot ask it.

Real processes, etcd and BIRD; the API server is the fake one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bird import Bird, bgp
from tests.support.kube_api import ServedKubeApi
from tests.support.kube_objects import endpoint_slice, node, service
from tests.support.system import Node, System, holds, pod4, until, v4

pytestmark = pytest.mark.interop

API = "192.0.2.251"
TOR = 7
RANGE, WEB = "10.96.0.0/16", "10.96.0.10/32"
ONE, TWO, OTHER = "10.65.1.0/24", "10.65.2.0/24", "10.65.12.0/24"
COPY = "last-good-kubernetes"


@pytest.fixture
def system() -> Iterator[System]:
    with System(USE_POD_CIDR="true") as made:
        made.fabric.hub.ip("addr", "add", f"{API}/24", "dev", "br0")
        yield made


@pytest.fixture
def served(system: System) -> Iterator[ServedKubeApi]:
    made = ServedKubeApi(netns=system.fabric.hub.name, host=API)
    made.do(lambda api: api.put(node("node-1", ONE), node("node-2", TWO)))
    made.do(lambda api: api.put(service("web", "10.96.0.10", local=True, type="NodePort")))
    made.do(lambda api: api.put(endpoint_slice("web", {"10.65.1.2": "node-1"})))
    yield made
    made.close()


@pytest.fixture
def tor(system: System) -> Bird:
    session = bgp("tortie", v4(TOR), v4(1), local_as=64600, export="none", graceful=120)
    return Bird(system.host(TOR), system.folder / "tor", v4(TOR), session)


@pytest.fixture
def nodes(system: System, served: ServedKubeApi, tor: Bird) -> list[Node]:
    system.etcd.resource("BGPConfiguration", "default", {"serviceClusterIPs": [{"cidr": RANGE}]})
    system.etcd.resource("BGPPeer", "tor", {"peerIP": v4(TOR), "asNumber": 64600, "node": "node-1"})
    kubeconfig = served.do(lambda api: api.kubeconfig(system.folder / "kubeconfig"))
    return [system.node(number, KUBECONFIG=str(kubeconfig)) for number in (1, 2)]


def test_pod_cidrs_are_announced_followed_and_kept(
    system: System, served: ServedKubeApi, tor: Bird, nodes: list[Node]
) -> None:
    one, two = nodes
    one.wait_route(TWO, v4(2), 60)
    two.wait_route(ONE, v4(1), 60)
    assert (one.kernel()[ONE], two.kernel()[TWO]) == ("blackhole", "blackhole")
    tor.wait_routes("tortie", {ONE, TWO, RANGE, WEB}, 60)
    assert one.where.run("ping", "-c1", "-W5", "-I", pod4(1), pod4(2))
    # The blocks that IPAM has for these nodes count for nothing.
    assert not any(prefix.endswith("/26") for prefix in one.kernel())
    # Routes of services are for routers: every node serves them itself.
    assert {RANGE, WEB}.isdisjoint(one.kernel())
    until(lambda: two.path(WEB, v4(1)), lambda: two.explain(WEB))
    assert {RANGE, WEB}.isdisjoint(two.kernel())
    assert "none, it is inside a service range, which every node serves itself" in two.explain(WEB)

    # Another podCIDR takes the first one's place everywhere.
    served.do(lambda api: api.put(node("node-2", OTHER)))
    one.wait_route(OTHER, v4(2))
    one.wait_route(TWO, None)
    two.wait_route(OTHER, "blackhole")
    tor.wait_routes("tortie", {ONE, OTHER, RANGE, WEB})

    # An agent that starts without Kubernetes and without its copy knows nothing, and takes nothing away:
    # neither its own adverts, of pods and of services, nor the routes that it finds in the kernel.
    kernel, adverts = one.kernel(), tor.routes("tortie")
    since = tor.since("tortie")
    until(lambda: (one.folder / COPY).exists(), "the copy is on disk")
    one.kill_agent()
    served.stop()
    (one.folder / COPY).unlink()
    one.start_agent()
    until(lambda: one.status().get("kubernetes", {}).get("state") == "stale", one.status, 60)
    until(lambda: one.established(v4(TOR), v4(2)), one.peers, 60)
    holds(
        lambda: one.kernel() == kernel and tor.routes("tortie") == adverts,
        3,
        lambda: (one.kernel(), tor.routes("tortie")),
    )
    assert one.refusals("neither its Node in Kubernetes (spec.podCIDRs) nor its Calico Node")

    # What changed meanwhile is caught up with when it answers.
    served.do(lambda api: api.put(node("node-2", TWO)))
    served.do(lambda api: api.delete(service("web", "")))
    served.start()
    one.wait_route(TWO, v4(2), 60)
    one.wait_route(OTHER, None)
    tor.wait_routes("tortie", {ONE, TWO, RANGE}, 60)
    assert tor.since("tortie") == since, "the session was never lost"
    assert one.kernel()[ONE] == "blackhole"
    until(lambda: not one.refusals(), one.refusals)
