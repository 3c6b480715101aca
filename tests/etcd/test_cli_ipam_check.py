"""`tortiectl ipam check` on a real etcd, with and without a Kubernetes API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import tortiectl
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.keys import handle_key
from tests.support.controllers import give, put_node, put_pools
from tests.support.etcd import EtcdMember, etcd
from tests.support.kube_api import ServedKubeApi
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
