"""Is etcd there: version, latency, certificates, clock; and what it says that other checks want to know."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from agent.check import certificates
from agent.check.finding import Finding, fail, ok, unseen, warn
from felix_like.datastore.cas import ResourceStore
from felix_like.datastore.client import Client
from felix_like.datastore.codec import decode
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.errors import EtcdError
from felix_like.datastore.keys import RESOURCES, Kind
from felix_like.model.ippool import IPPool

PATIENCE = 4.0
"""Seconds for one request: a person waits."""
SLOW = 0.1
"""Seconds for one read above which every change will be felt to be late."""
SOON = 30
"""Days before its end when a certificate is worth a warning."""
SKEW = 5.0
"""Seconds of difference between two clocks that are worth a warning."""
READS = 5


@dataclass(frozen=True, slots=True)
class Held:
    """What etcd says."""

    nodes: tuple[dict[str, Any], ...]
    pools: tuple[IPPool, ...]
    ready: bool | None
    """ClusterInformation's datastoreReady; None: there is none."""


async def check(config: EtcdConfig) -> tuple[list[Finding], Held | None]:
    """The findings, and what was read; None when etcd does not answer."""
    endpoints = ", ".join(config.endpoints)
    found: list[Finding] = []
    held = None
    try:
        async with Client(config, timeout=PATIENCE) as client:
            held = await _read(client)
            found.append(await _latency(client))
            found.extend(_ready(held))
    except EtcdError as error:
        found.append(
            fail(
                "etcd", str(error), f"asked: {endpoints}. What is forwarded now goes on; nothing new is heard"
            )
        )
    for endpoint in config.endpoints:
        lines = await asyncio.to_thread(lambda endpoint: list(member(endpoint, config)), endpoint)
        if held is not None or len(config.endpoints) > 1:
            found.extend(lines)
        else:  # a silent one has been told of; not so the end of its certificate
            found.extend(line for line in lines if line.check != _member(endpoint))
    found.extend(own_certificates(config, datetime.now(UTC)))
    return found, held


async def _read(client: Client) -> Held:
    pools = []
    for kv in (await client.get_prefix(RESOURCES + "ippools/")).kvs:
        value = decode(kv.key, kv.value)
        if isinstance(value, IPPool):
            pools.append(value)
    store = ResourceStore(client)
    nodes = await store.list(Kind.NODE)
    information = next(
        (one for one in await store.list(Kind.CLUSTER_INFORMATION) if _name(one) == "default"), None
    )
    spec = information.get("spec") if information is not None else None
    ready = bool(spec.get("datastoreReady", True)) if isinstance(spec, dict) else None
    return Held(tuple(nodes), tuple(pools), ready)


