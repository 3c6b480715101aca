"""A node with the Kubernetes API: services at a BIRD router, passwords from Secrets, an API server that goes.

Real processes, etcd and BIRD; the API server is the fake one, over TLS with a token.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bird import Bird, bgp
from tests.support.kube_api import KubeApi, ServedKubeApi
from tests.support.kube_objects import endpoint_slice, node, secret, service
from tests.support.kube_store import Rule
from tests.support.system import BIN, Node, System, block4, holds, until, v4

pytestmark = pytest.mark.interop

API = "192.0.2.251"
TOR, GUARDED = 7, 8
RANGE, WEB, MORE = "10.96.0.0/16", "10.96.0.10/32", "10.96.0.11/32"
OLD, NEW = "correct-horse #{battery};", "staple"


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as made:
        made.fabric.hub.ip("addr", "add", f"{API}/24", "dev", "br0")
        yield made


@pytest.fixture(scope="module")
def served(system: System) -> Iterator[ServedKubeApi]:
    folder = system.folder / "kubernetes"
    with ServedKubeApi(netns=system.fabric.hub.name, host=API, tls=folder, tokens=["token-1"]) as made:
        made.do(lambda api: api.put(service("kubernetes", "10.96.0.1"), node("node-1"), node("node-2")))
        yield made


@pytest.fixture(scope="module")
def kubeconfig(system: System, served: ServedKubeApi) -> Path:
    return served.do(lambda api: api.kubeconfig(system.folder / "kubeconfig"))


@pytest.fixture(scope="module")
def tor(system: System) -> Bird:
    """A router without a password."""
    return Bird(
        system.host(TOR),
        system.folder / "tor",
        v4(TOR),
        bgp("tortie", v4(TOR), v4(1), local_as=64600, export="none", graceful=120),
    )


@pytest.fixture(scope="module")
def guarded(system: System) -> Bird:
    """A router with one."""
    return Bird(system.host(GUARDED), system.folder / "guarded", v4(GUARDED), guarded_session(OLD))


def guarded_session(password: str) -> str:
    return bgp("tortie", v4(GUARDED), v4(1), local_as=64601, export="none", graceful=120, password=password)


@pytest.fixture(scope="module")
def one(system: System, kubeconfig: Path, served: ServedKubeApi, tor: Bird, guarded: Bird) -> Node:
    served.do(lambda api: api.put(secret("bgp", {"guarded": OLD, "unrelated": "never-to-be-seen"})))
    system.etcd.resource("BGPConfiguration", "default", {"serviceClusterIPs": [{"cidr": RANGE}]})
    system.etcd.resource("BGPPeer", "tor", {"peerIP": v4(TOR), "asNumber": 64600, "node": "node-1"})
    reference = {"secretKeyRef": {"name": "bgp", "key": "guarded"}}
    system.etcd.resource(
        "BGPPeer",
        "guarded",
        {"peerIP": v4(GUARDED), "asNumber": 64601, "node": "node-1", "password": reference},
    )
    made = system.node(1, KUBECONFIG=str(kubeconfig))
    tor.wait_established("tortie", seconds=60)
    guarded.wait_established("tortie", seconds=60)
    return made


def local(name: str, address: str) -> dict[str, Any]:
    return service(name, address, local=True, type="NodePort")


@pytest.fixture
def calm(served: ServedKubeApi, one: Node, tor: Bird) -> None:
    """One service with an endpoint on node-1, all in sync."""

    def put(api: KubeApi) -> None:
        api.put(local("web", "10.96.0.10"), endpoint_slice("web", {"10.65.1.2": "node-1"}))

    served.do(put)
    tor.wait_routes("tortie", {RANGE, block4(1), WEB}, 60)
    until(lambda: kubernetes(one) == "in-sync", one.status, 60)


def kubernetes(one: Node) -> str:
    return str((one.status().get("kubernetes") or {}).get("state"))


def readyz(one: Node) -> str:
    """The HTTP status."""
    return one.where.run(
        "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:9179/readyz"
    )


def saved(one: Node) -> bytes:
    file = one.folder / "last-good-kubernetes"
    return file.read_bytes() if file.exists() else b""


def test_a_local_service_is_announced_while_it_has_an_endpoint_here(
    served: ServedKubeApi, one: Node, tor: Bird, calm: None
) -> None:
    assert one.refusals() == []
    served.do(lambda api: api.put(endpoint_slice("web", {"10.65.2.2": "node-2"})))
    tor.wait_routes("tortie", {RANGE, block4(1)})
    served.do(lambda api: api.put(endpoint_slice("web", {"10.65.2.2": "node-2", "10.65.1.2": "node-1"})))
    tor.wait_routes("tortie", {RANGE, block4(1), WEB})
    served.do(lambda api: api.delete(local("web", "")))
    tor.wait_routes("tortie", {RANGE, block4(1)})


def test_an_api_server_that_dies_takes_nothing_along(
    system: System, served: ServedKubeApi, one: Node, tor: Bird, guarded: Bird, calm: None
) -> None:
    until(lambda: b"kube/services/default/web" in saved(one), "the copy is on disk")
    wanted = {RANGE, block4(1), WEB}
    since = (tor.since("tortie"), guarded.since("tortie"))
    served.stop()
    until(lambda: kubernetes(one) == "stale", one.status, 60)
    assert one.status()["kubernetes"]["reason"].startswith(f"the API server https://{API}:")
    holds(lambda: tor.routes("tortie") == wanted, 1, lambda: tor.routes("tortie"))
    for _ in range(2):
        one.kill_agent()
        one.start_agent()
        until(lambda: kubernetes(one) == "stale", one.status, 60)
        until(lambda: one.established(v4(TOR), v4(GUARDED)), one.peers, 60)
        holds(
            lambda: tor.routes("tortie") == guarded.routes("tortie") == wanted,
            1.5,
            lambda: (tor.routes("tortie"), guarded.routes("tortie")),
        )
    # Pods' routes do not wait for it.
    system.etcd.claim(one.name, block4(1, 1))
    tor.wait_routes("tortie", {*wanted, block4(1, 1)})
    system.etcd.release(one.name, block4(1, 1))
    tor.wait_routes("tortie", wanted)
    # Not even without the copy: the speaker has outlived the agent, and still tells what was right before.
    (one.folder / "last-good-kubernetes").unlink()
    one.kill_agent()
    one.start_agent()
    until(lambda: one.refusals("nothing was heard from it since the start"), one.refusals, 60)
    until(lambda: one.established(v4(TOR), v4(GUARDED)), one.peers, 60)
    holds(
        lambda: tor.routes("tortie") == guarded.routes("tortie") == wanted,
        3,
        lambda: (tor.routes("tortie"), guarded.routes("tortie")),
    )
    # Readiness does not wait for it.
    assert until(lambda: readyz(one) == "200", lambda: readyz(one), 60)
    assert kubernetes(one) == "stale"
    served.do(
        lambda api: api.put(local("more", "10.96.0.11"), endpoint_slice("more", {"10.65.1.3": "node-1"}))
    )
    served.do(lambda api: api.delete(local("web", "")))
    served.start()
    tor.wait_routes("tortie", {RANGE, block4(1), MORE}, 60)
    until(lambda: kubernetes(one) == "in-sync", one.status)
    assert (tor.since("tortie"), guarded.since("tortie")) == since, "not one session was lost"
    served.do(lambda api: api.delete(local("more", "")))
    tor.wait_routes("tortie", {RANGE, block4(1)})


def test_a_changed_secret_is_the_new_password(
    served: ServedKubeApi, one: Node, tor: Bird, guarded: Bird, calm: None
) -> None:
    since = tor.since("tortie")
    before = guarded.since("tortie")
    served.do(lambda api: api.put(secret("bgp", {"guarded": NEW})))
    comes_up(guarded, one, NEW, before)
    assert tor.since("tortie") == since, "the others do not notice"

    served.do(lambda api: api.put({**secret("bgp", {}), "data": {"guarded": "no base64!"}}))
    until(lambda: one.refusals("Secret kube-system/bgp"), one.refusals)
    assert one.refusals("Secret kube-system/bgp") == ["Secret kube-system/bgp: its value is no base64"]
    until(lambda: v4(GUARDED) not in one.peers(), one.peers)

    served.do(lambda api: api.delete(secret("bgp", {})))
    until(lambda: "does not exist" in "".join(one.refusals("Secret kube-system/bgp")), one.refusals)
    assert "password is missing" in one.refusals("BGPPeer guarded")[0]

    before = guarded.since("tortie")
    served.do(lambda api: api.put(secret("bgp", {"guarded": OLD, "unrelated": "never-to-be-seen"})))
    comes_up(guarded, one, OLD, before)
    assert one.refusals() == []


def comes_up(guarded: Bird, one: Node, password: str, before: str) -> None:
    """A session newer than `before`."""
    guarded.configure(guarded_session(password))
    until(
        lambda: (
            guarded.state("tortie") == "Established"
            and guarded.since("tortie") != before
            and one.established(v4(GUARDED))
        ),
        lambda: (guarded.ask("show", "protocols", "all", "tortie"), one.peers()),
        60,
    )


def test_a_file_comes_before_the_secret(served: ServedKubeApi, one: Node, guarded: Bird, calm: None) -> None:
    before = guarded.since("tortie")
    one.secret("bgp", "guarded", NEW)
    comes_up(guarded, one, NEW, before)
    before = guarded.since("tortie")
    (one.folder / "secrets/bgp/guarded").unlink()
    comes_up(guarded, one, OLD, before)


def diags(one: Node) -> dict[str, bytes]:
    """What `tortiectl node diags` gathers, by name."""
    archive = one.folder / "diags.tar.gz"
    command = [str(BIN / "tortiectl"), "node", "diags", "-o", str(archive)]
    done = one.where.start(*command, stdout=subprocess.DEVNULL, env=os.environ | one.settings)
    assert done.wait(120) == 0
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        found = {name: file.read() for name, file in files.items() if file is not None}
    archive.unlink()
    assert any(name.endswith("speaker/exabgp.conf") for name in found), sorted(found)
    return found


def test_what_is_asked_for_and_what_is_told_of_it(
    system: System, served: ServedKubeApi, one: Node, calm: None
) -> None:
    asked = served.do(lambda api: {(a.verb, a.resource, a.namespace, a.name) for a in api.log})
    assert asked == {
        (verb, *about)
        for verb in ("list", "watch")
        for about in (
            ("services", "", ""),
            ("endpointslices", "", ""),
            ("nodes", "", "node-1"),
            ("secrets", "kube-system", "bgp"),
        )
    }
    until(lambda: b"kube/services/default/web" in saved(one), "the copy is on disk")
    files = [file for file in one.folder.rglob("*") if file.is_file() and file.name != "exabgp.conf"]
    assert one.folder / "last-good-kubernetes" in files
    for text in (OLD, "never-to-be-seen", "token-1"):
        for file in files:
            assert text.encode() not in file.read_bytes(), file
        assert text not in str(one.status())
    for name, octets in diags(one).items():
        for text in (OLD, "never-to-be-seen", "token-1"):
            assert text.encode() not in octets, name
    # Services are no longer configured: nothing of them is asked for any more.
    system.etcd.resource("BGPConfiguration", "default", {})
    until(lambda: served.do(lambda api: not api.watching("services")), "the watch ends")
    until(lambda: b"kube/services" not in saved(one), "the copy has no services")
    assert kubernetes(one) == "in-sync", "the Secret is still followed"
    system.etcd.resource("BGPConfiguration", "default", {"serviceClusterIPs": [{"cidr": RANGE}]})
    until(lambda: served.do(lambda api: api.watching("services")), "the watch is back")


def test_rights_that_are_missing_are_named_and_cost_only_what_they_are_for(
    served: ServedKubeApi, one: Node, tor: Bird, guarded: Bird, calm: None
) -> None:
    def only_services(api: KubeApi) -> None:
        api.rules = [
            Rule(frozenset(("list", "watch")), frozenset(("", "discovery.k8s.io")), frozenset((kind,)))
            for kind in ("services", "endpointslices", "nodes")
        ]
        api.cut()

    served.do(only_services)
    until(lambda: one.refusals("Secret kube-system/bgp"), one.refusals, 60)
    assert 'resourceNames: ["bgp"], verbs: ["list"]' in one.refusals("Secret kube-system/bgp")[0]
    served.do(lambda api: api.put(endpoint_slice("web", {"10.65.2.2": "node-2"})))
    tor.wait_routes("tortie", {RANGE, block4(1)})
    assert guarded.state("tortie") == "Established", "what was known stays"
    served.do(lambda api: setattr(api, "rules", None))
