"""Kubernetes' objects in Calico's words: goldens written from the two APIs, and what holds for any object."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from felix_like.calc.selector import LONGEST, parse
from felix_like.calc.snapshot import Malformed
from felix_like.datastore.kube.convert_labels import (
    PodLabels,
    account_profile,
    namespace_profile,
    pod_labels,
    trimmed,
)
from felix_like.datastore.kube.convert_policy import network_policy
from felix_like.datastore.kube.copies import Copy
from felix_like.datastore.kube.label_selector import namespace_selector, pod_selector

GOLDEN = Path(__file__).parent.parent / "golden"


def cases(name: str) -> list[Any]:
    read = yaml.safe_load((GOLDEN / name).read_text())
    return [pytest.param(case, id=case["case"]) for case in read]


@pytest.mark.parametrize("case", cases("network-policies.yaml"))
def test_a_policy_is_stored_as_calico_stores_it(case: dict[str, Any]) -> None:
    converted = network_policy("default", "web", {"spec": case["policy"]})
    if "refused" in case:
        assert converted == Malformed("NetworkPolicy 'default/web'", case["refused"])
        return
    assert isinstance(converted, Copy)
    assert converted.spec.decode() == case["stored"]
    assert len(converted.left_out) == case.get("left out", 0), converted.left_out
    assert all(sentence.startswith("spec.") for sentence in converted.left_out)
    assert converted.key == ("/calico/resources/v3/projectcalico.org/networkpolicies/default/knp.default.web")


@pytest.mark.parametrize("case", cases("profiles-and-labels.yaml"))
def test_profiles_and_labels_are_as_calico_makes_them(case: dict[str, Any]) -> None:
    kind, raw = case["kind"], trimmed(case["object"])
    converted: Copy | PodLabels | Malformed | None
    match kind:
        case "Namespace":
            converted, key = namespace_profile("web", raw), "profiles/kns.web"
        case "ServiceAccount":
            converted, key = account_profile("shop", "web", raw), "profiles/ksa.shop.web"
        case _:
            converted, key = pod_labels("shop", "web", raw), ""
    if "refused" in case:
        assert isinstance(converted, Malformed)
        assert converted.reason == case["refused"]
        assert converted.subject.startswith(kind)
    elif "labels" in case:
        labels = converted.labels if isinstance(converted, PodLabels) else None
        assert labels == case["labels"]
        assert list(labels or {}) == sorted(labels or {})
    else:
        assert isinstance(converted, Copy)
        assert converted.spec.decode() == case["stored"]
        assert converted.key == "/calico/resources/v3/projectcalico.org/" + key


def test_the_whole_document_is_in_calicos_order() -> None:
    policy = network_policy("shop", "web", {"spec": {"podSelector": {}}})
    assert isinstance(policy, Copy)
    document = json.dumps(policy.fresh("u-1", "2026-01-10T09:00:00Z"), separators=(",", ":"))
    assert document == (
        '{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"knp.default.web",'
        '"namespace":"shop","uid":"u-1","creationTimestamp":"2026-01-10T09:00:00Z"},"spec":{"order":1000,'
        '"selector":"projectcalico.org/orchestrator == \'k8s\'","types":["Ingress"]}}'
    )
    profile = namespace_profile("shop", {})
    assert isinstance(profile, Copy)
    assert profile.fresh("u-2", "2026-01-10T09:00:00Z")["metadata"] == {
        "name": "kns.shop",
        "uid": "u-2",
        "creationTimestamp": "2026-01-10T09:00:00Z",
    }


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a" * 250, "ü", "a\nb"])
def test_a_name_that_can_be_no_key_is_refused(name: str) -> None:
    spec = {"spec": {"podSelector": {}}}
    for converted in (
        network_policy("default", name, spec),
        account_profile("default", name, {}),
        namespace_profile(name, {}),
    ):
        assert isinstance(converted, Malformed), converted
        assert "is not allowed" in converted.reason


# -- for any object ----------------------------------------------------------------------------------------

TEXT = st.one_of(
    st.text(max_size=6), st.sampled_from(["TCP", "In", "10.0.0.0/8", "::/0", "a'b", "80", "\ud800"])
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["app", "a", "in", "has", "all", "not", "x.y/z-1", "projectcalico.org/name", "global"])
VALUES = st.sampled_from(["", "web", "in", "a.b_c-d", "k8s", "1", "&&", "|| all()", '"', "<>", "{ }"])
EXPRESSION = st.one_of(
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(VALUES, min_size=1, max_size=3),
        }
    ),
    st.fixed_dictionaries({"key": KEYS, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)
SELECTOR = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(KEYS, VALUES, max_size=3),
        "matchExpressions": st.lists(EXPRESSION, max_size=3),
    },
)
LABELS = st.dictionaries(KEYS, VALUES, max_size=6)


def or_anything(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there, sometimes whatever."""
    return st.one_of(strategy, strategy, strategy, JSON)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return or_anything(
        st.fixed_dictionaries({}, optional={name.strip("_"): value for name, value in fields.items()})
    )


