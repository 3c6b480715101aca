"""IPAM garbage collection on a real etcd beside a fake Kubernetes API: what is released, and what never."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.controllers.deeds import Deeds
from agent.controllers.ipam_gc import IpamController
from felix_like.datastore.cas import CasStore, Stored
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.ipam import Ipam
from felix_like.datastore.keys import BLOCKS, IPAM_HOSTS, affinity_key, block_key, handle_key, resource_key
from felix_like.datastore.kube.access import KubeAccess
from felix_like.datastore.kube.client import KubeClient
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
from tests.support.etcd import etcd, eventually
from tests.support.kube_api import Fault, KubeApi, kube_api
from tests.support.kube_objects import node, pod
from tests.support.kube_store import Rule

pytestmark = pytest.mark.etcd
GRACE = 1.0
"""Seconds."""


@dataclass
class World:
    etcd: Client
    api: KubeApi
    kube: KubeClient
    deeds: Deeds

    def controller(self, *, kube: bool = True, grace: float | None = GRACE) -> IpamController:
        return IpamController(
            self.etcd,
            self.kube if kube else None,
            self.deeds,
            grace=grace,
            removed=asyncio.Event(),
            # Blocks that the test claims now are old to the controller.
            wall=lambda: datetime.now(UTC) + timedelta(minutes=5),
        )

    async def looks(self, count: int) -> None:
        """So many whole looks from now on, and so at least one that began after this call."""
        for _ in range(count + 1):
            before = self.deeds.gauges.get("look_at", 0)
            await eventually(lambda before=before: self.deeds.gauges.get("look_at", 0) > before, 60)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Nodes a and b, a pod `web` on a that has its address, and one on b, `dns`."""
    with etcd() as (member,):
        async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client, kube_api() as api:
            kube = KubeClient(KubeAccess(api.kubeconfig(tmp_path / "kubeconfig")))
            api.put(node("a"), node("b"))
            for name in ("a", "b"):
                await put_node(client, name)
            await put_pools(client, "10.0.0.0/16", "fd00::/112")
            for name, where in (("web", "a"), ("dns", "b")):
                addresses = await give(client, name, where, versions=(4, 6))
                api.put(pod(name, where, *map(str, addresses)))
            try:
                yield World(client, api, kube, Deeds())
            finally:
                await kube.close()


async def test_a_pod_that_vanished_loses_its_addresses_and_the_others_keep_theirs(world: World) -> None:
    before = await allocated(world.etcd)
    await give(world.etcd, "old", "a", versions=(4, 6))
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await until(lambda: _is(world, before))
        # Counted once the write is answered.
        await eventually(lambda: world.deeds.done["release-address", "pod-gone"] == 2)
    assert await ipam_holds(world.etcd) == ""


async def _is(world: World, wanted: dict[str, str]) -> bool:
    return await allocated(world.etcd) == wanted


async def test_what_is_in_use_or_not_kubernetes_stays(world: World) -> None:
    await put_node(world.etcd, "bare", None)
    await give(world.etcd, "lab-pod", "bare")
    await give(world.etcd, "", "a", handle="my-own", owner="me")
    await give(world.etcd, "", "a", handle="vxlan-tunnel-addr-a", type="vxlanTunnelAddress")
    kept = await give(world.etcd, "leftover", "a")
    await put_endpoint(world.etcd, "leftover", "a", *kept)
    starting = await give(world.etcd, "starting", "a")
    world.api.put(pod("starting", "a", phase="Pending"))
    before = await allocated(world.etcd)
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await world.looks(8)
        assert world.deeds.gauges["allocations left alone"] == 2
        assert world.deeds.gauges["allocations leaked"] == 0
    assert await allocated(world.etcd) == before
    assert str(starting[0]) in before
    assert not world.deeds.done


async def test_a_pod_that_comes_back_at_the_last_moment_keeps_its_address(world: World) -> None:
    """The watch is frozen in the past; the question before the release is not."""
    late = await give(world.etcd, "late", "a")
    before = await allocated(world.etcd)
    controller = world.controller(grace=4 * GRACE)
    async with office(world.etcd) as leadership, working(controller, leadership=leadership):
        await eventually(lambda: world.deeds.gauges.get("allocations candidate") == 1, 60)
        # As if the event were still on its way: the store has the pod, no watcher is told.
        world.api.store.put(pod("late", "a", *map(str, late)))
        await eventually(lambda: world.deeds.done["keep-address", "revived"] >= 1, 60)
    assert await allocated(world.etcd) == before
    assert not world.deeds.done["release-address", "pod-gone"]


