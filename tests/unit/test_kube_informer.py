"""The Kubernetes informer against an API server to which everything happens: it ends in the present state."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from felix_like.calc.snapshot import Malformed
from felix_like.datastore.kube import client as client_module
from felix_like.datastore.kube import reflector
from felix_like.datastore.kube.access import KubeAccess
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.informer import (
    Collection,
    InSync,
    KubeBatch,
    KubeInformer,
    Pace,
    Stale,
    trim,
)
from tests.support.etcd import eventually
from tests.support.kube_api import Fault, KubeApi, kube_api
from tests.support.kube_objects import endpoint_slice, node, secret, service
from tests.support.kube_store import Rule

FAST = Pace(stale_after=0.3, max_pause=0.2, refused_after=0.2, refused_pause=0.3, short_watch=0.02)


def spec(key: str, raw: dict[str, Any]) -> str | Malformed | None:
    """What these tests decode to: the object's one interesting part."""
    if "broken" in raw["metadata"].get("labels", {}):
        return Malformed(key, "it is broken")
    if "boring" in raw["metadata"].get("labels", {}):
        return None
    return str(raw.get("spec", {}).get("clusterIP") or raw["metadata"]["name"])


SERVICES = Collection(path="/api/v1/services", prefix="kube/services", decode=spec, never_empty=True)
SLICES = Collection(
    path="/apis/discovery.k8s.io/v1/endpointslices", prefix="kube/endpointslices", decode=spec
)
NODES = Collection(path="/api/v1/nodes", prefix="kube/nodes", decode=spec)
BGP = Collection(
    path="/api/v1/namespaces/kube-system/secrets",
    prefix="kube/secrets",
    decode=spec,
    field_selector="metadata.name=bgp",
)


class Reader:
    """Applies what an informer says, as the agent does."""

    def __init__(self, informer: KubeInformer[str]) -> None:
        self.informer = informer
        self.state: dict[str, str | Malformed] = {}
        self.said: list[KubeBatch[str] | Stale | InSync] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with contextlib.aclosing(self.informer.events()) as events:
            async for event in events:
                self.said.append(event)
                if isinstance(event, KubeBatch):
                    for change in event.changes:
                        if change.value is None:
                            self.state.pop(change.key, None)
                        else:
                            self.state[change.key] = change.value

    @property
    def last(self) -> str:
        """in-sync, stale, or nothing said yet."""
        for event in reversed(self.said):
            if not isinstance(event, KubeBatch):
                return "in-sync" if isinstance(event, InSync) else "stale"
        return ""

    @property
    def reasons(self) -> list[str]:
        return [event.reason for event in self.said if isinstance(event, Stale)]

    async def follows(self, api: KubeApi, *plurals: str, wanted: Callable[[Any], bool] = bool) -> None:
        """In sync, with exactly the objects that the server has."""
        await self.becomes(present(api, *plurals, wanted=wanted), "in-sync")

    async def becomes(self, state: Mapping[str, str | Malformed], last: str) -> None:
        try:
            await eventually(lambda: self.state == state and self.last == last)
        except AssertionError:
            raise AssertionError(
                f"{self.last}: {self.state}, not {last}: {state}; {self.said[-5:]}"
            ) from None


def present(api: KubeApi, *plurals: str, wanted: Callable[[Any], bool] = bool) -> dict[str, str | Malformed]:
    found: dict[str, str | Malformed] = {}
    for (_, plural), held in api.store.objects.items():
        if plural in plurals:
            for (namespace, name), obj in held.items():
                key = "/".join(part for part in ("kube", plural, namespace, name) if part)
                value = spec(key, obj)
                if wanted(obj) and value is not None:
                    found[key] = value
    return found


