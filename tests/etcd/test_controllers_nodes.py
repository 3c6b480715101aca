"""The node controller on a real etcd beside a fake Kubernetes API: labels, and Nodes that go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.controllers.deeds import Deeds
from agent.controllers.nodes import NodeController
from felix_like.calc.node_labels import ANNOTATION
from felix_like.datastore import blocks
from felix_like.datastore.cas import CasStore, ResourceStore
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.errors import CasConflict, GuardFailed
from felix_like.datastore.ipam import Ipam
from felix_like.datastore.keys import (
    IPAM_HOSTS,
    RESOURCES,
    block_key,
    handle_key,
    ipam_host_key,
    resource_key,
)
from felix_like.datastore.kube.access import KubeAccess
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.node_removal import NodeRemoval
from felix_like.model.address import Prefix
from tests.support.controllers import (
    allocated,
    give,
    ipam_holds,
    keys,
    office,
    put_endpoint,
    put_node,
    put_pools,
    put_resource,
    until,
    working,
)
from tests.support.etcd import EtcdMember, etcd, eventually
from tests.support.kube_api import Fault, KubeApi, kube_api
from tests.support.kube_objects import node

pytestmark = pytest.mark.etcd
NAMES = ("a", "b", "c", "d")


@dataclass
class World:
    member: EtcdMember
    etcd: Client
    api: KubeApi
    kube: KubeClient
    deeds: Deeds
    removed: asyncio.Event = field(default_factory=asyncio.Event)

    def controller(self, *, most: int = 50, patience: float = 0.3, hold: float = 2.0) -> NodeController:
        return NodeController(
            self.etcd,
            self.kube,
            self.deeds,
            most=most,
            removed=self.removed,
            patience=patience,
            hold=hold,
        )

    async def metadata(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (await ResourceStore(self.etcd).get("Node", name))["metadata"]
        return found

    async def labels(self, name: str) -> dict[str, str]:
        return (await self.metadata(name)).get("labels") or {}

    async def nodes(self) -> set[str]:
        return set(await keys(self.etcd, RESOURCES + "nodes/"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Four nodes, in etcd and in Kubernetes."""
    with etcd() as (member,):
        async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client, kube_api() as api:
            kube = KubeClient(KubeAccess(api.kubeconfig(tmp_path / "kubeconfig")))
            await put_pools(client, "10.0.0.0/16", "fd00::/112")
            for name in NAMES:
                api.put(node(name))
                await put_node(client, name)
            try:
                yield World(member, client, api, kube, Deeds())
            finally:
                await kube.close()


async def test_labels_follow_kubernetes_and_everything_else_survives(world: World) -> None:
    await put_resource(
        world.etcd, "Node", "a",
        {"orchRefs": [{"nodeName": "a", "orchestrator": "k8s"}], "futureField": {"x": [1, 2]}},
        labels={"mine": "1"}, annotations={"note": "kept"},
    )  # fmt: skip
    world.api.put(node("a", labels={"zone": "b"}))
    hostname = {"kubernetes.io/hostname": "a"}
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await until(lambda: _are(world, "a", {"mine": "1", "zone": "b", **hostname}))
        world.api.put(node("a", labels={"rack": "r1"}))
        await until(lambda: _are(world, "a", {"mine": "1", "rack": "r1", **hostname}))
    stored = json.loads((await world.etcd.get(resource_key("Node", "a"))).value)  # type: ignore[union-attr]
    assert stored["spec"]["futureField"] == {"x": [1, 2]}
    assert stored["metadata"]["annotations"]["note"] == "kept"
    assert json.loads(stored["metadata"]["annotations"][ANNOTATION]) == {"rack": "r1", **hostname}
    assert "resourceVersion" not in stored["metadata"]


async def _are(world: World, name: str, wanted: dict[str, str]) -> bool:
    return await world.labels(name) == wanted


async def test_what_is_as_it_should_be_is_not_written_again(world: World) -> None:
    async with office(world.etcd) as leadership:
        async with working(world.controller(), leadership=leadership):
            await eventually(lambda: world.deeds.done["sync-labels", "changed"] == len(NAMES), 60)
        before = (await world.etcd.read("/x"))[0].revision
        async with working(world.controller(), leadership=leadership):
            world.api.put(node("a", labels={"new": "1"}))
            await until(lambda: _has(world, "a", "new"))
    assert (await world.etcd.read("/x"))[0].revision == before + 1