async def test_a_node_that_has_just_joined_keeps_its_addresses(world: World) -> None:
    """It has no Calico Node yet, and the watch has not told of it: asked directly, Kubernetes has it."""
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.gauges.get("allocations in use") == 4, 60)
        world.api.store.put(node("late"))  # no watcher is told
        (address,) = await give(world.etcd, "first", "late")
        await eventually(lambda: world.deeds.done["keep-address", "revived"] >= 1, 60)
        assert not world.deeds.done["release-address", "node-gone"]
    assert str(address) in await allocated(world.etcd)


async def test_an_address_that_is_given_out_anew_before_the_release_stays(world: World) -> None:
    """Same address, same handle: only the sequence number tells, and it is compared in the write."""
    from felix_like.datastore.ipam_listing import ipam_state
    from felix_like.datastore.ipam_mend import Mending

    (address,) = await give(world.etcd, "old", "a")
    state = await ipam_state(world.etcd)
    (seen,) = (one for block in state.blocks for one in block.allocations if one.address == address)
    await Ipam(world.etcd).release_ips([address])
    cidr = seen.block
    while True:  # freed addresses go to the end of the queue
        (again,) = await give(world.etcd, "old", "a", handle=seen.handle)
        if again == address:
            break
    assert await Mending(world.etcd).release_allocations(cidr, [seen]) == frozenset()
    assert str(address) in await allocated(world.etcd)


async def test_without_sequence_numbers_the_handle_tells_whose_an_address_is(world: World) -> None:
    """Old versions of Calico write none."""
    from felix_like.datastore.ipam_listing import ipam_state
    from felix_like.datastore.ipam_mend import Mending

    (address,) = await give(world.etcd, "old", "a")
    cas = CasStore(world.etcd)
    cidr = Prefix.within(address, 26)
    await cas.update(block_key(cidr), lambda block: {**block, "sequenceNumberForAllocation": {}})
    state = await ipam_state(world.etcd)
    (seen,) = (one for block in state.blocks for one in block.allocations if one.address == address)
    assert seen.sequence is None
    mending = Mending(world.etcd)
    assert (
        await mending.release_allocations(cidr, [replace(seen, handle="k8s-pod-network.new")]) == frozenset()
    )
    assert await mending.release_allocations(cidr, [seen]) == {address}


async def test_a_gone_nodes_addresses_and_blocks_go(world: World) -> None:
    before = await allocated(world.etcd)
    await put_node(world.etcd, "gone")
    await give(world.etcd, "old", "gone", versions=(4, 6))
    await give(world.etcd, "", "gone", handle="ipip-tunnel-addr-gone", type="ipipTunnelAddress")
    await world.etcd.delete(resource_key("Node", "gone"))
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await until(lambda: _is(world, before))
        await until(lambda: _no_key_under(world, f"{IPAM_HOSTS}gone/"))
        await eventually(lambda: world.deeds.done["release-address", "node-gone"] == 3)
        await eventually(lambda: world.deeds.done["release-block", "node-gone"] == 2)
    assert await ipam_holds(world.etcd) == ""


async def _no_key_under(world: World, prefix: str) -> bool:
    return not await keys(world.etcd, prefix)


async def test_empty_blocks_go_and_each_node_keeps_one(world: World) -> None:
    ipam = Ipam(world.etcd)
    pools = {pool.cidr.version: pool for pool in await ipam.pools()}
    for version in (4, 6):
        for _ in range(3):
            await ipam.claim_block("a", pools[version])
        await ipam.claim_block("idle", pools[version])
        await ipam.claim_block("idle", pools[version])
    await put_node(world.etcd, "idle")
    world.api.put(node("idle"))
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await until(lambda: _counts(world, {"a": 2, "b": 2, "idle": 2}))
        await world.looks(6)
    assert await _counts(world, {"a": 2, "b": 2, "idle": 2})
    assert world.deeds.done["release-block", "idle"] == 8
    assert len(await keys(world.etcd, BLOCKS)) == 6, "the blocks themselves are gone"
    assert await ipam_holds(world.etcd) == ""