@contextlib.asynccontextmanager
async def following(
    api: KubeApi,
    where: Path,
    *collections: Collection[str],
    known: Mapping[str, bytes] | None = None,
    pace: Pace = FAST,
    seconds: float = 15.0,
) -> AsyncIterator[Reader]:
    client = KubeClient(KubeAccess(api.kubeconfig(where / "kubeconfig")), timeout=seconds)
    reader = Reader(KubeInformer(client, collections or (SERVICES,), known=known, pace=pace))
    try:
        yield reader
    finally:
        reader.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader.task
        await client.close()


def some(api: KubeApi, count: int = 3) -> None:
    api.put(*(service(f"s{n}", f"10.96.0.{n}") for n in range(count)))


# -- as it should be -----------------------------------------------------------------------------------


async def test_first_the_whole_then_every_change(tmp_path: Path) -> None:
    async with kube_api() as api:
        some(api)
        api.put(endpoint_slice("s1", {"10.65.1.2": "node-1"}))
        async with following(api, tmp_path, SERVICES, SLICES) as reader:
            await reader.follows(api, "services", "endpointslices")
            kinds = [type(event) for event in reader.said]
            assert kinds == [KubeBatch, InSync], "both collections in one batch, before anything else"
            assert reader.said[0].in_sync  # type: ignore[union-attr]
            api.put(service("s1", "10.96.1.1"), service("new", "10.96.0.9"))
            api.delete(service("s0"))
            await reader.follows(api, "services", "endpointslices")
        assert {one.params.get("limit") for one in api.asked("list")} == {"500"}
        assert len(api.asked("list", "services")) == 1, "changes come by the watch"


async def test_many_pages_are_one_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "PAGE", 7)
    async with kube_api() as api:
        some(api, 50)
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
        assert len(api.asked("list")) == 8


async def test_what_does_not_matter_is_no_change(tmp_path: Path) -> None:
    """A heartbeat writes a Node every ten seconds; nothing of interest is in it."""
    nodes = Collection(
        path="/api/v1/nodes",
        prefix="kube/nodes",
        decode=spec,
        trim=lambda raw: {"metadata": {"name": raw["metadata"]["name"]}, "spec": raw["spec"]},
    )
    async with kube_api() as api:
        api.put(node("n1"))
        async with following(api, tmp_path, nodes) as reader:
            await reader.follows(api, "nodes")
            for beat in range(5):
                api.put({**node("n1"), "status": {"beat": beat}})
            api.put(node("n2"))
            await reader.follows(api, "nodes")
            told = [c.key for event in reader.said if isinstance(event, KubeBatch) for c in event.changes]
            assert told == ["kube/nodes/n1", "kube/nodes/n2"]


async def test_values_that_are_none_or_broken(tmp_path: Path) -> None:
    boring, broken = {"labels": {"boring": ""}}, {"labels": {"broken": ""}}

    def labelled(name: str, labels: dict[str, Any]) -> dict[str, Any]:
        made = service(name, "10.96.0.1")
        made["metadata"].update(labels)
        return made

    async with kube_api() as api:
        api.put(labelled("a", boring), labelled("b", broken), labelled("c", {}))
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
            assert isinstance(reader.state["kube/services/default/b"], Malformed)
            api.put(labelled("a", {}), labelled("b", {}), labelled("c", boring))
            await reader.follows(api, "services")
            assert sorted(reader.state) == ["kube/services/default/a", "kube/services/default/b"]
            api.put(labelled("a", broken))
            await reader.follows(api, "services")


async def test_one_object_by_its_name(tmp_path: Path) -> None:
    async with kube_api() as api:
        api.put(secret("other", {"k": "v"}))
        async with following(api, tmp_path, BGP) as reader:
            await reader.becomes({}, "in-sync")
            api.put(secret("bgp", {"k": "v"}), secret("bgp", {"k": "v"}, namespace="elsewhere"))
            await reader.becomes({"kube/secrets/kube-system/bgp": "bgp"}, "in-sync")
            api.delete(secret("bgp", {}))
            await reader.becomes({}, "in-sync")
        assert {(one.namespace, one.name) for one in api.log} == {("kube-system", "bgp")}


