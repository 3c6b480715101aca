"""A NetworkPolicy means the same before and after: as Kubernetes evaluates it, and as Felix does its copy.

Two evaluators that share nothing: one reads the Kubernetes objects, the other what is stored in etcd for them
(policy, profiles, endpoint labels), with namespaces joined in as Felix's side joins them
(libcalico-go/lib/backend/syncersv1/updateprocessors/rules.go).
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from felix_like.calc.selector import parse
from felix_like.datastore.kube.convert_labels import PodLabels, namespace_profile, pod_labels
from felix_like.datastore.kube.convert_policy import network_policy
from felix_like.datastore.kube.copies import Copy

Labels = dict[str, str]
METADATA_NAME = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, or an address outside."""

    ip: str
    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    ports: tuple[tuple[str, str, int], ...] = ()
    """Name, protocol and number of its named ports."""


@dataclass(frozen=True)
class Connection:
    pod: End
    """The one that the policy may be about."""
    other: End
    incoming: bool
    protocol: str
    port: int

    @property
    def destination(self) -> End:
        return self.pod if self.incoming else self.other


# -- Kubernetes --------------------------------------------------------------------------------------------


def selects(selector: dict[str, Any], labels: Labels) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for one in selector.get("matchExpressions", []):
        have = labels.get(one["key"])
        good = {
            "In": have is not None and have in one.get("values", []),
            "NotIn": have is None or have not in one.get("values", []),
            "Exists": have is not None,
            "DoesNotExist": have is None,
        }
        if not good[one["operator"]]:
            return False
    return True


def kubernetes(policy: dict[str, Any], namespaces: dict[str, Labels], call: Connection) -> bool | None:
    """Whether the policy of namespace "a" lets a connection through; None: it says nothing about it."""
    direction, peers = ("ingress", "from") if call.incoming else ("egress", "to")
    if call.pod.namespace != "a" or not selects(policy["podSelector"], dict(call.pod.labels)):
        return None
    types = policy.get("policyTypes") or ["Ingress", *(["Egress"] if policy.get("egress") else [])]
    if direction.capitalize() not in types:
        return None
    for rule in policy.get(direction, []):
        who = not rule.get(peers) or any(is_peer(peer, namespaces, call.other) for peer in rule[peers])
        what = not rule.get("ports") or any(is_port(port, call) for port in rule["ports"])
        if who and what:
            return True
    return False


def is_peer(peer: dict[str, Any], namespaces: dict[str, Labels], other: End) -> bool:
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ipaddress.ip_address(other.ip)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(network) for network in block.get("except", [])
        )
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], namespaces[other.namespace]):
            return False
    elif other.namespace != "a":
        return False
    return selects(peer.get("podSelector", {}), dict(other.labels))


def is_port(port: dict[str, Any], call: Connection) -> bool:
    if port.get("protocol", "TCP") != call.protocol:
        return False
    wanted = port.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return (wanted, call.protocol, call.port) in call.destination.ports
    return bool(wanted <= call.port <= port.get("endPort", wanted))


# -- Calico ------------------------------------------------------------------------------------------------


def endpoint_labels(end: End, namespaces: dict[str, Labels]) -> Labels:
    """The endpoint's own labels and what its namespace's profile applies."""
    if not end.namespace:
        return {}
    raw = {"metadata": {"labels": dict(end.labels)}, "spec": {"serviceAccountName": "default"}}
    own = pod_labels(end.namespace, "pod", raw)
    profile = namespace_profile(end.namespace, {"metadata": {"labels": namespaces[end.namespace]}})
    assert isinstance(own, PodLabels)
    assert isinstance(profile, Copy)
    return json.loads(profile.spec)["labelsToApply"] | dict(own.labels)  # type: ignore[no-any-return]


def calico(spec: dict[str, Any], namespaces: dict[str, Labels], call: Connection) -> bool | None:
    labels, other = endpoint_labels(call.pod, namespaces), endpoint_labels(call.other, namespaces)
    direction = "ingress" if call.incoming else "egress"
    if labels["projectcalico.org/namespace"] != "a" or not parse(spec["selector"]).matches(labels):
        return None
    if direction.capitalize() not in spec["types"]:
        return None
    for rule in spec.get(direction, []):
        assert rule["action"] == "Allow"
        if rule.get("protocol", call.protocol) != call.protocol:
            continue
        here, there = ("destination", "source") if call.incoming else ("source", "destination")
        assert not rule[here].keys() - {"ports"}
        if matches(rule[there], call.other, other) and opens(rule["destination"].get("ports"), call):
            return True
    return False


