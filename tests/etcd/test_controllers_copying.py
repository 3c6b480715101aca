"""Kubernetes' policies, namespaces, accounts and pod labels in a real etcd, from a fake API server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.controllers.copying import Duty
from agent.controllers.deeds import Deeds
from agent.controllers.election import Leadership
from agent.controllers.mirror import Mirror
from agent.controllers.policies import DUTIES, copying_controller
from felix_like.datastore.cas import CasStore, encode
from felix_like.datastore.client import Client, Compare, Delete, Get, Put, TxnReply
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.errors import Denied, EtcdError, GuardFailed, Refused, Unavailable
from felix_like.datastore.guarded import GuardedClient
from felix_like.datastore.keys import RESOURCES
from felix_like.datastore.kube.access import KubeAccess
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.informer import Pace
from tests.support.controllers import LEADER_KEY, office, until, working
from tests.support.etcd import Cut, EtcdMember, etcd, eventually
from tests.support.kube_api import KubeApi, kube_api
from tests.support.kube_objects import namespace, network_policy, pod, service_account
from tests.support.kube_store import Rule, rules_of

pytestmark = pytest.mark.etcd
ROOT = Path(__file__).parents[2]
WEB = "networkpolicies/default/knp.default.web"
ALLOW: Any = {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}], "policyTypes": ["Ingress"]}
DENY: Any = {"podSelector": {}, "policyTypes": ["Ingress"]}
PODS = "projectcalico.org/orchestrator == 'k8s'"
QUICK = Pace(refused_after=0.1, refused_pause=0.1, max_pause=0.2)


@dataclass
class World:
    member: EtcdMember
    etcd: Client
    api: KubeApi
    kube: KubeClient
    kubeconfig: Path
    deeds: Deeds = field(default_factory=Deeds)

    def all(self) -> list[Mirror]:
        return [copying_controller(name, self.kube, self.deeds) for name in DUTIES]

    def one(self, name: str, change: Callable[[Any], None] = lambda _: None) -> Mirror:
        """With an impatient informer, and with its duty changed."""

        def make() -> Duty:
            duty = DUTIES[name]()
            change(duty)
            return duty

        return Mirror(name, self.kube, make, self.deeds, pace=QUICK)

    async def stored(self) -> dict[str, Any]:
        """Everything under Calico's resources, by the key's end."""
        kvs = (await self.etcd.get_prefix(RESOURCES)).kvs
        return {kv.key.removeprefix(RESOURCES): json.loads(kv.value) for kv in kvs}

    async def spec(self, key: str) -> Any:
        found = await self.etcd.get(RESOURCES + key)
        return json.loads(found.value)["spec"] if found is not None else None

    async def revisions(self) -> dict[str, int]:
        return {kv.key: kv.mod_revision for kv in (await self.etcd.get_prefix(RESOURCES)).kvs}

    async def put(self, key: str, document: Any) -> None:
        await self.etcd.put(RESOURCES + key, document if isinstance(document, bytes) else encode(document))

    async def there(self, *keys: str) -> None:
        async def check() -> bool:
            return set(keys) <= (await self.stored()).keys()

        await until(check)

    async def caught_up(self) -> None:
        """Two objects more have come through, one after the other: what was before them was looked at."""
        for name in ("zz-1", "zz-2"):
            self.api.put(
                network_policy(name, DENY), namespace(name), service_account(name), pod(name, "n", "10.9.9.9")
            )
            await self.put(f"workloadendpoints/default/n-k8s-{name.replace('-', '--')}-eth0", endpoint(name))
            await self.there(
                f"networkpolicies/default/knp.default.{name}",
                f"profiles/kns.{name}",
                f"profiles/ksa.default.{name}",
            )

            async def labelled(
                key: str = f"workloadendpoints/default/n-k8s-{name.replace('-', '--')}-eth0",
            ) -> bool:
                return "app" not in (await self.stored())[key]["metadata"]["labels"]

            await until(labelled)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with etcd() as (member,):
        async with kube_api() as api, Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
            kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
            kube = KubeClient(KubeAccess(kubeconfig))
            try:
                yield World(member, client, api, kube, kubeconfig)
            finally:
                await kube.close()


@contextlib.asynccontextmanager
async def term(world: World) -> AsyncIterator[Leadership]:
    """A new term of office."""
    await world.etcd.delete(LEADER_KEY)
    async with office(world.etcd) as leadership:
        yield leadership


def document(kind: str, name: str, spec: Any, **metadata: Any) -> Any:
    metadata = {"name": name, "uid": f"uid-{name}", "creationTimestamp": "2026-01-10T09:00:00Z"} | metadata
    return {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec}


def endpoint(pod_name: str, **labels: str) -> Any:
    """As the CNI plugin made it, when the pod had other labels."""
    return document(
        "WorkloadEndpoint",
        f"n-k8s-{pod_name.replace('-', '--')}-eth0",
        {"orchestrator": "k8s", "pod": pod_name, "node": "n", "ipNetworks": ["10.0.0.1/32"], "later": [1]},
        namespace="default",
        labels={"app": "old"} | labels,
        annotations={"kept": "yes"},
    )


def cluster(api: KubeApi) -> None:
    api.put(
        namespace("default"),
        namespace("shop", {"env": "prod"}),
        service_account("default"),
        service_account("web", "shop", {"team": "a"}),
        network_policy("web", ALLOW),
        network_policy("deny", DENY, namespace="shop"),
        pod("web-0", "n", "10.0.0.1", labels={"app": "web"}),
    )


async def test_a_cluster_is_copied_changed_and_forgotten(world: World) -> None:
    cluster(world.api)
    await world.put("workloadendpoints/default/n-k8s-web--0-eth0", endpoint("web-0"))
    async with term(world) as leadership:
        async with working(*world.all(), leadership=leadership):
            await world.there(
                WEB,
                "networkpolicies/shop/knp.default.deny",
                "profiles/kns.default",
                "profiles/kns.shop",
                "profiles/ksa.default.default",
                "profiles/ksa.shop.web",
            )
            await world.caught_up()
            stored = await world.stored()
            assert stored[WEB]["spec"] == {
                "order": 1000,
                "ingress": [{"action": "Allow", "source": {"selector": PODS}, "destination": {}}],
                "selector": PODS,
                "types": ["Ingress"],
            }
            assert stored[WEB]["metadata"].keys() == {"name", "namespace", "uid", "creationTimestamp"}
            assert stored["profiles/ksa.shop.web"]["spec"]["labelsToApply"]["pcsa.team"] == "a"
            wep = stored["workloadendpoints/default/n-k8s-web--0-eth0"]
            made = endpoint("web-0")
            labels = {
                "app": "web",
                "projectcalico.org/namespace": "default",
                "projectcalico.org/orchestrator": "k8s",
                "projectcalico.org/serviceaccount": "default",
            }
            assert wep == made | {"metadata": made["metadata"] | {"labels": labels}}

            world.api.put(
                network_policy("web", DENY),
                namespace("shop", {"env": "test"}),
                service_account("web", "shop", {"team": "b"}),
                pod("web-0", "n", "10.0.0.1", labels={"app": "new"}),
            )

            async def changed() -> bool:
                now = await world.stored()
                return (
                    "ingress" not in now[WEB]["spec"]
                    and now["profiles/kns.shop"]["spec"]["labelsToApply"]["pcns.env"] == "test"
                    and now["profiles/ksa.shop.web"]["spec"]["labelsToApply"]["pcsa.team"] == "b"
                    and now["workloadendpoints/default/n-k8s-web--0-eth0"]["metadata"]["labels"]["app"]
                    == "new"
                )

            await until(changed)
            now = await world.stored()
            assert now[WEB]["metadata"] == stored[WEB]["metadata"]

            for gone in (network_policy("web", DENY), namespace("shop"), service_account("web", "shop")):
                world.api.delete(gone)
            world.api.delete(pod("web-0", "n"))

            async def forgotten() -> bool:
                return not {WEB, "profiles/kns.shop", "profiles/ksa.shop.web"} & (await world.stored()).keys()

            await until(forgotten)
            left = await world.stored()
            assert "workloadendpoints/default/n-k8s-web--0-eth0" in left, "the CNI plugin's to delete"
            assert "networkpolicies/shop/knp.default.deny" in left, "whose own object is still there"
            await eventually(lambda: world.deeds.done["delete-copy", "policy"] == 1)  # counted once answered
            await eventually(lambda: world.deeds.done["write-copy", "workloadendpoint"] >= 2)


async def test_a_new_leader_touches_nothing_that_is_right(world: World) -> None:
    """What calico-kube-controllers of any version, or an earlier term, wrote stays at its revision."""
    cluster(world.api)
    said = {
        "tier": "default",
        "order": 1000,
        "ingress": [{"action": "Allow", "source": {"selector": PODS}}],
        "egress": [],
        "selector": PODS,
        "types": ["Ingress"],
    }
    annotated = {"namespace": "default", "annotations": {"projectcalico.org/metadata": "{}"}}
    await world.put(WEB, document("NetworkPolicy", "knp.default.web", said, **annotated))
    await world.put("workloadendpoints/default/n-k8s-web--0-eth0", endpoint("web-0"))
    async with term(world) as leadership:
        async with working(*world.all(), leadership=leadership):
            await world.caught_up()
    first = await world.revisions()
    assert (await world.stored())[WEB]["spec"] == said
    async with term(world) as leadership:
        async with working(*world.all(), leadership=leadership):
            world.api.put(network_policy("more", DENY), namespace("more"), service_account("more"))
            more = (
                "networkpolicies/default/knp.default.more",
                "profiles/kns.more",
                "profiles/ksa.default.more",
            )
            await world.there(*more)
    second = await world.revisions()
    assert {key: second[key] for key in first} == first
    assert second.keys() - first.keys() == {RESOURCES + key for key in more}


async def test_only_copies_are_ours(world: World) -> None:
    """A copy without its object goes; what users and others made, however alike, stays as it is."""
    cluster(world.api)
    foreign = {
        "networkpolicies/default/default.web": document("NetworkPolicy", "default.web", {"order": 1}),
        "networkpolicies/shop/web": document("NetworkPolicy", "web", {}),
        "networkpolicies/knp.default.x/web": document("NetworkPolicy", "web", {}),
        "globalnetworkpolicies/knp.default.web": document("GlobalNetworkPolicy", "knp.default.web", {}),
        "profiles/mine": document("Profile", "mine", {"labelsToApply": {"a": "b"}}),
        "profiles/knsx": document("Profile", "knsx", {}),
        "profiles/ksa": document("Profile", "ksa", {}),
        "workloadendpoints/default/n-cni-1-eth0": endpoint("web-0") | {"spec": {"orchestrator": "cni"}},
        "workloadendpoints/default/n-k8s-gone-eth0": endpoint("gone"),
    }
    stale = {
        "networkpolicies/gone/knp.default.web": document("NetworkPolicy", "knp.default.web", {}),
        "networkpolicies/default/knp.default.gone": b"not even JSON",
        "profiles/kns.gone": document("Profile", "kns.gone", {}),
        "profiles/ksa.gone.default": document("Profile", "ksa.gone.default", {}),
    }
    for key, value in (foreign | stale).items():
        await world.put(key, value)
    before = await world.revisions()
    async with term(world) as leadership:
        async with working(*world.all(), leadership=leadership):

            async def gone() -> bool:
                return not {RESOURCES + key for key in stale} & (await world.revisions()).keys()

            await until(gone)
            await world.caught_up()
    after = await world.revisions()
    for key in foreign:
        assert after[RESOURCES + key] == before[RESOURCES + key], key


async def test_what_somebody_takes_away_or_changes_comes_back(world: World) -> None:
    cluster(world.api)
    async with term(world) as leadership:
        async with working(*world.all(), leadership=leadership):
            await world.there(WEB, "profiles/kns.shop")
            whole = await world.stored()
            await world.etcd.delete(RESOURCES + WEB)
            await world.there(WEB)
            assert await world.spec(WEB) == whole[WEB]["spec"]

            changed = (await world.stored())[WEB]
            changed["spec"] |= {"selector": "all()", "order": 1, "later": True}
            changed["metadata"]["annotations"] = {"who": "me"}
            await world.put(WEB, changed)

            async def put_right() -> bool:
                return await world.spec(WEB) == whole[WEB]["spec"] | {"later": True}

            await until(put_right)
            assert (await world.stored())[WEB]["metadata"]["annotations"] == {"who": "me"}

            await world.put("profiles/kns.shop", b"\xff{")

            async def readable() -> bool:
                found = await world.etcd.get(RESOURCES + "profiles/kns.shop")
                assert found is not None
                return found.value.startswith(b'{"kind":"Profile"')

            await until(readable)
            assert await world.spec("profiles/kns.shop") == whole["profiles/kns.shop"]["spec"]


async def test_while_kubernetes_is_away_nothing_changes(world: World) -> None:
    seen: list[tuple[str, bool]] = []

    def watched(duty: Any) -> None:
        see = duty.seen

        def listen(key: str, value: bytes | None) -> list[str]:
            seen.append((key.removeprefix(RESOURCES), value is not None))
            return see(key, value)  # type: ignore[no-any-return]

        duty.seen = listen

    cluster(world.api)
    async with term(world) as leadership:
        async with working(world.one("policy", watched), leadership=leadership):
            await world.there(WEB)
            await world.api.stop()
            await eventually(lambda: "policy" in world.deeds.troubles)
            before = await world.revisions()
            await world.etcd.delete(RESOURCES + WEB)
            await world.put("networkpolicies/default/knp.default.stale", document("NetworkPolicy", "x", {}))
            world.api.delete(network_policy("deny", DENY, namespace="shop"))
            world.api.put(network_policy("late", DENY))
            await eventually(
                lambda: {(WEB, False), ("networkpolicies/default/knp.default.stale", True)} <= set(seen)
            )
            assert (await world.revisions()).keys() == (before.keys() - {RESOURCES + WEB}) | {
                RESOURCES + "networkpolicies/default/knp.default.stale"
            }
            await world.api.start()
            await world.there(WEB, "networkpolicies/default/knp.default.late")

            async def gone() -> bool:
                found = await world.stored()
                return (
                    not {
                        "networkpolicies/shop/knp.default.deny",
                        "networkpolicies/default/knp.default.stale",
                    }
                    & found.keys()
                )

            await until(gone)
            await eventually(lambda: "policy" not in world.deeds.troubles)


async def test_what_happens_while_etcd_is_away_is_made_up_for(world: World) -> None:
    cluster(world.api)
    async with term(world) as leadership:
        async with working(*world.all(), leadership=leadership):
            await world.there(WEB, "profiles/ksa.shop.web")
            world.member.kill()
            world.api.put(network_policy("web", DENY), network_policy("late", ALLOW), namespace("late"))
            world.api.delete(service_account("web", "shop"))
            await eventually(lambda: len(world.deeds.troubles) == len(DUTIES))
            world.member.start()
            await world.there("networkpolicies/default/knp.default.late", "profiles/kns.late")

            async def made_up() -> bool:
                found = await world.stored()
                return "ingress" not in found[WEB]["spec"] and "profiles/ksa.shop.web" not in found

            await until(made_up)
            await eventually(lambda: not world.deeds.troubles)


async def test_a_kubernetes_that_has_no_policy_at_all_is_believed_only_when_it_stays_so(world: World) -> None:
    for name in ("knp.default.a", "knp.default.b"):
        await world.put(f"networkpolicies/default/{name}", document("NetworkPolicy", name, {}))
    before = await world.revisions()
    async with term(world) as leadership:
        async with working(world.one("policy"), leadership=leadership):
            await eventually(lambda: "is empty, all at once" in world.deeds.troubles.get("policy", ""))
            assert await world.revisions() == before
            world.api.put(network_policy("b", DENY))

            async def one_left() -> bool:
                return (await world.stored()).keys() == {"networkpolicies/default/knp.default.b"}

            await until(one_left)
            await eventually(lambda: "policy" not in world.deeds.troubles)
            world.api.delete(network_policy("b", DENY))

            async def none_left() -> bool:
                return not await world.stored()

            await until(none_left)

    def impatient(duty: Any) -> None:
        duty.patience = 0.5

    await world.put("networkpolicies/default/knp.default.a", document("NetworkPolicy", "knp.default.a", {}))
    async with term(world) as leadership:
        async with working(world.one("policy", impatient), leadership=leadership):
            await until(none_left)


@pytest.mark.parametrize(
    ("name", "key"), [("namespace", "profiles/kns.a"), ("serviceaccount", "profiles/ksa.a.b")]
)
async def test_a_kubernetes_without_a_single_namespace_is_never_believed(
    world: World, name: str, key: str
) -> None:
    await world.put(key, document("Profile", key.removeprefix("profiles/"), {}))
    async with term(world) as leadership:
        async with working(world.one(name), leadership=leadership):
            await eventually(lambda: "Look at the API server" in world.deeds.troubles.get(name, ""))
            assert (await world.stored()).keys() == {key}


async def test_what_may_not_be_read_is_not_taken_for_gone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cluster(world.api)
    world.api.rules = [Rule(frozenset(("list", "watch")), frozenset(("",)), frozenset(("namespaces",)))]
    await world.put(WEB, document("NetworkPolicy", "knp.default.web", {}))
    await world.put("networkpolicies/default/knp.default.gone", document("NetworkPolicy", "x", {}))
    before = await world.revisions()
    async with term(world) as leadership:
        async with working(world.one("policy"), world.one("namespace"), leadership=leadership):
            await world.there("profiles/kns.default", "profiles/kns.shop")
            await eventually(lambda: "networkpolicies" in world.deeds.troubles.get("policy", ""))
            now = await world.revisions()
            assert {key: now[key] for key in before} == before
            assert "policy: follows" not in caplog.text, "nor is it called followed"
            world.api.rules = None

            async def copied() -> bool:
                found = await world.stored()
                return (
                    "networkpolicies/default/knp.default.gone" not in found and "order" in found[WEB]["spec"]
                )

            await until(copied)
            assert "policy: follows Kubernetes and etcd" in caplog.text


async def test_whoever_has_been_replaced_writes_nothing(world: World) -> None:
    cluster(world.api)
    async with term(world) as leadership:
        task = asyncio.create_task(world.one("policy").run(leadership))
        await world.there(WEB, "networkpolicies/shop/knp.default.deny")
        await world.etcd.delete(LEADER_KEY)
        world.api.put(network_policy("late", DENY))
        with pytest.raises(GuardFailed):
            await asyncio.wait_for(task, 60)
        assert "networkpolicies/default/knp.default.late" not in await world.stored()


async def test_a_dry_run_writes_nothing(world: World) -> None:
    cluster(world.api)
    await world.put("networkpolicies/default/knp.default.gone", document("NetworkPolicy", "x", {}))
    before = await world.revisions()
    world.deeds = Deeds(dry_run=True)
    told: list[tuple[str, str]] = []
    may = world.deeds.may

    def listen(deed: str, subject: str, reason: str) -> bool:
        told.append((deed, subject))
        return may(deed, subject, reason)

    world.deeds.may = listen  # type: ignore[method-assign]
    async with term(world) as leadership:
        async with working(world.one("policy"), leadership=leadership):
            await eventually(lambda: len(set(told)) == 3)
    assert set(told) == {
        ("write-copy", "'networkpolicies/default/knp.default.web'"),
        ("write-copy", "'networkpolicies/shop/knp.default.deny'"),
        ("delete-copy", "'networkpolicies/default/knp.default.gone'"),
    }
    assert await world.revisions() == before


async def test_labels_and_the_cni_plugins_writes_do_not_undo_each_other(world: World) -> None:
    key = "workloadendpoints/default/n-k8s-web--0-eth0"
    await world.put(key, endpoint("web-0"))
    cas = CasStore(world.etcd)

    def count(value: Any) -> Any:
        value["spec"]["count"] = value["spec"].get("count", 0) + 1
        return value

    async def plugin() -> None:
        for _ in range(100):
            await cas.update(RESOURCES + key, count)

    async with term(world) as leadership:
        async with working(world.one("workloadendpoint"), leadership=leadership):
            async with asyncio.TaskGroup() as group:
                group.create_task(plugin())
                for number in range(30):
                    world.api.put(pod("web-0", "n", "10.0.0.1", labels={"n": str(number)}))
                    await asyncio.sleep(0.01)

            async def last() -> bool:
                return bool((await world.stored())[key]["metadata"]["labels"].get("n") == "29")

            await until(last)
    assert await world.spec(key) == endpoint("web-0")["spec"] | {"count": 100}


async def test_a_policy_that_etcd_refuses_stops_no_other(world: World) -> None:
    """etcd takes 1.5 MiB; a policy of the API server's may be more, with a rule per protocol."""
    peers = [{"ipBlock": {"cidr": f"10.{n // 256}.{n % 256}.0/24"}} for n in range(9_000)]
    ports = [{"protocol": protocol, "port": 1} for protocol in ("TCP", "UDP", "SCTP")]
    world.api.put(
        network_policy("huge", {"podSelector": {}, "ingress": [{"from": peers, "ports": ports}]}),
        network_policy("web", DENY),
    )
    async with term(world) as leadership:
        async with working(world.one("policy"), leadership=leadership):
            await world.there(WEB)
            await eventually(lambda: "knp.default.huge" in world.deeds.troubles.get("policy", ""))
            world.api.put(network_policy("huge", DENY))
            await world.there("networkpolicies/default/knp.default.huge")
            await eventually(lambda: "policy" not in world.deeds.troubles)