async def _latency(client: Client) -> Finding:
    status = await client.status()
    took = []
    for _ in range(READS):
        began = time.monotonic()
        await client.get(RESOURCES)
        took.append(time.monotonic() - began)
    middle = sorted(took)[READS // 2]
    size = status.db_size / (1 << 20)
    found = (
        f"version {status.version} at {status.endpoint}, {size:.1f} MiB, a read takes {middle * 1000:.1f} ms"
    )
    if middle > SLOW:
        return warn("etcd", found, "look at its disk and its network: every change will be felt late")
    return ok("etcd", found)


def _ready(held: Held) -> Iterator[Finding]:
    if held.ready is False:
        yield warn(
            "datastore",
            "ClusterInformation says datastoreReady: false, so the agents keep what they have",
            "somebody locked it for a migration ('calicoctl datastore migrate unlock')",
        )
    elif held.ready is None:
        yield warn(
            "datastore",
            "there is no ClusterInformation 'default': is this Calico's datastore?",
            "look at ETCD_ENDPOINTS",
        )


def member(endpoint: str, config: EtcdConfig) -> Iterator[Finding]:
    """One member by itself, over HTTP: does it answer, its certificate's end, its clock."""
    check = _member(endpoint)
    try:
        before = time.time()
        answer, certificate = _version(endpoint, config)
        now = (before + time.time()) / 2
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield warn(
            check, f"does not answer ({' '.join(reason.split())[:200]})", "the others are asked instead"
        )
        return
    if certificate is not None:
        try:
            yield from expires(
                f"certificate of {endpoint}", certificates.expiry(certificate), datetime.now(UTC)
            )
        except ValueError as error:
            yield unseen(f"certificate of {endpoint}", str(error))
    yield clock(endpoint, answer, now)


def _member(endpoint: str) -> str:
    return f"etcd member {endpoint}"


def clock(endpoint: str, answer: bytes, now: float) -> Finding:
    """The Date line of an HTTP answer (RFC 9110 section 6.6.1), beside our own clock."""
    for line in answer.split(b"\r\n\r\n")[0].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"date":
            try:
                theirs = parsedate_to_datetime(value.decode("ascii").strip()).timestamp()
            except (ValueError, UnicodeDecodeError):
                break
            # It counts whole seconds, so it is behind by half of one.
            off = now - theirs - 0.5
            if abs(off) > SKEW:
                ahead = "ahead of" if off > 0 else "behind"
                return warn(
                    "clock",
                    f"this host is {abs(off):.0f} s {ahead} {endpoint}",
                    "look at chrony or systemd-timesyncd on both",
                )
            return ok("clock", f"the same as that of {endpoint}, by {abs(off) + 0.5:.0f} s at most")
    return unseen("clock", f"{endpoint} does not say what time it is")


def own_certificates(config: EtcdConfig, now: datetime) -> Iterator[Finding]:
    for setting, path, text in (
        ("ETCD_CERT_FILE", config.cert_file, config.cert),
        ("ETCD_CA_CERT_FILE", config.ca_cert_file, config.ca_cert),
    ):
        if not path and not text:
            continue
        where = f"{setting} {path}".strip()
        try:
            ends = certificates.expiry_of_file(path) if path else certificates.expiry_of_pem(text)
        except OSError as error:
            yield unseen(where, error.strerror or str(error))
        except ValueError as error:
            yield fail(where, str(error), "give a PEM file")
        else:
            yield from expires(where, ends, now)


def expires(check: str, ends: datetime, now: datetime) -> Iterator[Finding]:
    days = (ends - now).total_seconds() / 86400
    if days < 0:
        yield fail(check, f"expired {-days:.0f} days ago ({ends:%Y-%m-%d})", "renew it")
    elif days < SOON:
        yield warn(check, f"expires in {days:.0f} days ({ends:%Y-%m-%d})", "renew it")
    else:
        yield ok(check, f"expires in {days:.0f} days ({ends:%Y-%m-%d})")


def _version(endpoint: str, config: EtcdConfig) -> tuple[bytes, bytes | None]:
    """The answer to GET /version, and the server's certificate in DER. Raises OSError, ValueError."""
    url = urlsplit(endpoint)
    if url.scheme == "unix":
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.settimeout(PATIENCE)
        try:
            plain.connect(url.path)
        except OSError:
            plain.close()
            raise
    else:
        plain = socket.create_connection((url.hostname or "", url.port or 2379), PATIENCE)
    with plain:
        if url.scheme != "https":
            return _ask(plain), None
        with _context(config).wrap_socket(plain, server_hostname=url.hostname) as secure:
            return _ask(secure), secure.getpeercert(binary_form=True)


def _context(config: EtcdConfig) -> ssl.SSLContext:
    """No proof is wanted here, the client's own connection gives it: an expired certificate is to be read."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if config.cert_file:
        context.load_cert_chain(config.cert_file, config.key_file, password=lambda: "")
    return context


def _ask(connection: socket.socket) -> bytes:
    connection.settimeout(PATIENCE)
    connection.sendall(b"GET /version HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n")
    answer = b""
    deadline = time.monotonic() + PATIENCE
    while b"\r\n\r\n" not in answer and len(answer) < 65536 and time.monotonic() < deadline:
        octets = connection.recv(4096)
        if not octets:
            break
        answer += octets
    return answer


def _name(resource: dict[str, Any]) -> str:
    metadata = resource.get("metadata")
    return str(metadata.get("name")) if isinstance(metadata, dict) else ""


def wants_ipv6(held: Held) -> bool:
    return any(pool.cidr.version == 6 for pool in held.pools)
