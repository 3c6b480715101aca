"""`tortie-controllers` as processes: one leads, dies in the middle of its work, and the other finishes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.controllers.deeds import Deeds
from agent.controllers.election import LEADER_KEY, Leadership, identity_of
from agent.controllers.ipam_gc import IpamController
from felix_like.datastore.client import Client, Compare, Delete, Get, Put, TxnReply
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.guarded import GuardedClient
from felix_like.datastore.ipam import Ipam
from felix_like.datastore.kube.access import KubeAccess
from felix_like.datastore.kube.client import KubeClient
from tests.support.controllers import (
    allocated,
    give,
    ipam_holds,
    keys,
    office,
    put_node,
    put_pools,
    until,
    working,
)
from tests.support.etcd import EtcdMember, etcd, eventually, free_port
from tests.support.kube_api import KubeApi, kube_api
from tests.support.kube_objects import node, pod
from tests.support.kube_store import rules_of

pytestmark = pytest.mark.etcd
TOP = Path(__file__).parents[2]


class Replica:
    """One process of `tortie-controllers`, with what it said."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.lines: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.lines.append(line.decode())

    @property
    def said(self) -> str:
        return "".join(self.lines)

    async def ask(self, path: str) -> str:
        """Head and body of the answer; empty when there is none."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.decode()

    async def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reader


@contextlib.asynccontextmanager
async def replica(endpoint: str, kubeconfig: Path | None = None, **settings: str) -> AsyncIterator[Replica]:
    port = free_port()
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(TOP),
        "ETCD_ENDPOINTS": endpoint,
        "TORTIE_HEALTH_ADDRESS": f"127.0.0.1:{port}",
        "TORTIE_LEADER_LEASE": "2",
        "TORTIE_LEAK_GRACE": "2s",
        **({"KUBECONFIG": str(kubeconfig)} if kubeconfig is not None else {}),
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent.controllers.main",
        cwd=TOP, env=environ, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    one = Replica(process, port)
    try:
        yield one
    finally:
        await one.close()


@pytest.fixture
async def member() -> AsyncIterator[EtcdMember]:
    with etcd() as (member,):
        yield member


@pytest.fixture
async def client(member: EtcdMember) -> AsyncIterator[Client]:
    async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
        await put_pools(client, "10.0.0.0/16", "fd00::/112")
        for name in ("a", "b"):
            await put_node(client, name)
        yield client


@pytest.fixture
async def api(client: Client) -> AsyncIterator[KubeApi]:
    """Nodes a and b, and a pod that has its addresses."""
    async with kube_api() as api:
        api.put(node("a"), node("b"))
        api.put(pod("web", "a", *map(str, await give(client, "web", "a", versions=(4, 6)))))
        yield api


async def leader(client: Client) -> str:
    found = await client.get(LEADER_KEY)
    return identity_of(found) if found is not None else ""


async def led_by(client: Client, replicas: Sequence[Replica]) -> Replica:
    """Whose process it is that the leader's key names."""
    found: str = await until(lambda: leader(client))
    return next(one for one in replicas if found.endswith(f"/{one.process.pid}"))


async def test_a_leader_killed_at_work_is_followed_by_one_who_finishes(
    client: Client, member: EtcdMember, api: KubeApi, tmp_path: Path
) -> None:
    before = await allocated(client)
    for number in range(60):
        await give(client, f"old-{number}", "a", versions=(4, 6))
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
    async with replica(member.endpoint, kubeconfig) as one, replica(member.endpoint, kubeconfig) as two:
        first = await led_by(client, (one, two))
        full = len(await allocated(client))
        await until(lambda: _fewer(client, full))
        first.process.send_signal(signal.SIGKILL)
        second = two if first is one else one
        await until(lambda: _finished(client, before), 120)
        assert await led_by(client, (second,)) is second
        assert "release address: " in first.said or "mend handle" in second.said


async def _fewer(client: Client, than: int) -> bool:
    return len(await allocated(client)) < than