async def test_collections_come_and_go(tmp_path: Path) -> None:
    async with kube_api() as api:
        some(api)
        api.put(node("n1"))
        async with following(api, tmp_path, NODES) as reader:
            await reader.follows(api, "nodes")
            reader.informer.follow((NODES, SERVICES))
            await reader.follows(api, "nodes", "services")
            await eventually(lambda: reader.said[-1] == InSync(0))  # whole again
            reader.informer.follow((SERVICES,))
            await reader.follows(api, "services")
            await eventually(lambda: not api.watching("nodes"))
            reader.informer.follow(())
            await reader.becomes({}, "in-sync")


async def test_nothing_to_follow_is_in_sync(tmp_path: Path) -> None:
    async with kube_api() as api:
        client = KubeClient(KubeAccess(api.kubeconfig(tmp_path / "kubeconfig")))
        reader = Reader(KubeInformer[str](client, ()))
        await eventually(lambda: reader.said == [KubeBatch((), True), InSync(0)])
        reader.task.cancel()
        assert not api.log


# -- away ----------------------------------------------------------------------------------------------


async def test_an_api_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    async with kube_api() as api:
        some(api)
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
            before = dict(reader.state)
            await api.stop()
            await reader.becomes(before, "stale")
            assert len(reader.reasons) == 1
            assert "cannot be reached" in reader.reasons[0]
            api.put(service("late", "10.96.0.9"))
            api.delete(service("s0"))
            await api.start()
            await reader.follows(api, "services")


async def test_a_short_break_is_not_worth_a_word(tmp_path: Path) -> None:
    async with kube_api() as api:
        some(api)
        async with following(api, tmp_path, pace=Pace(max_pause=0.1, stale_after=60)) as reader:
            await reader.follows(api, "services")
            for round_ in range(3):
                api.cut()
                api.put(service("s0", f"10.96.2.{round_}"))
                await reader.follows(api, "services")
            assert not reader.reasons
        assert (
            len(api.asked("list")) - len([one for one in api.log if one.params.get("limit") == "1"]) == 1
        ), "the watch goes on where it was"


async def test_never_reached(tmp_path: Path) -> None:
    async with kube_api() as api:
        await api.stop()
        async with following(api, tmp_path) as reader:
            await eventually(lambda: reader.last == "stale")
            assert not [event for event in reader.said if isinstance(event, KubeBatch)], "nothing is known"
            assert reader.informer.known is None
            await api.start()
            some(api)
            await reader.follows(api, "services")


async def test_a_copy_serves_until_the_server_answers(tmp_path: Path) -> None:
    async with kube_api() as api:
        some(api)
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
            known = reader.informer.known
            state = dict(reader.state)
        assert known is not None
        await api.stop()
        api.delete(service("s0"))
        api.put(service("s1", "10.96.3.3"))
        async with following(api, tmp_path, known=known) as reader:
            await reader.becomes(state, "stale")
            assert isinstance(reader.said[0], KubeBatch)
            assert not reader.said[0].in_sync
            await api.start()
            await reader.follows(api, "services")


async def test_a_copy_of_what_is_not_followed_is_not_told(tmp_path: Path) -> None:
    known = {
        "kube/nodes/n1": msgspec.json.encode(trim(node("n1"))),
        "kube/services/default/s9": msgspec.json.encode(trim(service("s9", "10.96.0.9"))),
    }
    async with kube_api() as api:
        some(api, 1)
        async with following(api, tmp_path, known=known) as reader:
            await reader.follows(api, "services")
            assert [change.key for change in reader.said[0].changes] == ["kube/services/default/s9"]  # type: ignore[union-attr]


async def test_a_frozen_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "WATCH_SECONDS", (1, 1))
    monkeypatch.setattr(client_module, "WATCH_PATIENCE", 0.3)
    async with kube_api(bookmark_every=60) as api:
        some(api)
        async with following(api, tmp_path, seconds=0.5) as reader:
            await reader.follows(api, "services")
            api.freeze()
            api.put(service("s0", "10.96.3.3"))
            await eventually(lambda: reader.last == "stale")
            api.thaw()
            await reader.follows(api, "services")


