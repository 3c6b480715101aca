"""A neighbor of exabgp.conf in our words, and what a session tells about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from agent.speaker.nlri import Packed
from agent.speaker.protocol import GracefulFamily, State
from felix_like.model.address import Address, Asn, IpVersion
from felix_like.model.path import Attributes


class ConfError(Exception):
    """exabgp.conf cannot be used; the text says which neighbor or line, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbor:
    """One neighbor as configured. Two that compare equal need no new session: who connects, and the words
    for it, may differ. So a mesh session goes on as a route reflector's, where nobody waits."""

    address: Address
    local_address: Address | None
    asn: Asn
    local_asn: Asn
    router_id: str
    passive: bool = field(compare=False)
    connect_port: int
    listen_port: int | None
    """None: the worker's own default."""
    hold_time: int
    password: str | None
    """The TCP MD5 key (RFC 2385) in base64."""
    incoming_ttl: int | None
    outgoing_ttl: int | None
    families: tuple[IpVersion, ...]
    restart_time: int
    """Seconds of graceful restart offered; 0: off."""
    capabilities: tuple[tuple[str, str], ...]
    """All capability settings, so that a change of any is noticed."""
    description: str = field(default="", compare=False)
    source: object = field(default=None, compare=False, repr=False)
    """ExaBGP's own object, for the adapter."""

    @property
    def is_ebgp(self) -> bool:
        return self.asn != self.local_asn

    def renews(self, before: Neighbor) -> bool:
        """The same two speakers exchange the same families, on other terms (timers, ports, protection): what
        they told each other holds while a new session takes the place of the old one."""
        return self.restart_time > 0 and self._parties == before._parties

    @property
    def _parties(self) -> tuple[object, ...]:
        return (
            self.address, self.asn, self.local_address, self.local_asn, self.router_id, self.families,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Negotiation:
    """What the two OPENs agreed on."""

    router_id: str
    asn: Asn
    hold_time: int
    families: tuple[IpVersion, ...]
    restart_time: int | None
    restarting: bool
    graceful: tuple[GracefulFamily, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """A received UPDATE after the checks: per family what is gone and what came."""

    withdrawn: tuple[tuple[IpVersion, list[Packed]], ...] = ()
    announced: tuple[tuple[IpVersion, Attributes, list[Packed]], ...] = ()
    end_of_rib: IpVersion | None = None
    fault: str | None = None
    """Why announced routes were treated as withdrawn (RFC 7606)."""
    faulty: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """NLRI that go out in the same UPDATEs; without attributes they are withdrawn."""

    version: IpVersion
    attributes: Attributes | None
    nlri: list[Packed]


class SessionEvents(Protocol):
    """Who hears about a session. Called from inside the session's own loop: must not raise or block."""

    def on_state(self, state: State) -> None: ...
    def on_up(self, negotiation: Negotiation) -> None: ...
    def on_down(self, reason: str, graceful: bool) -> None: ...
    def on_update(self, update: Update) -> None: ...
    def on_refresh(self, version: IpVersion) -> None: ...
    def has_batches(self) -> bool: ...
    def next_batch(self) -> Batch | None: ...
