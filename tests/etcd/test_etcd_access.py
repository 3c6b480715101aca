"""Reaching etcd: TLS, passwords, unix sockets, leases, compare-and-swap."""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from grpc._cython import cygrpc

from felix_like.datastore.cas import CasStore, ResourceStore
from felix_like.datastore.client import Client, Compare, Delete, Put
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.errors import (
    AlreadyExists,
    CasConflict,
    Compacted,
    Denied,
    NotFound,
    Refused,
    Unauthenticated,
    Unavailable,
)
from felix_like.datastore.keys import resource_key
from felix_like.datastore.watch import Informer
from tests.support.etcd import EtcdMember, etcd, etcdctl, eventually
from tests.support.follower import following, node_key, node_value

pytestmark = pytest.mark.etcd


@pytest.fixture
def member() -> Iterator[EtcdMember]:
    with etcd() as (member,):
        yield member


def config_of(member: EtcdMember, **settings: str) -> EtcdConfig:
    return EtcdConfig(endpoints=(member.endpoint,), **settings)  # type: ignore[arg-type]


async def test_keys_values_and_transactions(member: EtcdMember) -> None:
    async with Client(config_of(member)) as client:
        assert await client.get("/a") is None
        revision = await client.put("/a", b"\x00\xff")
        stored = await client.get("/a")
        assert stored is not None
        assert (stored.value, stored.mod_revision, stored.version) == (b"\x00\xff", revision, 1)
        lost = await client.txn((Compare("/a", "version", 0),), (Put("/a", b"2"),), ())
        assert not lost.succeeded
        won = await client.txn((Compare("/a", "mod_revision", revision),), (Delete("/a"), Put("/b", b"")))
        assert won.succeeded
        assert await client.get("/a") is None
        assert await client.get("/a", revision=revision) == stored
        assert not await client.delete("/a")
        assert await client.delete_prefix("/b") == 1
        await client.compact(won.header.revision)
        with pytest.raises(Compacted):
            await client.get_prefix("/", revision=revision)
        with pytest.raises(Refused):
            await client.txn((), [Put(f"/{n}", b"") for n in range(129)])
        with pytest.raises(Refused, match="too large"):
            await client.put("/big", b"x" * 1_700_000)


async def test_leases(member: EtcdMember) -> None:
    async with Client(config_of(member)) as client:
        lease = await client.lease_grant(60)
        await client.put("/leased", b"x", lease=lease)
        assert await client.lease_keepalive(lease) == 60
        await client.lease_revoke(lease)
        assert await client.get("/leased") is None
        assert await client.lease_keepalive(lease) == 0


async def test_nobody_there_is_a_sentence_with_the_endpoint(member: EtcdMember) -> None:
    member.kill()
    async with Client(config_of(member)) as client:
        with pytest.raises(Unavailable, match=member.endpoint):
            await client.get("/a")


async def test_an_endpoint_that_is_down_does_not_matter(member: EtcdMember) -> None:
    config = EtcdConfig(endpoints=("http://127.0.0.1:1", member.endpoint))
    for _ in range(4):
        async with Client(config) as client:
            assert await CasStore(client).create(f"/x{_}", {"a": 1})


async def test_a_unix_socket_serves_commands() -> None:
    # etcd 3.4 binds `unix://name:port` as the file "name:port" in its working directory.
    with etcd(extra=("--listen-client-urls", "http://127.0.0.1:0,unix://etcd.sock:0"), wait=False) as (
        member,
    ):
        path = member.directory / "etcd.sock:0"
        await eventually(path.exists)
        async with Client(EtcdConfig(endpoints=(f"unix://{path}",))) as client:
            await client.put("/a", b"1")
            assert (await client.get_prefix("/")).kvs[0].value == b"1"


# -- passwords -----------------------------------------------------------------------------------------


