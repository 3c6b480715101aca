"""The last good snapshot on disk: what to start from when etcd does not answer after a restart.

    informer = Informer(client, known=load(path).known)
    ...
    octets = await asyncio.to_thread(encode, informer.known)   # off the loop, at leisure
    await asyncio.to_thread(write, path, octets)

Raw keys and values are kept, not decoded ones, so that a newer version decodes them its own way. A file
that is damaged, foreign or of another version is refused with a reason, never a crash.

Format: magic, version, SHA-256 of the rest, msgpack of (time, header, entries).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from felix_like.datastore.client import Header
from felix_like.datastore.errors import KeyValue
from felix_like.datastore.watch import Known

MAGIC = b"TORTIE-SNAPSHOT\n"
VERSION = 1
SIZE_LIMIT = 1 << 30
"""Octets of a file at most; 10,000 blocks are about 20 MB."""


class _File(msgspec.Struct, array_like=True, frozen=True):
    time: float
    cluster_id: int
    revision: int
    raft_term: int
    entries: list[tuple[bytes, bytes, int, int]]
    """Key, value, mod revision, create revision."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file holds. `known` None: nothing usable, for `reason`; "" when there simply is no file."""

    known: Known | None
    time: float = 0.0
    """Unix time it was written at."""
    reason: str = ""


def encode(known: Known, now: float) -> bytes:
    """The file's octets; `now` is Unix time. Takes some 10 ms for 10,000 keys: not on the loop."""
    header = known.header
    body = msgspec.msgpack.encode(
        _File(
            now,
            header.cluster_id,
            header.revision,
            header.raft_term,
            [
                (kv.key.encode("utf-8", "surrogateescape"), kv.value, kv.mod_revision, kv.create_revision)
                for kv in known.kvs.values()
            ],
        )
    )
    return MAGIC + bytes([VERSION]) + hashlib.sha256(body).digest() + body


def write(path: Path, octets: bytes) -> None:
    """Replace the file at once or not at all; mode 0600, its directory made as needed. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(octets)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(path: Path) -> Loaded:
    """Read the file back; whatever it holds, never raises."""
    try:
        if path.stat().st_size > SIZE_LIMIT:
            return Loaded(None, reason=f"{path} is larger than {SIZE_LIMIT} octets; it is not used")
        octets = path.read_bytes()
    except FileNotFoundError:
        return Loaded(None)
    except OSError as error:
        return Loaded(None, reason=f"{path} cannot be read: {error.strerror}")
    try:
        return decode(octets)
    except ValueError as error:
        return Loaded(None, reason=f"{path} {error}; it is not used, and replaced once etcd answers")


def decode(octets: bytes) -> Loaded:
    """Raises ValueError with the reason."""
    start = len(MAGIC) + 1 + hashlib.sha256().digest_size
    if not octets.startswith(MAGIC) or len(octets) < start:
        raise ValueError("is not a snapshot of ours, or cut short")
    if octets[len(MAGIC)] != VERSION:
        raise ValueError(f"has format version {octets[len(MAGIC)]}; this agent reads {VERSION}")
    body = octets[start:]
    if hashlib.sha256(body).digest() != octets[len(MAGIC) + 1 : start]:
        raise ValueError("is damaged: its checksum does not fit")
    try:
        file = msgspec.msgpack.decode(body, type=_File)
    except msgspec.MsgspecError as error:
        raise ValueError(f"does not parse: {error}") from None
    entries = {}
    for key, value, mod_revision, create_revision in file.entries:
        name = key.decode("utf-8", "surrogateescape")
        entries[name] = KeyValue(name, value, mod_revision, create_revision)
    return Loaded(Known(Header(file.cluster_id, file.revision, file.raft_term), entries), file.time)
