"""The Kubernetes client: every way in, every refusal a sentence, and no secret in any of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from felix_like.datastore.kube import client as client_module
from felix_like.datastore.kube.access import KubeAccess, find_access
from felix_like.datastore.kube.answers import Meant, retry_after
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.errors import (
    Forbidden,
    Garbage,
    Gone,
    KubeError,
    NoAccess,
    NotFound,
    Overloaded,
    TooLarge,
    Unauthorized,
    Unreachable,
)
from tests.support.etcd import eventually
from tests.support.kube_api import Fault, KubeApi, kube_api
from tests.support.kube_objects import node, service
from tests.support.kube_store import Rule

SERVICES = "/api/v1/services"


def names(listing: dict[str, Any]) -> list[str]:
    return [item["metadata"]["name"] for item in listing["items"]]


@contextlib.asynccontextmanager
async def client_of(access: KubeAccess, seconds: float = 15.0) -> Any:
    client = KubeClient(access, timeout=seconds)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary directory for what this process makes there."""
    made = tmp_path / "scratch"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    return made


# -- where it is ---------------------------------------------------------------------------------------


def test_a_kubeconfig_comes_before_the_service_account(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    inside = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    named = find_access({"KUBECONFIG": "/etc/kube/config", **inside}, service_account=tmp_path)
    assert named == KubeAccess(Path("/etc/kube/config"))
    assert find_access(inside, service_account=tmp_path) == KubeAccess(None, tmp_path, "10.96.0.1", "443")


def test_without_either_there_is_no_kubernetes(tmp_path: Path) -> None:
    inside = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    assert find_access({}, service_account=tmp_path) is None
    assert find_access(inside, service_account=tmp_path) is None, "no token is mounted"
    (tmp_path / "token").write_text("t")
    assert find_access({}, service_account=tmp_path) is None, "no pod"


def test_looking_for_it_loads_no_library() -> None:
    """Nor does all of the agent, where there is no Kubernetes."""
    code = (
        "import sys; import agent.main; from felix_like.datastore.kube import access, client, informer;"
        "access.find_access({});"
        "print([name for name in ('httpx', 'kr8s', 'anyio', 'cryptography') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_service_account_loads_no_kubeconfig_library(tmp_path: Path) -> None:
    """What a DaemonSet's pods use costs them the HTTP library only."""
    code = (
        "import asyncio, sys, pathlib; from felix_like.datastore.kube.access import KubeAccess;"
        "from felix_like.datastore.kube.client import KubeClient\n"
        "async def main():\n"
        f"    client = KubeClient(KubeAccess(None, pathlib.Path({str(tmp_path)!r}), '127.0.0.1', '1'))\n"
        "    try: await client.get('/api/v1/services')\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "    await client.close()\n"
        "asyncio.run(main())\n"
        "print([name for name in ('httpx', 'kr8s', 'cryptography') if name in sys.modules])"
    )
    KubeApi(tls=tmp_path / "tls").service_account(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split("\n")[:2] == ["Unreachable", "['httpx']"]


# -- who we are ----------------------------------------------------------------------------------------


async def test_every_kind_of_user(tmp_path: Path, scratch: Path) -> None:
    async with kube_api(tls=tmp_path / "tls", tokens=["good"]) as api:
        api.put(service("web", "10.96.0.1"))
        cert, key = api.certificate()
        plugin = tmp_path / "plugin"
        plugin.write_text(
            "#!/bin/sh\n"
            'echo \'{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", '
            '"status": {"token": "\'$1\'"}}\'\n'
        )
        plugin.chmod(0o755)
        (tmp_path / "token").write_text("good\n")
        users: dict[str, dict[str, Any]] = {
            "token": {"token": "good"},
            "token file": {"tokenFile": str(tmp_path / "token"), "token": "old"},
            "token file beside it": {"tokenFile": "token"},
            "certificate": {"client-certificate": str(cert), "client-key": str(key)},
            "certificate inside": {
                "client-certificate-data": base64.b64encode(cert.read_bytes()).decode(),
                "client-key-data": base64.b64encode(key.read_bytes()).decode(),
            },
            "plugin": {
                "exec": {
                    "apiVersion": "client.authentication.k8s.io/v1",
                    "command": str(plugin),
                    "args": ["good"],
                }
            },
        }
        for kind, user in users.items():
            config = api.kubeconfig(tmp_path / "config", user=user)
            async with client_of(KubeAccess(config)) as client:
                assert names(await client.get(SERVICES)) == ["web"], kind
    assert [cert.exists(), key.exists()] == [True, True], "the operator's files are not ours to remove"
    assert not list(scratch.iterdir()), "no copy of a key stays"


async def test_a_user_nobody_knows(tmp_path: Path) -> None:
    async with kube_api(tokens=["good"]) as api:
        config = api.kubeconfig(tmp_path / "config", user={"token": "SECRET-OLD"})
        async with client_of(KubeAccess(config)) as client:
            with pytest.raises(Unauthorized) as caught:
                await client.get(SERVICES)
    assert str(caught.value) == f"the API server does not accept kubeconfig {config} (401)"


async def test_a_token_that_is_renewed_is_read_again(tmp_path: Path) -> None:
    """A projected token expires; the kubelet writes the new one before."""
    async with kube_api(tls=tmp_path / "tls", tokens=["first"]) as api:
        api.put(service("web", "10.96.0.1"))
        account = api.service_account(tmp_path / "account")
        async with client_of(KubeAccess(None, account, api.host, str(api.port))) as client:
            assert names(await client.get(SERVICES)) == ["web"]
            async with client.watching(SERVICES) as events:
                await anext(events)
                (account / "token").write_text("second")
                api.tokens = {"second"}
                assert names(await client.get(SERVICES)) == ["web"]
                api.put(service("late", "10.96.0.2"))
                assert (await anext(events))["object"]["metadata"]["name"] == "late", (
                    "its connection lives on"
                )
        refused = [one for one in api.log if one.status == 401]
        assert not refused, "the file was read before the API server had to refuse the old one"


async def test_a_token_revoked_before_it_was_renewed(tmp_path: Path) -> None:
    async with kube_api(tokens=["second"]) as api:
        config = api.kubeconfig(tmp_path / "config", user={"tokenFile": "token"})
        (tmp_path / "token").write_text("first")
        async with client_of(KubeAccess(config)) as client:
            with pytest.raises(Unauthorized):
                await client.get(SERVICES)
            (tmp_path / "token").write_text("second")
            assert names(await client.get(SERVICES)) == []


async def test_a_plugin_is_asked_again_when_its_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "answer").write_text("first")
    plugin = tmp_path / "plugin"
    plugin.write_text(
        f'#!/bin/sh\necho "{{\\"status\\": {{\\"token\\": \\"$(cat {tmp_path}/answer)\\"}}}}"\n'
    )
    plugin.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}}
    async with kube_api(tokens=["first"]) as api:
        config = api.kubeconfig(tmp_path / "config", user=user)
        async with client_of(KubeAccess(config)) as client:
            await client.get(SERVICES)
            (tmp_path / "answer").write_text("second")
            api.tokens = {"second"}
            assert names(await client.get(SERVICES)) == []


