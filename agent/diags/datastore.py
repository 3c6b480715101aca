"""What etcd holds that concerns this node; secret fields and annotations of others are taken out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from agent.cli.errors import printable
from agent.diags import redact
from agent.diags.gather import Got, Missing, text

if TYPE_CHECKING:
    from agent.diags.items import Here
    from felix_like.datastore.client import Client
    from felix_like.datastore.errors import KeyValue

PATIENCE = 5.0


def view(here: Here) -> Got:
    """Raises Missing with etcd's sentence."""
    from felix_like.datastore.client import Client
    from felix_like.datastore.config import ConfigError, EtcdConfig
    from felix_like.datastore.errors import EtcdError

    async def read(config: EtcdConfig) -> list[str]:
        async with Client(config, timeout=PATIENCE) as client:
            return [line async for line in _lines(client, here.node)]

    values = {**here.sources.file, **here.environ, **here.sources.agent}
    # As the agent does, Felix's names for those who have set only these.
    for felix, ours in (("FELIX_ETCDENDPOINTS", "ETCD_ENDPOINTS"), ("FELIX_ETCDCAFILE", "ETCD_CA_CERT_FILE")):
        if values.get(felix):
            values.setdefault(ours, values[felix])
    try:
        return text(
            "\n".join([*asyncio.run(read(EtcdConfig.from_environment(values, here.calicoctl_file))), ""])
        )
    except (ConfigError, EtcdError) as error:
        raise Missing(str(error)) from None


async def _lines(client: Client, node: str) -> AsyncIterator[str]:
    from felix_like.datastore.keys import BLOCKS, IPAM_HOSTS, RESOURCES

    status = await client.status()
    yield f"# etcd {status.version} at {status.endpoint}, {status.db_size} octets"
    for plural in ("clusterinformations", "bgpconfigurations", "bgppeers", "bgpfilters", "ippools", "nodes"):
        listing = await client.get_prefix(f"{RESOURCES}{plural}/")
        yield f"# {len(listing.kvs)} {plural} at revision {listing.header.revision}"
        for kv in listing.kvs:
            yield _line(kv)
    affinities = await client.get_prefix(f"{IPAM_HOSTS}{node}/")
    yield f"# {len(affinities.kvs)} block affinities of {node}"
    for kv in affinities.kvs:
        yield _line(kv)
    blocks = await client.get_prefix(BLOCKS)
    yield f"# {len(blocks.kvs)} blocks, of which those of {node}:"
    for kv in blocks.kvs:
        if f'"host:{node}"'.encode() in kv.value:
            yield _line(kv)


def _line(kv: KeyValue) -> str:
    try:
        shown = json.dumps(redact.resource(json.loads(kv.value)))
    except (ValueError, RecursionError):
        # What does not read cannot be cleaned by its fields.
        shown = f"not JSON, {len(kv.value)} octets"
    return f"{printable(kv.key)} @{kv.mod_revision} {shown}"