PEER = some(
    podSelector=or_anything(SELECTOR),
    namespaceSelector=or_anything(SELECTOR),
    ipBlock=some(cidr=TEXT, except_=or_anything(st.lists(TEXT, max_size=2))),
)
PORT = some(
    protocol=or_anything(st.sampled_from(["TCP", "UDP", "SCTP"])),
    port=or_anything(st.integers(0, 65_536) | st.sampled_from(["http", "80"])),
    endPort=or_anything(st.integers(0, 65_536)),
)


def rule(peers: str) -> st.SearchStrategy[Any]:
    return some(
        **{peers: or_anything(st.lists(PEER, max_size=3)), "ports": or_anything(st.lists(PORT, max_size=3))}
    )


POLICY = some(
    podSelector=or_anything(SELECTOR),
    ingress=or_anything(st.lists(rule("from_"), max_size=3)),
    egress=or_anything(st.lists(rule("to"), max_size=3)),
    policyTypes=or_anything(st.lists(st.sampled_from(["Ingress", "Egress", "Later"]), max_size=3)),
)


def selectors_of(spec: dict[str, Any]) -> list[str]:
    found = [spec["selector"]]
    for direction in ("ingress", "egress"):
        for one in spec.get(direction, ()):
            for end in (one["source"], one["destination"]):
                found += [end[name] for name in ("selector", "namespaceSelector") if name in end]
    return found


@given(policy=POLICY)
@settings(max_examples=400, deadline=None)
def test_no_policy_is_too_odd(policy: Any) -> None:
    """It never raises; what is stored is JSON with selectors that can be read; reasons are one line."""
    converted = network_policy("default", "web", {"spec": policy})
    if isinstance(converted, Malformed):
        sentences: tuple[str, ...] = (converted.reason,)
    else:
        sentences = converted.left_out
        spec = json.loads(converted.spec)
        assert spec["types"]
        for text in selectors_of(spec):
            if len(text) <= LONGEST:
                parse(text)
    for sentence in sentences:
        assert sentence.isascii()
        assert sentence.isprintable()
        assert len(sentence) < 1_000


@given(raw=JSON)
@settings(max_examples=200, deadline=None)
def test_no_object_is_too_odd(raw: Any) -> None:
    for wrapped in ({"spec": raw}, {"metadata": raw}, {"metadata": {"labels": raw}, "spec": raw}):
        network_policy("default", "web", wrapped)
        namespace_profile("default", trimmed(wrapped))
        account_profile("default", "web", trimmed(wrapped))
        pod_labels("default", "web", trimmed(wrapped))


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for raw in (
        {"spec": {"podSelector": deep}},
        {"spec": {"podSelector": {}, "ingress": [{"ports": [deep]}]}},
    ):
        assert network_policy("default", "web", raw) == Malformed(
            "NetworkPolicy 'default/web'", "it is nested too deeply"
        )


def holds(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Kubernetes' own definition of a label selector, requirement by requirement."""
    for key, value in selector.get("matchLabels", {}).items():
        if key not in labels or labels[key] != value:
            return False
    for expression in selector.get("matchExpressions", ()):
        key = expression["key"]
        there = key in labels
        if expression["operator"] == "In" and not (there and labels[key] in expression["values"]):
            return False
        if expression["operator"] == "NotIn" and there and labels[key] in expression["values"]:
            return False
        if expression["operator"] == "Exists" and not there:
            return False
        if expression["operator"] == "DoesNotExist" and there:
            return False
    return True


@given(selector=SELECTOR, labels=LABELS)
@settings(max_examples=600, deadline=None)
def test_the_text_selects_what_the_selector_selects(selector: dict[str, Any], labels: dict[str, str]) -> None:
    pod = labels | {"projectcalico.org/orchestrator": "k8s"}
    assert parse(pod_selector("s", selector)).matches(pod) is holds(selector, pod)
    assert not parse(pod_selector("s", selector)).matches(labels)
    text = namespace_selector("s", selector)
    assert text
    assert parse(text).matches(labels) is holds(selector, labels)


@given(ports=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 40)), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_joined_ports_are_the_same_ports(ports: list[tuple[int, int]]) -> None:
    rules = [{"ports": [{"port": first, "endPort": first + more} for first, more in ports]}]
    converted = network_policy("default", "web", {"spec": {"podSelector": {}, "ingress": rules}})
    assert isinstance(converted, Copy)
    (one,) = json.loads(converted.spec)["ingress"]
    joined: list[range] = []
    for port in one["destination"]["ports"]:
        low, _, high = str(port).partition(":")
        joined.append(range(int(low), int(high or low) + 1))
    wanted = {port for first, more in ports for port in range(first, first + more + 1)}
    assert {port for span in joined for port in span} == wanted
    assert all(before.stop < after.start for before, after in itertools.pairwise(joined))