async def _has(world: World, name: str, label: str) -> bool:
    return label in await world.labels(name)


async def test_a_node_that_registers_later_gets_its_labels(world: World) -> None:
    world.api.put(node("late", labels={"zone": "z"}))
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.done["sync-labels", "changed"] == len(NAMES), 60)
        await put_node(world.etcd, "calicos-name", "late")
        await until(lambda: _has(world, "calicos-name", "zone"))


async def test_a_damaged_annotation_is_named_and_holds_up_no_other_node(world: World) -> None:
    refs = {"orchRefs": [{"nodeName": "a", "orchestrator": "k8s"}]}
    await put_resource(world.etcd, "Node", "a", refs, annotations={ANNOTATION: "{"})
    await world.etcd.put(resource_key("Node", "zz"), b"[1")
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.done["sync-labels", "changed"] == len(NAMES) - 1, 60)
        await eventually(
            lambda: "Node a: its labels are not synced" in world.deeds.troubles.get("node", ""), 60
        )
    assert await world.labels("a") == {}


async def test_label_sync_can_be_disabled_as_in_calico(world: World) -> None:
    spec = {"controllers": {"node": {"syncLabels": "Disabled"}}}
    await put_resource(world.etcd, "KubeControllersConfiguration", "default", spec)
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        world.api.delete(node("d"))
        await until(lambda: _left(world, {"a", "b", "c"}))
    assert not world.deeds.done["sync-labels", "changed"]


async def _left(world: World, wanted: set[str]) -> bool:
    return await world.nodes() == wanted


async def furnish(world: World, name: str) -> list[str]:
    """Everything that a node can have; returns the keys that must go with it."""
    addresses = await give(world.etcd, f"pod-{name}", name, versions=(4, 6))
    gone = [await put_endpoint(world.etcd, f"pod-{name}", name, *addresses)]
    (tunnel,) = await give(
        world.etcd, "", name, handle=f"vxlan-tunnel-addr-{name}", type="vxlanTunnelAddress"
    )
    await put_node(world.etcd, name, name, ipv4VXLANTunnelAddr=str(tunnel))
    for kind, resource, spec in (
        ("BGPPeer", f"peer-of-{name}", {"node": name, "peerIP": "192.0.2.9", "asNumber": 64512}),
        ("HostEndpoint", f"hep-of-{name}", {"node": name, "interfaceName": "*"}),
        ("BGPConfiguration", f"node.{name}", {"logSeverityScreen": "Info"}),
        ("FelixConfiguration", f"node.{name}", {}),
    ):
        await put_resource(world.etcd, kind, resource, spec)
        gone.append(resource_key(kind, resource))
    await world.etcd.put(ipam_host_key(name), b"{}")
    return [*gone, ipam_host_key(name), resource_key("Node", name)]


async def test_a_node_that_kubernetes_has_no_more_goes_with_all_its_data(world: World) -> None:
    gone = await furnish(world, "d")
    kept = await furnish(world, "a")
    kept_addresses = {
        address for address, handle in (await allocated(world.etcd)).items() if handle.endswith("a")
    }
    await put_resource(world.etcd, "BGPPeer", "everybody", {"peerIP": "192.0.2.9", "asNumber": 64512})
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.done["sync-labels", "changed"] == len(NAMES), 60)
        world.api.delete(node("d"))
        await until(lambda: _left(world, {"a", "b", "c"}))
        await eventually(lambda: world.deeds.done["remove-node", "node-gone"] == 1)  # counted once answered
    assert [key for key in gone if await world.etcd.get(key) is not None] == []
    assert [key for key in kept if await world.etcd.get(key) is None] == []
    assert set(await allocated(world.etcd)) == kept_addresses
    assert await keys(world.etcd, f"{IPAM_HOSTS}d/") == []
    assert await ipam_holds(world.etcd) == ""
    assert world.removed.is_set()


