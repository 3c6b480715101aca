"""Copies of Kubernetes objects in etcd: what is put right, what is left alone, what waits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.controllers.backlog import CALM, FIRST_PAUSE, LONGEST_PAUSE, Backlog, Doubt
from agent.controllers.copying import Documents, Duty, Labels, Remove, Write
from agent.controllers.policies import DUTIES, EMPTY_BELIEVED_AFTER
from felix_like.calc.snapshot import Malformed
from felix_like.datastore.cas import encode
from felix_like.datastore.kube.convert_policy import network_policy
from felix_like.datastore.kube.copies import Copy

V3 = "/calico/resources/v3/projectcalico.org/"
POLICY = V3 + "networkpolicies/default/knp.default.web"
ENDPOINT = V3 + "workloadendpoints/default/n-k8s-web-eth0"
SPEC = {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]}
DENY = {"podSelector": {}}


def copy(spec: Any = SPEC) -> Copy:
    made = network_policy("default", "web", {"spec": spec})
    assert isinstance(made, Copy)
    return made


def stored(**changes: Any) -> dict[str, Any]:
    """As calico-kube-controllers left it."""
    return copy().fresh("u-1", "2026-01-10T09:00:00Z") | changes


def merged(document: Any, wanted: Copy | None = None) -> Any:
    return (wanted or copy()).merged(document, "u-new", "2027-01-01T00:00:00Z")


# -- one document ------------------------------------------------------------------------------------------


def test_what_is_right_is_not_touched() -> None:
    assert merged(stored()) is None


def with_spec(**changes: Any) -> dict[str, Any]:
    return stored(spec=stored()["spec"] | changes)


@pytest.mark.parametrize(
    "document",
    [
        with_spec(tier="default"),
        with_spec(order=1000.0),
        stored(spec=dict(reversed(stored()["spec"].items()))),
        with_spec(egress=[]),
        with_spec(egress=None, performanceHints=[]),
        with_spec(serviceAccountSelector=""),
        with_spec(later={"a": 1}),
        stored(status={"conditions": []}, later=7),
        stored(metadata=stored()["metadata"] | {"annotations": {"a": "b"}, "labels": {"c": "d"}}),
        with_spec(
            ingress=[
                {
                    "action": "Allow",
                    "protocol": "TCP",
                    "source": {"selector": "projectcalico.org/orchestrator == 'k8s'", "notNets": []},
                    "destination": {"ports": [80]},
                    "http": None,
                }
            ]
        ),
    ],
)
def test_other_versions_ways_to_say_the_same_are_right(document: dict[str, Any]) -> None:
    assert merged(document) is None


def test_a_rule_without_its_empty_source_says_the_same() -> None:
    wanted = copy({"podSelector": {}, "egress": [{}]})
    document = wanted.fresh("u-1", "2026-01-10T09:00:00Z")
    assert document["spec"]["egress"] == [{"action": "Allow", "source": {}, "destination": {}}]
    document["spec"]["egress"] = [{"action": "Allow"}]
    assert merged(document, wanted) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"order": 500},
        {"order": True},
        {"selector": "all()"},
        {"types": ["Egress"]},
        {"types": []},
        {"ingress": []},
        {"egress": [{"action": "Allow"}]},
        {"serviceAccountSelector": "a == 'b'"},
        {"performanceHints": ["AssumeNeededOnEveryNode"]},
        {"tier": "security"},
    ],
)
def test_what_was_changed_in_our_part_is_put_right_and_nothing_else(changes: dict[str, Any]) -> None:
    document = with_spec(**changes, later={"kept": True})
    document["metadata"] |= {"annotations": {"a": "b"}, "resourceVersion": "7"}
    document["future"] = 1
    put = merged(document)
    assert put["metadata"] == document["metadata"]
    assert put["future"] == 1
    assert put["spec"] == stored()["spec"] | {"later": {"kept": True}}
    assert merged(put) is None


def test_a_default_tier_that_is_written_stays_written() -> None:
    put = merged(with_spec(tier="default", order=1))
    assert next(iter(put["spec"])) == "tier"
    assert put["spec"] == {"tier": "default"} | stored()["spec"]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"metadata": None, "spec": None},
        {"metadata": [], "spec": "x"},
        stored(kind="GlobalNetworkPolicy"),
        stored(metadata={"name": "other", "namespace": "default"}),
        stored(metadata={"name": "knp.default.web"}),
        stored(metadata={"name": "knp.default.web", "namespace": "kube-system", "uid": "u-1"}),
    ],
)
def test_a_document_that_is_none_becomes_one(document: dict[str, Any]) -> None:
    put = merged(document)
    uid = "u-1" if (document.get("metadata") or {}) and document["metadata"].get("uid") else "u-new"
    assert put["kind"] == "NetworkPolicy"
    assert put["apiVersion"] == "projectcalico.org/v3"
    assert put["metadata"]["name"] == "knp.default.web"
    assert put["metadata"]["namespace"] == "default"
    assert put["metadata"]["uid"] == uid
    assert put["metadata"]["creationTimestamp"]
    assert put["spec"] == stored()["spec"]
    assert merged(put) is None


# -- duties ------------------------------------------------------------------------------------------------


def decided(duty: Duty, key: str, value: Any) -> Any:
    octets = value if isinstance(value, bytes | None) else encode(value)
    decision = duty.decide(key, octets)
    return decision.document if isinstance(decision, Write) else decision


def policies() -> Documents:
    duty = DUTIES["policy"]()
    assert isinstance(duty, Documents)
    assert duty.patience == EMPTY_BELIEVED_AFTER
    return duty


def test_a_policy_from_its_birth_to_its_end() -> None:
    duty = policies()
    assert duty.told("kube/networkpolicies/default/web", copy()) == [POLICY]
    made = decided(duty, POLICY, None)
    assert made["spec"] == stored()["spec"]
    assert made["metadata"]["uid"]
    assert decided(duty, POLICY, made) is None
    assert duty.told("kube/networkpolicies/default/web", copy(DENY)) == [POLICY]
    changed = decided(duty, POLICY, made)
    assert "ingress" not in changed["spec"]
    assert changed["metadata"] == made["metadata"]
    assert duty.told("kube/networkpolicies/default/web", None) == [POLICY]
    assert decided(duty, POLICY, changed) == Remove()
    assert decided(duty, POLICY, None) is None


@pytest.mark.parametrize(
    "key",
    [
        V3 + "networkpolicies/default/default.web",
        V3 + "networkpolicies/default/web",
        V3 + "networkpolicies/knp.default.x/allow",
        V3 + "networkpolicies/default/xknp.default.web",
    ],
)
def test_foreign_policies_are_nobodys_business(key: str) -> None:
    duty = policies()
    assert duty.seen(key, b"{}") == []
    assert duty.decide(key, b"{}") is None


def test_garbage_in_our_place_is_overwritten() -> None:
    duty = policies()
    duty.told("kube/networkpolicies/default/web", copy())
    for value in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        assert decided(duty, POLICY, value)["spec"] == stored()["spec"]


def test_what_cannot_be_copied_any_more_stays_as_it_was() -> None:
    duty = policies()
    bad = network_policy("default", "web", {"spec": {"podSelector": 7}})
    assert isinstance(bad, Malformed)
    assert duty.told("kube/networkpolicies/default/web", bad) == [POLICY]
    assert decided(duty, POLICY, stored()) is None
    assert decided(duty, POLICY, None) is None
    (refusal,) = duty.refusals()
    assert str(refusal) == (
        "NetworkPolicy 'default/web': spec.podSelector: 7 is not a label selector; it is not copied"
    )


def test_what_is_left_out_is_said() -> None:
    duty = policies()
    duty.told(
        "kube/networkpolicies/default/web", copy({"podSelector": {}, "ingress": [{"ports": [{"port": 0}]}]})
    )
    (refusal,) = duty.refusals()
    assert str(refusal) == (
        "NetworkPolicy default/knp.default.web: spec.ingress[0].ports[0].port: 0 is not a port;"
        " use 1 to 65535 or a name; the rule is left out"
    )


def test_a_name_that_is_no_key_is_said_and_forgotten_with_its_object() -> None:
    duty = policies()
    name = "a" * 245
    key = f"kube/networkpolicies/default/{name}"
    assert duty.told(key, network_policy("default", name, {"spec": DENY})) == []  # type: ignore[arg-type]
    (refusal,) = duty.refusals()
    assert "at most 253" in refusal.reason
    assert duty.objects() == 1
    assert duty.told(key, None) == []
    assert list(duty.refusals()) == []
    assert duty.objects() == 0


@pytest.mark.parametrize(
    ("name", "kube", "etcd"),
    [
        ("namespace", "kube/namespaces/shop", V3 + "profiles/kns.shop"),
        ("serviceaccount", "kube/serviceaccounts/shop/web", V3 + "profiles/ksa.shop.web"),
    ],
)
def test_profiles(name: str, kube: str, etcd: str) -> None:
    duty = DUTIES[name]()
    value = duty.collection.decode(kube, {"metadata": {"labels": {"a": "b"}}})
    assert duty.told(kube, value) == [etcd]
    made = decided(duty, etcd, None)
    assert made["kind"] == "Profile"
    assert "a" in {
        label.removeprefix("pcns.").removeprefix("pcsa.") for label in made["spec"]["labelsToApply"]
    }
    made["spec"]["labelsToApply"]["more"] = ""
    assert "more" not in decided(duty, etcd, made)["spec"]["labelsToApply"]
    duty.told(kube, None)
    assert decided(duty, etcd, made) == Remove()
    assert duty.patience is None
    assert etcd.startswith(duty.prefix)


def endpoint(**labels: str) -> dict[str, Any]:
    return {
        "kind": "WorkloadEndpoint",
        "metadata": {
            "name": "n-k8s-web-eth0",
            "namespace": "default",
            "labels": labels,
            "annotations": {"a": "b"},
        },
        "spec": {"orchestrator": "k8s", "pod": "web", "node": "n", "later": 1},
    }


KEPT = {
    "projectcalico.org/namespace": "default",
    "projectcalico.org/orchestrator": "k8s",
    "projectcalico.org/serviceaccount": "sa",
}


def pod(duty: Duty, **labels: str) -> Any:
    raw = {"metadata": {"labels": labels}, "spec": {"serviceAccountName": "sa"}}
    return duty.collection.decode("kube/pods/default/web", raw)


def test_labels_of_a_pod_reach_its_endpoint_in_whatever_order_they_are_heard_of() -> None:
    for endpoint_first in (True, False):
        duty = DUTIES["workloadendpoint"]()
        assert isinstance(duty, Labels)
        before = endpoint(app="old", gone="x")
        if endpoint_first:
            assert duty.seen(ENDPOINT, encode(before)) == [ENDPOINT]
            assert duty.told("kube/pods/default/web", pod(duty, app="new")) == [ENDPOINT]
        else:
            assert duty.told("kube/pods/default/web", pod(duty, app="new")) == []
            assert duty.seen(ENDPOINT, encode(before)) == [ENDPOINT]
        after = decided(duty, ENDPOINT, before)
        assert after["metadata"]["labels"] == {"app": "new"} | KEPT
        assert after == before | {"metadata": before["metadata"] | {"labels": after["metadata"]["labels"]}}
        assert decided(duty, ENDPOINT, after) is None


def test_endpoints_are_made_and_deleted_by_others() -> None:
    duty = DUTIES["workloadendpoint"]()
    duty.told("kube/pods/default/web", pod(duty, app="new"))
    assert duty.decide(ENDPOINT, None) is None
    duty.seen(ENDPOINT, encode(endpoint(**KEPT)))
    duty.told("kube/pods/default/web", None)
    assert decided(duty, ENDPOINT, endpoint(**KEPT)) is None
    assert duty.seen(ENDPOINT, None) == []
    assert duty.told("kube/pods/default/web", pod(duty)) == []


@pytest.mark.parametrize(
    "value",
    [
        {"spec": {"orchestrator": "cni", "pod": "web"}, "metadata": {}},
        {"spec": {"orchestrator": "k8s"}, "metadata": {}},
        {"spec": {"orchestrator": "k8s", "pod": ["web"]}, "metadata": {}},
        {"spec": {"orchestrator": "k8s", "pod": "other"}, "metadata": {}},
        {"spec": {"orchestrator": "k8s", "pod": "web"}},
        {"spec": 7},
        b"nothing",
    ],
)
def test_endpoints_of_others_or_of_nothing_are_left_alone(value: Any) -> None:
    duty = DUTIES["workloadendpoint"]()
    duty.told("kube/pods/default/web", pod(duty))
    duty.seen(ENDPOINT, value if isinstance(value, bytes) else encode(value))
    assert decided(duty, ENDPOINT, value) is None


def test_an_endpoint_that_changes_its_pod_follows_the_new_one() -> None:
    duty = DUTIES["workloadendpoint"]()
    duty.seen(ENDPOINT, encode(endpoint()))
    other = endpoint()
    other["spec"]["pod"] = "other"
    assert duty.seen(ENDPOINT, encode(other)) == [ENDPOINT]
    assert duty.told("kube/pods/default/web", pod(duty)) == []
    assert duty.told("kube/pods/default/other", pod(duty)) == [ENDPOINT]


def test_a_pod_that_cannot_be_read_leaves_its_endpoint_as_it_was() -> None:
    duty = DUTIES["workloadendpoint"]()
    duty.told(
        "kube/pods/default/web", duty.collection.decode("kube/pods/default/web", {"metadata": {"labels": 7}})
    )
    assert decided(duty, ENDPOINT, endpoint()) is None
    (refusal,) = duty.refusals()
    assert refusal.reason == "metadata.labels: 7 is not an object of text; it is not copied"
    duty.told("kube/pods/default/web", None)
    assert list(duty.refusals()) == []


# -- turns -------------------------------------------------------------------------------------------------


def test_each_key_gets_one_turn_the_first_first() -> None:
    backlog = Backlog()
    for key in ("b", "a", "b", "c"):
        backlog.wanted(key, 0.0)
    assert backlog.take(0.0, 2) == ["b", "a"]
    assert backlog.take(0.0, 2) == ["c"]
    assert backlog.take(0.0, 2) == []
    assert backlog.next_due() is None
    assert len(backlog) == 3
    for key in "abc":
        assert backlog.done(key, 0.0, wrote=False) == 0
    assert len(backlog) == 0


def test_what_is_wanted_goes_before_what_was_found() -> None:
    backlog = Backlog()
    for key in ("gone", "old"):
        backlog.found(key, 0.0)
    for key in ("new", "old", "new"):
        backlog.wanted(key, 0.0)
    backlog.found("new", 0.0)
    assert len(backlog) == 3
    assert backlog.take(0.0, 3) == ["new", "old", "gone"]


def test_a_key_named_while_in_work_gets_another_turn_afterwards() -> None:
    for end in ("done", "failed"):
        backlog = Backlog()
        backlog.wanted("a", 0.0)
        backlog.take(0.0, 1)
        backlog.wanted("a", 1.0)
        assert backlog.take(1.0, 1) == []
        assert backlog.next_due() is None
        if end == "done":
            backlog.done("a", 2.0, wrote=True)
        else:
            backlog.failed("a", 2.0)
        assert backlog.next_due() == 0.0
        assert backlog.take(2.0, 1) == ["a"]


def test_failures_wait_longer_each_time_until_something_new_is_wanted() -> None:
    backlog = Backlog()
    backlog.wanted("a", 0.0)
    now, pauses = 0.0, []
    for _ in range(12):
        assert backlog.take(now, 1) == ["a"]
        backlog.failed("a", now)
        assert backlog.take(now, 1) == []
        due = backlog.next_due()
        assert due is not None
        pauses.append(due - now)
        now = due
    assert pauses == sorted(pauses)
    assert pauses[0] == FIRST_PAUSE
    assert pauses[-1] == LONGEST_PAUSE
    backlog.wanted("a", now - 1)
    assert backlog.take(now - 1, 1) == ["a"]
    backlog.failed("a", now)
    assert backlog.next_due() == now + FIRST_PAUSE


def test_a_quarrel_slows_down_and_is_forgotten_when_it_is_over() -> None:
    backlog = Backlog()
    now, pauses, counts = 0.0, [], []
    for _ in range(12):
        backlog.found("a", now)
        due = backlog.next_due()
        assert due is not None
        pauses.append(max(0.0, due - now))
        now = max(now, due)
        assert backlog.take(now, 1) == ["a"]
        counts.append(backlog.done("a", now, wrote=True))
    assert counts == list(range(1, 13))
    assert pauses[:2] == [0.0, 0.0]
    assert pauses[-1] == LONGEST_PAUSE
    backlog.found("a", now + CALM)
    assert backlog.take(now + CALM, 1) == ["a"]
    assert backlog.done("a", now + CALM, wrote=True) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["wanted", "found", "take", "done", "failed"]), st.sampled_from("abc")),
        max_size=60,
    )
)
@settings(deadline=None)
def test_no_key_is_lost_or_in_two_hands(steps: list[tuple[str, str]]) -> None:
    """Whatever happens: what was named last is handed out some time, and never while it is in work."""
    backlog, now = Backlog(), 0.0
    busy: set[str] = set()
    owed: set[str] = set()
    for step, key in steps:
        now += 0.1
        if step in ("wanted", "found"):
            getattr(backlog, step)(key, now)
            owed.add(key)
        elif step == "take":
            for taken in backlog.take(now, 2):
                assert taken not in busy
                assert taken in owed
                busy.add(taken)
                owed.discard(taken)
        elif key in busy:
            busy.discard(key)
            if step == "failed":
                backlog.failed(key, now)
                owed.add(key)
            else:
                backlog.done(key, now, wrote=True)
    for key in busy:
        backlog.done(key, now, wrote=False)
    while owed:
        due = backlog.next_due()
        assert due is not None
        now = max(now, due)
        for taken in backlog.take(now, 1):
            owed.remove(taken)
            backlog.done(taken, now, wrote=False)
    assert len(backlog) == 0


# -- an empty Kubernetes -----------------------------------------------------------------------------------


def test_nothing_at_all_is_believed_only_when_it_came_one_by_one_or_stays() -> None:
    doubt = Doubt(300.0)
    doubt.told(0, 0, 10.0, first=True)
    assert doubt.until() == 310.0
    doubt.told(0, 0, 200.0, first=False)
    assert doubt.until() == 310.0
    doubt.told(0, 3, 250.0, first=False)
    assert doubt.until() == 0.0
    doubt.told(3, 0, 260.0, first=False)
    assert doubt.until() == 560.0
    doubt.told(0, 1, 270.0, first=False)
    doubt.told(1, 0, 280.0, first=False)
    assert doubt.until() == 0.0


def test_a_kind_that_every_cluster_has_is_never_believed_to_be_gone() -> None:
    doubt = Doubt(None)
    doubt.told(0, 0, 10.0, first=True)
    assert doubt.until() == float("inf")
    doubt.told(0, 1, 20.0, first=False)
    assert doubt.until() == 0.0


def test_documents_are_stored_in_calicos_octets() -> None:
    made = decided(policies_with(copy()), POLICY, None)
    head, tail = encode(made).split(b'"uid":"', 1)
    assert head == (
        b'{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"knp.default.web",'
        b'"namespace":"default",'
    )
    assert tail.split(b"Z", 1)[1] == b'"},"spec":' + copy().spec + b"}"
    assert json.loads(copy().spec)["order"] == 1000


def policies_with(wanted: Copy) -> Documents:
    duty = policies()
    duty.told("kube/networkpolicies/default/web", wanted)
    return duty