async def _empty_block(etcd: Client) -> tuple[Prefix, Stored]:
    """One that node a has just claimed, and what is stored of it."""
    ipam = Ipam(etcd)
    pool = next(pool for pool in await ipam.pools() if pool.cidr.version == 4)
    cidr = await ipam.claim_block("a", pool)
    seen = await CasStore(etcd).get(block_key(cidr))
    assert seen is not None
    return cidr, seen


async def test_an_empty_block_that_was_used_since_it_was_looked_at_stays(world: World) -> None:
    """Empty again by the time of the release: its node uses it. Nothing is written."""
    cidr, seen = await _empty_block(world.etcd)
    ipam = Ipam(world.etcd)
    used = {**seen.value, "sequenceNumber": seen.value["sequenceNumber"] + 2}
    await CasStore(world.etcd).replace(seen.key, used, seen.mod_revision)
    before = (await world.etcd.read("/x"))[0].revision
    assert not await ipam.release_block("a", cidr, only_empty=True, sequence=seen.value["sequenceNumber"])
    assert (await world.etcd.read("/x"))[0].revision == before
    assert await ipam.release_block("a", cidr, only_empty=True, sequence=used["sequenceNumber"])
    assert await world.etcd.get(block_key(cidr)) is None


async def test_an_empty_block_that_an_old_calico_wrote_goes_too(world: World) -> None:
    """Sequence numbers are newer than blocks; nothing that is idle gets one."""
    cidr, seen = await _empty_block(world.etcd)
    old = {name: value for name, value in seen.value.items() if not name.startswith("sequenceNumber")}
    await CasStore(world.etcd).replace(seen.key, old, seen.mod_revision)
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.done["release-block", "idle"] == 1, 60)
    assert await world.etcd.get(block_key(cidr)) is None


async def _counts(world: World, wanted: dict[str, int]) -> bool:
    return {name: len(await keys(world.etcd, f"{IPAM_HOSTS}{name}/")) for name in wanted} == wanted


async def test_what_a_crash_left_behind_is_put_right(world: World) -> None:
    before = await allocated(world.etcd)
    cas = CasStore(world.etcd)
    (block,) = await keys(world.etcd, f"{IPAM_HOSTS}a/ipv4/block/")
    cidr = Prefix.parse(block.replace("-", "/"))
    await cas.create(handle_key("never-taken"), {"block": {str(cidr): 1}, "deleted": False})
    await cas.update(
        handle_key("k8s-pod-network.web"), lambda h: {**h, "block": {**h["block"], str(cidr): 3}}
    )
    await world.etcd.delete(handle_key("k8s-pod-network.dns"))
    half = Prefix.parse("10.0.200.0/26")
    await cas.create(affinity_key("a", half), {"state": "pending", "deleted": False})
    await cas.create(affinity_key("b", cidr), {"state": "pendingDeletion", "deleted": False})
    assert await ipam_holds(world.etcd) != ""
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await until(lambda: _holds(world))
        mended = {
            ("mend-handle", "orphan"): 1,
            ("mend-handle", "miscounted"): 1,
            ("mend-handle", "missing"): 1,
            ("delete-affinity", "no-block"): 1,
            ("delete-affinity", "other-owner"): 1,
        }
        await eventually(lambda: {deed: world.deeds.done[deed] for deed in mended} == mended)
    assert await allocated(world.etcd) == before


async def _holds(world: World) -> bool:
    return await ipam_holds(world.etcd) == ""


async def test_without_kubernetes_only_the_bookkeeping_is_put_right(world: World) -> None:
    await give(world.etcd, "old", "a")
    await give(world.etcd, "older", "gone")
    before = await allocated(world.etcd)
    await CasStore(world.etcd).create(handle_key("never-taken"), {"block": {}, "deleted": False})
    async with office(world.etcd) as leadership:
        async with working(world.controller(kube=False), leadership=leadership):
            await until(lambda: _no_key_under(world, handle_key("never-taken")))
            await world.looks(6)
    assert await allocated(world.etcd) == before
    assert world.deeds.gauges["allocations left alone"] == 6