# -- lost track ----------------------------------------------------------------------------------------


async def test_forgotten_history_is_listed_anew_and_deletes_are_told(tmp_path: Path) -> None:
    async with kube_api() as api:
        some(api)
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
            await api.stop()
            api.delete(service("s0"))
            api.put(service("s1", "10.96.7.7"), service("new", "10.96.0.9"))
            api.compact()
            await api.start()
            await reader.follows(api, "services")
            last = [event for event in reader.said if isinstance(event, KubeBatch)][-1]
            assert {change.key.rpartition("/")[2] for change in last.changes} == {"s0", "s1", "new"}


async def test_a_list_whose_token_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages always come too late, one without pages is asked for."""
    monkeypatch.setattr(reflector, "PAGE", 2)
    async with kube_api() as api:
        some(api, 5)
        api.expire_at_once = True
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
        assert "limit" not in api.asked("list")[-1].params


async def test_a_restored_backup(tmp_path: Path) -> None:
    """Versions go back: a watch from the old one would be accepted, and silent for ever."""
    async with kube_api() as api:
        some(api)
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
            backup = api.backup()
            for n in range(20):
                api.put(service("after", f"10.96.5.{n}"))
            await reader.follows(api, "services")
            api.restore(backup)
            api.delete(service("s2"))
            await reader.follows(api, "services")
            assert "kube/services/default/after" not in reader.state


async def test_a_restored_backup_that_overtook_us(tmp_path: Path) -> None:
    """The version is ahead of ours again, but by another history; what differs is found later."""
    pace = Pace(stale_after=0.3, max_pause=0.1, short_watch=0.02, verify_within=0.5)
    async with kube_api() as api:
        api.most_seconds = 0.3
        some(api)
        async with following(api, tmp_path, pace=pace) as reader:
            await reader.follows(api, "services")
            backup = api.backup()
            api.put(service("lost", "10.96.5.5"))
            await reader.follows(api, "services")
            await api.stop()
            api.restore(backup)
            for n in range(10):
                api.put(service("other", f"10.96.6.{n}"))
            api.store.compacted = 0
            await api.start()
            await reader.follows(api, "services")
            assert "kube/services/default/lost" not in reader.state


async def test_an_emptied_server_is_not_believed(tmp_path: Path) -> None:
    """Another etcd behind it: Service default/kubernetes at least is always there."""
    async with kube_api() as api:
        empty = api.backup()
        some(api)
        api.put(node("n1"))
        async with following(api, tmp_path, SERVICES, NODES) as reader:
            await reader.follows(api, "services", "nodes")
            before = {key: value for key, value in reader.state.items() if "services" in key}
            api.restore(empty)
            await reader.becomes(before, "stale")
            assert "nothing left under /api/v1/services, where 3 objects were known" in reader.reasons[-1]
            api.put(service("kubernetes", "10.96.0.1"))
            await reader.follows(api, "services", "nodes")


async def test_who_deletes_everything_before_our_eyes_is_followed(tmp_path: Path) -> None:
    async with kube_api() as api:
        some(api)
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
            for n in range(3):
                api.delete(service(f"s{n}"))
            await reader.becomes({}, "in-sync")


# -- ill-behaved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\n",
        b'{"type": "ADDED", "object": {"metadata": {"name": "x"}}}\n',
        b'{"type": "EXPLODED", "object": {"metadata": {"name": "x", "resourceVersion": "9999"}}}\n',
        b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}\n',
        b'{"type": "ERROR", "object": {"code": 500, "message": "etcd"}}\n',
        b'{"type": "ERROR", "object": {}}\n',
    ],
)
async def test_garbage_in_the_stream(tmp_path: Path, said: bytes) -> None:
    async with kube_api() as api:
        some(api)
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
            for round_ in range(3):
                await eventually(lambda: api.watching("services"))
                api.say(said)
                api.put(service("s0", f"10.96.2.{round_}"))
                await reader.follows(api, "services")


async def test_a_nameless_object_stops_nothing(tmp_path: Path) -> None:
    async with kube_api() as api:
        some(api)
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
            await eventually(lambda: api.watching("services"))
            for metadata in (b"", b'"name": 7,', b'"name": "a/b",', b'"name": "a", "namespace": "",'):
                api.say(
                    b'{"type": "ADDED", "object": {"metadata": {%s "resourceVersion": "1004"}}}\n' % metadata
                )
            api.put(service("s0", "10.96.2.2"))
            await reader.follows(api, "services")
            assert not reader.reasons


async def test_answers_that_make_no_sense(tmp_path: Path) -> None:
    """Each is tried again; in the end the state is right."""
    async with kube_api() as api:
        some(api)
        for body in (
            b"{}",
            b'{"metadata": {"resourceVersion": "1"}, "items": 7}',
            b'{"items": []}',
            b"<html>",
        ):
            api.faults.append(Fault(body=body, verb="list"))
        api.faults.append(Fault(close=True))
        api.faults.append(Fault(status=500, count=2))
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")


async def test_how_long_to_wait_is_the_servers_to_say(tmp_path: Path) -> None:
    async with kube_api() as api:
        some(api)
        api.faults.append(Fault(status=429, retry_after="1", verb="list"))
        async with following(api, tmp_path) as reader:
            began = asyncio.get_running_loop().time()
            await reader.follows(api, "services")
            assert asyncio.get_running_loop().time() - began >= 1.0
        assert [one.status for one in api.asked("list")] == [429, 200]


async def test_an_object_too_large_for_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer at a time, until they fit."""
    monkeypatch.setattr(client_module, "MAX_BODY", 20_000)
    async with kube_api() as api:
        api.put(*(service(f"s{n:03}", "10.96.0.1", externalName="x" * 1000) for n in range(100)))
        async with following(api, tmp_path) as reader:
            await reader.follows(api, "services")
        assert {one.params["limit"] for one in api.asked("list")} == {"500", "62", "7"}


