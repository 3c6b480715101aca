"""One ExaBGP `Peer` per neighbor, over sockets that the caller connected.

What is changed of ExaBGP's behaviour, each for a measured fault:

- `Peer.run()` is called by the caller; connecting, retrying and collisions are the caller's too.
- reading and writing are buffered in the connection, so a KEEPALIVE never lands inside an UPDATE
  that the peer's window cut short, and a message costs no `poll`.
- Adj-RIB-Out is ours: `Peer` asks `_Outgoing` for UPDATEs and gets them grouped, IPv6 too.
- UPDATEs are decoded by `_Update`: attributes by ExaBGP, NLRI and checks by `decode`.
- timers read the monotonic clock: a step of the wall clock must not expire hold timers.
- Enhanced route refresh is not offered: its markers are answered wrongly.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import exabgp.bgp.timer
from exabgp.bgp.fsm import FSM
from exabgp.bgp.message import Message, Notification, Notify, Update
from exabgp.bgp.message.open.capability import Capability
from exabgp.environment import getenv
from exabgp.logger import log as exabgp_log
from exabgp.protocol.family import AFI, SAFI, Family
from exabgp.reactor.network.error import NetworkError
from exabgp.reactor.peer import ACTION, Peer
from exabgp.reactor.protocol import Protocol
from exabgp.version import version as exabgp_version

from agent.speaker.adapter import codec
from agent.speaker.adapter.connection import HIGH_WATER, BufferedConnection
from agent.speaker.protocol import GracefulFamily, State
from agent.speaker.settings import Batch, Negotiation, Neighbor, SessionEvents
from agent.speaker.settings import Update as Received
from felix_like.model.address import Asn, IpVersion

PINNED = "5.0.15"
EXABGP_VERSION = str(exabgp_version)
_AFI: dict[IpVersion, Any] = {4: AFI.ipv4, 6: AFI.ipv6}
_STATES: dict[int, State] = {
    FSM.IDLE: "Idle",
    FSM.ACTIVE: "Active",
    FSM.CONNECT: "Connect",
    FSM.OPENSENT: "OpenSent",
    FSM.OPENCONFIRM: "OpenConfirm",
    FSM.ESTABLISHED: "Established",
}
_logger = logging.getLogger("tortie.exabgp")
LONGEST_REASON = 240
"""Characters; a Shutdown Communication has up to 128 octets (RFC 8203)."""


def _quiet(*_: object, **__: object) -> None:
    pass


def _loud(message: Any, source: str = "", *_: object, **__: object) -> None:
    with contextlib.suppress(Exception):
        _logger.warning("%s: %r", source, message() if callable(message) else message)


def prepare() -> None:
    """Set ExaBGP's globals once: our log, a clock that does not step. Raises when the version is not ours."""
    if EXABGP_VERSION != PINNED:
        raise RuntimeError(
            f"ExaBGP {EXABGP_VERSION} is installed, tortie-speaker was tested with {PINNED} only"
        )
    getenv().log.enable = False
    exabgp_log.init(getenv())
    for level in ("debug", "info", "warning"):
        setattr(exabgp_log, level, staticmethod(_quiet))
    for level in ("error", "critical", "fatal"):
        setattr(exabgp_log, level, staticmethod(_loud))
    exabgp.bgp.timer.time = SimpleNamespace(time=time.monotonic)
    Message.registered_message[Message.CODE.UPDATE] = _Update


class _Protocol(Protocol):  # type: ignore[misc]
    def write(self, message: Any, negotiated: Any = None) -> Iterator[bool]:
        if message.ID == Message.CODE.OPEN:
            message.capabilities.pop(Capability.CODE.ENHANCED_ROUTE_REFRESH, None)
        yield from super().write(message, negotiated)


# --------------------------------------------------------------------------- UPDATE, in and out


class _Update(Update):  # type: ignore[misc]
    """An UPDATE as received: decoded by us, and with no NLRI for ExaBGP to copy about."""

    def __init__(self, received: Received) -> None:
        super().__init__([], {})
        self.received = received

    @classmethod
    def unpack_message(cls, data: bytes, direction: Any, negotiated: Any) -> Any:
        session: Session = negotiated.neighbor.session
        try:
            return cls(codec.decode(data, direction, negotiated, session.neighbor, session.meanings))
        except Notify:
            raise
        except Exception:
            # ExaBGP would hide what went wrong behind "can not decode".
            _logger.exception("neighbor %s: cannot decode an UPDATE", session.neighbor.address)
            raise


