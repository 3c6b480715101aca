"""What agent and speaker say to each other: JSON lines over a unix stream socket, both ends, no I/O.

The speaker greets with `Hello`, replays everything it knows between `ReplayBegin` and `ReplayEnd`,
then tells changes. The agent's commands carry a sequence number and are acknowledged in order.

A line is one JSON object with a `type`. NLRI travel packed (see `nlri`), everything else as text.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agent.speaker.nlri import Nlri
from felix_like.model.address import Address, Asn, IpVersion
from felix_like.model.path import Attributes

VERSION = 1
MAX_LINE = 1 << 20
"""Octets a line may have. The largest honest one, 500 IPv6 NLRI with long attributes, has about 20,000."""
MAX_NLRI = 500
"""NLRI that a writer puts in one line."""

State = Literal["Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established"]


class ProtocolError(Exception):
    """The other end broke the protocol; the connection is of no use any more."""


class GracefulFamily(msgspec.Struct, frozen=True):
    """One family of the peer's graceful restart capability (RFC 4724 section 3)."""

    version: IpVersion
    forwarding: bool
    """The F bit: the peer kept its forwarding state over its restart."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    protocol: int
    pid: int
    boot: str
    """Random per process: tells a reconnect from a restart of the speaker."""
    exabgp: str


class ReplayBegin(msgspec.Struct, frozen=True, tag="replay-begin"):
    """All peers and paths follow; after `ReplayEnd`, what was not among them does not exist."""


class ReplayEnd(msgspec.Struct, frozen=True, tag="replay-end"):
    pass


class PeerState(msgspec.Struct, frozen=True, tag="peer-state"):
    peer: Address
    state: State
    since: float
    """Seconds since the epoch, for people to read."""
    reason: str = ""
    """Why the session is not up, as last heard; empty when nothing went wrong."""


class PeerGone(msgspec.Struct, frozen=True, tag="peer-gone"):
    """The peer is no longer configured."""

    peer: Address


class PeerUp(msgspec.Struct, frozen=True, tag="peer-up"):
    """In a replay, too, the peer's paths follow and then an `EndOfRib` per family that had one."""

    peer: Address
    router_id: str
    asn: Asn
    hold_time: int
    """Seconds, as negotiated."""
    families: tuple[IpVersion, ...]
    restart_time: int | None = None
    """Seconds the peer asks us to keep its routes when it restarts; None: no graceful restart."""
    restarting: bool = False
    """The R bit: the peer has just restarted."""
    graceful: tuple[GracefulFamily, ...] = ()


class PeerDown(msgspec.Struct, frozen=True, tag="peer-down"):
    peer: Address
    reason: str
    graceful: bool
    """Graceful restart was negotiated and the session ended by itself: no Cease in either direction."""
    ours: bool = False
    """We ended it to build it anew, with other terms: the peer did not restart."""


class Learned(msgspec.Struct, frozen=True, tag="learned"):
    peer: Address
    attributes: Attributes
    nlri: Nlri


class Withdrawn(msgspec.Struct, frozen=True, tag="withdrawn"):
    peer: Address
    nlri: Nlri


class EndOfRib(msgspec.Struct, frozen=True, tag="end-of-rib"):
    peer: Address
    version: IpVersion


class LimitExceeded(msgspec.Struct, frozen=True, tag="limit-exceeded"):
    peer: Address
    count: int
    limit: int
    retry_in: float
    """Seconds until the session is tried again."""


class Malformed(msgspec.Struct, frozen=True, tag="malformed"):
    """Some of a peer's routes were treated as withdrawn (RFC 7606); said once per peer and fault."""

    peer: Address
    count: int
    """Routes so far, in this session."""
    reason: str


class ConfigApplied(msgspec.Struct, frozen=True, tag="config-applied"):
    path: str
    added: tuple[Address, ...] = ()
    removed: tuple[Address, ...] = ()
    changed: tuple[Address, ...] = ()
    unchanged: int = 0
    error: str | None = None
    """Why nothing was changed; the peers are as before."""


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    seq: int
    """This command and all before it were carried out."""


class Nack(msgspec.Struct, frozen=True, tag="nack"):
    seq: int
    error: str


class Reload(msgspec.Struct, frozen=True, tag="reload"):
    seq: int
    path: str


class Advertise(msgspec.Struct, frozen=True, tag="advertise"):
    seq: int
    peers: tuple[Address, ...]
    attributes: Attributes
    nlri: Nlri


class Withdraw(msgspec.Struct, frozen=True, tag="withdraw"):
    seq: int
    peers: tuple[Address, ...]
    nlri: Nlri


class SyncBegin(msgspec.Struct, frozen=True, tag="sync-begin"):
    """What is advertised again before `SyncEnd` stays; all the rest is withdrawn then."""

    seq: int


class SyncEnd(msgspec.Struct, frozen=True, tag="sync-end"):
    seq: int


class FullSync(msgspec.Struct, frozen=True, tag="full-sync"):
    """The agent has said all: send End-of-RIB, now and to every later session after its table."""

    seq: int


class Limits(msgspec.Struct, frozen=True, tag="limits"):
    """Prefixes at most per peer; `default` for those not named, None leaves the speaker's own."""

    seq: int
    peers: dict[Address, int]
    default: int | None = None


Event = (
    Hello
    | ReplayBegin
    | ReplayEnd
    | PeerState
    | PeerGone
    | PeerUp
    | PeerDown
    | Learned
    | Withdrawn
    | EndOfRib
    | LimitExceeded
    | Malformed
    | ConfigApplied
    | Ack
    | Nack
)
Command = Reload | Advertise | Withdraw | SyncBegin | SyncEnd | FullSync | Limits


def _encode(value: Any) -> str:
    if isinstance(value, Address | Nlri):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no place on this wire")


def _decode(kind: type, value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__}")
    if kind is Address:
        return Address.parse(value)
    if kind is Nlri:
        return Nlri.parse(value)
    raise NotImplementedError(kind.__name__)


_encoder = msgspec.json.Encoder(enc_hook=_encode)
_events: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event, dec_hook=_decode)
_commands: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command, dec_hook=_decode)


def encode(message: Event | Command) -> bytes:
    """One line, with its newline."""
    return _encoder.encode(message) + b"\n"


def decode_event(line: bytes) -> Event:
    """Raises ProtocolError."""
    try:
        return _events.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the speaker sent a line that is not of this protocol: {error}") from None


def decode_command(line: bytes) -> Command:
    """Raises ProtocolError."""
    try:
        return _commands.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the agent sent a line that is not of this protocol: {error}") from None


class Lines:
    """Cuts a byte stream into lines, refusing endless ones."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, octets: bytes) -> list[bytes]:
        """The complete lines so far, without newline. Raises ProtocolError when a line is too long."""
        self._rest += octets
        *whole, rest = self._rest.split(b"\n")
        if len(rest) > self._limit or any(len(line) > self._limit for line in whole):
            raise ProtocolError(f"a line of more than {self._limit} octets")
        self._rest = bytearray(rest)
        return [bytes(line) for line in whole if line]