async def turn_authentication_on(member: EtcdMember) -> None:
    at = ("--endpoints", member.endpoint)
    await etcdctl(*at, "user", "add", "root:secret")
    await etcdctl(*at, "user", "grant-role", "root", "root")
    await etcdctl(*at, "role", "add", "calico")
    await etcdctl(*at, "role", "grant-permission", "calico", "--prefix=true", "readwrite", "/calico/")
    await etcdctl(*at, "user", "add", "calico:tiger")
    await etcdctl(*at, "user", "grant-role", "calico", "calico")
    await etcdctl(*at, "auth", "enable")


async def test_a_password_is_ignored_by_an_etcd_without_authentication(member: EtcdMember) -> None:
    async with Client(config_of(member, username="a", password="b")) as client:
        await client.put("/a", b"1")


async def test_user_and_password_with_the_tokens_lost_in_between(member: EtcdMember) -> None:
    await turn_authentication_on(member)
    async with Client(config_of(member, username="calico", password="tiger")) as client:
        await client.put(node_key(1), node_value(1))
        with pytest.raises(Denied, match="/calico/"):
            await client.put("/elsewhere", b"")
        async with following(Informer(client)) as follower:
            await eventually(lambda: follower.in_sync)
            member.kill()
            member.start()
            member.wait_ready()
            await client.put(node_key(1), node_value(1, generation=1))
            await eventually(lambda: follower.state == {node_key(1): "1"})
            # Any change of users makes the tokens of before "of an old revision".
            await etcdctl("--endpoints", member.endpoint, "--user", "root:secret", "user", "add", "new:user")
            await client.put(node_key(1), node_value(1, generation=2))
            await eventually(lambda: follower.state == {node_key(1): "2"})
    for credentials in ({}, {"username": "calico", "password": "wrong"}):
        async with Client(config_of(member, **credentials)) as client:
            with pytest.raises(Unauthenticated, match="ETCD_USERNAME"):
                await client.get(node_key(1))
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.stale)


# -- certificates ----------------------------------------------------------------------------------------


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def make_certificates(directory: Path) -> None:
    """ca.pem, server.pem (127.0.0.1) and client.pem, each with its key."""
    ec = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        directory, "req", "-x509", *ec, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2"
    )
    (directory / "ext").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    for name in ("server", "client"):
        openssl(
            directory, "req", *ec, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl(
            directory, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", "ext",
        )  # fmt: skip


async def test_client_certificates(tmp_path: Path) -> None:
    make_certificates(tmp_path)

    def path(name: str) -> str:
        return str(tmp_path / name)

    extra = ("--client-cert-auth", "--trusted-ca-file", path("ca.pem"),
             "--cert-file", path("server.pem"), "--key-file", path("server.key"))  # fmt: skip
    with etcd(extra=extra, scheme="https") as (member,):
        files = {
            "ca_cert_file": path("ca.pem"),
            "cert_file": path("client.pem"),
            "key_file": path("client.key"),
        }
        async with Client(config_of(member, **files)) as client:
            await client.put(node_key(1), node_value(1))
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.state == {node_key(1): "0"})
        texts = {
            "ca_cert": (tmp_path / "ca.pem").read_text(),
            "cert": (tmp_path / "client.pem").read_text(),
            "key": (tmp_path / "client.key").read_text(),
        }
        async with Client(config_of(member, **texts)) as client:
            assert await client.get(node_key(1))
        async with Client(config_of(member, ca_cert_file=path("ca.pem"))) as client:
            with pytest.raises(Unavailable, match=member.endpoint):
                await client.get(node_key(1))


