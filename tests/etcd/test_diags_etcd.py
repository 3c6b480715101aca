"""`tortiectl node diags` beside a real etcd: what concerns the node is there, what is secret is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.diags.make import collect
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from tests.support.etcd import etcd

pytestmark = pytest.mark.etcd

V3 = "/calico/resources/v3/projectcalico.org"
BLOCKS = "/calico/ipam/v2/assignment/"
SECRET = "Planted-in-etcd-7kQ"


def resource(kind: str, name: str, annotations: dict[str, str] | None = None, **spec: Any) -> Any:
    return {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": spec,
    }


STORED = {
    f"{V3}/nodes/node-1": resource("Node", "node-1", {"other": SECRET}, bgp={"ipv4Address": "192.0.2.1/24"}),
    f"{V3}/bgppeers/tor": resource("BGPPeer", "tor", peerIP="192.0.2.9", password={"plain": SECRET}),
    f"{V3}/bgppeers/ref": resource(
        "BGPPeer", "ref", peerIP="192.0.2.8", password={"secretKeyRef": {"name": "bgp", "key": "tor"}}
    ),
    f"{V3}/ippools/blue": resource("IPPool", "blue", cidr="10.65.0.0/16"),
    "/calico/ipam/v2/host/node-1/ipv4/block/10.65.0.0-26": {"state": "confirmed"},
    f"{BLOCKS}ipv4/block/10.65.0.0-26": {"cidr": "10.65.0.0/26", "affinity": "host:node-1"},
    f"{BLOCKS}ipv4/block/10.65.1.0-26": {
        "cidr": "10.65.1.0/26",
        "affinity": "host:node-10",
    },
}


async def fill(url: str) -> None:
    async with Client(EtcdConfig(endpoints=(url,))) as client:
        for key, value in STORED.items():
            # As Go writes it: without spaces.
            await client.put(key, json.dumps(value, separators=(",", ":")).encode())
        await client.put(f"{V3}/nodes/broken", f"{{{SECRET}".encode())


def diags(tmp_path: Path, endpoint: str) -> tuple[str, str]:
    """datastore.txt, and why there is none."""
    environ = {
        "NODENAME": "node-1",
        "ETCD_ENDPOINTS": endpoint,
        "TORTIE_CONFIG_FILE": "/dev/null",
        "TORTIE_RUN_DIR": str(tmp_path),
    }
    made = collect(environ)
    assert not [name for name, octets in made.texts.items() if SECRET.encode() in octets]
    return made.texts.get("datastore.txt", b"").decode(), made.missing.get("datastore.txt", "")


async def test_what_concerns_the_node_and_no_secret(tmp_path: Path) -> None:
    import asyncio

    with etcd() as [member]:
        await fill(member.endpoint)
        text, why = await asyncio.to_thread(diags, tmp_path, member.endpoint)
        assert why == ""
        assert "192.0.2.9" in text
        assert '"secretKeyRef": {"name": "bgp", "key": "tor"}' in text
        assert "10.65.0.0-26" in text
        assert "10.65.1.0-26" not in text, "the block of node-10 is not that of node-1"
        assert "nodes/broken" in text
        member.freeze()
        text, why = await asyncio.to_thread(diags, tmp_path, member.endpoint)
        member.thaw()
    assert text == ""
    assert "etcd does not answer" in why
