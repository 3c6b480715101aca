"""`tortiectl ipam check` on a real etcd, with and without a Kubernetes API."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import tortiectl
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.keys import handle_key
from tests.support.controllers import give, put_node, put_pools
from tests.support.etcd import EtcdMember, etcd
from tests.support.kube_api import Fault, ServedKubeApi
from tests.support.kube_objects import node, pod

pytestmark = pytest.mark.etcd


@pytest.fixture
def member() -> Iterator[EtcdMember]:
    with etcd() as (member,):
        yield member


def check(member: EtcdMember, *arguments: str) -> Result:
    env = {"ETCD_ENDPOINTS": member.endpoint, "KUBECONFIG": "", "KUBERNETES_SERVICE_HOST": ""}
    return CliRunner().invoke(tortiectl, ["ipam", "check", *arguments], env=env)


def furnish(member: EtcdMember) -> list[str]:
    """Nodes a and b; a pod `web` on a and one that is gone; returns their addresses."""

    async def work() -> list[str]:
        async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
            await put_pools(client, "10.0.0.0/16")
            for name in ("a", "b"):
                await put_node(client, name)
            return [str(address) for name in ("web", "old") for address in await give(client, name, "a")]

    return asyncio.run(work())


def write(member: EtcdMember, key: str, value: bytes) -> None:
    async def work() -> None:
        async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
            await client.put(key, value)

    asyncio.run(work())


def revision(member: EtcdMember) -> int:
    async def work() -> int:
        async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
            return (await client.read("/x"))[0].revision

    return asyncio.run(work())


def test_without_kubernetes_it_checks_the_bookkeeping_alone(member: EtcdMember) -> None:
    furnish(member)
    found = check(member)
    assert (found.exit_code, found.stderr) == (0, "")
    assert "Kubernetes: not asked (no KUBECONFIG): which pods live is not known" in found.stdout
    assert "IPAM: 1 blocks, 2 addresses allocated, 2 handles, 1 block affinities" in found.stdout
    assert "No problem found." in found.stdout
    write(member, handle_key("left-behind"), b'{"block":{"10.0.0.0/26":1}}')
    found = check(member)
    assert found.exit_code == 1
    assert "wrong handle  IPAM handle left-behind  no block has an address under it" in found.stdout


def test_with_kubernetes_it_names_who_is_gone_and_touches_nothing(member: EtcdMember, tmp_path: Path) -> None:
    web, old = furnish(member)
    before = revision(member)
    with ServedKubeApi() as served:
        served.do(lambda api: api.put(node("a"), node("b"), pod("web", "a", web)))
        # More than one page.
        served.do(
            lambda api: api.put(*(pod(f"filler-{n}", "b", f"10.1.{n // 250}.{n % 250}") for n in range(600)))
        )
        kubeconfig = str(served.do(lambda api: api.kubeconfig(tmp_path / "kubeconfig")))
        found = check(member, "--kubeconfig", kubeconfig, "--show-all-ips")
        assert "2 nodes, 601 pods" in found.stdout
        document = json.loads(check(member, "--kubeconfig", kubeconfig, "-o", "json").stdout)
    assert found.exit_code == 1
    assert f"leak candidate  address {old} (handle k8s-pod-network.old, node a)" in found.stdout
    assert "pod default/old does not exist" in found.stdout
    assert f"{web}" in found.stdout
    assert "pod default/web has it" in found.stdout
    assert [problem["kind"] for problem in document["problems"]] == ["leak candidate"]
    assert {one["address"]: one["standing"] for one in document["addresses"]} == {
        web: "in use",
        old: "candidate",
    }
    assert revision(member) == before


def test_a_kubernetes_without_any_pod_is_not_believed_and_that_is_said(
    member: EtcdMember, tmp_path: Path
) -> None:
    furnish(member)
    with ServedKubeApi() as served:
        served.do(lambda api: api.put(node("a"), node("b")))
        found = check(
            member, "--kubeconfig", str(served.do(lambda api: api.kubeconfig(tmp_path / "kubeconfig")))
        )
    assert found.exit_code == 0
    assert "Addresses: 2 left alone\nLeft alone: the Kubernetes API lists no pod at all" in found.stdout


def test_a_kubernetes_that_does_not_answer_is_one_sentence(member: EtcdMember, tmp_path: Path) -> None:
    furnish(member)
    found = check(member, "--kubeconfig", str(tmp_path / "nothing"))
    assert found.exit_code == 1
    assert found.stderr.startswith("Error: ")
    assert str(tmp_path / "nothing") in found.stderr
    assert "Traceback" not in found.stderr


def test_an_address_that_is_given_out_meanwhile_is_no_leak(member: EtcdMember, tmp_path: Path) -> None:
    """IPAM is read before Kubernetes: whoever has an address by then has been a pod for longer."""
    web, old = furnish(member)

    async def late() -> None:
        async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
            await give(client, "late", "a")

    with ServedKubeApi() as served:
        served.do(lambda api: api.put(node("a"), node("b"), pod("web", "a", web), pod("old", "a", old)))
        slow = Fault(delay=5, verb="list", resource="pods")
        served.do(lambda api: api.faults.append(slow))
        kubeconfig = served.do(lambda api: api.kubeconfig(tmp_path / "kubeconfig"))
        with ThreadPoolExecutor() as threads:
            found = threads.submit(check, member, "--kubeconfig", str(kubeconfig), "--show-all-ips")
            deadline = time.monotonic() + 60
            while slow.count and time.monotonic() < deadline:
                time.sleep(0.02)
            asyncio.run(late())
            result = found.result(60)
    assert result.exit_code == 0, result.output
    assert "No problem found." in result.stdout
