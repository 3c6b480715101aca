"""Calico's compare-and-swap rules, on raw JSON so that unknown fields survive.

Source: libcalico-go/lib/backend/etcdv3/etcdv3.go, lib/clientv3/resources.go. Create: the key's version is 0.
Update: its mod revision is the one read. Delete: the same, when one is given. The loser gets the current
value with the error.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from felix_like.datastore.client import Client, Compare, Delete, Get, Put
from felix_like.datastore.errors import (
    AlreadyExists,
    CasConflict,
    KeyValue,
    NotFound,
    OutcomeUnknown,
    Refused,
)
from felix_like.datastore.keys import quoted, resource_key, resource_prefix

RETRIES = 100
"""Attempts of a read-modify-write before it gives up, as in Calico's IPAM."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """A JSON object as etcd holds it; `value` is the caller's own copy."""

    key: str
    value: Json
    mod_revision: int


_AS_GO = tuple((c, f"\\u{ord(c):04x}") for c in "<>&\u2028\u2029")
"""What Go's encoder escapes inside strings, the only place where these characters stand in JSON."""


def encode(value: Json) -> bytes:
    """Compact JSON, octet for octet as Calico's client stores the same fields in the same order."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character, escaped in _AS_GO:
        text = text.replace(character, escaped)
    return text.encode(errors="backslashreplace")  # half a surrogate pair: back to its escape


def decode_object(kv: KeyValue) -> Stored:
    """Raises Refused when the value is not a JSON object: nothing to build on."""
    try:
        value = json.loads(kv.value) if kv.value.strip() else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refused(f"etcd key {quoted(kv.key)} does not hold a JSON object; correct or delete it first")
    return Stored(kv.key, value, kv.mod_revision)


class CasStore:
    """JSON objects by key. Raises the errors of `datastore.errors`.

    When the connection breaks during a write, the key is read again: if it holds what was to be written,
    the write has happened.
    """

    def __init__(self, client: Client, *, rng: random.Random | None = None) -> None:
        self.client = client
        self._rng = rng or random.Random()

    async def get(self, key: str) -> Stored | None:
        kv = await self.client.get(key)
        return decode_object(kv) if kv else None

    async def create(self, key: str, value: Json) -> Stored:
        """Raises AlreadyExists, with what is there."""
        return await self._swap(key, value, 0)

    async def replace(self, key: str, value: Json, mod_revision: int) -> Stored:
        """Write over exactly that revision. Raises NotFound, or CasConflict with what is there."""
        if mod_revision <= 0:
            raise ValueError("replace needs the revision that was read; use create for a new key")
        return await self._swap(key, value, mod_revision)

    async def delete(self, key: str, mod_revision: int | None = None) -> None:
        """Delete that revision, or whatever there is. Raises NotFound or CasConflict."""
        if mod_revision is None:
            if not await self.client.delete(key):
                raise NotFound(f"{quoted(key)} does not exist")
            return
        condition = Compare(key, "mod_revision", mod_revision)
        try:
            reply = await self.client.txn((condition,), (Delete(key),), (Get(key),))
        except OutcomeUnknown:
            if await self.client.get(key) is None:
                return
            raise
        if not reply.succeeded:
            raise _conflict(key, mod_revision, reply.got[0])

    async def update(
        self,
        key: str,
        change: Callable[[Json], Json | None],
        *,
        create: Callable[[], Json] | None = None,
        retries: int = RETRIES,
    ) -> Stored:
        """Read, change, write; again when someone else was faster.

        `change` gets its own copy of the JSON object and returns the new one, or None to leave it. It may
        run several times. `create` makes the value when there is none; without it: NotFound.
        """
        for attempt in range(retries):
            try:
                stored = await self.get(key)
                if stored is None:
                    if create is None:
                        raise NotFound(f"{quoted(key)} does not exist")
                    return await self.create(key, create())
                wanted = change(json.loads(json.dumps(stored.value)))
                if wanted is None or wanted == stored.value:
                    return stored
                return await self.replace(key, wanted, stored.mod_revision)
            except NotFound:
                if create is None:
                    raise
            except CasConflict:
                pass
            await self.pause(attempt)
        raise CasConflict(
            f"{quoted(key)} was changed by others {retries} times in a row; try again",
            await self.client.get(key),
        )

    async def pause(self, attempt: int) -> None:
        """Step aside after a lost race; a little longer each time, at most 50 ms."""
        await asyncio.sleep(self._rng.uniform(0, min(0.05, 0.002 * (attempt + 1))))

    async def _swap(self, key: str, value: Json, mod_revision: int) -> Stored:
        octets = encode(value)
        target = "mod_revision" if mod_revision else "version"
        try:
            reply = await self.client.txn(
                (Compare(key, target, mod_revision),), (Put(key, octets),), (Get(key),)
            )
        except OutcomeUnknown:
            current = await self.client.get(key)
            if current is None or current.value != octets or current.mod_revision == mod_revision:
                raise
            return Stored(key, value, current.mod_revision)
        if reply.succeeded:
            return Stored(key, value, reply.header.revision)
        raise _conflict(key, mod_revision, reply.got[0])


def _conflict(key: str, mod_revision: int, current: KeyValue | None) -> CasConflict:
    if current is None:
        return NotFound(f"{quoted(key)} does not exist (any more)")
    if not mod_revision:
        return AlreadyExists(f"{quoted(key)} exists already (revision {current.mod_revision})", current)
    return CasConflict(
        f"{quoted(key)} has been changed: it is at revision {current.mod_revision}, not {mod_revision};"
        " read it again",
        current,
    )


class ResourceStore:
    """v3 resources as JSON objects; `metadata.resourceVersion` is etcd's mod revision, never stored."""

    def __init__(self, client: Client, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.cas = CasStore(client)
        self._clock = clock

    async def get(self, kind: str, name: str) -> Json:
        """Raises NotFound."""
        stored = await self.cas.get(resource_key(kind, name))
        if stored is None:
            raise NotFound(f"{kind} {name} does not exist")
        return _shown(stored)

    async def list(self, kind: str) -> list[Json]:
        """All of a kind, by name; values that are no JSON object are left out."""
        found = []
        for kv in (await self.cas.client.get_prefix(resource_prefix(kind))).kvs:
            try:
                found.append(_shown(decode_object(kv)))
            except Refused:
                continue
        return found

    async def create(self, resource: Json) -> Json:
        """Raises AlreadyExists. Sets uid and creationTimestamp."""
        return _shown(await self.cas.create(_key_of(resource), self._fresh(resource)))

    async def update(self, resource: Json) -> Json:
        """Replace; `metadata.resourceVersion` must be the one read. Raises NotFound or CasConflict."""
        metadata = resource["metadata"]
        revision = str(metadata.get("resourceVersion") or "")
        if not (revision.isascii() and revision.isdigit()):
            raise ValueError("metadata.resourceVersion is needed for an update; get the resource first")
        return _shown(await self.cas.replace(_key_of(resource), _stored_form(resource), int(revision)))

    async def apply(self, resource: Json) -> Json:
        """Create, or replace whatever is there, keeping its uid and creationTimestamp."""

        def merged(current: Json) -> Json:
            wanted = _stored_form(resource)
            before = current.get("metadata")
            for field in ("uid", "creationTimestamp"):
                if isinstance(before, dict) and before.get(field):
                    wanted["metadata"][field] = before[field]
            return self._fresh(wanted)

        return _shown(await self.cas.update(_key_of(resource), merged, create=lambda: self._fresh(resource)))

    async def edit(
        self, kind: str, name: str, change: Callable[[Json], None], *, create: bool = False
    ) -> Json:
        """Change a resource in place, retrying lost races; unknown fields survive.

        With `create`, one that does not exist is made, from `change` applied to an empty spec.
        """

        def changed(current: Json) -> Json:
            if not isinstance(current.get("metadata"), dict):
                current["metadata"] = {"name": name}
            change(current)
            return self._fresh(current)

        def made() -> Json:
            return changed(
                {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}, "spec": {}}
            )

        key = resource_key(kind, name)
        return _shown(await self.cas.update(key, changed, create=made if create else None))

    async def delete(self, kind: str, name: str, resource_version: str = "") -> None:
        """Raises NotFound, or CasConflict when a version is given and no longer current."""
        await self.cas.delete(resource_key(kind, name), int(resource_version) if resource_version else None)

    def _fresh(self, resource: Json) -> Json:
        """The stored form with uid and creationTimestamp, which every stored resource has."""
        wanted = _stored_form(resource)
        metadata = wanted["metadata"]
        metadata["uid"] = metadata.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = metadata.get("creationTimestamp") or self._clock().strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )
        return wanted


def _key_of(resource: Json) -> str:
    """Raises ValueError for what is not a resource of a known kind with a name."""
    metadata = resource.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise ValueError("the resource has no metadata.name")
    if resource.get("apiVersion") != "projectcalico.org/v3":
        raise ValueError(f"apiVersion {quoted(resource.get('apiVersion'))}: use projectcalico.org/v3")
    return resource_key(str(resource.get("kind")), metadata["name"])


def _stored_form(resource: Json) -> Json:
    wanted: Json = json.loads(json.dumps(resource))
    wanted["metadata"].pop("resourceVersion", None)
    return wanted


def _shown(stored: Stored) -> Json:
    value: Json = json.loads(json.dumps(stored.value))
    metadata = value.setdefault("metadata", {})
    if isinstance(metadata, dict):
        metadata["resourceVersion"] = str(stored.mod_revision)
    return value