class _Outgoing:
    """Stands where ExaBGP has its Adj-RIB-Out."""

    def __init__(self, events: SessionEvents) -> None:
        self._events = events
        self.families: list[Any] = []

    def pending(self) -> bool:
        return self._events.has_batches()

    def updates(self, _grouped: bool) -> Iterator[Any]:
        # One batch per turn: between two the loop serves the other peers.
        if (batch := self._events.next_batch()) is not None:
            yield _Sending(batch)

    def resend(self, _enhanced: bool, family: Any = None) -> None:
        for version, afi in _AFI.items():
            if family is None or family == (afi, SAFI.unicast):
                self._events.on_refresh(version)

    replace_restart = replace_reload = reset = clear = _quiet


class _Sending:
    """One batch on its way out; `messages` is what `Protocol.new_update` asks an Update for."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def messages(self, negotiated: Any, _include_withdraw: bool) -> Iterator[bytes]:
        # ExaBGP leaves withdrawals out of a session's first pass; ours may hold real ones.
        return codec.encode(self._batch, negotiated)


# --------------------------------------------------------------------------- the peer


class _Peer(Peer):  # type: ignore[misc]
    """ExaBGP's Peer, telling why it closed."""

    session: Session

    def _close(self, message: str = "", error: Any = "") -> None:
        self.session.closing(message, error)
        super()._close(message, error)


class _NoDelay:
    """The caller decides when to connect, not `Peer`'s own backoff."""

    reset = increase = _quiet

    def backoff(self) -> bool:
        return False


class Session:
    """One neighbor's state machine. Give it a connected socket, then `run` it while it wants to.

    `restarting`: this process has just begun, so the first OPEN carries the R bit (RFC 4724).
    """

    def __init__(self, neighbor: Neighbor, events: SessionEvents, restarting: bool) -> None:
        source: Any = neighbor.source
        self.neighbor = neighbor
        self._events = events
        self._was_up = False
        self._ceased = False
        self.meanings: dict[bytes, codec.Judged] = {}
        source.session = self
        source["manual-eor"] = True
        source.api = dict.fromkeys(source.api, False) | {
            "neighbor-changes": True,
            "fsm": True,
            "receive-update": True,
            "receive-parsed": True,
        }
        source.rib = SimpleNamespace(
            outgoing=_Outgoing(events),
            incoming=SimpleNamespace(clear=_quiet, update_cache=_quiet, reset=_quiet),
            reset=_quiet,
            uncache=_quiet,
            clear=_quiet,
        )
        source.eor.clear()
        self._peer = _Peer(source, SimpleNamespace(processes=_Callbacks(self)))
        self._peer.session = self
        self._peer._delay = _NoDelay()
        self._peer._restarted = restarting

    # what the driver asks

    @property
    def state(self) -> State:
        return _STATES[self._peer.fsm.state]

    @property
    def established(self) -> bool:
        return bool(self._peer.fsm == FSM.ESTABLISHED)

    @property
    def attached(self) -> bool:
        return self._peer.proto is not None and self._peer.proto.connection is not None

    @property
    def outgoing(self) -> bool:
        """The connection was opened by us."""
        return self.attached and self._peer.proto.connection.direction == "outgoing"

    @property
    def graceful(self) -> bool:
        """Graceful restart was negotiated."""
        proto = self._peer.proto
        code = Capability.CODE.GRACEFUL_RESTART
        return bool(
            proto
            and proto.negotiated.sent_open
            and proto.negotiated.received_open
            and proto.negotiated.sent_open.capabilities.announced(code)
            and proto.negotiated.received_open.capabilities.announced(code)
        )

    @property
    def remote_id(self) -> bytes | None:
        """The peer's BGP identifier, once its OPEN is here."""
        proto = self._peer.proto
        received = proto.negotiated.received_open if proto else None
        return None if received is None else bytes(received.router_id.pack())

    def fileno(self) -> int:
        return int(self._peer.socket())

    @property
    def unsent(self) -> int:
        """Octets that wait for the peer's window."""
        return len(self._peer.proto.connection.out) if self.attached else 0

    @property
    def blocked(self) -> bool:
        return self.unsent > HIGH_WATER

    # what the driver does

    def attach(self, io: socket.socket, outgoing: bool) -> None:
        """Take a connected, non-blocking socket; it must not be attached already."""
        local = io.getsockname()[0]
        connection = BufferedConnection(
            self.neighbor.address.version, str(self.neighbor.address), local, io, outgoing
        )
        self.meanings.clear()
        self._peer.neighbor.eor.clear()
        self._peer.proto = _Protocol(self._peer).accept(connection)
        self._peer.generator = None
        self._peer._restart = True
        self._peer._teardown = None

    def run(self) -> bool:
        """One step. True: there is more to do at once."""
        if self._peer.generator is None and not self.attached:
            return False
        started = self._peer.generator is None
        return self._peer.run() == ACTION.NOW or started

    def flush(self) -> None:
        """Write what waits; a lost connection shows in the next `run`."""
        if self.attached:
            with contextlib.suppress(NetworkError):
                self._peer.proto.connection.flush()

    def send_end_of_rib(self, version: IpVersion) -> None:
        """Send End-of-RIB once all batches are out."""
        self._peer.neighbor.eor.append(Family(_AFI[version], SAFI.unicast))

    def cease(self, subcode: int, reason: str) -> socket.socket | None:
        """End the session with a Cease NOTIFICATION (RFC 4486), also where graceful restart is on.

        Returns the socket, still open, for the caller to close once the peer has read it.
        """
        if not self.attached:
            self.drop(reason)
            return None
        notify = Notify(6, subcode, reason[:120].encode("ascii", "replace").decode() if subcode == 2 else "")
        connection = self._peer.proto.connection
        if self._peer.fsm in (FSM.OPENSENT, FSM.OPENCONFIRM, FSM.ESTABLISHED):
            connection.out += notify.message()
            with contextlib.suppress(NetworkError):
                connection.flush()
        io: socket.socket | None = connection.detach()
        self._ceased = True
        self._peer._reset(reason, notify)
        self._ceased = False
        return io

    def drop(self, reason: str) -> None:
        """Close the connection without a word: with graceful restart the peer keeps our routes."""
        self._peer._reset(reason, NetworkError(reason))

    # what ExaBGP tells

    def closing(self, message: str, error: Any) -> None:
        if not self._was_up:
            if self.attached:
                self._events.on_down(_reason(message, error), False)
            return
        self._was_up = False
        # An expired hold timer is a NOTIFICATION of ours: the peer forgets our routes, too (RFC 4724 section
        # 4, without RFC 8538's N bit). Who is dead must not be forwarded to for another restart time.
        by_itself = not isinstance(error, Notification)
        self._events.on_down(_reason(message, error), by_itself and self.graceful and not self._ceased)

    def came_up(self) -> None:
        self._was_up = True
        self._events.on_up(_negotiation(self._peer.proto.negotiated))

    def state_changed(self) -> None:
        self._events.on_state(self.state)

    def received(self, message: Any) -> None:
        if isinstance(message, _Update):
            self._events.on_update(message.received)