async def test_an_authority_that_did_not_sign_the_server(tmp_path: Path) -> None:
    async with kube_api(tls=tmp_path / "tls") as api:
        other = KubeApi(tls=tmp_path / "other")
        config = api.kubeconfig(tmp_path / "config", **{"certificate-authority": str(other.ca_file)})
        async with client_of(KubeAccess(config)) as client:
            with pytest.raises(
                Unreachable, match=r"no TLS with the API server https://127\.0\.0\.1.*certificate"
            ):
                await client.get(SERVICES)
            config.write_text(api.kubeconfig(tmp_path / "right").read_text())
            assert names(await client.get(SERVICES)) == [], "a corrected file is read without a restart"


async def test_a_name_other_than_the_address(tmp_path: Path) -> None:
    async with kube_api(tls=tmp_path / "tls") as api:
        for name, fits in (("kubernetes.default.svc", True), ("elsewhere.example", False)):
            config = api.kubeconfig(tmp_path / "config", **{"tls-server-name": name})
            async with client_of(KubeAccess(config)) as client:
                with contextlib.nullcontext() if fits else pytest.raises(Unreachable, match="no TLS"):
                    await client.get(SERVICES)


BAD_KUBECONFIGS = {
    "nothing in it": "",
    "a list": "- 1\n",
    "no YAML": "users: [{user: {token: SECRET-TOKEN}\n",
    "no contexts": "current-context: x\n",
    "a context of nobody": yaml.safe_dump(
        {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [],
        }
    ),
}


@pytest.mark.parametrize("text", BAD_KUBECONFIGS.values(), ids=BAD_KUBECONFIGS.keys())
async def test_a_kubeconfig_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    async with client_of(KubeAccess(path)) as client:
        with pytest.raises(NoAccess) as caught:
            await client.get(SERVICES)
    assert str(caught.value).startswith(f"kubeconfig {path} cannot be used: ")
    assert "SECRET" not in str(caught.value)


BAD_USERS: dict[str, tuple[dict[str, Any], str]] = {
    "no base64": ({"client-key-data": "SECRET!", "client-certificate-data": "x"}, "cannot be used"),
    "no certificate": (
        {"client-key-data": base64.b64encode(b"SECRET").decode(), "client-certificate-data": "AAAA"},
        "cannot be used",
    ),
    "two lines": ({"token": "SECRET\r\nx: y"}, "token is not one line of printable ASCII"),
    "not text": ({"token": "SECRÈT"}, "token is not one line of printable ASCII"),
    "no token file": ({"tokenFile": "absent"}, "No such file"),
    "password": ({"username": "u", "password": "SECRET"}, "username/password"),
    "no plugin": (
        {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/absent/plugin"}},
        "No such file",
    ),
    "a plugin that fails": (
        {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "false"}},
        "non-zero code 1",
    ),
}


