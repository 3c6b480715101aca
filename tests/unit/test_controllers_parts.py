"""The controllers' own parts: who is started again, what is told, what a pod's hostile annotations do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from agent.controllers.controller import keep_running, run_all
from agent.controllers.deeds import Deeds
from agent.controllers.doors import Doors, families
from agent.controllers.election import LEADER_KEY, Leadership, Standing, identity_of
from agent.controllers.kube_view import NETWORK_STATUS, POD_IPS, decode_node, decode_pod, trim_node, trim_pod
from agent.web import exposition
from felix_like.calc.snapshot import Malformed
from felix_like.datastore.client import Client, Compare
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.errors import GuardFailed, KeyValue, Unavailable
from felix_like.datastore.kube.errors import KubeError, Unreachable
from felix_like.model.ipam_use import PodUse
from tests.support.kube_objects import node, pod

OUTAGES = (Unavailable, KubeError)


class Impatient(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return 0.0


def leadership() -> Leadership:
    return Leadership(
        identity="me", key=LEADER_KEY, create_revision=7, reader=Client(EtcdConfig(endpoints=("http://x:1",)))
    )


class Scripted:
    """Raises what the script says, one after the other; then waits for ever."""

    def __init__(self, *script: Exception | None, name: str = "scripted") -> None:
        self.name = name
        self.script = list(script)
        self.runs = 0
        self.settled = asyncio.Event()

    async def run(self, leadership: Leadership) -> None:
        self.runs += 1
        if not self.script:
            self.settled.set()
            await asyncio.get_running_loop().create_future()
        found = self.script.pop(0)
        if found is not None:
            raise found


async def keep(one: Scripted, tell: Callable[[str, str | None], None] = lambda *_: None) -> None:
    await keep_running(one, leadership(), outages=OUTAGES, tell=tell, rng=Impatient())


async def test_an_outage_starts_a_controller_anew_and_is_told() -> None:
    told: list[tuple[str, str | None]] = []
    one = Scripted(
        Unavailable("etcd is away"),
        ExceptionGroup("tasks", [Unreachable("the API is away"), Unavailable("etcd, too")]),
        ExceptionGroup("deep", [ExceptionGroup("deeper", [Unavailable("again")])]),
    )
    task = asyncio.create_task(keep(one, lambda *words: told.append(words)))
    await asyncio.wait_for(one.settled.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert one.runs == 4
    reasons = ("etcd is away", "the API is away", "again")
    assert told == [(one.name, word) for reason in reasons for word in (reason, None)]


@pytest.mark.parametrize(
    "lost",
    [
        GuardFailed("late"),
        ExceptionGroup("tasks", [GuardFailed("late")]),
        ExceptionGroup("tasks", [Unavailable("away"), ExceptionGroup("deeper", [GuardFailed("late")])]),
    ],
)
async def test_a_late_write_ends_the_term_even_among_outages(lost: Exception) -> None:
    with pytest.raises(GuardFailed, match="late"):
        await keep(Scripted(lost))


@pytest.mark.parametrize(
    "bug", [ZeroDivisionError(), ExceptionGroup("tasks", [Unavailable("x"), KeyError("y")])]
)
async def test_a_bug_is_not_an_outage(bug: Exception) -> None:
    with pytest.raises((ZeroDivisionError, ExceptionGroup)) as raised:
        await keep(Scripted(bug))
    if isinstance(raised.value, ExceptionGroup):
        assert raised.value.subgroup(KeyError) is not None
        assert raised.value.subgroup(Unavailable) is None


async def test_a_controller_that_returns_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="ended by itself"):
        await keep(Scripted(None))


async def test_one_that_finds_the_term_over_ends_all() -> None:
    calm, late = Scripted(name="calm"), Scripted(GuardFailed("late"), name="late")
    with pytest.raises(ExceptionGroup) as raised:
        await run_all([calm, late], leadership(), outages=OUTAGES)
    assert raised.value.subgroup(GuardFailed) is not None


def test_the_guards_are_the_creation_of_the_key() -> None:
    assert leadership().guards == (Compare(LEADER_KEY, "create_revision", 7),)


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b'{"identity":7}', b'{"identity":""}', b"\xff", b"[" * 99999]
)
def test_a_leaders_key_that_says_nothing_is_somebody_elses(value: bytes) -> None:
    assert identity_of(KeyValue(LEADER_KEY, value, 1)) == "another process"


# -- deeds and doors ---------------------------------------------------------------------------------------


def test_a_dry_run_says_each_thing_once_and_counts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    deeds = Deeds(dry_run=True)
    for reason in ("gone", "gone", "gone for good"):
        assert deeds.may("remove-node", "Node x\n", reason) is False
    assert [record.message for record in caplog.records] == [
        "would remove node: Node x\\n: gone",
        "would remove node: Node x\\n: gone for good",
    ]
    assert not deeds.done
    assert Deeds().may("remove-node", "Node x", "gone") is True


def test_a_trouble_is_said_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    deeds = Deeds()
    for sentence in (None, "away", "away", "still away", "", None):
        deeds.trouble("ipam", sentence)
    assert [record.message for record in caplog.records] == [
        "ipam: away",
        "ipam: still away",
        "ipam: works again",
    ]
    assert deeds.troubles == {}


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (Standing(True, "me"), None),
        (Standing(False, "other"), None),
        (Standing(False), "no leader is known yet"),
        (Standing(False, "other", "etcd does not answer"), "etcd does not answer"),
    ],
)
def test_ready_is_who_leads_or_stands_by(standing: Standing, reason: str | None) -> None:
    verdict = Doors(("127.0.0.1", 1), standing=lambda: standing, deeds=Deeds()).verdict()
    assert bool(verdict) is (reason is None)
    assert reason is None or verdict.reason == reason


def test_metrics_have_a_sample_for_what_there_is() -> None:
    deeds = Deeds()
    deeds.did("release-address", "pod-gone", "address 10.0.0.1", "gone", 3)
    deeds.trouble("node", "away")
    deeds.gauges |= {"allocations in use": 4, "look_at": 17.0}
    text = exposition.text(families(Standing(True, "me"), deeds))
    for line in (
        "tortie_controllers_leader 1",
        'tortie_controllers_deeds_total{deed="release-address",reason="pod-gone"} 3',
        'tortie_controllers_trouble{controller="node"} 1',
        'tortie_controllers_allocations{standing="in use"} 4',
        "tortie_controllers_last_look_seconds 17",
        "tortie_controllers_dry_run 0",
    ):
        assert line in text.splitlines()


# -- what Kubernetes says ----------------------------------------------------------------------------------


def seen(raw: dict[str, Any]) -> PodUse:
    found = decode_pod("kube/pods/x", trim_pod(raw))
    assert isinstance(found, PodUse)
    return found


def with_annotations(**annotations: str) -> dict[str, Any]:
    raw = pod("web", "a", "10.0.0.1")
    raw["metadata"]["annotations"] = {
        {"ips": POD_IPS, "networks": NETWORK_STATUS}[k]: v for k, v in annotations.items()
    }
    return raw


def test_a_pods_addresses_are_those_of_all_its_networks() -> None:
    networks = (
        '[{"name":"cali","ips":["10.0.0.1"]},{"name":"storage","ips":["10.9.0.1","fd00::9"]},{"name":"x"}]'
    )
    found = seen(with_annotations(ips="10.0.0.1/32,fd00::1/128", networks=networks))
    assert sorted(map(str, found.addresses)) == ["10.0.0.1", "10.9.0.1", "fd00::1", "fd00::9"]
    assert (found.namespace, found.name, found.node, found.finished) == ("default", "web", "a", "")
    assert seen(pod("web", "a", "10.0.0.1", phase="Succeeded")).finished == "Succeeded"


@pytest.mark.parametrize(
    "networks", ["{", "[7]", '[{"ips":7}]', '[{"ips":["x"]}]', "[" * 99_999, '{"ips":[]}', "7"]
)
def test_annotations_that_do_not_parse_keep_the_pods_addresses(networks: str) -> None:
    """They are the users': one pod's must neither cost it its address nor stop the collection for all."""
    assert seen(with_annotations(networks=networks)).addresses == frozenset()


@pytest.mark.parametrize(
    "raw", [{}, {"metadata": 7}, {"metadata": {"name": "x"}}, {"metadata": {"name": 1, "namespace": "y"}}]
)
def test_what_is_no_pod_is_malformed(raw: dict[str, Any]) -> None:
    assert isinstance(decode_pod("kube/pods/x", trim_pod(raw)), Malformed)


def test_a_node_is_its_name_and_labels() -> None:
    found = decode_node("kube/nodes/a", trim_node(node("a", labels={"zone": "b"})))
    assert not isinstance(found, Malformed)
    assert dict(found.labels) == {"kubernetes.io/hostname": "a", "zone": "b"}
    assert isinstance(decode_node("kube/nodes/x", trim_node({})), Malformed)


def test_what_changes_all_the_time_is_trimmed_away() -> None:
    """A heartbeat, a restart count: no news."""
    raw = pod("web", "a", "10.0.0.1")
    busy = {**raw, "status": {**raw["status"], "containerStatuses": [{"restartCount": 9}]}}
    assert trim_pod(raw) == trim_pod(busy)
    beat = node("a")
    beat["status"] = {"conditions": [{"lastHeartbeatTime": "now"}]}
    assert trim_node(node("a")) == trim_node(beat)