class Reluctant(GuardedClient):
    """Fails the first writes, in one way after the other."""

    failures: list[EtcdError]

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Put | Delete | Get],
        failure: Sequence[Put | Delete | Get] = (),
    ) -> TxnReply:
        if self.failures:
            raise self.failures.pop()
        return await super().txn(compare, success, failure)


async def test_a_write_that_fails_is_tried_again(world: World) -> None:
    cluster(world.api)
    await world.put("networkpolicies/default/knp.default.gone", document("NetworkPolicy", "x", {}))
    async with term(world) as leadership:
        client = Reluctant(world.etcd, leadership.guards)
        client.failures = [
            Refused("mvcc: database space exceeded"),
            Unavailable("no leader"),
            Denied("no"),
        ] * 3
        leadership.__dict__["client"] = client  # where it is cached
        async with working(world.one("policy"), leadership=leadership):
            await world.there(WEB, "networkpolicies/shop/knp.default.deny")

            async def gone() -> bool:
                return "networkpolicies/default/knp.default.gone" not in await world.stored()

            await until(gone)
            await eventually(lambda: "policy" not in world.deeds.troubles)
    assert not client.failures


async def test_what_both_sides_have_forgotten_meanwhile_is_found_by_listing(world: World) -> None:
    """All copies gone from etcd, and the last object from Kubernetes, while we were cut off from either."""
    world.api.put(network_policy("web", DENY), namespace("default"))
    async with Cut(world.member.client_port) as cut:
        async with Client(EtcdConfig(endpoints=(cut.endpoint,))) as ours, term(world) as leadership:
            leadership = dataclasses.replace(leadership, reader=ours)
            async with working(world.one("policy"), world.one("namespace"), leadership=leadership):
                await world.there(WEB, "profiles/kns.default")
                cut.closed = True
                cut.cut()
                await eventually(lambda: world.deeds.troubles.keys() == {"policy", "namespace"})
                for key in (WEB, "profiles/kns.default"):
                    await world.etcd.delete(RESOURCES + key)
                await world.etcd.compact(await world.etcd.put("/elsewhere", b""))
                cut.closed = False
                await world.there(WEB, "profiles/kns.default")

                await world.api.stop()
                world.api.delete(network_policy("web", DENY))
                world.api.compact()
                await world.api.start()

                async def gone() -> bool:
                    return (await world.stored()).keys() == {"profiles/kns.default"}

                await until(gone)


