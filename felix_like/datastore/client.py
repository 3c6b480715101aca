"""An asyncio client of etcd v3: keys, transactions, leases.

    async with Client(EtcdConfig(endpoints=("http://127.0.0.1:2379",))) as etcd:
        listing = await etcd.get_prefix("/calico/")

Every call has a deadline and goes to whichever endpoint answers. Reads are linearizable. Importing this
module loads grpc.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from felix_like.datastore import wire
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.errors import KeyValue
from felix_like.datastore.proto import etcd_pb2 as pb

PAGE = 1_000
"""Keys asked for at a time."""


@dataclass(frozen=True, slots=True)
class Header:
    """Which history an answer belongs to, and where in it."""

    cluster_id: int
    revision: int
    raft_term: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Keys as they were at `header.revision`, sorted."""

    header: Header
    kvs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction: the key's version or a revision of it is (or is not) so much."""

    key: str
    target: str
    """`version`, `mod_revision` or `create_revision`. 0: the key does not exist."""
    value: int
    equal: bool = True


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


@dataclass(frozen=True, slots=True)
class Get:
    key: str


@dataclass(frozen=True, slots=True)
class TxnReply:
    succeeded: bool
    header: Header
    got: tuple[KeyValue | None, ...]
    """One entry for each Get of the branch taken."""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    endpoint: str
    version: str
    leader: bool
    db_size: int
    """Octets."""


class Client:
    """etcd's API over rotating endpoints. All methods raise the errors of `datastore.errors`."""

    def __init__(
        self, config: EtcdConfig, *, timeout: float = 10.0, rng: random.Random | None = None
    ) -> None:
        self.wire = wire.Wire(config, rng=rng)
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.wire.close()

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(endpoint.url for endpoint in self.wire.endpoints)

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        return (await self.read(key, revision=revision))[1]

    async def read(self, key: str, *, revision: int = 0) -> tuple[Header, KeyValue | None]:
        """A key with the header of the answer."""
        reply = await self._range(pb.RangeRequest(key=encode_key(key), revision=revision))
        return header_of(reply), _kv(reply.kvs[0]) if reply.kvs else None

    async def probe(self, key: str, *, seconds: float, each: float) -> tuple[Header, KeyValue | None]:
        """As `read`, for a caller that paces itself: every endpoint is asked once, for `each` seconds."""
        reply = await self.wire.call(
            wire.KV + "Range",
            pb.RangeRequest(key=encode_key(key)),
            pb.RangeResponse,
            seconds=seconds,
            each=each,
            patience=0,
        )
        return header_of(reply), _kv(reply.kvs[0]) if reply.kvs else None

    async def get_prefix(self, prefix: str, *, revision: int = 0, page: int = PAGE) -> Listing:
        """All keys under a prefix at one revision, fetched in pages. Raises Compacted: start again."""
        return await self.get_prefixes((prefix,), revision=revision, page=page)

    async def get_prefixes(self, prefixes: Sequence[str], *, revision: int = 0, page: int = PAGE) -> Listing:
        """All keys under several prefixes at one common revision."""
        kvs: list[KeyValue] = []
        header: Header | None = None
        for prefix in prefixes:
            start, end = encode_key(prefix), range_end(prefix)
            more = True
            while more:
                reply = await self._range(
                    pb.RangeRequest(key=start, range_end=end, limit=page, revision=revision)
                )
                header = header or header_of(reply)
                revision = revision or header.revision
                kvs.extend(_kv(kv) for kv in reply.kvs)
                more = reply.more
                if more:
                    start = reply.kvs[-1].key + b"\0"
        if header is None:
            raise ValueError("no prefix to list")
        return Listing(Header(header.cluster_id, revision, header.raft_term), tuple(kvs))

    async def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        return await self.wire.call(wire.KV + "Range", request, pb.RangeResponse, seconds=self._timeout)

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write unconditionally; returns the revision. Repeated when the outcome is in doubt."""
        request = pb.PutRequest(key=encode_key(key), value=value, lease=lease)
        reply = await self.wire.call(wire.KV + "Put", request, pb.PutResponse, seconds=self._timeout)
        return reply.header.revision

    async def delete(self, key: str) -> bool:
        """True when there was something to delete."""
        return await self._delete(pb.DeleteRangeRequest(key=encode_key(key))) > 0

    async def delete_prefix(self, prefix: str) -> int:
        """Delete all keys under a prefix; returns their number."""
        return await self._delete(pb.DeleteRangeRequest(key=encode_key(prefix), range_end=range_end(prefix)))

    async def _delete(self, request: pb.DeleteRangeRequest) -> int:
        reply = await self.wire.call(
            wire.KV + "DeleteRange", request, pb.DeleteRangeResponse, seconds=self._timeout
        )
        return reply.deleted

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Put | Delete | Get],
        failure: Sequence[Put | Delete | Get] = (),
    ) -> TxnReply:
        """All or nothing; at most 128 operations. Raises OutcomeUnknown when the connection broke midway."""
        request = pb.TxnRequest(
            compare=[_compare(one) for one in compare],
            success=[_operation(one) for one in success],
            failure=[_operation(one) for one in failure],
        )
        writes = any(not isinstance(one, Get) for one in (*success, *failure))
        reply = await self.wire.call(
            wire.KV + "Txn", request, pb.TxnResponse, seconds=self._timeout, repeatable=not writes
        )
        got = tuple(
            _kv(one.response_range.kvs[0]) if one.response_range.kvs else None
            for one in reply.responses
            if one.WhichOneof("response") == "response_range"
        )
        return TxnReply(reply.succeeded, header_of(reply), got)

    async def lease_grant(self, ttl: int) -> int:
        """A new lease of `ttl` seconds; returns its id."""
        reply = await self.wire.call(
            wire.LEASE + "LeaseGrant",
            pb.LeaseGrantRequest(TTL=ttl),
            pb.LeaseGrantResponse,
            seconds=self._timeout,
        )
        return reply.ID

    async def lease_keepalive(self, lease: int) -> int:
        """Renew once; returns the seconds left, 0 when the lease is gone."""
        return await self.wire.lease_keepalive(lease, self._timeout)

    async def lease_revoke(self, lease: int) -> None:
        """Give a lease up, deleting its keys."""
        await self.wire.call(
            wire.LEASE + "LeaseRevoke",
            pb.LeaseRevokeRequest(ID=lease),
            pb.LeaseRevokeResponse,
            seconds=self._timeout,
        )

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`."""
        await self.wire.call(
            wire.KV + "Compact",
            pb.CompactionRequest(revision=revision, physical=True),
            pb.CompactionResponse,
            seconds=self._timeout,
        )

    async def status(self) -> MemberStatus:
        """What the answering member says about itself."""
        reply = await self.wire.call(
            wire.STATUS, pb.StatusRequest(), pb.StatusResponse, seconds=self._timeout
        )
        return MemberStatus(
            self.wire.endpoint.url, reply.version, reply.leader == reply.header.member_id, reply.dbSize
        )


