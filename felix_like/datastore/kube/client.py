"""Raw access to the Kubernetes API: JSON objects out, sentences for whatever goes wrong.

    client = KubeClient(access)
    services = await client.get("/api/v1/services", {"limit": "500"})
    async with contextlib.aclosing(client.watch("/api/v1/services", {"resourceVersion": "7"})) as events:
        async for event in events: ...

Every request has a deadline. Credentials are read again when their files change and when the API server
refuses them. httpx is imported by the first request: 0.1 s and 8 MiB. (kr8s's own API object would not do: it
takes a 403 for expired credentials, and then closes the one session that all other watches are read from.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from felix_like.datastore.keys import quoted
from felix_like.datastore.kube import credentials
from felix_like.datastore.kube.access import KubeAccess
from felix_like.datastore.kube.answers import error_of, retry_after, status_error
from felix_like.datastore.kube.errors import Garbage, TooLarge, Unreachable

if TYPE_CHECKING:
    import httpx

    from felix_like.datastore.kube.credentials import Credentials

NONE: Mapping[str, str] = MappingProxyType({})
CONNECT_TIMEOUT = 5.0
"""Seconds."""
WATCH_SECONDS = (60, 90)
"""A watch without a timeoutSeconds of its own is asked to end after so many.

This is how a frozen connection is noticed: a quiet watch may stay without a bookmark for minutes (seen with
1.36), and HTTP/1.1 has no ping."""
WATCH_PATIENCE = 10.0
"""Seconds that a watch may outlast its timeoutSeconds."""
MAX_BODY = 64 << 20
"""Octets of one answer at most."""
_ERROR_BODY = 64 << 10
MAX_EVENT = 16 << 20
"""Octets of one watch event at most; etcd takes 1.5 MiB for an object, which JSON may spell longer."""


class KubeClient:
    """One API server. Reads only. All methods raise the errors of `datastore.kube.errors`."""

    def __init__(
        self, access: KubeAccess, *, timeout: float = 15.0, rng: random.Random | None = None
    ) -> None:
        """`timeout`: seconds for a request that is no watch."""
        self.access = access
        self._timeout = timeout
        self._rng = rng or random.Random()
        self._link: _Link | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def server(self) -> str:
        """URL of the API server; empty before the credentials were read."""
        return self._link.credentials.server if self._link is not None else ""

    async def get(self, path: str, params: Mapping[str, str] = NONE) -> dict[str, Any]:
        """The object or the list at a path such as /api/v1/services."""
        try:
            async with asyncio.timeout(self._timeout), self._asked(path, params, self._timeout) as response:
                return _object(await self._body(response, path), path)
        except TimeoutError:
            raise Unreachable(f"{self._name} did not answer within {self._timeout:g} s") from None

    async def watch(
        self, path: str, params: Mapping[str, str] = NONE
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Watch events {"type": …, "object": …} as the server sends them, ERROR events raised as errors.

        Ends when the server ends it (timeoutSeconds). Raises Unreachable for a connection that breaks, and
        for one over which nothing has come for longer than timeoutSeconds and some patience.
        """
        async with self.watching(path, params) as stream, contextlib.aclosing(stream) as events:
            async for event in events:
                yield event

    @contextlib.asynccontextmanager
    async def watching(
        self, path: str, params: Mapping[str, str] = NONE
    ) -> AsyncIterator[AsyncGenerator[dict[str, Any], None]]:
        """As `watch`, for who wants to know when the server has accepted it: that is when this is entered."""
        seconds = params.get("timeoutSeconds") or str(self._rng.randint(*WATCH_SECONDS))
        params = {**params, "watch": "true", "timeoutSeconds": seconds}
        longest = float(seconds) + WATCH_PATIENCE
        opening = contextlib.AsyncExitStack()
        async with opening:
            try:
                async with asyncio.timeout(self._timeout):
                    asked = self._asked(path, params, longest)
                    response = await opening.enter_async_context(asked)
            except TimeoutError:
                raise Unreachable(f"{self._name} did not answer within {self._timeout:g} s") from None
            yield self._events(response, path, longest)

    async def _events(
        self, response: httpx.Response, path: str, longest: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        import httpx

        end = asyncio.get_running_loop().time() + longest
        lines = _Lines(path)
        chunks = response.aiter_raw()
        while True:
            try:
                async with asyncio.timeout_at(end):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Unreachable(f"{self._name} fell silent in the watch of {path}") from None
            except httpx.HTTPError as error:
                raise self._broken(error) from None
            for line in lines.feed(chunk):
                event = _object(line, path)
                if (refusal := error_of(event, path)) is not None:
                    raise refusal
                yield event

    async def close(self) -> None:
        """Let go of the connections."""
        self._closed = True
        async with self._lock:
            link, self._link = self._link, None
        if link is not None:
            await link.http.aclose()

    # -- inside ----------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"the API server{' ' if self.server else ''}{self.server}"

    @contextlib.asynccontextmanager
    async def _asked(
        self, path: str, params: Mapping[str, str], read: float
    ) -> AsyncIterator[httpx.Response]:
        """An answer with status 200, its body not yet read. A 401 is asked again, with new credentials."""
        refused: _Link | None = None
        while True:
            async with self._linked(refused) as link:
                try:
                    response = await link.ask(path, params, read)
                except Exception as error:
                    raise self._broken(error, link) from None
                try:
                    if response.status_code == 401 and refused is None:
                        refused = link
                        continue
                    if response.status_code != 200:
                        said = await self._body(response, path, cut=True)
                        wait = retry_after(response.headers.get("retry-after", ""))
                        raise status_error(response.status_code, said, path, params, wait, self.access.source)
                    yield response
                    return
                finally:
                    await response.aclose()

    @contextlib.asynccontextmanager
    async def _linked(self, refused: _Link | None) -> AsyncIterator[_Link]:
        """The connections to use; new ones where `refused` is the present link, or its files changed."""
        async with self._lock:
            if self._closed:
                raise Unreachable("the client is closed")
            link = self._link
            stale = link is None or link.suspect or link is refused
            if stale or (link is not None and link.credentials.changed):
                link = await self._renewed(link)
            assert link is not None
            link.users += 1
        try:
            yield link
        finally:
            link.users -= 1
            if link.retired and not link.users:
                await link.http.aclose()

    async def _renewed(self, old: _Link | None) -> _Link:
        found = await credentials.read(self.access)
        link = _Link(found, await asyncio.to_thread(_http, found))
        self._link = link
        if old is not None:
            old.retired = True
            if not old.users:
                await old.http.aclose()
        return link

    async def _body(self, response: httpx.Response, path: str, *, cut: bool = False) -> bytes:
        """`cut`: of an error's text the beginning is enough. Raises TooLarge, Unreachable."""
        import httpx

        parts, size, most = [], 0, _ERROR_BODY if cut else MAX_BODY
        try:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                parts.append(chunk)
                if size > most and cut:
                    break
                if size > most:
                    raise TooLarge(f"the answer for {path} has more than {most} octets")
        except httpx.HTTPError as error:
            raise self._broken(error) from None
        return b"".join(parts)

    def _broken(self, error: Exception, link: _Link | None = None) -> Exception:
        """The sentence for a connection that was not made, or broke."""
        import httpx

        if not isinstance(error, httpx.HTTPError):
            return error
        tls = _tls_error(error)
        if tls is not None:
            if link is not None:
                link.suspect = True  # a renewed certificate or authority may mend it
            return Unreachable(f"no TLS with {self._name}: {quoted(tls, 200)}")
        return Unreachable(f"{self._name} cannot be reached: {_reason(error)}")


class _Link:
    """Connections made with one reading of the credentials."""

    def __init__(self, found: Credentials, http: httpx.AsyncClient) -> None:
        self.credentials = found
        self.http = http
        self.users = 0
        self.retired = False
        """Another one took its place; closed when its last user goes."""
        self.suspect = False
        """TLS failed: read the credentials again."""

    async def ask(self, path: str, params: Mapping[str, str], read: float) -> httpx.Response:
        """The answer's head; the caller closes it."""
        import httpx

        found = self.credentials
        headers = {"authorization": f"Bearer {found.token}"} if found.token else {}
        request = self.http.build_request(
            "GET",
            found.server + path,
            params=params,
            headers=headers,
            timeout=httpx.Timeout(read, connect=CONNECT_TIMEOUT),
            extensions={"sni_hostname": found.server_name} if found.server_name else {},
        )
        return await self.http.send(request, stream=True)


def _http(found: Credentials) -> httpx.AsyncClient:
    """Proxies only where the kubeconfig names one: what a node's environment says is for other purposes."""
    import httpx

    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(
            verify=found.tls if found.tls is not None else False,
            trust_env=False,
            proxy=found.proxy or None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=4),
            socket_options=_KEEPALIVE,
        ),
        headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "tortie"},
        follow_redirects=False,
        trust_env=False,
    )


