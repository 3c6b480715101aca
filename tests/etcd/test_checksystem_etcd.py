"""`tortiectl node checksystem` asks a real etcd: with TLS, without, frozen, and with the wrong authority."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.check import etcd as check
from agent.check.finding import Level
from felix_like.datastore.cas import ResourceStore
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from tests.etcd.test_etcd_access import make_certificates
from tests.support.etcd import etcd

pytestmark = pytest.mark.etcd


def resource(kind: str, name: str, **spec: object) -> dict[str, object]:
    return {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name},
        "spec": spec,
    }


async def fill(config: EtcdConfig) -> None:
    async with Client(config) as client:
        store = ResourceStore(client)
        await store.create(resource("Node", "node-1", bgp={"ipv4Address": "192.0.2.1/24"}))
        await store.create(resource("IPPool", "blue", cidr="10.65.0.0/16", blockSize=26))
        await store.create(resource("IPPool", "six", cidr="fd00:65::/112", blockSize=122))
        await store.create(resource("ClusterInformation", "default", datastoreReady=False))


async def test_what_etcd_says_of_itself_and_of_the_cluster() -> None:
    with etcd() as [member]:
        config = EtcdConfig(endpoints=(member.endpoint,))
        await fill(config)
        found, held = await check.check(config)
        assert held is not None
        assert [pool.name for pool in held.pools] == ["blue", "six"]
        assert check.wants_ipv6(held)
        lines = {one.check: one for one in found}
        assert "version 3." in lines["etcd"].found
        assert lines["clock"].level is Level.OK
        assert "datastoreReady: false" in lines["datastore"].found


async def test_a_frozen_one_is_one_failure_and_no_wait_without_end() -> None:
    with etcd() as [member]:
        member.freeze()
        found, held = await check.check(EtcdConfig(endpoints=(member.endpoint,)))
        member.thaw()
    assert held is None
    assert [one.level for one in found] == [Level.FAIL]
    assert "does not answer" in found[0].found


async def test_of_two_members_the_silent_one_is_named() -> None:
    with etcd() as [member]:
        dead = "http://127.0.0.1:1"
        await fill(EtcdConfig(endpoints=(member.endpoint,)))
        found, held = await check.check(EtcdConfig(endpoints=(member.endpoint, dead)))
    assert held is not None
    silent = [one for one in found if one.check == f"etcd member {dead}"]
    assert [one.level for one in silent] == [Level.WARN]


async def test_certificates_are_told_whoever_signed_them(tmp_path: Path) -> None:
    make_certificates(tmp_path)

    def path(name: str) -> str:
        return str(tmp_path / name)

    extra = ("--client-cert-auth", "--trusted-ca-file", path("ca.pem"),
             "--cert-file", path("server.pem"), "--key-file", path("server.key"))  # fmt: skip
    with etcd(extra=extra, scheme="https") as [member]:
        ours = {"cert_file": path("client.pem"), "key_file": path("client.key")}
        good = EtcdConfig(endpoints=(member.endpoint,), ca_cert_file=path("ca.pem"), **ours)
        await fill(good)
        found, held = await check.check(good)
        assert held is not None
        told = {one.check for one in found if one.found.startswith("expires in ")}
        assert told == {
            f"certificate of {member.endpoint}",
            f"ETCD_CERT_FILE {path('client.pem')}",
            f"ETCD_CA_CERT_FILE {path('ca.pem')}",
        }
        assert not [one.line() for one in found if one.level is Level.FAIL]

        # Signed by nobody we know: no connection, but the reason may be the certificate's end.
        wrong, held = await check.check(
            EtcdConfig(endpoints=(member.endpoint,), ca_cert_file=path("client.pem"), **ours)
        )
    assert held is None
    assert wrong[0].level is Level.FAIL
    assert any(one.check == f"certificate of {member.endpoint}" for one in wrong)


async def test_a_file_that_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    config = EtcdConfig(endpoints=("https://127.0.0.1:1",), ca_cert_file=str(tmp_path / "ca.pem"))
    found, _ = await check.check(config)
    assert any("does not read as an X.509 certificate" in one.found for one in found), found