async def test_watches_that_end_at_once_are_no_storm(tmp_path: Path) -> None:
    async with kube_api() as api:
        api.most_seconds = 0.001
        some(api)
        pace = Pace(short_watch=0.5)
        async with following(api, tmp_path, pace=pace) as reader:
            await reader.follows(api, "services")
            api.put(service("s0", "10.96.2.2"))
            await reader.follows(api, "services")
            seen = len(api.asked("watch"))
            await asyncio.sleep(1)
            assert len(api.asked("watch")) - seen <= 5


# -- refused -------------------------------------------------------------------------------------------


def may(*resources: str, verbs: Sequence[str] = ("get", "list", "watch")) -> Rule:
    return Rule(frozenset(verbs), frozenset(("*",)), frozenset(resources))


async def test_a_forbidden_collection_holds_up_nothing_else(tmp_path: Path) -> None:
    async with kube_api(rules=[may("services")]) as api:
        some(api)
        api.put(node("n1"))
        async with following(api, tmp_path, SERVICES, NODES) as reader:
            await reader.follows(api, "services")
            (reason,) = reader.informer.refused.values()
            assert "may not list nodes" in reason
            assert reason.endswith(
                'RBAC lacks a ClusterRole with apiGroups: [""], resources: ["nodes"], verbs: ["list"]'
            )
            assert not reader.reasons, "that is no reason to call Kubernetes stale"
            api.rules = [may("services", "nodes")]
            await reader.follows(api, "services", "nodes")
            await eventually(lambda: not reader.informer.refused)


async def test_list_without_watch_is_named(tmp_path: Path) -> None:
    async with kube_api(rules=[may("services", verbs=("list",))]) as api:
        some(api)
        async with following(api, tmp_path) as reader:
            await eventually(lambda: reader.informer.refused)
            assert 'verbs: ["watch"]' in reader.informer.refused[SERVICES.path]


