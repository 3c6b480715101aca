"""Runs the sessions on the event loop: connecting, accepting, collisions, retry and hold-down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Callable
from typing import Protocol

from agent.speaker.session import PeerEntry
from agent.speaker.settings import Neighbor, SessionEvents
from felix_like.model.address import IpVersion

_logger = logging.getLogger("tortie.speaker")

ADMIN_SHUTDOWN, DECONFIGURED, REJECTED, CONFIG_CHANGE, COLLISION, MAX_PREFIXES = 2, 3, 5, 6, 7, 1
"""Cease subcodes (RFC 4486)."""
CONNECT_TIMEOUT = 8.0
FIRST_RETRY, LONGEST_RETRY = 1.0, 15.0
STABLE = 5.0
"""A session older than this is not a collision's other half: who connects anew has restarted. One that ends
younger has failed."""
OPEN_TIMEOUT = 30.0
"""A connection that is not Established after this many seconds is given up."""
_STEPS = 64
_LINGER = 2.0


class Engine(Protocol):
    """`adapter.Session`, as the driver needs it."""

    @property
    def neighbor(self) -> Neighbor: ...
    @property
    def established(self) -> bool: ...
    @property
    def attached(self) -> bool: ...
    @property
    def outgoing(self) -> bool: ...
    @property
    def graceful(self) -> bool: ...
    @property
    def remote_id(self) -> bytes | None: ...
    @property
    def unsent(self) -> int: ...
    @property
    def blocked(self) -> bool: ...
    def fileno(self) -> int: ...
    def attach(self, io: socket.socket, outgoing: bool) -> None: ...
    def run(self) -> bool: ...
    def flush(self) -> None: ...
    def send_end_of_rib(self, version: IpVersion) -> None: ...
    def cease(self, subcode: int, reason: str) -> socket.socket | None: ...
    def drop(self, reason: str) -> None: ...


EngineFactory = Callable[[Neighbor, SessionEvents, bool], Engine]
OpenSocket = Callable[[Neighbor], socket.socket]


class PeerDriver:
    """Keeps one peer's session going."""

    def __init__(
        self,
        entry: PeerEntry,
        make: EngineFactory,
        open_socket: OpenSocket,
        restarting: bool,
        *,
        first_retry: float = FIRST_RETRY,
    ) -> None:
        self.entry = entry
        self._loop = asyncio.get_running_loop()
        self._make = make
        self._open_socket = open_socket
        self._first_retry = first_retry
        self._engine = make(entry.neighbor, entry, restarting)
        self._restarting = restarting
        """Until the first session: what the OPEN says then is of this process, not of a connection."""
        self._fd = -1
        self._writing = False
        self._scheduled = False
        self._parked: socket.socket | None = None
        self._attached_at = 0.0
        self._established_at: float | None = None
        self._free = asyncio.Event()
        self._free.set()
        self._held_until = 0.0
        self._pardoned = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._begin()

    # ------------------------------------------------------------------ from outside

    def kick(self) -> None:
        """Something is to be done: a socket is ready, a second has passed, there are routes to send."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def pardon(self) -> None:
        """The peer need not stay away any longer: what it sent is allowed now."""
        self._held_until = 0.0
        self._pardoned.set()

    def tick(self) -> None:
        """Once a second: timers of the state machine."""
        if not self._engine.attached:
            return
        now = self._loop.time()
        if not self._engine.established and now - self._attached_at > OPEN_TIMEOUT:
            self._engine.drop("the session was not established in time")
            self._after_run()
        self.kick()

    def accepted(self, io: socket.socket) -> None:
        """A connection from the peer. Decides collisions as RFC 4271 section 6.8 says."""
        engine = self._engine
        if self._loop.time() < self._held_until or self._connecting is None:
            io.close()
        elif not engine.attached:
            self._attach(io, outgoing=False)
        elif engine.established:
            if engine.graceful and self._age() > STABLE:
                # RFC 4724 section 4.2: the peer restarted and the old connection did not notice.
                engine.drop("the peer connected anew")
                self._after_run()
                self._attach(io, outgoing=False)
            else:
                io.close()
        elif self._parked is None and engine.outgoing:
            self._parked = io
            self._resolve_collision()
        else:
            io.close()

    def reconfigure(self) -> None:
        """The entry has a new neighbor: end the session and build another.

        Where only its terms differ nobody lets go of a route meanwhile: it ends without a word, as over a
        restart of ours (RFC 4724 section 4.2).
        """
        engine, neighbor = self._engine, self.entry.neighbor
        # One that is not established yet may be the next try of one that was: no Cease there, either.
        quietly = engine.graceful or not engine.established
        self.entry.renewing = quietly and neighbor.renews(engine.neighbor)
        self.stop(None if self.entry.renewing else CONFIG_CHANGE, "its configuration changed")
        self.entry.renewing = False
        self._engine = self._make(neighbor, self.entry, self._restarting)
        self._begin()

    def stop(self, subcode: int | None, reason: str) -> None:
        """End the session with a Cease, or without a word (subcode None), and stay away."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._parked is not None:
            self._parked.close()
            self._parked = None
        if self._engine.attached:
            if subcode is None:
                self._engine.drop(reason)
            else:
                self._cease(subcode, reason)
        self._after_run()

    def resume(self) -> None:
        if self._connecting is None:
            self._begin()

    # ------------------------------------------------------------------ the session

    def _begin(self) -> None:
        name = f"connect {self.entry.address}"
        self._connecting = self._loop.create_task(self._connect(), name=name)

    def _attach(self, io: socket.socket, outgoing: bool) -> None:
        self._engine.attach(io, outgoing)
        self._attached_at = self._loop.time()
        self._established_at = None
        self._free.clear()
        self._fd = io.fileno()
        self._loop.add_reader(self._fd, self.kick)
        self.kick()

    def _pump(self) -> None:
        """Run the state machine while it wants to, but not so long that the others wait."""
        self._scheduled = False
        engine = self._engine
        again = False
        for version in self.entry.due_end_of_rib():
            engine.send_end_of_rib(version)
        for _ in range(_STEPS):
            again = engine.run()
            if self.entry.over_limit is not None or not engine.attached:
                break
            if not again or engine.blocked or self.entry.rib_out.pending():
                break
        if self.entry.over_limit is not None:
            self._too_many()
        self._after_run()
        if engine.attached and not engine.blocked and (again or self.entry.rib_out.pending()):
            self.kick()

    def _after_run(self) -> None:
        """Bring the watched descriptors in line with what the engine has."""
        engine = self._engine
        if engine.fileno() != self._fd and self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._watch_writing(False)
            self._fd = -1
            self._free.set()
            if self._parked is not None:
                io, self._parked = self._parked, None
                self._attach(io, outgoing=False)
            return
        if engine.established and self._established_at is None:
            self._established_at = self._loop.time()
            self._restarting = False
            self.kick()  # End-of-RIB may be due
        if self._parked is not None:
            self._resolve_collision()
        self._watch_writing(engine.unsent > 0)

    def _watch_writing(self, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._fd, self._writable)
        elif self._writing and not wanted:
            self._loop.remove_writer(self._fd)
        self._writing = wanted

    def _writable(self) -> None:
        self._engine.flush()
        self._watch_writing(self._engine.unsent > 0)
        if not self._engine.blocked:
            self.kick()

    def _resolve_collision(self) -> None:
        """Two connections: the one opened by the higher BGP identifier stays (RFC 4271 section 6.8)."""
        remote = self._engine.remote_id
        if remote is None or self._parked is None:
            return
        own = socket.inet_aton(self.entry.neighbor.router_id)
        io, self._parked = self._parked, None
        if remote > own and not self._engine.established:
            self._cease(COLLISION, "connection collision")
            self._attach(io, outgoing=False)
        else:
            io.close()

    def _too_many(self) -> None:
        pause = self.entry.exceeded()
        self._held_until = self._loop.time() + pause
        self._pardoned.clear()
        if self._engine.attached:
            self._cease(MAX_PREFIXES, "too many prefixes")
        self.entry.failing(f"sent too many prefixes; tried again in {pause:.0f} s", "Idle")

    def _age(self) -> float:
        return self._loop.time() - (self._established_at or self._loop.time())

    def _cease(self, subcode: int, reason: str) -> None:
        io = self._engine.cease(subcode, reason)
        self._after_run()
        self._linger(io)

    def _linger(self, io: socket.socket | None) -> None:
        """Close once the peer has closed, or soon: closing at once with unread octets would reset the
        connection and take the NOTIFICATION along."""
        if io is None:
            return
        with contextlib.suppress(OSError):
            io.shutdown(socket.SHUT_WR)
        fd = io.fileno()

        def finish() -> None:
            if io.fileno() >= 0:
                self._loop.remove_reader(fd)
                io.close()

        def drain() -> None:
            try:
                if io.recv(65536):
                    return
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                pass
            finish()

        self._loop.add_reader(fd, drain)
        self._loop.call_later(_LINGER, finish)

    # ------------------------------------------------------------------ connecting

    async def _connect(self) -> None:
        """Connect for ever: what nobody expected must not end a peer's retries, either."""
        retry, said = self._first_retry, ""
        while True:
            try:
                await self._keep_connected()
            except Exception as error:
                if said != repr(error):
                    said = repr(error)
                    _logger.exception(
                        "peer %s: a fault while connecting; it is tried again", self.entry.address
                    )
                if not self._engine.attached:
                    self.entry.failing(f"a fault of the speaker ({type(error).__name__}); its log says more")
            await asyncio.sleep(retry * random.uniform(0.75, 1.0))
            retry = min(retry * 2, LONGEST_RETRY)

    async def _keep_connected(self) -> None:
        """Try while there is no session; a passive neighbor only waits.

        Only a session that lasted makes the next one come soon: one that ends as soon as it begins, because a
        peer cannot bear what it is told, would otherwise begin every second for ever.
        """
        retry = self._first_retry
        while True:
            await self._free.wait()
            now = self._loop.time()
            if now < self._held_until:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._held_until):
                        await self._pardoned.wait()
                continue
            if self._lasted():
                retry = self._first_retry
                await asyncio.sleep(random.uniform(0.05, 0.2))
            if self._engine.attached:
                continue
            if self.entry.neighbor.passive:
                self.entry.on_state("Active")
                if not self.entry.state_event().reason:
                    self.entry.failing(self._waiting())
                await asyncio.sleep(1.0)
                continue
            if await self._try():
                await self._free.wait()
                if self._lasted():
                    retry = self._first_retry
            await asyncio.sleep(retry * random.uniform(0.75, 1.0))
            retry = min(retry * 2, LONGEST_RETRY)

    def _lasted(self) -> bool:
        """Whether the session that ended had been established for a while; asked once."""
        since, self._established_at = self._established_at, None
        return since is not None and self._loop.time() - since > STABLE

    async def _try(self) -> bool:
        """One attempt to connect. True when a session has begun, by it or by the peer meanwhile."""
        neighbor = self.entry.neighbor
        io: socket.socket | None = None
        target = (str(neighbor.address), neighbor.connect_port)
        self.entry.on_state("Connect")
        try:
            io = self._open_socket(neighbor)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._loop.sock_connect(io, target)
        except TimeoutError:
            self._failed(io, f"no answer from {target[0]} port {target[1]}{self._password_hint()}")
            return self._engine.attached
        except OSError as error:
            # asyncio's own text hides the cause; the number has it.
            cause = os.strerror(error.errno) if error.errno else str(error)
            self._failed(io, f"cannot connect to {target[0]} port {target[1]}: {cause}")
            return self._engine.attached
        except asyncio.CancelledError:
            if io is not None:
                io.close()
            raise
        if not self._engine.attached:
            self._attach(io, outgoing=True)
        elif self._engine.established or self._engine.remote_id is None:
            io.close()
        elif self._engine.remote_id < socket.inet_aton(neighbor.router_id):
            self._cease(COLLISION, "connection collision")
            self._attach(io, outgoing=True)
        else:
            io.close()
        return True

    def _waiting(self) -> str:
        return f"waiting for {self.entry.address} to connect{self._password_hint()}"

    def _password_hint(self) -> str:
        """With TCP MD5 (RFC 2385 section 2) a wrong password is silence: its segments are just dropped."""
        return ": it is away, or its password is another" if self.entry.neighbor.password else ""

    def _failed(self, io: socket.socket | None, reason: str) -> None:
        if io is not None:
            io.close()
        if not self._engine.attached:
            self.entry.failing(reason)