async def test_a_removal_that_was_cut_short_anywhere_is_finished(world: World) -> None:
    """The Node goes last: as long as it is there, the next leader finds the rest."""
    gone = await furnish(world, "d")
    world.api.delete(node("d"))
    for steps in range(1, 20):
        if resource_key("Node", "d") not in [RESOURCES + key for key in await keys(world.etcd)]:
            break
        removal = NodeRemoval(world.etcd, "d").steps()
        for _ in range(min(steps, 2)):
            if await anext(removal, None) is None:
                break
        await removal.aclose()  # type: ignore[attr-defined]
    assert [key for key in gone if await world.etcd.get(key) is not None] == []
    assert await ipam_holds(world.etcd) == ""


async def test_a_node_that_registers_while_it_is_removed_stays(world: World) -> None:
    """It came back between Kubernetes' last word and the last step: the rest of it is not the removal's."""
    mine = await furnish(world, "d")
    removal = NodeRemoval(world.etcd, "d").steps()
    await anext(removal)  # the addresses
    (tunnel,) = await give(world.etcd, "", "d", handle="new", type="vxlanTunnelAddress")
    await put_node(world.etcd, "d", "d", ipv4VXLANTunnelAddr=str(tunnel))
    with pytest.raises(CasConflict):
        async for _ in removal:
            pass
    stored = await CasStore(world.etcd).get(resource_key("Node", "d"))
    assert stored is not None
    assert stored.value["spec"]["ipv4VXLANTunnelAddr"] == str(tunnel)
    assert str(tunnel) in await allocated(world.etcd)
    assert [key for key in mine if await world.etcd.get(key) is None] == []


async def test_a_term_that_ends_in_the_middle_of_a_removal_is_told_as_such(world: World) -> None:
    await furnish(world, "d")
    async with office(world.etcd) as leadership:
        removal = NodeRemoval(leadership.client, "d").steps()
        await anext(removal)
        await world.etcd.delete(leadership.key)
        with pytest.raises(GuardFailed):
            await anext(removal)
    assert await world.nodes() == set(NAMES)


async def test_an_address_that_ipam_has_given_to_another_node_stays(world: World) -> None:
    """A leftover endpoint of a gone node may name an address that was given out again."""
    (address,) = await give(world.etcd, "web", "a")
    await put_endpoint(world.etcd, "old", "d", address)
    world.api.delete(node("d"))
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await until(lambda: _left(world, {"a", "b", "c"}))
    assert str(address) in await allocated(world.etcd)


async def test_an_address_that_names_no_node_goes_by_its_endpoints_word(world: World) -> None:
    """Old versions of Calico's IPAM do not note the node."""
    (address,) = await give(world.etcd, "web", "d")
    await put_endpoint(world.etcd, "web", "d", address)

    def without_node(block: dict[str, Any]) -> dict[str, Any]:
        for attribute in block["attributes"]:
            attribute["secondary"].pop("node", None)
        return block

    await CasStore(world.etcd).update(block_key(Prefix.within(address, 26)), without_node)
    world.api.delete(node("d"))
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await until(lambda: _left(world, {"a", "b", "c"}))
    assert await allocated(world.etcd) == {}
    assert await ipam_holds(world.etcd) == ""


async def test_a_block_that_others_borrow_from_stays_with_no_owner(world: World) -> None:
    pool = next(pool for pool in await Ipam(world.etcd).pools() if pool.cidr.version == 4)
    cidr = await Ipam(world.etcd).claim_block("d", pool)
    stored = await CasStore(world.etcd).get(block_key(cidr))
    assert stored is not None
    blocks.assign(stored.value, cidr, 1, "k8s-pod-network.web", {"namespace": "x", "pod": "web", "node": "a"})
    await CasStore(world.etcd).replace(stored.key, stored.value, stored.mod_revision)
    await CasStore(world.etcd).create(handle_key("k8s-pod-network.web"), {"block": {str(cidr): 1}})
    world.api.delete(node("d"))
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await until(lambda: _left(world, {"a", "b", "c"}))
    assert list((await allocated(world.etcd)).values()) == ["k8s-pod-network.web"]
    assert await ipam_holds(world.etcd) == ""


async def test_nodes_that_are_not_kubernetes_are_nobodys_to_remove(world: World) -> None:
    await put_node(world.etcd, "bare", None)
    await put_node(world.etcd, "stack", None, orchRefs=[{"nodeName": "x", "orchestrator": "openstack"}])
    world.api.delete(node("d"))
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await until(lambda: _left(world, {"a", "b", "c", "bare", "stack"}))