@pytest.mark.usefixtures("no_garbage_collection")
async def test_renewed_certificates_are_read_without_a_restart(tmp_path: Path) -> None:
    """As a Secret's files change below a pod: first etcd knows the new authority, then so do we."""
    make_certificates(tmp_path)

    def path(name: str) -> str:
        return str(tmp_path / name)

    files = {"ca_cert_file": path("ca.pem"), "cert_file": path("client.pem"), "key_file": path("client.key")}
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("ca.pem", "server.pem", "server.key"):
        (theirs / name).write_bytes((tmp_path / name).read_bytes())
    extra = ("--client-cert-auth", "--trusted-ca-file", str(theirs / "ca.pem"),
             "--cert-file", str(theirs / "server.pem"), "--key-file", str(theirs / "server.key"))  # fmt: skip
    with etcd(extra=extra, scheme="https") as (member,):
        async with Client(config_of(member, **files)) as client, following(Informer(client)) as follower:
            await client.put(node_key(1), node_value(1))
            await eventually(lambda: follower.state == {node_key(1): "0"})
            member.kill()
            make_certificates(theirs)
            member.start()
            member.wait_ready()
            with pytest.raises(Unavailable):
                await client.get(node_key(1))
            await eventually(lambda: follower.stale)
            (tmp_path / "client.key").unlink()  # halfway through a renewal
            with pytest.raises(Unavailable):
                await client.get(node_key(1))
            for name in ("ca.pem", "client.pem", "client.key"):
                (tmp_path / name).write_bytes((theirs / name).read_bytes())
            await eventually(lambda: not follower.stale)
            await client.put(node_key(2), node_value(2))
            await eventually(lambda: set(follower.state) == {node_key(1), node_key(2)})
            # One that something still refers to goes on knocking with the old certificate.
            await eventually(lambda: len(live_channels()) == 1)


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live_channels() -> list[object]:
    return [one for one in gc.get_objects() if isinstance(one, cygrpc.AioChannel)]


# -- compare and swap ------------------------------------------------------------------------------------


async def test_resources_follow_calicos_rules(member: EtcdMember) -> None:
    async with Client(config_of(member)) as client:
        store = ResourceStore(client, clock=lambda: datetime(2026, 1, 10, 9, tzinfo=UTC))
        pool = {"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
                "spec": {"cidr": "10.0.0.0/16", "future": {"deep": [1]}}}  # fmt: skip
        made = await store.create(pool)
        assert made["metadata"]["creationTimestamp"] == "2026-01-10T09:00:00Z"
        raw = await client.get(resource_key("IPPool", "p"))
        assert raw is not None
        assert "resourceVersion" not in json.loads(raw.value)["metadata"]
        assert made["metadata"]["resourceVersion"] == str(raw.mod_revision)
        with pytest.raises(AlreadyExists) as exists:
            await store.create(pool)
        assert exists.value.current == raw
        made["spec"]["disabled"] = True
        updated = await store.update(made)
        assert updated["metadata"]["uid"] == made["metadata"]["uid"]
        with pytest.raises(CasConflict) as stale:
            await store.update(made)
        assert stale.value.current is not None
        applied = await store.apply(pool)
        assert applied["metadata"]["uid"] == made["metadata"]["uid"]
        assert "disabled" not in applied["spec"]

        def disable(resource: dict[str, object]) -> None:
            spec = resource["spec"]
            assert isinstance(spec, dict)
            spec["disabled"] = True

        edited = await store.edit("IPPool", "p", disable)
        assert edited["spec"] == {"cidr": "10.0.0.0/16", "future": {"deep": [1]}, "disabled": True}
        assert [one["metadata"]["name"] for one in await store.list("IPPool")] == ["p"]
        with pytest.raises(CasConflict):
            await store.delete("IPPool", "p", made["metadata"]["resourceVersion"])
        await store.delete("IPPool", "p")
        for missing in (
            store.get("IPPool", "p"),
            store.delete("IPPool", "p"),
            store.edit("IPPool", "p", disable),
        ):
            with pytest.raises(NotFound):
                await missing
        fresh = await store.edit("Node", "n1", lambda node: node["spec"].update(bgp={}), create=True)
        assert fresh["metadata"]["uid"]


async def test_a_value_that_is_no_json_object_is_not_overwritten(member: EtcdMember) -> None:
    async with Client(config_of(member)) as client:
        await client.put("/x", b"[1]")
        with pytest.raises(Refused, match="JSON object"):
            await CasStore(client).update("/x", lambda value: {**value, "a": 1})
