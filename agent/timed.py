"""How long news takes to become kernel routes, measured between the calculation and the kernel sink."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.keep import Report, Sink
from felix_like.model.address import Address
from felix_like.model.desired import Route, RouteKey


class RouteSink(Sink, Protocol):
    """The kernel sink, to both its sides."""

    def want(self, changes: Mapping[RouteKey, Route | None]) -> None: ...

    def allow_sweep(
        self, authoritative: bool, awaiting: frozenset[Address], peers: frozenset[Address]
    ) -> None: ...


class Timed:
    """Passes everything on to `sink`; `observe` hears the seconds from the first news, whose time `told_at`
    gives, to the end of the turn that wrote what followed. Times are seconds of `clock`."""

    def __init__(
        self,
        sink: RouteSink,
        *,
        told_at: Callable[[], float],
        clock: Callable[[], float],
        observe: Callable[[float], None],
    ) -> None:
        self._sink = sink
        self._told_at = told_at
        self._clock = clock
        self._observe = observe
        self._since: float | None = None

    @property
    def name(self) -> str:
        return self._sink.name

    @property
    def wake(self) -> asyncio.Event:
        return self._sink.wake

    def want(self, changes: Mapping[RouteKey, Route | None]) -> None:
        if self._since is None:
            self._since = self._told_at()
        self._sink.want(changes)

    def allow_sweep(
        self, authoritative: bool, awaiting: frozenset[Address], peers: frozenset[Address]
    ) -> None:
        self._sink.allow_sweep(authoritative, awaiting, peers)

    async def start(self) -> None:
        await self._sink.start()

    async def apply(self) -> Report:
        since, self._since = self._since, None
        try:
            report = await self._sink.apply()
        except BaseException:
            self._since = since if since is not None else self._since
            raise
        if since is not None:
            self._observe(self._clock() - since)
        return report