async def _finished(client: Client, wanted: dict[str, str]) -> bool:
    return await allocated(client) == wanted and await ipam_holds(client) == ""


async def test_sigterm_ends_it_in_order_and_the_next_leads_at_once(
    client: Client, member: EtcdMember
) -> None:
    async with replica(member.endpoint, TORTIE_LEADER_LEASE="3600") as one:
        await led_by(client, (one,))
        async with replica(member.endpoint, TORTIE_LEADER_LEASE="3600") as two:
            await eventually(lambda: "standing by" in two.said, 60)
            one.process.terminate()
            assert await one.process.wait() == 0
            await eventually(lambda: "leads (term" in two.said, 60)
            assert "Traceback" not in one.said


async def test_a_frozen_leader_is_replaced_and_stands_by_when_it_wakes(
    client: Client, member: EtcdMember, api: KubeApi, tmp_path: Path
) -> None:
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
    before = await allocated(client)
    async with replica(member.endpoint, kubeconfig) as one, replica(member.endpoint, kubeconfig) as two:
        first = await led_by(client, (one, two))
        second = two if first is one else one
        await until(lambda: _says(first, "/metrics", "tortie_controllers_last_look_seconds"))
        await give(client, "old", "a")
        first.process.send_signal(signal.SIGSTOP)
        await eventually(lambda: "leads (term" in second.said, 60)
        await until(lambda: _finished(client, before))
        first.process.send_signal(signal.SIGCONT)
        await eventually(lambda: "standing by" in first.said.rpartition("leads no more")[2], 60)
        assert "release address" not in first.said
        assert await led_by(client, (second,)) is second


async def test_doors_tell_who_leads_and_what_was_done(
    client: Client, member: EtcdMember, api: KubeApi, tmp_path: Path
) -> None:
    await give(client, "old", "a")
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
    async with replica(member.endpoint, kubeconfig, TORTIE_CONTROLLERS="ipam") as one:
        await until(lambda: _says(one, "/readyz", "200 OK"))
        async with replica(member.endpoint, kubeconfig) as two:
            await until(lambda: _says(two, "/readyz", "200 OK"))
            released = 'tortie_controllers_deeds_total{deed="release-address",reason="pod-gone"} 1'
            await until(lambda: _says(one, "/metrics", released))
            assert "tortie_controllers_leader 1" in await one.ask("/metrics")
            assert 'tortie_controllers_allocations{standing="in use"} 2' in await one.ask("/metrics")
            assert "tortie_controllers_leader 0" in await two.ask("/metrics")
            assert "200 OK" in await two.ask("/healthz")
            member.kill()
            await until(lambda: _says(two, "/readyz", "503"))
            assert "200 OK" in await two.ask("/healthz"), "a dead etcd is no reason to kill the process"
            member.start()
            member.wait_ready()
            await until(lambda: _says(two, "/readyz", "200 OK"))


async def _says(one: Replica, path: str, words: str) -> bool:
    return words in await one.ask(path)


async def test_without_kubernetes_it_says_what_it_does_not_do(client: Client, member: EtcdMember) -> None:
    async with replica(member.endpoint) as one:
        await led_by(client, (one,))
        assert "no KUBECONFIG and no service account, so labels are not synced" in one.said
        await until(lambda: _says(one, "/metrics", "tortie_controllers_last_look_seconds"))


