"""Registering a node in a real etcd."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.autodetect import route_lookup
from agent.register import CannotRegister, Registered, register
from agent.settings import Settings, load
from felix_like.datastore.cas import ResourceStore
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.keys import resource_key
from felix_like.model.address import Address
from tests.support.etcd import EtcdMember, etcd

pytestmark = pytest.mark.etcd


@dataclass(frozen=True)
class Interface:
    name: str
    addresses: tuple[tuple[Address, int], ...]
    up: bool = True


ETH0 = Interface("eth0", ((Address.parse("192.0.2.10"), 24), (Address.parse("2001:db8::10"), 64)))
KEY = resource_key("Node", "node-1")


@pytest.fixture(scope="module")
def member() -> Iterator[EtcdMember]:
    with etcd() as [one]:
        yield one


@pytest.fixture
def settings(tmp_path: Path, member: EtcdMember) -> Settings:
    empty = tmp_path / "tortie.conf"
    empty.touch()
    told = {"NODENAME": "node-1", "ETCD_ENDPOINTS": member.endpoint, "TORTIE_CONFIG_FILE": str(empty)}
    return load(told, hostname="host")


async def at(settings: Settings, *, before: dict[str, bytes] | None = None) -> tuple[Registered, Any, int]:
    """Register on an etcd that holds `before` (None: whatever it has); the answer, the Node, its revision."""
    async with Client(EtcdConfig(endpoints=settings.etcd.endpoints)) as client:
        if before is not None:
            await client.delete_prefix("/calico/")
            for key, value in before.items():
                await client.put(key, value)
        done = await register(ResourceStore(client), settings, (ETH0,), reach=route_lookup)
        kv = await client.get(KEY)
        assert kv is not None
        return done, json.loads(kv.value), kv.mod_revision


async def test_a_new_node_is_made_and_the_next_start_changes_nothing(settings: Settings) -> None:
    done, node, revision = await at(settings, before={})
    assert done.changed
    assert (str(done.ipv4), done.ipv6, done.notes) == ("192.0.2.10/24", None, ())
    assert (node["kind"], node["apiVersion"]) == ("Node", "projectcalico.org/v3")
    assert node["metadata"]["name"] == "node-1"
    assert len(node["metadata"]["uid"]) == 36
    assert node["metadata"]["creationTimestamp"].endswith("Z")
    assert "resourceVersion" not in node["metadata"]
    assert node["spec"] == {"bgp": {"ipv4Address": "192.0.2.10/24"}}
    again, _, later = await at(settings)
    assert (again.changed, later) == (False, revision)
    assert again.ipv4 == done.ipv4


async def test_everything_else_of_the_node_survives(settings: Settings) -> None:
    held = {
        "kind": "Node",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "node-1", "uid": "u", "creationTimestamp": "c", "labels": {"rack": "r1"}},
        "spec": {
            "bgp": {"ipv4Address": "10.0.0.9/8", "ipv4IPIPTunnelAddr": "192.168.1.0", "asNumber": 65001},
            "unheardOf": {"deep": [1, {"x": "ü"}]},
        },
        "status": {"podCIDRs": ["10.244.1.0/24"]},
    }
    wanted = json.loads(json.dumps(held))
    wanted["spec"]["bgp"] |= {"ipv4Address": "192.0.2.10/24", "ipv6Address": "2001:db8::10/64"}
    done, node, _ = await at(
        replace(settings, ip="autodetect", ip6="autodetect"), before={KEY: json.dumps(held).encode()}
    )
    assert done.changed
    assert node == wanted


async def test_a_router_id_of_its_own_comes_and_goes(settings: Settings) -> None:
    _, node, _ = await at(replace(settings, router_id="9.9.9.9"), before={})
    assert node["metadata"]["annotations"] == {"tortie/router-id": "9.9.9.9"}
    again, _, revision = await at(replace(settings, router_id="9.9.9.9"))
    assert not again.changed
    done, node, later = await at(replace(settings, router_id="hash"))
    assert done.changed
    assert later > revision
    assert "annotations" not in node["metadata"]


async def test_an_address_of_another_node_is_refused_and_nothing_is_written(settings: Settings) -> None:
    other = {"metadata": {"name": "node-2"}, "spec": {"bgp": {"ipv4Address": "192.0.2.10/24"}}}
    before = {resource_key("Node", "node-2"): json.dumps(other).encode()}
    with pytest.raises(CannotRegister, match="Node 'node-2' already has"):
        await at(settings, before=before)
    async with Client(settings.etcd) as client:
        assert await client.get(KEY) is None
    done, _, _ = await at(replace(settings, check_node_ip=False))
    assert done.changed


async def test_a_value_that_is_no_resource_is_not_overwritten(settings: Settings) -> None:
    for value in (b"[]", b"{{", b'{"spec": 7}'):
        with pytest.raises(CannotRegister, match="correct"):
            await at(settings, before={KEY: value})
        async with Client(settings.etcd) as client:
            kv = await client.get(KEY)
            assert kv is not None
            assert kv.value == value