_KEEPALIVE = (
    # A host or a path that is gone is noticed within 30 s; a frozen server is not, its kernel answers.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)


class _Lines:
    """Octets of a watch -> whole lines. Raises TooLarge."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        *whole, rest = chunk.split(b"\n")
        if whole:
            whole[0] = b"".join((*self._parts, whole[0]))
            self._parts, self._size = [], 0
        self._parts.append(rest)
        self._size += len(rest)
        if self._size > MAX_EVENT or any(len(line) > MAX_EVENT for line in whole):
            raise TooLarge(f"the watch of {self._path} brought an event of more than {MAX_EVENT} octets")
        return [line for line in whole if line.strip()]


def _object(octets: bytes, path: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(octets)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Garbage(f"the answer for {path} is not JSON: {quoted(str(error), 100)}") from None
    if not isinstance(found, dict):
        raise Garbage(f"the answer for {path} is no JSON object")
    return found


def _tls_error(error: BaseException) -> str | None:
    return next((str(one) for one in _behind(error) if isinstance(one, ssl.SSLError)), None)


def _reason(error: BaseException) -> str:
    """What the system said, which "All connection attempts failed" hides; else the library's words."""
    for one in _behind(error):
        if isinstance(one, OSError) and one.errno is not None:
            return os.strerror(one.errno) if one.errno > 0 else str(one.strerror)
    return quoted(str(error), 200) if str(error) else type(error).__name__


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised for; of a group the first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        group = seen.exceptions[0] if isinstance(seen, BaseExceptionGroup) else None
        seen = group or seen.__cause__ or seen.__context__
