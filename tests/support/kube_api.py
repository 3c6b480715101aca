"""A fake Kubernetes API server: real HTTP (or HTTPS), list in pages, watch, tokens, RBAC, and faults at will.

    async with kube_api() as api:
        api.put(service("web", "10.96.0.1"))
        client = KubeClient(KubeAccess(api.kubeconfig(tmp_path / "kubeconfig")))

In a test without an event loop, or for processes in a network namespace, `ServedKubeApi` runs it in a thread:

    with ServedKubeApi(host="192.0.2.250", netns=fabric.hub.name) as served:
        served.do(lambda api: api.put(service("web", "10.96.0.1")))
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import os
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

import yaml

from tests.support.kube_store import (
    SERVED,
    Event,
    Kind,
    Object,
    Resource,
    Rule,
    Store,
    field_matcher,
    key_of,
    label_matcher,
    resource_of,
)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the API server's audit log would have it."""

    verb: str
    """get, list, watch, or the HTTP method of anything else."""
    group: str
    resource: str
    namespace: str
    name: str
    """Also of a list or watch by fieldSelector metadata.name, as RBAC sees it."""
    params: dict[str, str]
    status: int


@dataclass(slots=True)
class Fault:
    """What goes wrong with the next `count` requests that fit; None of verb or resource fits all."""

    status: int = 0
    """Answer this status; 0: not."""
    retry_after: str = ""
    body: bytes | None = None
    """Answer these octets with status 200."""
    close: bool = False
    """Close without any answer."""
    delay: float = 0.0
    """Seconds before the answer."""
    verb: str | None = None
    resource: str | None = None
    count: int = 1

    def fits(self, verb: str, resource: str) -> bool:
        return self.count > 0 and self.verb in (None, verb) and self.resource in (None, resource)


@dataclass(eq=False, slots=True)
class _Watch:
    kind: Kind
    wanted: Callable[[Object], bool]
    position: int
    bookmarks: bool
    writer: asyncio.StreamWriter
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class KubeApi:
    """The server; in the event loop that started it. `stop` and `start` keep the objects and the port."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        tls: Path | None = None,
        tokens: Iterable[str] | None = None,
        rules: Iterable[Rule] | None = None,
        bookmark_every: float = 0.1,
    ) -> None:
        """`tls`: a directory for certificates; None: plain HTTP. `tokens` None: everybody may."""
        self.host = host
        self.port = 0
        self.store = Store()
        self.tokens: set[str] | None = set(tokens) if tokens is not None else None
        self.rules: list[Rule] | None = list(rules) if rules is not None else None
        """None: everything is allowed."""
        self.accept_certificates = True
        """A client certificate of our authority counts as a token."""
        self.bookmark_every = bookmark_every
        self.log: list[Asked] = []
        self.faults: list[Fault] = []
        self.expire_at_once = False
        """Every continue token is answered 410."""
        self.most_seconds: float | None = None
        """Watches end after so long at most, whatever timeoutSeconds says."""
        self._tls = Tls(tls, host) if tls is not None else None
        self._pages: dict[str, tuple[str, list[Object]]] = {}
        self._watches: set[_Watch] = set()
        self._connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._running = asyncio.Event()
        self._running.set()

    # -- the objects -----------------------------------------------------------------------------------

    def put(self, *objects: Object) -> None:
        for obj in objects:
            self.store.put(obj)
        self._tell()

    def delete(self, obj: Object) -> None:
        """By apiVersion, kind and name of `obj`."""
        resource = resource_of(obj)
        self.store.delete((resource.group, resource.plural), key_of(obj))
        self._tell()

    def compact(self) -> None:
        """The history is forgotten: watches from before now, and lists begun before, are told 410."""
        self.store.compact()
        self._pages.clear()

    def backup(self) -> Store:
        return copy.deepcopy(self.store)

    def restore(self, backup: Store) -> None:
        """As after an etcd restore: versions go back, the history before is gone, connections are cut."""
        self.store = copy.deepcopy(backup)
        self.store.compact()
        self._pages.clear()
        self.cut()

    def _tell(self) -> None:
        for watch in self._watches:
            watch.wake.set()

    # -- what goes wrong -------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Accept connections and say nothing more on any."""
        self._running.clear()

    def thaw(self) -> None:
        self._running.set()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in list(self._connections):
            writer.transport.abort()

    def say(self, octets: bytes, resource: str | None = None) -> None:
        """Send octets, as a chunk, in the watches that are open."""
        for watch in self._watches:
            if resource in (None, watch.kind[1]):
                watch.writer.write(b"%x\r\n%s\r\n" % (len(octets), octets))

    def watching(self, resource: str) -> int:
        """How many watches of a resource are open."""
        return sum(watch.kind[1] == resource for watch in self._watches)

    def asked(self, verb: str = "", resource: str = "") -> list[Asked]:
        """Of the log, what fits."""
        return [one for one in self.log if verb in ("", one.verb) and resource in ("", one.resource)]

    # -- access ----------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    @property
    def ca_file(self) -> Path:
        assert self._tls is not None
        return self._tls.directory / "ca.crt"

    def certificate(self, name: str = "client") -> tuple[Path, Path]:
        """Certificate and key of a new client."""
        assert self._tls is not None
        return self._tls.issue(name)

    def kubeconfig(self, path: Path, *, user: Object | None = None, **cluster: Any) -> Path:
        """Write one; `user` as in a kubeconfig, else with a valid token where tokens are wanted."""
        if user is None:
            user = {"token": min(self.tokens)} if self.tokens else {}
        if (
            self._tls is not None
            and not {"certificate-authority", "insecure-skip-tls-verify"} & cluster.keys()
        ):
            cluster["certificate-authority-data"] = base64.b64encode(self.ca_file.read_bytes()).decode()
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "fake", "user": "tester"}}],
            "clusters": [{"name": "fake", "cluster": {"server": self.url, **cluster}}],
            "users": [{"name": "tester", "user": user}],
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def service_account(self, directory: Path, token: str | None = None) -> Path:
        """Lay out a directory as the kubelet mounts it."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "token").write_text(token if token is not None else min(self.tokens or {"any"}))
        (directory / "ca.crt").write_bytes(self.ca_file.read_bytes() if self._tls is not None else b"")
        (directory / "namespace").write_text("kube-system")
        return directory

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        context = self._tls.server_context() if self._tls is not None else None
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As if killed: no listener, all connections reset."""
        assert self._server is not None
        self._server.close()
        self._running.set()
        self.cut()
        self._watches.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass
        except asyncio.CancelledError:
            pass  # the loop ends; nobody but asyncio's own callback waits for this task, and that complains
        finally:
            self._connections.discard(writer)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False: the connection ends."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        await reader.readexactly(int(headers.get("content-length", "0")))
        await self._running.wait()
        return await _Exchange(self, reader, writer, request, headers).answer()


