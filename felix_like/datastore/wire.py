"""gRPC to etcd: one channel per endpoint, our own rotation, deadlines, credentials, error sentences.

The only module that imports grpc (0.15 s), so doors import it late. Why not one channel with many
addresses: certificate names are checked per target, and a frozen member must be left at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.errors import (
    Compacted,
    Denied,
    EtcdError,
    OutcomeUnknown,
    Refused,
    Unauthenticated,
    Unavailable,
)
from felix_like.datastore.keys import quoted
from felix_like.datastore.proto import etcd_pb2 as pb

Reply = TypeVar("Reply")

KV = "/etcdserverpb.KV/"
WATCH = "/etcdserverpb.Watch/Watch"
LEASE = "/etcdserverpb.Lease/"
AUTHENTICATE = "/etcdserverpb.Auth/Authenticate"
STATUS = "/etcdserverpb.Maintenance/Status"

TRY_TIMEOUT = 3.0
"""Seconds one endpoint may take before the next is asked."""

PATIENCE = 2.5
"""Seconds of quick failures (connection refused) before giving up: longer than a channel's own backoff."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # etcd refuses pings more often than every 5 s. Without ping_timeout_ms a frozen member is noticed
    # only after a minute, whatever keepalive_timeout_ms says.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Two clients must not share a connection: bulk writes would delay the watch.
    ("grpc.use_local_subchannel_pool", 1),
    # etcd is infrastructure on our own network: an http_proxy meant for the web is not for it.
    ("grpc.enable_http_proxy", 0),
)

_BAD_TOKEN = ("invalid auth token", "revision of auth store is old")
_BAD_LOGIN = ("user name is empty", "authentication failed")
_NOT_EXECUTED = ("failed to connect", "no leader", "not leader", "too many requests", "connection refused")


class Endpoint:
    """One etcd member and its channel, which is opened on first use.

    Certificates are read anew when their files have changed and the channel is not connected: who renews them
    need not restart us. A channel never does so by itself.
    """

    def __init__(self, url: str, config: EtcdConfig) -> None:
        self.url = url
        scheme, _, rest = url.partition("://")
        self._target = f"unix:{rest}" if scheme == "unix" else f"dns:///{rest}"
        self._config = config
        self._channel: Any = None
        self._made_of: object = None
        """How the files were when the channel was made."""
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def channel(self) -> Any:
        if self._channel is None or self._outdated():
            self._open()
        return self._channel

    def _outdated(self) -> bool:
        return (
            self._config.secure
            and self._channel.get_state() is not _READY
            and self._made_of != _stamp(self._config)
        )

    def _open(self) -> None:
        """Raises OSError when there is no channel yet and no certificate."""
        if not self._config.secure:
            self._channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
            return
        made_of = _stamp(self._config)
        try:
            made = grpc.aio.secure_channel(self._target, _credentials(self._config), options=_OPTIONS)
        except OSError:
            if self._channel is None:
                raise
            return  # they are being replaced just now
        if self._channel is not None:
            # Calls that still wait on the old one have time-outs of their own.
            ends = asyncio.create_task(self._channel.close(_GRACE), name=f"close {self.url}")
            self._closing.add(ends)
            ends.add_done_callback(self._closing.discard)
        self._channel, self._made_of = made, made_of

    async def ready(self, seconds: float) -> bool:
        """True once connected; False when connecting fails, or takes longer than `seconds`."""
        # Not wait_for: Python 3.11's swallows a cancellation that comes as the channel gets ready.
        try:
            async with asyncio.timeout(seconds):
                while (state := self.channel.get_state(try_to_connect=True)) is not _READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        return False
                    await self.channel.wait_for_state_change(state)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()