async def test_a_dry_run_writes_nothing_and_says_what_it_would_do(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world.deeds.dry_run = True
    await give(world.etcd, "old", "a")
    await CasStore(world.etcd).create(handle_key("never-taken"), {"block": {}, "deleted": False})
    async with office(world.etcd) as leadership:
        before = (await world.etcd.read("/x"))[0].revision
        async with working(world.controller(), leadership=leadership):
            await eventually(lambda: "would mend handle: IPAM handle never-taken" in caplog.text, 60)
            await eventually(lambda: "would release address" in caplog.text, 60)
            await world.looks(3)
    assert (await world.etcd.read("/x"))[0].revision == before
    assert not world.deeds.done


async def test_the_clusters_own_grace_counts_and_zero_is_off(world: World) -> None:
    spec = {"controllers": {"node": {"leakGracePeriod": "0s"}}}
    await put_resource(world.etcd, "KubeControllersConfiguration", "default", spec)
    await give(world.etcd, "old", "a")
    before = await allocated(world.etcd)
    async with office(world.etcd) as leadership, working(world.controller(grace=None), leadership=leadership):
        await eventually(lambda: world.deeds.gauges.get("allocations candidate") == 1, 60)
        assert not world.deeds.done
    assert await allocated(world.etcd) == before


async def test_a_locked_datastore_is_not_touched(world: World) -> None:
    await put_resource(world.etcd, "ClusterInformation", "default", {"datastoreReady": False})
    await give(world.etcd, "older", "gone")
    before = await allocated(world.etcd)
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: "locked" in world.deeds.troubles.get("ipam", ""), 60)
        assert await allocated(world.etcd) == before
        await put_resource(world.etcd, "ClusterInformation", "default", {"datastoreReady": True})
        await eventually(lambda: world.deeds.done["release-address", "node-gone"] == 1, 60)


async def test_while_the_clusters_own_grace_is_not_known_nothing_is_collected(world: World) -> None:
    """It may be off, or a day."""
    broken = {"controllers": {"node": {"leakGracePeriod": "a day"}}}
    await put_resource(world.etcd, "KubeControllersConfiguration", "default", broken)
    await give(world.etcd, "older", "gone")
    before = await allocated(world.etcd)
    async with office(world.etcd) as leadership, working(world.controller(grace=None), leadership=leadership):
        await eventually(lambda: "leakGracePeriod" in world.deeds.troubles.get("ipam", ""), 60)
        assert "nothing is collected" in world.deeds.troubles["ipam"]
        assert await allocated(world.etcd) == before
    # Whoever says how long does not depend on it.
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.done["release-address", "node-gone"] == 1, 60)


async def test_a_datastore_that_may_be_locked_is_not_touched(world: World) -> None:
    await world.etcd.put(resource_key("ClusterInformation", "default"), b"{")
    await give(world.etcd, "older", "gone")
    before = await allocated(world.etcd)
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: "nothing is collected" in world.deeds.troubles.get("ipam", ""), 60)
        await world.looks(0)
    assert await allocated(world.etcd) == before


async def test_pods_that_may_not_be_listed_cost_no_address(world: World) -> None:
    """Nodes alone are no cluster: without its pods nothing is judged."""
    world.api.rules = [Rule(frozenset(("get", "list", "watch")), frozenset(("",)), frozenset(("nodes",)))]
    await give(world.etcd, "old", "a")
    await give(world.etcd, "older", "gone")
    before = await allocated(world.etcd)
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: "/api/v1/pods" in world.deeds.troubles.get("ipam", ""), 60)
        await world.looks(4)
    assert await allocated(world.etcd) == before


async def test_a_question_that_fails_holds_up_the_release_and_no_longer(world: World) -> None:
    world.api.faults.append(Fault(status=500, verb="get", resource="pods", count=2))
    await give(world.etcd, "old", "a")
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: "old is not released" in world.deeds.troubles.get("ipam", ""), 60)
        await eventually(lambda: world.deeds.done["release-address", "pod-gone"] == 1, 60)
        await eventually(lambda: not world.deeds.troubles, 60)