async def test_a_node_that_only_the_list_misses_stays(world: World) -> None:
    """The watch said that it is gone; asked directly, the API server has it."""
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.done["sync-labels", "changed"] == len(NAMES), 60)
        asked = len(world.api.asked("get", "nodes"))
        world.api.delete(node("d"))
        await eventually(lambda: world.deeds.gauges.get("nodes_missing") == 1, 60)
        world.api.store.put(node("d"))  # no watcher is told
        await eventually(lambda: len(world.api.asked("get", "nodes")) > asked, 60)
    assert await world.nodes() == set(NAMES)


async def test_a_question_that_fails_is_asked_again(world: World) -> None:
    """Nothing else happens that would wake the controller."""
    world.api.faults.append(Fault(status=500, verb="get", resource="nodes", count=2))
    world.api.delete(node("d"))
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: "Node d is not removed" in world.deeds.troubles.get("node", ""), 60)
        await until(lambda: _left(world, {"a", "b", "c"}))
        await eventually(lambda: not world.deeds.troubles, 60)


async def test_a_damaged_block_holds_up_its_own_node_and_no_other(world: World) -> None:
    await furnish(world, "c")
    (block,) = await keys(world.etcd, f"{IPAM_HOSTS}c/ipv4/block/")
    await world.etcd.put(block_key(Prefix.parse(block.replace("-", "/"))), b'{"allocations":[1]}')
    for name in ("c", "d"):
        world.api.delete(node(name))
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await until(lambda: _left(world, {"a", "b", "c"}))
        await eventually(lambda: "Node c is not removed whole" in world.deeds.troubles.get("node", ""), 60)
        assert "is damaged" in world.deeds.troubles["node"]


async def test_an_api_server_restored_empty_costs_no_node(world: World) -> None:
    async with office(world.etcd) as leadership:
        async with working(world.controller(hold=3600), leadership=leadership):
            await eventually(lambda: world.deeds.done["sync-labels", "changed"] == len(NAMES), 60)
            for name in NAMES:
                world.api.delete(node(name))
            await eventually(lambda: "lists no Node at all" in world.deeds.troubles.get("node", ""), 60)
            world.api.put(node("a"))
            await eventually(lambda: "3 of 4 Nodes are missing" in world.deeds.troubles.get("node", ""), 60)
            world.api.put(node("b"), node("c"))
            await eventually(lambda: "none is removed for" in world.deeds.troubles.get("node", ""), 60)
    assert await world.nodes() == set(NAMES)
    assert not world.deeds.done["remove-node", "node-gone"]


async def test_an_api_server_that_is_away_or_forbids_costs_no_node(world: World) -> None:
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.done["sync-labels", "changed"] == len(NAMES), 60)
        await world.api.stop()
        world.api.store.delete(("", "nodes"), ("", "d"))
        world.api.rules = []
        await eventually(lambda: "node" in world.deeds.troubles, 60)
        await world.api.start()
        await eventually(lambda: "/api/v1/nodes" in world.deeds.troubles.get("node", ""), 90)
        assert await world.nodes() == set(NAMES)
        world.api.rules = None
        await until(lambda: _left(world, {"a", "b", "c"}), 120)


async def test_a_wiped_etcd_is_not_filled_or_cleaned(world: World) -> None:
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.done["sync-labels", "changed"] == len(NAMES), 60)
        world.member.kill()
        world.member.wipe()
        world.member.start()
        world.member.wait_ready()
        await eventually(lambda: "the last known state is kept" in world.deeds.troubles.get("node", ""), 60)
    assert await keys(world.etcd, "/") == []


async def test_a_dry_run_removes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world.deeds.dry_run = True
    world.api.delete(node("d"))
    async with office(world.etcd) as leadership:
        before = (await world.etcd.read("/x"))[0].revision
        async with working(world.controller(), leadership=leadership):
            await eventually(lambda: "would remove node: Node d: Kubernetes has no Node d" in caplog.text, 60)
            assert "would sync labels: Node a" in caplog.text
    assert (await world.etcd.read("/x"))[0].revision == before