class _Exchange:
    """One request being answered."""

    def __init__(
        self,
        api: KubeApi,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: str,
        headers: dict[str, str],
    ) -> None:
        self.api, self.reader, self.writer, self.headers = api, reader, writer, headers
        self.method, target, _ = request.split(" ")
        url = urlsplit(target)
        self.path = url.path
        self.params = dict(parse_qsl(url.query))
        self.resource, self.namespace, self.name = self._meant()
        self.verb = self._verb()

    def _meant(self) -> tuple[Resource | None, str, str]:
        for resource in SERVED:
            rest = self.path.removeprefix(resource.root + "/")
            if rest == self.path:
                continue
            parts = rest.split("/")
            namespace = ""
            if resource.namespaced and len(parts) > 2 and parts[0] == "namespaces":
                namespace, parts = parts[1], parts[2:]
            if parts[0] == resource.plural and len(parts) <= 2:
                return resource, namespace, parts[1] if len(parts) == 2 else self._selected_name()
        return None, "", ""

    def _selected_name(self) -> str:
        for term in self.params.get("fieldSelector", "").split(","):
            if term.startswith("metadata.name="):
                return term.removeprefix("metadata.name=").removeprefix("=")
        return ""

    @property
    def _single(self) -> bool:
        return self.resource is not None and not self.path.endswith(f"/{self.resource.plural}")

    def _verb(self) -> str:
        if self.method != "GET":
            return self.method
        if self._single:
            return "get"
        return "watch" if self.params.get("watch") in ("1", "true") else "list"

    async def answer(self) -> bool:
        resource = self.resource
        plural = resource.plural if resource is not None else self.path
        for fault in self.api.faults:
            if fault.fits(self.verb, plural):
                fault.count -= 1
                await asyncio.sleep(fault.delay)
                if (over := await self._suffer(fault)) is not None:
                    return over
        if self.path == "/version":
            return await self._reply(200, b'{"major":"1","minor":"36","gitVersion":"v1.36.0"}')
        if not self._known():
            return await self._fail(401, "Unauthorized", "Unauthorized")
        if resource is None:
            return await self._fail(404, "NotFound", "the server could not find the requested resource")
        if self.method != "GET":
            return await self._fail(405, "MethodNotAllowed", f"{self.method} is not supported by the fake")
        if not self._allowed(resource):
            return await self._fail(403, "Forbidden", self._forbidden(resource))
        return await getattr(self, f"_{self.verb}")(resource)

    async def _suffer(self, fault: Fault) -> bool | None:
        """None: the request is answered as usual."""
        if fault.close:
            self._note(0)
            return False
        if fault.body is not None:
            return await self._reply(200, fault.body)
        if fault.status:
            return await self._fail(fault.status, "Injected", "injected", fault.retry_after)
        return None

    def _known(self) -> bool:
        if self.api.tokens is None:
            return True
        if self.api.accept_certificates and self.writer.get_extra_info("peercert"):
            return True
        return self.headers.get("authorization", "").removeprefix("Bearer ") in self.api.tokens

    def _allowed(self, resource: Resource) -> bool:
        wanted = (self.verb, resource.group, resource.plural, self.namespace, self.name)
        return self.api.rules is None or any(rule.allows(*wanted) for rule in self.api.rules)

    def _forbidden(self, resource: Resource) -> str:
        where = f'in the namespace "{self.namespace}"' if self.namespace else "at the cluster scope"
        return (
            f'{resource.plural} is forbidden: User "tester" cannot {self.verb} resource "{resource.plural}" '
            f'in API group "{resource.group}" {where}'
        )

    def _wanted(self) -> Callable[[Object], bool]:
        fields = field_matcher(self.params.get("fieldSelector", ""))
        labels = label_matcher(self.params.get("labelSelector", ""))
        return lambda obj: (
            self.namespace in ("", obj["metadata"].get("namespace", "")) and fields(obj) and labels(obj)
        )

    # -- get and list ----------------------------------------------------------------------------------

    async def _get(self, resource: Resource) -> bool:
        held = self.api.store.objects.get((resource.group, resource.plural), {})
        obj = held.get((self.namespace, self.name))
        if obj is None:
            return await self._fail(404, "NotFound", f'{resource.plural} "{self.name}" not found')
        return await self._reply(200, json.dumps(obj).encode())

    async def _list(self, resource: Resource) -> bool:
        api, limit = self.api, int(self.params.get("limit", "0"))
        token = self.params.get("continue", "")
        if token:
            if api.expire_at_once or token not in api._pages:
                return await self._fail(410, "Expired", "The provided continue parameter is too old")
            version, items = api._pages[token]
        else:
            version = str(api.store.version)
            items = api.store.listed((resource.group, resource.plural), self._wanted())
        page, rest = (items[:limit], items[limit:]) if limit else (items, [])
        metadata: Object = {"resourceVersion": version}
        if rest:
            metadata["continue"] = base64.urlsafe_b64encode(os.urandom(12)).decode()
            metadata["remainingItemCount"] = len(rest)
            api._pages[metadata["continue"]] = (version, rest)
        # Items of a list carry neither kind nor apiVersion.
        bare = [{k: v for k, v in item.items() if k not in ("kind", "apiVersion")} for item in page]
        document = {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": metadata,
            "items": bare,
        }
        return await self._reply(200, json.dumps(document).encode())

    # -- watch -----------------------------------------------------------------------------------------

    async def _watch(self, resource: Resource) -> bool:
        api = self.api
        version = self.params.get("resourceVersion", "")
        self._note(200)
        self.writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        watch = _Watch(
            (resource.group, resource.plural),
            self._wanted(),
            int(version or "0"),
            self.params.get("allowWatchBookmarks") == "true",
            self.writer,
        )
        if watch.position == 0:
            watch.position = api.store.version
            for obj in api.store.listed(watch.kind, watch.wanted):
                await self._send("ADDED", obj)
        elif watch.position < api.store.compacted:
            status = _status(410, "Expired", f"too old resource version: {version} ({api.store.compacted})")
            await self._send("ERROR", status)
            return await self._end()
        seconds = float(self.params.get("timeoutSeconds", "1800"))
        api._watches.add(watch)
        try:
            async with asyncio.timeout(min(seconds, api.most_seconds or seconds)):
                await self._follow(watch, resource)
        except TimeoutError:
            pass
        finally:
            api._watches.discard(watch)
        return await self._end()

    async def _follow(self, watch: _Watch, resource: Resource) -> None:
        """Until the client goes."""
        store = self.api.store
        loop = asyncio.get_running_loop()
        due = loop.time() + self.api.bookmark_every
        while not self.reader.at_eof():
            watch.wake.clear()
            for event in store.since(watch.kind, watch.position):
                watch.position = event.version
                if (told := _told(event, watch.wanted)) is not None:
                    await self._send(*told)
            try:
                async with asyncio.timeout(min(0.1, self.api.bookmark_every)):
                    await watch.wake.wait()
            except TimeoutError:
                if watch.wake.is_set() or loop.time() < due:
                    continue
                due = loop.time() + self.api.bookmark_every
                # As the real one: events of other resources move the bookmark, too.
                watch.position = max(watch.position, store.version)
                if watch.bookmarks:
                    metadata = {"resourceVersion": str(watch.position), "creationTimestamp": None}
                    about = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
                    await self._send("BOOKMARK", about)

    async def _send(self, kind: str, obj: Object) -> None:
        await self.api._running.wait()
        octets = json.dumps({"type": kind, "object": obj}).encode() + b"\n"
        self.writer.write(b"%x\r\n%s\r\n" % (len(octets), octets))
        await self.writer.drain()

    async def _end(self) -> bool:
        await self.api._running.wait()
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()
        return True

    # -- answers ---------------------------------------------------------------------------------------

    def _note(self, status: int) -> None:
        resource = self.resource
        group, plural = (resource.group, resource.plural) if resource is not None else ("", self.path)
        self.api.log.append(Asked(self.verb, group, plural, self.namespace, self.name, self.params, status))

    async def _fail(self, code: int, reason: str, message: str, retry_after: str = "") -> bool:
        return await self._reply(code, json.dumps(_status(code, reason, message)).encode(), retry_after)

    async def _reply(self, code: int, body: bytes, retry_after: str = "") -> bool:
        self._note(code)
        await self.api._running.wait()
        extra = f"Retry-After: {retry_after}\r\n" if retry_after else ""
        head = f"HTTP/1.1 {code} Fake\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        await self.writer.drain()
        return True