async def test_the_cluster_role_is_enough(world: World) -> None:
    documents = yaml.safe_load_all((ROOT / "deploy/kubernetes/base/rbac-controllers.yaml").read_text())
    world.api.rules = rules_of(documents)
    cluster(world.api)
    async with term(world) as leadership:
        async with working(*world.all(), leadership=leadership):
            await world.caught_up()
    assert {one.status for one in world.api.log} == {200}
    assert {(one.verb, one.group, one.resource) for one in world.api.log} == {
        (verb, group, resource)
        for verb in ("list", "watch")
        for group, resource in (
            ("networking.k8s.io", "networkpolicies"),
            ("", "namespaces"),
            ("", "serviceaccounts"),
            ("", "pods"),
        )
    }


@contextlib.asynccontextmanager
async def copier(world: World, identity: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.copier",
        world.member.endpoint, str(world.kubeconfig), identity, "2",
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_process_that_is_killed_in_the_middle_leaves_nothing_half_done(world: World) -> None:
    """The next leader writes what is missing, deletes what was to be deleted, and touches nothing else."""
    total, stale = 2_000, 200
    for number in range(stale):
        await world.put(
            f"networkpolicies/default/knp.default.old-{number}", document("NetworkPolicy", "x", {})
        )
    world.api.put(*(network_policy(f"new-{number}", ALLOW) for number in range(total)))

    async def copies(part: str) -> dict[str, int]:
        return {key: revision for key, revision in (await world.revisions()).items() if part in key}

    async def begun() -> bool:
        return len(await copies("knp.default.new-")) >= 20

    async with copier(world, "first"):
        await until(begun)
    written = await copies("knp.default.new-")
    assert len(written) < total, "it was killed before the end"
    assert len(await copies("old-")) == stale, "what is wanted comes first"

    async def done() -> bool:
        return len(await copies("knp.default.new-")) == total and not await copies("old-")

    async with copier(world, "second"):
        await until(done)
    after = await copies("knp.default.new-")
    assert {key: after[key] for key in written} == written