def encode_key(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def range_end(prefix: str) -> bytes:
    """The first key after all that start with the prefix, which must not be empty."""
    octets = encode_key(prefix).rstrip(b"\xff")
    if not octets:
        raise ValueError("an empty prefix would mean all of etcd")
    return octets[:-1] + bytes([octets[-1] + 1])


def header_of(reply: Any) -> Header:
    header = reply.header
    return Header(header.cluster_id, header.revision, header.raft_term)


def _kv(kv: pb.KeyValue) -> KeyValue:
    return KeyValue(decode_key(kv.key), kv.value, kv.mod_revision, kv.create_revision, kv.version, kv.lease)


def _compare(compare: Compare) -> pb.Compare:
    result = pb.Compare.EQUAL if compare.equal else pb.Compare.NOT_EQUAL
    key = encode_key(compare.key)
    if compare.target == "version":
        return pb.Compare(result=result, target=pb.Compare.VERSION, key=key, version=compare.value)
    if compare.target == "mod_revision":
        return pb.Compare(result=result, target=pb.Compare.MOD, key=key, mod_revision=compare.value)
    if compare.target == "create_revision":
        return pb.Compare(result=result, target=pb.Compare.CREATE, key=key, create_revision=compare.value)
    raise ValueError(f"compare target {compare.target!r}; use version, mod_revision or create_revision")


def _operation(operation: Put | Delete | Get) -> pb.RequestOp:
    key = encode_key(operation.key)
    if isinstance(operation, Put):
        put = pb.PutRequest(key=key, value=operation.value, lease=operation.lease)
        return pb.RequestOp(request_put=put)
    if isinstance(operation, Delete):
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))