def _told(event: Event, wanted: Callable[[Object], bool]) -> tuple[str, Object] | None:
    """What a watch with selectors is told: an object that stops fitting is gone for it."""
    before = event.before is not None and wanted(event.before)
    after = event.after is not None and wanted(event.after)
    if after:
        assert event.after is not None
        return ("MODIFIED" if before else "ADDED"), event.after
    if not before:
        return None
    assert event.before is not None
    last = copy.deepcopy(event.before)
    last["metadata"]["resourceVersion"] = str(event.version)
    return "DELETED", last


def _status(code: int, reason: str, message: str) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


class Tls:
    """An authority and the server's certificate, made with openssl."""

    def __init__(self, directory: Path, host: str) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "ca.crt").exists():
            self._openssl(
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "ca.key",
                "-out", "ca.crt", "-subj", "/CN=fake-kubernetes-ca",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            )  # fmt: skip
        self.issue("server", f"subjectAltName=IP:{host},DNS:kubernetes.default.svc")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)

    def issue(self, name: str, extension: str = "extendedKeyUsage=clientAuth") -> tuple[Path, Path]:
        (self.directory / f"{name}.ext").write_text(
            f"{extension}\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n"
        )
        self._openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
            "-subj", f"/O=system:masters/CN={name}",
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt",
        )  # fmt: skip
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.crt", self.directory / "server.key")
        context.load_verify_locations(self.directory / "ca.crt")
        context.verify_mode = ssl.CERT_OPTIONAL
        return context