class Wire:
    """Unary calls and watch streams over whichever endpoint answers."""

    def __init__(self, config: EtcdConfig, *, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._config = config
        self._token = ""
        self._login = asyncio.Lock()
        self.endpoints = tuple(Endpoint(url, config) for url in config.endpoints)
        self._current = self._rng.randrange(len(self.endpoints))

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint in use."""
        return self.endpoints[self._current]

    def rotate(self, away_from: Endpoint) -> None:
        """Go on to the next endpoint, unless another task already did."""
        if self.endpoint is away_from:
            self._current = (self._current + 1) % len(self.endpoints)

    async def close(self) -> None:
        for endpoint in self.endpoints:
            await endpoint.close()

    async def call(
        self,
        path: str,
        request: Any,
        reply: Callable[..., Reply],
        *,
        seconds: float = 10.0,
        each: float = TRY_TIMEOUT,
        patience: float = PATIENCE,
        repeatable: bool = True,
    ) -> Reply:
        """One request, answered by any endpoint within `seconds`; one may take `each`.

        A request that is not `repeatable` is not sent twice: when its outcome is in doubt, OutcomeUnknown.
        Raises EtcdError.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        patient_until = clock() + min(seconds, patience)
        attempts = logins = 0
        while True:
            attempts += 1
            endpoint = self.endpoint
            left = deadline - clock()
            try:
                answer: Reply = await self._once(endpoint, path, request, reply, min(each, left), repeatable)
                return answer
            except grpc.aio.AioRpcError as error:
                if _token_refused(error) and self._config.username and logins < 2:
                    logins += 1
                    self._token = ""
                    continue
                if not _transient(error):
                    raise _sentence(error, endpoint.url) from None
                if not repeatable and not _surely_not_executed(error):
                    raise OutcomeUnknown(
                        f"etcd at {endpoint.url}: the connection broke during a write ({_details(error)}); it"
                        " may have been executed: look before trying again"
                    ) from None
                self.rotate(endpoint)
                pause = self._rng.uniform(0.5, 1.5) * min(0.4, 0.05 * 2 ** min(attempts, 5))
                asked_all = attempts >= len(self.endpoints) and clock() >= patient_until
                if asked_all or deadline - clock() <= pause:
                    raise self.unavailable(f"{endpoint.url}: {_details(error)}") from None
                await asyncio.sleep(pause)

    async def _once(
        self, endpoint: Endpoint, path: str, request: Any, reply: Any, seconds: float, repeatable: bool
    ) -> Any:
        metadata = await self._metadata(endpoint)
        if not repeatable and not await endpoint.ready(seconds):
            raise _not_connected(endpoint.url)
        method = endpoint.channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
        )
        return await method(request, timeout=max(seconds, 0.001), metadata=metadata)

    async def _metadata(self, endpoint: Endpoint, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
        if not self._config.username:
            return more
        async with self._login:
            if not self._token:
                self._token = await self._authenticate(endpoint)
        return (*more, ("token", self._token)) if self._token != _NO_AUTH else more

    async def _authenticate(self, endpoint: Endpoint) -> str:
        """A fresh token. Raises AioRpcError; tells of a server without authentication by _NO_AUTH."""
        request = pb.AuthenticateRequest(name=self._config.username, password=self._config.password)
        method = endpoint.channel.unary_unary(
            AUTHENTICATE,
            request_serializer=pb.AuthenticateRequest.SerializeToString,
            response_deserializer=pb.AuthenticateResponse.FromString,
        )
        try:
            answer = await method(request, timeout=TRY_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return _NO_AUTH
            raise
        return str(answer.token)

    async def lease_keepalive(self, lease: int, seconds: float) -> int:
        """Renew a lease once: a stream of one question and one answer. Returns its seconds, 0 when gone."""
        endpoint = self.endpoint
        try:
            metadata = await self._metadata(endpoint)
            method = endpoint.channel.stream_stream(
                LEASE + "LeaseKeepAlive",
                request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
                response_deserializer=pb.LeaseKeepAliveResponse.FromString,
            )
            call = method(iter((pb.LeaseKeepAliveRequest(ID=lease),)), timeout=seconds, metadata=metadata)
            async for answer in call:
                return int(answer.TTL)
        except grpc.aio.AioRpcError as error:
            self.rotate(endpoint)
            if _token_refused(error):
                self.forget_token()
                raise self.unavailable(f"{endpoint.url}: the login token is no longer valid") from None
            raise _sentence(error, endpoint.url) from None
        raise self.unavailable(f"{endpoint.url}: closed the stream")

    def unavailable(self, last: str) -> Unavailable:
        if len(self.endpoints) == 1:
            return Unavailable(
                f"etcd does not answer ({last}); check that it runs and ETCD_ENDPOINTS is right"
            )
        urls = ", ".join(endpoint.url for endpoint in self.endpoints)
        return Unavailable(
            f"none of the etcd endpoints {urls} answers (last: {last}); check that they run and that"
            " ETCD_ENDPOINTS is right"
        )

    def forget_token(self) -> None:
        """Log in again before the next call: a watch was refused, which says nothing about why."""
        self._token = ""

    async def open_watch(self) -> WatchStream:
        """A watch stream to the current endpoint. Raises EtcdError; the caller rotates and paces."""
        endpoint = self.endpoint
        try:
            metadata = await self._metadata(endpoint, ("hasleader", "true"))
        except grpc.aio.AioRpcError as error:
            raise _sentence(error, endpoint.url) from None
        if not await endpoint.ready(TRY_TIMEOUT):
            raise self.unavailable(f"{endpoint.url}: no connection within {TRY_TIMEOUT:.0f} s")
        method = endpoint.channel.stream_stream(
            WATCH,
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )
        return WatchStream(endpoint, method(metadata=metadata), self)


class WatchStream:
    """One Watch call; several watches share it, told apart by the id they were created with."""

    def __init__(self, endpoint: Endpoint, call: Any, wire: Wire) -> None:
        self.endpoint = endpoint
        self._call = call
        self._wire = wire
        self._parts: dict[int, list[pb.WatchResponse]] = {}

    async def create(self, watch_id: int, prefix: bytes, range_end: bytes, start_revision: int) -> None:
        """Ask for one more watch. Its "created" reply arrives through `read`. Raises EtcdError."""
        create = pb.WatchCreateRequest(
            key=prefix,
            range_end=range_end,
            start_revision=start_revision,
            watch_id=watch_id,
            progress_notify=True,
            fragment=True,
        )
        try:
            await self._call.write(pb.WatchRequest(create_request=create))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise self._broken(error) from None

    async def read(self) -> pb.WatchResponse:
        """The next whole reply: fragments are joined. Raises EtcdError when the stream ends."""
        while True:
            try:
                reply = await self._call.read()
            except grpc.aio.AioRpcError as error:
                raise self._broken(error) from None
            if reply is grpc.aio.EOF:
                raise self._wire.unavailable(f"{self.endpoint.url}: closed the watch stream")
            parts = self._parts.setdefault(reply.watch_id, [])
            parts.append(reply)
            if not reply.fragment:
                return _joined(self._parts.pop(reply.watch_id))

    def cancel(self) -> None:
        """End it, and let go of the call: as long as that is known, its channel goes on connecting."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _broken(self, error: Exception) -> EtcdError:
        if isinstance(error, grpc.aio.AioRpcError):
            if _token_refused(error):
                self._wire.forget_token()
                return self._wire.unavailable(f"{self.endpoint.url}: the login token is no longer valid")
            if not _transient(error):
                return _sentence(error, self.endpoint.url)
            return self._wire.unavailable(f"{self.endpoint.url}: {_details(error)}")
        return self._wire.unavailable(f"{self.endpoint.url}: the watch stream is closed")


_READY = grpc.ChannelConnectivity.READY
_NO_AUTH = "-"
_GRACE = 30.0
"""Seconds for the calls on a channel that another one replaces."""


def _joined(parts: list[pb.WatchResponse]) -> pb.WatchResponse:
    whole = parts[-1]
    if len(parts) > 1:
        events = [event for part in parts for event in part.events]
        del whole.events[:]
        whole.events.extend(events)
    return whole


def _credentials(config: EtcdConfig) -> Any:
    def pem(text: str, path: str) -> bytes | None:
        return text.encode() if text else Path(path).read_bytes() if path else None

    return grpc.ssl_channel_credentials(
        root_certificates=pem(config.ca_cert, config.ca_cert_file),
        private_key=pem(config.key, config.key_file),
        certificate_chain=pem(config.cert, config.cert_file),
    )


def _stamp(config: EtcdConfig) -> object:
    """Differs when a file of the credentials was replaced or rewritten. What is missing is a state, too."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in (config.ca_cert_file, config.cert_file, config.key_file):
        try:
            found = Path(path).stat() if path else None
        except OSError:
            found = None
        stamps.append((found.st_ino, found.st_size, found.st_mtime_ns) if found is not None else None)
    return tuple(stamps)


def _not_connected(url: str) -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, empty, empty, details=f"failed to connect to {url} in time"
    )


def _details(error: grpc.aio.AioRpcError) -> str:
    return quoted(error.details() or error.code().name.lower(), 200).strip("'\"")


def _token_refused(error: grpc.aio.AioRpcError) -> bool:
    details = error.details() or ""
    return any(words in details for words in _BAD_TOKEN)


def _transient(error: grpc.aio.AioRpcError) -> bool:
    code = error.code()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return "too many requests" in (error.details() or "")
    return code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    )


def _surely_not_executed(error: grpc.aio.AioRpcError) -> bool:
    details = (error.details() or "").lower()
    return any(words in details for words in _NOT_EXECUTED)


def _sentence(error: grpc.aio.AioRpcError, url: str) -> EtcdError:
    """Our own exception for a refusal that another try would not change."""
    code, details = error.code(), _details(error)
    where = f"etcd at {url}"
    if code is grpc.StatusCode.UNAUTHENTICATED or any(w in details for w in (*_BAD_LOGIN, *_BAD_TOKEN)):
        return Unauthenticated(
            f"{where} does not accept our login ({details}); check ETCD_USERNAME and ETCD_PASSWORD"
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return Denied(f"{where} denies it ({details}); grant the user's role access to /calico/")
    if code is grpc.StatusCode.OUT_OF_RANGE:
        return Compacted(f"{where}: {details}")
    if _transient(error):
        return Unavailable(f"{where} does not answer ({details})")
    return Refused(f"{where} refuses the request: {details}")