def matches(entity: dict[str, Any], end: End, labels: Labels) -> bool:
    address = ipaddress.ip_address(end.ip)
    nets = [ipaddress.ip_network(net) for net in entity.get("nets", [])]
    if nets and not any(address in net for net in nets):
        return False
    if any(address in ipaddress.ip_network(net) for net in entity.get("notNets", [])):
        return False
    if "selector" in entity and not (labels and parse(entity["selector"]).matches(labels)):
        return False
    if "namespaceSelector" in entity:
        applied = {key.removeprefix("pcns."): one for key, one in labels.items() if key.startswith("pcns.")}
        return bool(labels) and parse(entity["namespaceSelector"]).matches(applied)
    return "selector" not in entity or labels["projectcalico.org/namespace"] == "a"


def opens(ports: list[int | str] | None, call: Connection) -> bool:
    if not ports:
        return True
    for port in ports:
        low, _, high = str(port).partition(":")
        if low.isdigit():
            if int(low) <= call.port <= int(high or low):
                return True
        elif (port, call.protocol, call.port) in call.destination.ports:
            return True
    return False


# -- worlds ------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(["app", "env", "tier"])
VALUES = st.sampled_from(["", "a", "b"])
LABELS = st.dictionaries(KEYS, VALUES, max_size=3)
EXPRESSIONS = st.one_of(
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(VALUES, min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries({"key": KEYS, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(KEYS, VALUES, max_size=1),
        "matchExpressions": st.lists(EXPRESSIONS, max_size=1),
    },
)
NETWORKS = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/30", "10.0.0.2/32", "::/0", "fd00::/64"]
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.9.9.9", "192.0.2.7", "fd00::1"])
PROTOCOLS = st.sampled_from(["TCP", "UDP", "SCTP"])
NUMBERS = st.integers(1, 6)
PORTS = st.one_of(
    st.fixed_dictionaries({}, optional={"protocol": PROTOCOLS, "port": NUMBERS}),
    st.fixed_dictionaries({"port": st.just(2), "endPort": NUMBERS.filter(lambda n: n >= 2)}),
    st.fixed_dictionaries({"port": st.sampled_from(["http", "dns"])}, optional={"protocol": PROTOCOLS}),
)
BLOCKS = st.fixed_dictionaries(
    {"cidr": st.sampled_from(NETWORKS)},
    optional={"except": st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=2)},
)
PEERS = st.one_of(
    st.fixed_dictionaries({"ipBlock": BLOCKS}),
    st.fixed_dictionaries({"podSelector": SELECTORS}, optional={"namespaceSelector": SELECTORS}),
    st.fixed_dictionaries({"namespaceSelector": SELECTORS}),
)


def rules(peers: str) -> st.SearchStrategy[Any]:
    return st.lists(
        st.fixed_dictionaries(
            {}, optional={peers: st.lists(PEERS, max_size=2), "ports": st.lists(PORTS, max_size=3)}
        ),
        min_size=1,
        max_size=2,
    )


POLICIES = st.fixed_dictionaries(
    {"podSelector": st.just({}) | SELECTORS},
    optional={
        "ingress": rules("from"),
        "egress": rules("to"),
        "policyTypes": st.lists(st.sampled_from(["Ingress", "Egress"]), unique=True),
    },
)
NAMED = st.lists(st.tuples(st.sampled_from(["http", "dns"]), PROTOCOLS, NUMBERS), max_size=2).map(tuple)
POD = st.builds(
    End,
    ip=ADDRESSES,
    namespace=st.sampled_from(["a", "a", "a", "b"]),
    labels=LABELS.map(lambda labels: tuple(labels.items())),
    ports=NAMED,
)
CALLS = st.builds(
    Connection,
    pod=POD,
    other=st.one_of(POD, st.builds(End, ip=ADDRESSES)),
    incoming=st.booleans(),
    protocol=PROTOCOLS,
    port=NUMBERS,
)


@given(policy=POLICIES, labels=st.tuples(LABELS, LABELS), calls=st.lists(CALLS, min_size=6, max_size=20))
@settings(max_examples=300, deadline=None)
def test_a_policy_says_in_calicos_words_what_it_says_in_kubernetes(
    policy: dict[str, Any], labels: tuple[Labels, Labels], calls: list[Connection]
) -> None:
    namespaces = {name: {METADATA_NAME: name} | one for name, one in zip("ab", labels, strict=True)}
    converted = network_policy("a", "p", {"spec": policy})
    assert isinstance(converted, Copy)
    assert not converted.left_out
    spec = json.loads(converted.spec)
    for call in calls:
        said = kubernetes(policy, namespaces, call)
        event(str(said))
        assert calico(spec, namespaces, call) is said, call