async def test_the_manifests_rights_are_enough_and_none_is_unused(
    client: Client, member: EtcdMember, api: KubeApi, tmp_path: Path
) -> None:
    """Every controller runs, an address is released whose pod is gone, and one whose node is."""
    documents = yaml.safe_load_all((TOP / "deploy/kubernetes/base/rbac-controllers.yaml").read_text())
    rules = rules_of([one for one in documents if one["kind"].endswith("Role")])
    api.rules = rules
    await give(client, "old", "a")
    await give(client, "older", "gone")
    async with replica(member.endpoint, api.kubeconfig(tmp_path / "kubeconfig")) as one:
        for reason in ("pod-gone", "node-gone"):
            released = f'tortie_controllers_deeds_total{{deed="release-address",reason="{reason}"}} 1'
            await until(lambda released=released: _says(one, "/metrics", released))
        granted = {
            (verb, group, resource)
            for rule in rules
            for verb in rule.verbs
            for group in rule.groups
            for resource in rule.resources
        }
        await eventually(lambda: {(a.verb, a.group, a.resource) for a in api.log} == granted, 60)
        assert "tortie_controllers_trouble{" not in await one.ask("/metrics")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"TORTIE_CONTROLLERS": "nodes"}, "there is no controller 'nodes'"),
        ({"TORTIE_LEAK_GRACE": "soon"}, "TORTIE_LEAK_GRACE: 'soon' is not a duration"),
        ({"TORTIE_NODE_REMOVAL_LIMIT": "0"}, "use a whole number from 1 to 100"),
        ({"DATASTORE_TYPE": "kubernetes"}, "only etcdv3 is"),
    ],
)
async def test_a_wrong_setting_ends_the_start_with_one_sentence(settings: dict[str, str], said: str) -> None:
    async with replica("http://127.0.0.1:1", **settings) as one:
        assert await one.process.wait() == 1
        await eventually(lambda: said in one.said)
        assert len(one.lines) == 1


# -- cut short at each single write ------------------------------------------------------------------------


class Died(Exception):
    pass


class Mortal(GuardedClient):
    """Dies after so many writes, before or after etcd has carried the last one out."""

    def __init__(self, leadership: Leadership, lives: int, *, after: bool) -> None:
        super().__init__(leadership.reader, leadership.guards)
        self._lives = lives
        self._after = after

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Put | Delete | Get],
        failure: Sequence[Put | Delete | Get] = (),
    ) -> TxnReply:
        self._lives -= 1
        if self._lives == 0 and not self._after:
            raise Died
        reply = await super().txn(compare, success, failure)
        if self._lives == 0:
            raise Died
        return reply


def controller(client: Client, kube: KubeClient) -> IpamController:
    from datetime import UTC, datetime, timedelta

    return IpamController(
        client,
        kube,
        Deeds(),
        grace=0.4,
        removed=asyncio.Event(),
        wall=lambda: datetime.now(UTC) + timedelta(minutes=5),
    )


@pytest.mark.parametrize("after", [False, True])
async def test_cut_short_at_any_write_the_next_term_finishes(
    client: Client, api: KubeApi, tmp_path: Path, after: bool
) -> None:
    """Each term has one life more than the one before, until one lives through all the work."""
    kube = KubeClient(KubeAccess(api.kubeconfig(tmp_path / "kubeconfig")))
    before = await allocated(client)
    pool = next(pool for pool in await Ipam(client).pools() if pool.cidr.version == 4)
    blocks = len(await keys(client, "/calico/ipam/v2/assignment/"))
    broken = 0
    for lives in range(1, 40):
        await give(client, "old", "a", versions=(4, 6))
        await give(client, "older", "a")
        await Ipam(client).claim_block("a", pool)
        async with office(client) as leadership:
            mortal = replace(leadership, identity="mortal")
            vars(mortal)["client"] = Mortal(leadership, lives, after=after)
            run = asyncio.ensure_future(controller(client, kube).run(mortal))
            done, _ = await asyncio.wait({run}, timeout=0.1)
            # A term that lives through everything has nothing more to write.
            while not done and not await _clean(client, before, blocks):
                done, _ = await asyncio.wait({run}, timeout=0.05)
            broken += bool(await ipam_holds(client))
            survived = not done
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            async with working(controller(client, kube), leadership=leadership):
                await until(lambda: _clean(client, before, blocks))
        if survived:
            break
    assert survived, "the last term had enough lives"
    assert lives > 6, "there were several writes to die at"
    assert broken > 0, "and some of the deaths left something to put right"
    await kube.close()


async def _clean(client: Client, wanted: dict[str, Any], blocks: int) -> bool:
    return (
        await _finished(client, wanted) and len(await keys(client, "/calico/ipam/v2/assignment/")) == blocks
    )
