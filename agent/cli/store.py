"""Reading the datastore from a command: one short-lived client, errors as sentences."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.cli.errors import Failed, warn

if TYPE_CHECKING:
    from felix_like.datastore.client import Client

T = TypeVar("T")
TIMEOUT = 5.0
"""Seconds per request: a person waits."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A v3 resource as it is stored, with the revision put back in."""

    name: str
    resource: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        spec = self.resource.get("spec")
        return spec if isinstance(spec, dict) else {}


def with_etcd(config_file: str | None, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a client of the configured etcd. Raises Failed with a sentence."""
    import asyncio

    from felix_like.datastore.client import Client
    from felix_like.datastore.config import ConfigError, EtcdConfig
    from felix_like.datastore.errors import EtcdError

    try:
        config = EtcdConfig.from_environment(os.environ, config_file)
    except ConfigError as error:
        raise Failed(str(error)) from None

    async def run() -> T:
        async with Client(config, timeout=TIMEOUT) as etcd:
            return await work(etcd)

    try:
        return asyncio.run(run())
    except EtcdError as error:
        raise Failed(f"{error}{_hint(config_file)}") from None


async def resources(etcd: Client, plural: str) -> list[Stored]:
    """All v3 resources of a kind, by name. One that does not parse is warned about and left out."""
    from felix_like.datastore.keys import RESOURCES

    prefix = f"{RESOURCES}{plural}/"
    found = []
    for kv in (await etcd.get_prefix(prefix)).kvs:
        name = kv.key.removeprefix(prefix)
        try:
            found.append(Stored(name, parse(kv.value, kv.mod_revision)))
        except ValueError as error:
            warn(f"{kv.key} is left out: {error}")
    return found


def parse(value: bytes, revision: int) -> dict[str, Any]:
    """A stored resource with its resourceVersion, as calicoctl shows it. Raises ValueError."""
    try:
        resource = json.loads(value)
    except ValueError:
        raise ValueError("its value is not JSON") from None
    if not isinstance(resource, dict) or not isinstance(resource.get("metadata"), dict):
        raise ValueError("its value is not a resource with metadata")
    resource["metadata"]["resourceVersion"] = str(revision)
    return resource


def _hint(config_file: str | None) -> str:
    """For somebody who has not said where etcd is."""
    from agent.cli.agentsocket import lab_hint
    from felix_like.datastore.config import DEFAULT_CONFIG_FILE

    said = config_file or os.environ.get("ETCD_ENDPOINTS") or os.environ.get("CALICO_ETCD_ENDPOINTS")
    if said or Path(DEFAULT_CONFIG_FILE).exists():
        return ""
    return f". Nothing is set, so the default was asked.{lab_hint()}"
