"""Kubernetes' JSON -> values: what is read, what is left out and why, and that nothing in it does harm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felix_like.calc.snapshot import Malformed
from felix_like.datastore.kube.codec import (
    ENDPOINT_SLICES,
    MAX_ADDRESSES,
    MAX_ENDPOINTS,
    NODES,
    SERVICES,
    collections,
    decode_node,
    decode_service,
    slice_decoder,
    trim_node,
    trim_service,
    trim_slice,
)
from felix_like.model.desired import LocalNode
from felix_like.model.service import EndpointSlice, KubernetesNode, Service, ServiceId, TrafficPolicy
from tests.support import kube_objects

KEY = f"{SERVICES}/default/web"
SLICE = f"{ENDPOINT_SLICES}/default/web-abc12"
decode_slice = slice_decoder("a")


def service(*cluster_ips: str, **more: Any) -> Service | Malformed | None:
    """Trimmed first, as an informer does."""
    raw = kube_objects.service("web", *cluster_ips, **more)
    value = decode_service(KEY, trim_service(raw))
    assert value == decode_service(KEY, raw), "what is trimmed off is not read"
    return value


def sliced(raw: dict[str, Any]) -> EndpointSlice | Malformed | None:
    value = decode_slice(SLICE, trim_slice(raw))
    assert value == decode_slice(SLICE, raw)
    return value


def shown(service: Service | Malformed | None) -> dict[str, list[str]]:
    assert isinstance(service, Service)
    return {
        "cluster": [str(a) for a in service.cluster_ips],
        "external": [str(a) for a in service.external_ips],
        "balancer": [str(a) for a in service.load_balancer_ips],
    }


def test_a_service_with_all_kinds_of_addresses() -> None:
    value = service(
        "10.96.0.10",
        "fd00:96::10",
        type="LoadBalancer",
        external=["203.0.113.5", "203.0.113.5"],
        ingress=["198.51.100.5"],
        local=True,
        loadBalancerIP="198.51.100.5",
    )
    assert isinstance(value, Service)
    assert value.id == ServiceId("default", "web")
    assert value.policy is TrafficPolicy.LOCAL
    assert shown(value) == {
        "cluster": ["10.96.0.10", "fd00:96::10"],
        "external": ["203.0.113.5"],
        "balancer": ["198.51.100.5"],
    }
    assert str(value.requested_ip) == "198.51.100.5"
    assert value.ignored == ()


def test_what_is_not_said_is_as_kubernetes_fills_it_in() -> None:
    value = decode_service(KEY, {"spec": {"clusterIP": "10.96.0.10"}})
    assert value == Service(namespace="default", name="web", cluster_ips=value.cluster_ips)  # type: ignore[union-attr]
    assert shown(value)["cluster"] == ["10.96.0.10"]


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"spec": {}},
        {"spec": {"clusterIP": "None", "clusterIPs": ["None"], "externalIPs": ["203.0.113.5"]}},
        {"spec": {"clusterIP": ""}},
        {"spec": {"type": "ExternalName", "externalName": "example.org", "externalIPs": ["203.0.113.5"]}},
    ],
)
def test_without_addresses_of_its_own_it_is_none_of_ours(raw: dict[str, Any]) -> None:
    assert decode_service(KEY, raw) is None


def test_a_load_balancer_s_leftovers_do_not_count_once_it_is_none() -> None:
    assert shown(service("10.96.0.10", ingress=["198.51.100.5"]))["balancer"] == []


def test_an_address_that_no_node_serves_is_left_out_and_said() -> None:
    raw = kube_objects.service("web", "10.96.0.10", type="LoadBalancer")
    raw["status"] = {
        "loadBalancer": {
            "ingress": [
                {"ip": "198.51.100.5", "ipMode": "Proxy"},
                {"ip": "198.51.100.6", "ipMode": "VIP"},
                {"hostname": "lb.example.org"},
            ]
        }
    }
    value = decode_service(KEY, trim_service(raw))
    assert shown(value)["balancer"] == ["198.51.100.6"]
    assert isinstance(value, Service)
    assert value.ignored == (
        "load balancer IP '198.51.100.5' is not advertised: its ipMode is Proxy, so no node serves it",
    )


def test_a_bad_address_costs_the_service_no_other() -> None:
    value = service(
        "10.96.0.10", external=["203.0.113.5", "10.0.0.256", "x\n" * 100, "0.0.0.0", "fe80::1%eth0"]
    )
    assert shown(value)["external"] == ["203.0.113.5"]
    assert isinstance(value, Service)
    assert len(value.ignored) == 4
    assert value.ignored[0] == "externalIPs: '10.0.0.256' is no IP address and left out. Correct the service"
    assert all(sentence.isprintable() and len(sentence) < 500 for sentence in value.ignored)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"type": "Teapot"}, "spec.type: 'Teapot' is not allowed; use ClusterIP, NodePort, LoadBalancer"),
        ({"externalTrafficPolicy": "local"}, "spec.externalTrafficPolicy: 'local' is not allowed"),
        ({"externalIPs": ["203.0.113.5"] * 1000}, f"it has 1001 addresses; at most {MAX_ADDRESSES} are read"),
        ({"externalIPs": "203.0.113.5"}, "Expected `array | null`, got `str`"),
        ({"clusterIPs": [["10.96.0.10"]]}, "Expected `str`, got `array`"),
    ],
)
def test_a_service_that_makes_no_sense_counts_as_absent(spec: dict[str, Any], words: str) -> None:
    value = decode_service(KEY, trim_service({"spec": {"clusterIP": "10.96.0.10", **spec}}))
    assert isinstance(value, Malformed)
    assert value.subject == "Service default/web"
    assert words in value.reason


# -- endpoint slices ------------------------------------------------------------------------------------


def test_ready_endpoints_are_counted_here_and_noticed_elsewhere() -> None:
    raw = kube_objects.endpoint_slice("web", {"10.1.0.1": "a", "10.1.0.2": "a", "10.1.1.1": "b"})
    assert sliced(raw) == EndpointSlice(
        namespace="default", name="web-abc12", service="web", version=4, here=2, elsewhere=True
    )
    raw["addressType"] = "IPv6"
    assert sliced(raw).version == 6  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ({"ready": True}, True),
        ({"ready": False}, False),
        ({}, True),  # not known counts as ready
        (None, True),
        ({"ready": None}, True),
        ({"ready": True, "serving": True, "terminating": False}, True),
        ({"ready": False, "serving": True, "terminating": True}, False),  # kube-proxy may still serve it
    ],
)
def test_what_is_ready(conditions: Any, ready: bool) -> None:
    raw = kube_objects.endpoint_slice("web", {"10.1.0.1": "a"})
    raw["endpoints"][0]["conditions"] = conditions
    assert sliced(raw).here == ready  # type: ignore[union-attr]


def test_an_endpoint_without_a_node_is_elsewhere() -> None:
    raw = kube_objects.endpoint_slice("web", {"10.1.0.1": "a"})
    del raw["endpoints"][0]["nodeName"]
    value = sliced(raw)
    assert isinstance(value, EndpointSlice)
    assert (value.here, value.elsewhere) == (0, True)


def test_slices_of_nobody_and_of_host_names_are_none_of_ours() -> None:
    raw = kube_objects.endpoint_slice("web", {"10.1.0.1": "a"})
    assert sliced({**raw, "addressType": "FQDN"}) is None
    assert sliced({**raw, "metadata": {"name": "web-abc12"}}) is None
    empty = sliced({**raw, "endpoints": None})
    assert isinstance(empty, EndpointSlice)
    assert (empty.here, empty.elsewhere) == (0, False)


def test_churn_that_is_nothing_to_this_node_gives_an_equal_value() -> None:
    before = sliced(kube_objects.endpoint_slice("web", {"10.1.1.1": "b", "10.1.2.1": "c"}))
    assert before == sliced(kube_objects.endpoint_slice("web", {"10.1.3.9": "d"}))
    assert before != sliced(kube_objects.endpoint_slice("web", {"10.1.0.9": "a", "10.1.3.9": "d"}))


def test_a_slice_that_makes_no_sense_counts_as_absent() -> None:
    raw = kube_objects.endpoint_slice("web", {"10.1.0.1": "a"})
    many = sliced({**raw, "endpoints": raw["endpoints"] * (MAX_ENDPOINTS + 1)})
    assert isinstance(many, Malformed)
    assert many.reason.startswith(f"it has {MAX_ENDPOINTS + 1} endpoints; at most {MAX_ENDPOINTS} are read")
    raw["metadata"]["labels"]["kubernetes.io/service-name"] = "../etc"
    assert isinstance(sliced(raw), Malformed)


# -- nodes ----------------------------------------------------------------------------------------------


def test_a_node_is_its_labels_and_pod_cidrs() -> None:
    raw = {
        "metadata": {"name": "a", "labels": {"role": "edge"}, "resourceVersion": "7"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"], "taints": []},
        "status": {"conditions": [{"lastHeartbeatTime": "2026-01-01T00:00:00Z"}]},
    }
    value = decode_node(f"{NODES}/a", trim_node(raw))
    assert isinstance(value, KubernetesNode)
    assert value.labels == {"role": "edge"}
    assert [str(cidr) for cidr in value.pod_cidrs] == ["10.244.1.0/24", "fd00:244:1::/64"]
    beat: dict[str, Any] = copy.deepcopy(raw)
    beat["metadata"]["resourceVersion"] = "8"
    beat["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-01-01T00:00:10Z"
    assert trim_node(beat) == trim_node(raw), "a heartbeat is no change"
    assert decode_node(f"{NODES}/a", {}) == KubernetesNode(name="a")
    bad = decode_node(f"{NODES}/a", {"spec": {"podCIDRs": ["10.244.1.7/24"]}})
    assert isinstance(bad, Malformed)
    assert (bad.subject, bad.reason.partition(";")[0]) == (
        "Kubernetes Node a",
        "spec.podCIDRs: '10.244.1.7/24' is not a network such as 10.244.1.0/24",
    )


def test_the_agent_follows_no_more_than_it_needs() -> None:
    by_path = {one.path: one for one in collections(LocalNode(name="a", kubernetes_name="worker-1"))}
    assert set(by_path) == {"/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices", "/api/v1/nodes"}
    assert by_path["/api/v1/nodes"].field_selector == "metadata.name=worker-1"
    raw = kube_objects.endpoint_slice("web", {"10.1.0.1": "worker-1"})
    value = by_path["/apis/discovery.k8s.io/v1/endpointslices"].decode(SLICE, raw)
    assert isinstance(value, EndpointSlice)
    assert value.here == 1, "the node's name in Kubernetes counts"
    every = {one.path: one for one in collections(LocalNode(name="a", use_pod_cidr=True))}
    assert every["/api/v1/nodes"].field_selector == ""


# -- whatever it holds ----------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
GOOD = {
    KEY: kube_objects.service(
        "web",
        "10.96.0.10",
        "fd00::10",
        type="LoadBalancer",
        external=["203.0.113.5"],
        ingress=["198.51.100.5"],
    ),
    SLICE: kube_objects.endpoint_slice("web", {"10.1.0.1": "a", "10.1.1.1": "b"}),
    f"{NODES}/a": {
        "metadata": {"name": "a", "labels": {"x": "y"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
    },
}
READERS: dict[str, Any] = {
    KEY: (decode_service, trim_service, Service),
    SLICE: (decode_slice, trim_slice, EndpointSlice),
    f"{NODES}/a": (decode_node, trim_node, KubernetesNode),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


@settings(max_examples=400, deadline=None)
@given(data=st.data(), key=st.sampled_from(sorted(GOOD)), junk=JUNK)
def test_junk_anywhere_in_an_object_is_read_or_refused_with_a_sentence(
    data: Any, key: str, junk: Any
) -> None:
    raw = copy.deepcopy(GOOD[key])
    place = data.draw(st.sampled_from(places(raw)[1:]))
    parent = raw
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = junk
    decode, trim, kind = READERS[key]
    trimmed = trim(raw)
    assert trim(trimmed) == trimmed
    value, whole = decode(key, trimmed), decode(key, raw)
    assert value == whole or isinstance(whole, Malformed), "what is trimmed off may be bad, but is not read"
    assert value is None or isinstance(value, kind | Malformed)
    if isinstance(value, Malformed):
        assert value.reason.isprintable()
        assert value.reason.isascii()
        assert len(value.reason) < 600


@given(key=st.text(max_size=40), raw=JUNK)
def test_any_key_and_any_value_are_answered(key: str, raw: Any) -> None:
    for decode, _, kind in READERS.values():
        value = decode(key, raw)
        assert value is None or isinstance(value, kind | Malformed)
        if isinstance(value, Malformed):
            assert value.subject.isprintable()
            assert value.reason.isprintable()


def test_deep_nesting_does_no_harm() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    try:
        assert isinstance(decode_service(KEY, {"spec": {"clusterIPs": deep}}), Malformed)
        assert decode_service(KEY, {"spec": {"clusterIP": "10.96.0.10"}, "other": deep}) is not None
    finally:
        while deep:  # taking it apart recursively would be the end of the interpreter
            deep = deep.pop()