@pytest.mark.parametrize(("user", "said"), BAD_USERS.values(), ids=BAD_USERS.keys())
async def test_a_user_that_cannot_be_used(
    tmp_path: Path, scratch: Path, user: dict[str, Any], said: str
) -> None:
    async with kube_api(tls=tmp_path / "tls") as api:
        config = api.kubeconfig(tmp_path / "config", user=user)
        async with client_of(KubeAccess(config)) as client:
            with pytest.raises(NoAccess, match=said) as caught:
                await client.get(SERVICES)
    assert "SECR" not in repr(caught.value)
    assert not list(scratch.iterdir())


async def test_a_service_account_without_a_token(tmp_path: Path) -> None:
    async with client_of(KubeAccess(None, tmp_path, "127.0.0.1", "1")) as client:
        with pytest.raises(NoAccess, match=f"the token in {tmp_path}/token cannot be read: 'No such file"):
            await client.get(SERVICES)


async def test_a_file_that_comes_later(tmp_path: Path) -> None:
    config = tmp_path / "config"
    async with kube_api() as api, client_of(KubeAccess(config)) as client:
        with pytest.raises(NoAccess, match=f"kubeconfig {config} is not there; correct KUBECONFIG"):
            await client.get(SERVICES)
        api.kubeconfig(config)
        assert names(await client.get(SERVICES)) == []


# -- what it answers -----------------------------------------------------------------------------------


async def test_refusals_are_sentences(tmp_path: Path) -> None:
    async with kube_api(rules=[]) as api:
        async with client_of(KubeAccess(api.kubeconfig(tmp_path / "config"))) as client:
            with pytest.raises(Forbidden) as caught:
                await client.get(
                    "/api/v1/namespaces/kube-system/secrets", {"fieldSelector": "metadata.name=bgp"}
                )
            assert str(caught.value) == (
                "may not list secrets named bgp in namespace kube-system (403: 'secrets is forbidden: User "
                '"tester" cannot list resource "secrets" in API group "" in the namespace "kube-system"\'); '
                'RBAC lacks a Role in namespace kube-system with apiGroups: [""], resources: ["secrets"], '
                'resourceNames: ["bgp"], verbs: ["list"]'
            )
            api.rules = [Rule(frozenset(("get", "list")), frozenset(("",)), frozenset(("nodes",)))]
            with pytest.raises(Forbidden, match='verbs: \\["watch"\\]'):
                async with client.watching("/api/v1/nodes"):
                    pass
            with pytest.raises(NotFound, match="cannot get nodes named absent: there is no such thing"):
                await client.get("/api/v1/nodes/absent")
            api.faults.append(Fault(status=404, body=None))
            with pytest.raises(NotFound, match=r"cannot list nodes: .* is it a Kubernetes API server"):
                await client.get("/api/v1/nodes")
            api.faults.append(Fault(status=429, retry_after="3"))
            with pytest.raises(Overloaded, match="too many requests") as slow:
                await client.get("/api/v1/nodes")
            assert slow.value.retry_after == 3.0
            api.faults.append(Fault(status=500))
            with pytest.raises(Overloaded, match="failed \\(500") as failed:
                await client.get("/api/v1/nodes")
            assert failed.value.retry_after is None


async def test_garbage_is_refused(tmp_path: Path) -> None:
    bodies = [b"", b"<html>", b"[]", b"nul", b"{" * 100_000, b'{"a": "\xff"}']
    async with kube_api() as api:
        async with client_of(KubeAccess(api.kubeconfig(tmp_path / "config"))) as client:
            for body in bodies:
                api.faults.append(Fault(body=body))
                with pytest.raises(Garbage):
                    await client.get(SERVICES)
            assert names(await client.get(SERVICES)) == []


async def test_what_is_too_large_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_BODY", 1000)
    monkeypatch.setattr(client_module, "MAX_EVENT", 1000)
    async with kube_api() as api:
        async with client_of(KubeAccess(api.kubeconfig(tmp_path / "config"))) as client:
            api.put(service("small", "10.96.0.1"))
            async with client.watching(SERVICES) as events:
                await anext(events)
                api.put(service("large", "10.96.0.2", externalName="x" * 2000))
                with pytest.raises(TooLarge, match="an event of more than 1000 octets"):
                    await anext(events)
            with pytest.raises(TooLarge, match=f"the answer for {SERVICES} has more than 1000 octets"):
                await client.get(SERVICES)