@contextlib.asynccontextmanager
async def kube_api(**options: Any) -> AsyncIterator[KubeApi]:
    """A running server; options as of KubeApi."""
    api = KubeApi(**options)
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


class ServedKubeApi:
    """The server in a thread of its own, in a network namespace of `ip netns` if one is named."""

    def __init__(self, *, netns: str | None = None, **options: Any) -> None:
        self._netns = netns
        self._ready: threading.Event = threading.Event()
        self._end: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._options = options
        self.api: KubeApi | None = None
        self._thread = threading.Thread(target=self._run, name="fake API server", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            if self._netns is not None:
                _enter(self._netns)
            self._loop.run_until_complete(self._life())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _life(self) -> None:
        self._end = asyncio.Event()
        async with kube_api(**self._options) as self.api:
            self._ready.set()
            await self._end.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def do(self, work: Callable[[KubeApi], R]) -> R:
        """Run something with the server in its thread; its answer."""

        async def done() -> R:
            assert self.api is not None
            return work(self.api)

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(30)

    def stop(self) -> None:
        """As if killed; the objects stay."""
        assert self.api is not None
        asyncio.run_coroutine_threadsafe(self.api.stop(), self._loop).result(30)

    def start(self) -> None:
        assert self.api is not None
        asyncio.run_coroutine_threadsafe(self.api.start(), self._loop).result(30)

    def close(self) -> None:
        assert self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _enter(netns: str) -> None:
    """Only this thread: namespaces belong to threads."""
    import ctypes

    with open(f"/run/netns/{netns}", "rb") as file:  # noqa: PTH123
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), f"setns {netns}")
