"""Kubernetes' way into the calculation and the passwords, from a fake API server: there, away, refusing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent import copy_on_disk
from agent.follow import StoreState
from agent.follow_kube import KubeFollower
from agent.kube_secrets import KubeSecrets, Passwords, Secret, decode
from agent.kube_state import Track, worst
from agent.kubernetes import passwords_in, remembered
from agent.secret_files import SecretFiles
from bird_config.compose import compose
from bird_config.render import render
from felix_like.calc.desire import secret_refs
from felix_like.datastore.kube.access import KubeAccess
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.informer import Pace
from felix_like.model.address import Prefix
from felix_like.model.bgp import ClusterInformation, SecretRef
from tests.support.etcd import eventually
from tests.support.hands import Hands, calculation, changes
from tests.support.kube_api import KubeApi, kube_api
from tests.support.kube_objects import endpoint_slice, node, secret, service
from tests.support.kube_store import Rule
from tests.support.stories import bgp_peer, configuration, pool
from tests.support.stories import node as calico_node

UNIX = 1_800_000_000.0
FAST = Pace(stale_after=0.2, max_pause=0.2, refused_after=0.2, refused_pause=0.3, short_watch=0.02)
RANGES = configuration(service_cluster_ips=(Prefix.of("10.96.0.0/16"),))
HERE = calico_node("a", "192.0.2.1/24")
WEB = (service("web", "10.96.0.10", local=True), endpoint_slice("web", {"10.65.1.2": "a"}))
SERVICES_KINDS = {("services", ""), ("endpointslices", ""), ("nodes", "a")}


class World:
    """A follower of one API server with what it leads to."""

    def __init__(self, config: Path, directory: Path, **settings: Any) -> None:
        self.hands = Hands()
        self.calculation = calculation(self.hands, kubernetes=True, **settings)
        self.file = directory / "last-good-kubernetes"
        self.client = KubeClient(KubeAccess(config))
        self.follower = KubeFollower(
            self.client,
            self.calculation,
            copy_file=self.file,
            track=Track("services", lambda: UNIX),
            wall=lambda: UNIX,
            pace=FAST,
        )

    @property
    def state(self) -> str:
        return self.follower.track.state.state

    def originated(self) -> set[str]:
        desired = self.calculation.graph.desired
        return {str(prefix) for prefix in desired.originated} if desired is not None else set()

    def datastore(self, *values: Any) -> None:
        self.calculation.graph.on_datastore(changes(*values), True)
        self.follower.look()
        self.calculation.told()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        tasks = [asyncio.create_task(self.follower.run()), asyncio.create_task(self.follower.copy.run())]
        try:
            yield self
            for task in tasks:
                assert not task.done(), task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self.client.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_on_disk, "SAVE_DELAY", 0.01)


def asked(api: KubeApi) -> set[tuple[str, str]]:
    return {(one.resource, one.name) for one in api.log}


# -- services ------------------------------------------------------------------------------------------


async def test_nothing_is_asked_before_something_needs_it(tmp_path: Path) -> None:
    async with kube_api() as api:
        api.put(*WEB, node("a"))
        async with World(api.kubeconfig(tmp_path / "config"), tmp_path).running() as world:
            world.datastore(HERE)
            await asyncio.sleep(0.1)
            assert (world.state, api.log) == ("idle", [])
            world.datastore(RANGES)
            assert world.state == "connecting"
            await eventually(lambda: world.originated() == {"10.96.0.0/16", "10.96.0.10/32"})
            await eventually(lambda: world.state == "in-sync")
            assert asked(api) == SERVICES_KINDS
            world.datastore(configuration())
            assert world.state == "idle"
            await eventually(lambda: world.originated() == set())
            await eventually(lambda: not api.watching("services"))


async def test_what_a_locked_datastore_no_longer_names_is_followed_until_it_is_unlocked(
    tmp_path: Path,
) -> None:
    async with kube_api() as api:
        api.put(*WEB, node("a"))
        async with World(api.kubeconfig(tmp_path / "config"), tmp_path).running() as world:
            world.datastore(HERE, RANGES)
            await eventually(lambda: world.originated() == {"10.96.0.0/16", "10.96.0.10/32"})
            world.datastore(ClusterInformation(datastore_ready=False), configuration())
            api.put(service("db", "10.96.0.11", local=True), endpoint_slice("db", {"10.65.1.3": "a"}))
            await eventually(lambda: world.originated() == {"10.96.0.0/16", "10.96.0.10/32", "10.96.0.11/32"})
            world.datastore(ClusterInformation())
            assert world.state == "idle"
            await eventually(lambda: world.originated() == set())


async def test_in_host_local_mode_all_nodes_are_asked_for_and_nothing_else(tmp_path: Path) -> None:
    async with kube_api() as api:
        api.put(node("a", "10.244.1.0/24"), node("b", "10.244.2.0/24"))
        world = World(api.kubeconfig(tmp_path / "config"), tmp_path, use_pod_cidr=True)
        async with world.running():
            world.datastore(HERE, pool("pods", "10.244.0.0/16"))
            await eventually(lambda: "10.244.1.0/24" in world.originated())
            assert asked(api) == {("nodes", "")}


async def test_in_host_local_mode_a_cluster_without_nodes_is_not_believed(tmp_path: Path) -> None:
    """An API server that looks at another etcd, or at an emptied one, takes no pod off the air."""
    async with kube_api() as api:
        api.put(node("a", "10.244.1.0/24"))
        config = api.kubeconfig(tmp_path / "config")
        async with World(config, tmp_path, use_pod_cidr=True).running() as world:
            world.datastore(HERE, pool("pods", "10.244.0.0/16"))
            await eventually(lambda: world.file.exists() and b"10.244.1.0" in world.file.read_bytes())
        api.delete(node("a"))
        async with World(config, tmp_path, use_pod_cidr=True).running() as world:
            world.datastore(HERE, pool("pods", "10.244.0.0/16"))
            await eventually(lambda: world.state == "stale")
            assert "has nothing left under /api/v1/nodes" in world.follower.track.state.reason
            assert "10.244.1.0/24" in world.originated()


async def test_the_copy_is_kept_while_more_is_asked_for_than_the_api_server_has_told(tmp_path: Path) -> None:
    async with kube_api() as api:
        api.put(*WEB, node("a", "10.244.1.0/24"))
        config = api.kubeconfig(tmp_path / "config")
        pods = pool("pods", "10.244.0.0/16")
        async with World(config, tmp_path, use_pod_cidr=True).running() as world:
            world.datastore(HERE, pods, RANGES)
            await eventually(lambda: world.file.exists() and b"10.96.0.10" in world.file.read_bytes())
        before = world.file.read_bytes()
        await api.stop()
        async with World(config, tmp_path, use_pod_cidr=True).running() as world:
            world.datastore(HERE, pods)
            await eventually(lambda: world.originated() == {"10.244.1.0/24"})
            world.datastore(RANGES)
            await asyncio.sleep(0.3)  # many times what it takes to write a copy here
            assert world.file.read_bytes() == before


async def test_a_copy_serves_a_start_without_the_api_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with kube_api() as api:
        api.put(*WEB, node("a"), service("kubernetes", "10.96.0.1"))
        config = api.kubeconfig(tmp_path / "config")
        async with World(config, tmp_path).running() as world:
            world.datastore(HERE, RANGES)
            await eventually(lambda: world.file.exists() and b"10.96.0.10" in world.file.read_bytes())
        await api.stop()
        async with World(config, tmp_path).running() as world:
            world.datastore(HERE, RANGES)
            assert "full_sync_done" not in world.hands.names()
            await eventually(lambda: world.state == "stale")
            assert world.originated() == {"10.96.0.0/16", "10.96.0.10/32"}
            assert world.follower.refusals() == []
            assert "starting from the last good copy of Kubernetes on disk" in caplog.text
            api.delete(WEB[0])
            await api.start()
            await eventually(lambda: world.originated() == {"10.96.0.0/16"})
            await eventually(lambda: b"10.96.0.10" not in world.file.read_bytes())


async def test_without_a_copy_it_says_that_nothing_is_known(tmp_path: Path) -> None:
    async with kube_api() as api:
        await api.stop()
        async with World(api.kubeconfig(tmp_path / "config"), tmp_path).running() as world:
            world.datastore(HERE, RANGES)
            await eventually(lambda: world.state == "stale")
            (refusal,) = world.follower.refusals()
            assert refusal.subject == "Kubernetes"
            assert refusal.reason.startswith(
                "nothing was heard from it since the start, and no copy is here: the "
            )
            assert world.originated() == set(), "nobody withdraws what a surviving speaker still tells"
            assert world.hands.names().count("full_sync_done") == 0


@pytest.mark.parametrize("octets", [b"", b"nonsense", b"TORTIE-SNAPSHOT\n\x01" + bytes(40)])
async def test_a_copy_that_is_none_is_said_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, octets: bytes
) -> None:
    async with kube_api() as api:
        api.put(*WEB, node("a"))
        (tmp_path / "last-good-kubernetes").write_bytes(octets)
        (tmp_path / ".last-good-kubernetes.left").write_bytes(b"half")
        async with World(api.kubeconfig(tmp_path / "config"), tmp_path).running() as world:
            world.datastore(HERE, RANGES)
            await eventually(lambda: b"10.96.0.10" in world.file.read_bytes())
        assert "last good copy of Kubernetes: " in caplog.text
        assert not (tmp_path / ".last-good-kubernetes.left").exists()


async def test_a_disk_that_refuses_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with kube_api() as api:
        api.put(*WEB, node("a"))
        (tmp_path / "file").write_text("no directory")
        world = World(api.kubeconfig(tmp_path / "config"), tmp_path / "file" / "below")
        async with world.running():
            world.datastore(HERE, RANGES)
            await eventually(lambda: "cannot be written" in caplog.text)
            for count in range(3):
                api.put(service(f"s{count}", f"10.96.1.{count}"))
            await eventually(lambda: world.state == "in-sync")
            assert caplog.text.count("cannot be written") == 1


async def test_what_is_forbidden_is_a_refusal(tmp_path: Path) -> None:
    services = Rule(frozenset(("list", "watch")), frozenset(("",)), frozenset(("services", "nodes")))
    async with kube_api(rules=[services]) as api:
        api.put(*WEB, node("a"))
        async with World(api.kubeconfig(tmp_path / "config"), tmp_path).running() as world:
            world.datastore(HERE, RANGES)
            await eventually(lambda: world.state == "in-sync")
            (refusal,) = world.follower.refusals()
            assert refusal.reason.startswith("may not list endpointslices (403: ")
            assert world.originated() == {"10.96.0.0/16"}, "it holds up nothing else"


async def test_an_api_server_that_refuses_everything_has_said_nothing(tmp_path: Path) -> None:
    """As one that just starts may: no token is known to it, and no role."""
    async with kube_api(rules=[]) as api:
        api.put(*WEB, node("a"))
        async with World(api.kubeconfig(tmp_path / "config"), tmp_path).running() as world:
            world.datastore(HERE, RANGES)
            world.calculation.speaker_replayed()
            await eventually(lambda: len(world.follower.refusals()) == 3)
            assert world.originated() == set(), "nobody withdraws what a surviving speaker still tells"
            assert "full_sync_done" not in world.hands.names()
            api.rules = None
            await eventually(lambda: world.originated() == {"10.96.0.0/16", "10.96.0.10/32"})
            await eventually(lambda: "full_sync_done" in world.hands.names())


# -- passwords -----------------------------------------------------------------------------------------

REF = SecretRef("bgp", "tor")


class SecretWorld:
    def __init__(self, config: Path, directory: Path, old: dict[SecretRef, str] | None = None) -> None:
        self.client = KubeClient(KubeAccess(config))
        self.changed = 0
        self.looked: list[set[SecretRef]] = []
        self.files = SecretFiles(directory / "secrets")
        self.secrets = KubeSecrets(
            self.client,
            "kube-system",
            changed=self._changed,
            remembered=self._remembered(old or {}),
            track=Track("passwords", lambda: UNIX),
            pace=FAST,
        )
        self.passwords = Passwords(self.files, self.secrets)

    def _changed(self) -> None:
        self.changed += 1

    def _remembered(self, old: dict[SecretRef, str]) -> Callable[[Any], dict[SecretRef, str]]:
        def look(refs: set[SecretRef]) -> dict[SecretRef, str]:
            self.looked.append(set(refs))
            return {ref: text for ref, text in old.items() if ref in refs}

        return look

    def reasons(self) -> list[str]:
        return [str(refusal) for refusal in self.secrets.refusals()]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[SecretWorld]:
        task = asyncio.create_task(self.secrets.run())
        try:
            yield self
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.wait({task})
            await self.client.close()


async def test_a_password_comes_changes_and_goes(tmp_path: Path) -> None:
    async with kube_api() as api:
        api.put(secret("bgp", {"tor": "hush\n"}))
        async with SecretWorld(api.kubeconfig(tmp_path / "config"), tmp_path).running() as world:
            assert world.passwords.read({REF}) == {}
            assert world.reasons() == ["Secret kube-system/bgp: the API server has not been heard yet"]
            await eventually(lambda: world.passwords.read({REF}) == {REF: "hush"})
            assert world.reasons() == []
            before = world.changed
            api.put(secret("bgp", {"tor": "other"}))
            await eventually(lambda: world.changed > before)
            assert world.passwords.read({REF}) == {REF: "other"}
            api.put(secret("bgp", {"tors": "other"}))
            await eventually(lambda: world.passwords.read({REF}) == {})
            assert world.reasons() == ["Secret kube-system/bgp: it has no key 'tor'"]
            api.delete(secret("bgp", {}))
            await eventually(
                lambda: "does not exist" in "".join(world.passwords.read({REF}) or world.reasons())
            )


async def test_an_api_server_that_is_away_changes_nothing(tmp_path: Path) -> None:
    async with kube_api() as api:
        api.put(secret("bgp", {"tor": "hush"}))
        async with SecretWorld(api.kubeconfig(tmp_path / "config"), tmp_path).running() as world:
            await eventually(lambda: world.passwords.read({REF}) == {REF: "hush"})
            await api.stop()
            await eventually(lambda: world.secrets.track.state.state == "stale")
            assert world.passwords.read({REF}) == {REF: "hush"}
            assert not world.reasons()
            api.delete(secret("bgp", {}))
            await api.start()
            await eventually(lambda: world.passwords.read({REF}) == {})


async def test_what_the_speaker_was_told_before_holds_until_the_api_server_speaks(tmp_path: Path) -> None:
    """Also where it refuses: the sessions that are up stay up."""
    async with kube_api(rules=[]) as api:
        api.put(secret("bgp", {"tor": "new"}))
        world = SecretWorld(api.kubeconfig(tmp_path / "config"), tmp_path, {REF: "old"})
        async with world.running():
            assert world.passwords.read({REF}) == {REF: "old"}
            await eventually(lambda: world.reasons())
            assert "may not list secrets named bgp" in world.reasons()[0]
            assert world.passwords.read({REF}) == {REF: "old"}
            assert world.looked == [{REF}], "it is looked up once"
            api.rules = None
            await eventually(lambda: world.passwords.read({REF}) == {REF: "new"} and not world.reasons())
            api.delete(secret("bgp", {}))
            await eventually(lambda: world.passwords.read({REF}) == {})


async def test_a_file_wins_and_what_it_has_is_not_asked_for(tmp_path: Path) -> None:
    async with kube_api() as api:
        api.put(secret("bgp", {"tor": "api"}))
        (tmp_path / "secrets/bgp").mkdir(parents=True)
        file = tmp_path / "secrets/bgp/tor"
        file.write_text("file")
        async with SecretWorld(api.kubeconfig(tmp_path / "config"), tmp_path).running() as world:
            assert world.passwords.read({REF}) == {REF: "file"}
            assert world.secrets.track.state.state == "idle"
            file.unlink()
            await eventually(lambda: world.passwords.read({REF}) == {REF: "api"})
            file.write_text("file")
            assert world.passwords.read({REF}) == {REF: "file"}
            await eventually(lambda: not api.watching("secrets"))


async def test_each_secret_is_asked_for_by_its_name_and_no_other_names(tmp_path: Path) -> None:
    refs = {SecretRef(name, "k") for name in ("one", "two", "a,metadata.namespace=x", "Upper", "..", "")}
    async with kube_api() as api:
        api.put(secret("one", {"k": "1"}), secret("two", {"k": "2"}), secret("three", {"k": "3"}))
        async with SecretWorld(api.kubeconfig(tmp_path / "config"), tmp_path).running() as world:
            found = {SecretRef("one", "k"): "1", SecretRef("two", "k"): "2"}
            await eventually(lambda: world.passwords.read(refs) == found)
            assert asked(api) == {("secrets", "one"), ("secrets", "two")}
            assert {one.namespace for one in api.log} == {"kube-system"}
            assert all("Kubernetes has no such names" in reason for reason in world.reasons())


def test_what_is_no_password_has_a_reason_that_quotes_nothing() -> None:
    data = {
        "good": "aHVzaA==",
        "number": 7,
        "letters": "SECRET!",
        "binary": "/////w==",
        "empty": "",
        "line": "Cg==",
        "long": "QUFB" * 2000,
    }
    found = decode("k", {"data": data})
    assert found.passwords == {"good": "hush"}
    assert found.problems == {
        "number": "its value is no text",
        "letters": "its value is no base64",
        "binary": "its key 'binary' is not UTF-8 text",
        "empty": "its key 'empty' is empty; an empty password would be none",
        "line": "its key 'line' is empty; an empty password would be none",
        "long": "its key 'long' is longer than 4096 octets; a TCP MD5 key has 80 at most",
    }
    assert "hush" not in repr(found)


@pytest.mark.parametrize("raw", [{}, {"data": None}, {"data": []}, {"data": "x"}])
def test_a_secret_without_data_has_no_keys(raw: dict[str, Any]) -> None:
    assert decode("k", raw) == Secret({}, {})


# -- what the speaker was told -------------------------------------------------------------------------


def test_passwords_are_read_back_from_the_speakers_file(tmp_path: Path) -> None:
    """As our own renderer wrote them, for the peers that still refer to the same Secrets."""
    hands = Hands()
    graph = calculation(hands).graph
    refs = [SecretRef("bgp", "tor"), SecretRef("bgp", "other")]
    hush = 'it\'s a "secret"; {really} \\ # yes'
    graph.on_datastore(
        changes(
            HERE,
            calico_node("b", "192.0.2.2/24"),
            bgp_peer("tor", "192.0.2.254", 64600, password=refs[0]),
            bgp_peer("six", "2001:db8::9", 64600, password=refs[1]),
            bgp_peer("open", "192.0.2.253", 64600),
        ),
        True,
    )
    assert secret_refs(graph.snapshot, graph.local) == set(refs)
    graph.on_secrets({refs[0]: hush, refs[1]: "x"})
    assert graph.desired is not None
    conf = tmp_path / "exabgp.conf"
    conf.write_text(render(compose(graph.desired)))
    assert passwords_in(conf) == {"192.0.2.254": hush}
    assert remembered(graph, refs, passwords_in(conf)) == {refs[0]: hush}
    assert remembered(graph, refs, {}) == {}


@pytest.mark.parametrize("text", ["", "neighbor", "{", 'neighbor 192.0.2.1 {\n  md5-password "!";\n}\n'])
def test_a_file_that_is_another_has_no_passwords(tmp_path: Path, text: str) -> None:
    conf = tmp_path / "exabgp.conf"
    assert passwords_in(conf) == {}
    conf.write_text(text)
    assert passwords_in(conf) == {}
    conf.write_bytes(b"\xff")
    assert passwords_in(conf) == {}


def test_of_several_states_the_worst_is_told() -> None:
    idle, good, bad = StoreState("idle", 1.0), StoreState("in-sync", 2.0), StoreState("stale", 3.0, "gone")
    assert worst((idle, good)) is good
    assert worst((bad, good)) is bad
    assert worst((idle, idle)) is idle