async def test_an_api_server_that_answers_no_question_is_not_asked_about_every_address(
    world: World, tmp_path: Path
) -> None:
    """Its lists and watches go on, from a cache: the look must not take as long as all its time-outs."""
    for number in range(6):
        await give(world.etcd, f"old-{number}", "a")
    before = await allocated(world.etcd)
    hurried = KubeClient(KubeAccess(world.api.kubeconfig(tmp_path / "hurried")), timeout=2.0)
    world.kube, patient = hurried, world.kube
    silence = Fault(delay=3600, verb="get", resource="pods", count=1_000)
    world.api.faults.append(silence)
    try:
        async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
            await eventually(lambda: "old-0 is not released" in world.deeds.troubles.get("ipam", ""), 60)
            await world.looks(1)
            assert "old-1" not in world.deeds.troubles["ipam"]
            assert await allocated(world.etcd) == before
            silence.count = 0
            await eventually(lambda: world.deeds.done["release-address", "pod-gone"] == 6, 60)
            await eventually(lambda: not world.deeds.troubles, 60)
    finally:
        await hurried.close()
        world.kube = patient


async def test_an_api_server_that_is_away_costs_no_address(world: World) -> None:
    await give(world.etcd, "old", "a")
    await give(world.etcd, "older", "gone")
    before = await allocated(world.etcd)
    await world.api.stop()
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: "no address is judged" in world.deeds.troubles.get("ipam", ""), 60)
        await world.looks(3)
        assert await allocated(world.etcd) == before
        await world.api.start()
        await eventually(lambda: world.deeds.done["release-address", "node-gone"] == 1, 90)
        await eventually(lambda: world.deeds.done["release-address", "pod-gone"] == 1, 90)


async def test_an_api_server_that_lost_everything_costs_no_address(world: World) -> None:
    before = await allocated(world.etcd)
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.gauges.get("allocations in use") == 4, 60)
        for name, where in (("web", "a"), ("dns", "b")):
            world.api.delete(pod(name, where))
            world.api.delete(node(where))
        await eventually(lambda: world.deeds.gauges.get("allocations in use") == 0, 60)
        await world.looks(8)
    assert await allocated(world.etcd) == before
    assert not world.deeds.done


async def test_garbage_in_etcd_is_named_and_stops_nothing(world: World) -> None:
    await give(world.etcd, "old", "a")
    bad = Prefix.parse("10.0.250.0/26")
    damaged = b'{"cidr":"10.0.250.0/26","allocations":[7]}'
    await world.etcd.put(block_key(bad), damaged)
    await world.etcd.put(handle_key("of-the-bad"), json.dumps({"block": {str(bad): 1}}).encode())
    await world.etcd.put(handle_key("x"), b"\xff")
    await world.etcd.put(resource_key("Node", "broken"), b"{")
    await world.etcd.put("/calico/ipam/v2/handle/a/b", b"{}")
    async with office(world.etcd) as leadership, working(world.controller(), leadership=leadership):
        await eventually(lambda: world.deeds.done["release-address", "pod-gone"] == 1, 60)
        await world.looks(4)
        assert "IPAM block 10.0.250.0/26" in world.deeds.troubles["ipam"]
    assert await world.etcd.get(handle_key("of-the-bad")) is not None
    found = await world.etcd.get(block_key(bad))
    assert found is not None
    assert found.value == damaged


async def test_what_was_written_since_the_look_is_not_mended(world: World) -> None:
    """A handle that counts ahead of its address, an affinity that is claimed again."""
    from felix_like.datastore.ipam_listing import ipam_state
    from felix_like.datastore.ipam_mend import Mending

    cidr = Prefix.parse("10.0.200.0/26")
    handle, affinity = handle_key("busy"), affinity_key("a", cidr)
    await world.etcd.put(handle, json.dumps({"block": {str(cidr): 1}}).encode())
    await world.etcd.put(affinity, b'{"state":"pending"}')
    state = await ipam_state(world.etcd)
    (seen,) = (one for one in state.handles if one.name == "busy")
    (claim,) = (one for one in state.affinities if one.cidr == cidr)
    await world.etcd.put(handle, json.dumps({"block": {str(cidr): 2}}).encode())
    await world.etcd.put(affinity, b'{"state":"confirmed"}')
    mending = Mending(world.etcd)
    assert not await mending.mend_handle("busy", seen, {})
    assert not await mending.mend_handle("busy", seen, {cidr: 1})
    assert not await mending.mend_handle("busy", None, {cidr: 1})
    assert not await mending.delete_affinity(claim)
    stored = await world.etcd.get(handle)
    assert stored is not None
    assert json.loads(stored.value)["block"] == {str(cidr): 2}
    assert await world.etcd.get(affinity) is not None