async def test_rights_that_are_taken_away_forget_nothing(tmp_path: Path) -> None:
    async with kube_api(rules=[may("services", "nodes")]) as api:
        some(api)
        api.put(node("n1"))
        async with following(api, tmp_path, SERVICES, NODES) as reader:
            await reader.follows(api, "services", "nodes")
            state = dict(reader.state)
            api.rules = [may("nodes")]
            api.cut()
            await eventually(lambda: reader.informer.refused)
            api.put(service("s0", "10.96.9.9"))
            api.put(node("n2"))
            await reader.becomes({**state, "kube/nodes/n2": "n2"}, "in-sync")


async def test_an_unknown_resource_is_refused_alone(tmp_path: Path) -> None:
    """An old Kubernetes without discovery.k8s.io/v1."""
    async with kube_api() as api:
        some(api)
        api.faults.append(Fault(status=404, resource="endpointslices", count=10_000))
        async with following(api, tmp_path, SERVICES, SLICES) as reader:
            await reader.follows(api, "services")
            assert "cannot list endpointslices" in reader.informer.refused[SLICES.path]


async def test_a_server_that_knows_its_roles_only_later(tmp_path: Path) -> None:
    """It refuses for a moment after its start; that is waited for, else what was known would be dropped."""
    async with kube_api(rules=[]) as api:
        some(api)
        async with following(api, tmp_path, pace=Pace(refused_after=60, max_pause=0.1)) as reader:
            await eventually(lambda: len(api.asked("list")) > 3)
            assert not reader.said
            api.rules = None
            await reader.follows(api, "services")


async def test_credentials_that_expire_are_read_again(tmp_path: Path) -> None:
    async with kube_api(tokens=["first"]) as api:
        some(api)
        (tmp_path / "token").write_text("first")
        config = api.kubeconfig(tmp_path / "with-file", user={"tokenFile": "token"})
        reader = Reader(KubeInformer[str](client := KubeClient(KubeAccess(config)), (SERVICES,), pace=FAST))
        await reader.follows(api, "services")
        api.tokens = {"second"}
        api.cut()
        await eventually(lambda: reader.last == "stale")
        assert "does not accept kubeconfig" in reader.reasons[-1]
        (tmp_path / "token").write_text("second")
        api.put(service("s0", "10.96.2.2"))
        await reader.follows(api, "services")
        reader.task.cancel()
        await asyncio.wait({reader.task})
        await client.close()


# -- ends ----------------------------------------------------------------------------------------------


async def test_a_bug_in_a_decoder_is_loud(tmp_path: Path) -> None:
    def bug(key: str, raw: dict[str, Any]) -> str:
        raise ZeroDivisionError(key)

    async with kube_api() as api:
        some(api)
        async with following(api, tmp_path, Collection(path=SERVICES.path, prefix="x", decode=bug)) as reader:
            await asyncio.wait({reader.task}, timeout=30)
            assert isinstance(reader.task.exception(), ZeroDivisionError)
            reader.task = asyncio.create_task(asyncio.sleep(0))


async def test_closing_leaves_no_watch(tmp_path: Path) -> None:
    async with kube_api() as api:
        some(api)
        async with following(api, tmp_path, SERVICES, NODES) as reader:
            await reader.follows(api, "services", "nodes")
            await eventually(lambda: api.watching("services") and api.watching("nodes"))
        await eventually(lambda: not api.watching("services") and not api.watching("nodes"))


def test_what_is_kept_of_an_object() -> None:
    raw = service("web", "10.96.0.1")
    noise = {
        "managedFields": [{"manager": "kubectl"}],
        "resourceVersion": "7",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "x"},
    }
    kept = trim({**raw, "metadata": {**raw["metadata"], **noise}})
    assert kept == {**raw, "metadata": {**raw["metadata"], "annotations": {"mine": "x"}}}