class _Callbacks:
    """Stands where ExaBGP has its helper processes. An exception here would reset the session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _safely(self, call: Any, *args: Any) -> None:
        try:
            call(*args)
        except Exception:
            _logger.exception("neighbor %s: a callback failed", self._session.neighbor.address)

    def up(self, _neighbor: Any) -> None:
        self._safely(self._session.came_up)

    def fsm(self, *_: Any) -> None:
        self._safely(self._session.state_changed)

    def message(self, _kind: int, _neighbor: Any, direction: str, message: Any, *_: Any) -> None:
        if direction == "receive":
            self._safely(self._session.received, message)

    def broken(self, _neighbor: Any) -> bool:
        return False

    down = connected = notification = negotiated = packets = _quiet


def _reason(message: str, error: Any) -> str:
    if isinstance(error, Notify):
        if error.code == 4:
            return "hold timer expired"
        return _one_line(f"we closed it: {error}")
    if isinstance(error, Notification):
        return _one_line(f"the peer closed it: {error}")
    return _one_line(str(error or message or "closed"))


def _one_line(text: str) -> str:
    """What a peer's NOTIFICATION says goes to logs and terminals: no line breaks, no escapes, not endless."""
    return "".join(c if c.isprintable() else "?" for c in text)[:LONGEST_REASON]


def _negotiation(negotiated: Any) -> Negotiation:
    received = negotiated.received_open
    graceful = received.capabilities.get(Capability.CODE.GRACEFUL_RESTART)
    families: tuple[IpVersion, ...] = tuple(
        version for version, afi in _AFI.items() if (afi, SAFI.unicast) in negotiated.families
    )
    if not negotiated.families:
        families = ()
    flags = []
    for version, afi in _AFI.items():
        if graceful is not None and (afi, SAFI.unicast) in graceful:
            flags.append(GracefulFamily(version, bool(graceful[(afi, SAFI.unicast)] & 0x80)))
    offered = negotiated.sent_open.capabilities.announced(Capability.CODE.GRACEFUL_RESTART)
    return Negotiation(
        router_id=str(received.router_id),
        asn=Asn(int(negotiated.peer_as)),
        hold_time=int(negotiated.holdtime),
        families=families,
        restart_time=int(graceful.restart_time) if graceful is not None and offered else None,
        restarting=bool(graceful is not None and graceful.restart_flag & 0x8),
        graceful=tuple(flags),
    )