async def test_nobody_there(tmp_path: Path) -> None:
    async with kube_api() as api:
        config = api.kubeconfig(tmp_path / "config")
    async with client_of(KubeAccess(config)) as client:
        with pytest.raises(
            Unreachable, match=r"http://127\.0\.0\.1:.* cannot be reached: Connection refused$"
        ):
            await client.get(SERVICES)


async def test_a_frozen_server(tmp_path: Path) -> None:
    async with (
        kube_api() as api,
        client_of(KubeAccess(api.kubeconfig(tmp_path / "config")), seconds=0.5) as client,
    ):
        api.freeze()
        with pytest.raises(Unreachable, match=r"did not answer within 0\.5 s"):
            await client.get(SERVICES)
        with pytest.raises(Unreachable, match=r"did not answer within 0\.5 s"):
            async with client.watching(SERVICES):
                pass
        api.thaw()
        assert names(await client.get(SERVICES)) == []


# -- watches -------------------------------------------------------------------------------------------


async def test_a_watch_tells_and_ends(tmp_path: Path) -> None:
    async with kube_api() as api, client_of(KubeAccess(api.kubeconfig(tmp_path / "config"))) as client:
        api.put(node("n1"))
        seen = []
        async for event in client.watch("/api/v1/nodes", {"resourceVersion": "1000", "timeoutSeconds": "1"}):
            if event["type"] != "BOOKMARK":
                seen.append((event["type"], event["object"]["metadata"]["name"]))
            if len(seen) == 1:
                api.delete(node("n1"))
        assert seen == [("ADDED", "n1"), ("DELETED", "n1")]


async def test_a_watch_of_what_is_forgotten(tmp_path: Path) -> None:
    async with kube_api() as api, client_of(KubeAccess(api.kubeconfig(tmp_path / "config"))) as client:
        api.put(node("n1"))
        api.compact()
        with pytest.raises(Gone, match="cannot watch nodes from where we were"):
            async for _ in client.watch("/api/v1/nodes", {"resourceVersion": "1000"}):
                pass


@pytest.mark.parametrize("said", [b"\xff\xfe{\n", b"[1]\n", b'{"type": 7}\n', b'{"type": "ADDED"}\n'])
async def test_garbage_in_the_stream(tmp_path: Path, said: bytes) -> None:
    async with kube_api() as api, client_of(KubeAccess(api.kubeconfig(tmp_path / "config"))) as client:
        async with client.watching("/api/v1/nodes") as events:
            await eventually(lambda: api.watching("nodes"))
            api.say(said)
            with pytest.raises(Garbage):
                await anext(events)


async def test_a_cut_connection(tmp_path: Path) -> None:
    async with kube_api() as api, client_of(KubeAccess(api.kubeconfig(tmp_path / "config"))) as client:
        async with client.watching("/api/v1/nodes") as events:
            await eventually(lambda: api.watching("nodes"))
            api.cut()
            with pytest.raises(Unreachable, match="cannot be reached"):
                await anext(events)


async def test_a_watch_that_does_not_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "WATCH_PATIENCE", 0.1)
    async with kube_api(bookmark_every=60) as api:
        async with client_of(KubeAccess(api.kubeconfig(tmp_path / "config"))) as client:
            async with client.watching("/api/v1/nodes", {"timeoutSeconds": "1"}) as events:
                api.freeze()
                with pytest.raises(Unreachable, match="fell silent"):
                    await anext(events)


async def test_closing_ends_what_waits(tmp_path: Path) -> None:
    async with kube_api() as api:
        client = KubeClient(KubeAccess(api.kubeconfig(tmp_path / "config")))

        async def follow() -> None:
            async for _ in client.watch("/api/v1/nodes"):
                pass

        task = asyncio.create_task(follow())
        await eventually(lambda: api.watching("nodes"))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.close()
        await eventually(lambda: not api.watching("nodes"))
        with pytest.raises(KubeError, match="closed"):
            await client.get(SERVICES)


# -- parts ---------------------------------------------------------------------------------------------


def test_a_request_in_rbacs_words() -> None:
    told = {
        ("/api/v1/nodes/n1", ""): "get nodes named n1",
        ("/apis/discovery.k8s.io/v1/endpointslices", ""): "list endpointslices",
        ("/api/v1/namespaces/a/pods", "watch"): "watch pods in namespace a",
        ("/api/v1/namespaces/a", ""): "get namespaces named a",
    }
    for (path, watch), words in told.items():
        assert str(Meant.of(path, {"watch": "true"} if watch else {})) == words


def test_how_long_to_wait() -> None:
    assert [retry_after(text) for text in ("3", "", "-1", "soon", "9" * 9, "9" * 99)] == [
        3.0, None, None, None, 60.0, None,
    ]  # fmt: skip
