"""Two network namespaces joined by a veth pair, for tests that program a real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.keep import Sink, keep
from agent.sinks.kernel import KernelSink
from agent.sinks.monitor import RouteMonitor
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import PROTO_BGP, KernelNextHop, Route, RouteKey

CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)


def setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns failed")


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """The calling thread, and what it starts, is in that namespace meanwhile."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        setns(there)
        yield
    finally:
        setns(home)
        os.close(there)
        os.close(home)


@dataclass
class World:
    """`near` is where the agent would live, `far` the neighbour: 10.0.0.2 and .3, fd00::2 and ::3."""

    near: str
    far: str
    link: int
    """Index of `eth0` in `near`; addresses 10.0.0.1/24 and fd00::1/64."""

    def ip(self, command: str, where: str | None = None) -> str:
        done = subprocess.run(
            ["ip", "-n", where or self.near, *command.split()], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"ip {command}: {done.stderr}"
        return done.stdout

    def batch(self, lines: list[str]) -> None:
        subprocess.run(
            ["ip", "-n", self.near, "-batch", "-"],
            input="\n".join(lines),
            text=True,
            check=True,
            capture_output=True,
        )

    def routes(self, selector: str = "") -> list[dict[str, Any]]:
        """Both families of the main table as `ip -j` tells them."""
        found: list[dict[str, Any]] = []
        for family in ("-4", "-6"):
            if selector and (":" in selector) != (family == "-6"):
                continue
            text = self.ip(f"{family} -j -N route show table main {selector}")
            found += json.loads(text or "[]")
        return found

    def via(self, *gateways: str, link: int | None = None) -> tuple[KernelNextHop, ...]:
        return tuple(KernelNextHop(Address.parse(gateway), link or self.link) for gateway in gateways)

    def learned(self, prefix: str, *gateways: str, priority: int = 1024) -> Route:
        return Route(RouteKey(Prefix.parse(prefix), priority), "unicast", PROTO_BGP, self.via(*gateways))

    def blackhole(self, prefix: str, priority: int = 1024) -> Route:
        return Route(RouteKey(Prefix.parse(prefix), priority), "blackhole", PROTO_BGP)


@contextlib.contextmanager
def made_world() -> Iterator[World]:
    near, far = (f"tt{os.getpid()}-{side}{next(_numbers)}" for side in ("n", "f"))
    try:
        for name in (near, far):
            subprocess.run(["ip", "netns", "add", name], check=True)
        world = World(near, far, 0)
        world.ip("link set lo up")
        world.ip("link set lo up", far)
        world.ip(f"link add eth0 type veth peer name eth0 netns {far}")
        for where in (near, far):
            world.ip("link set eth0 up", where)
        world.ip("addr add 10.0.0.1/24 dev eth0")
        world.ip("addr add fd00::1/64 dev eth0 nodad")
        for last in (2, 3):
            world.ip(f"addr add 10.0.0.{last}/24 dev eth0", far)
            world.ip(f"addr add fd00::{last}/64 dev eth0 nodad", far)
        with entered(near):
            world.link = socket.if_nametoindex("eth0")
            yield world
    finally:
        for name in (near, far):
            if Path("/run/netns", name).exists():
                subprocess.run(["ip", "netns", "del", name], check=False)


async def until(holds: Callable[[], object], seconds: float = 10.0, every: float = 0.02) -> None:
    """Poll for a state; fails after the deadline."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "the awaited state did not come"
        await asyncio.sleep(every)


@contextlib.asynccontextmanager
async def kept(sink: Sink) -> AsyncIterator[None]:
    """The sink under the agent's own reconcile loop."""
    task = asyncio.create_task(keep(sink))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def agent_life(monitor: RouteMonitor | None = None) -> AsyncIterator[KernelSink]:
    """One life of the kernel part of an agent: monitor and sink, closed afterwards; the routes stay."""
    monitor = monitor or RouteMonitor()
    sink = KernelSink(monitor)
    try:
        async with kept(sink):
            yield sink
    finally:
        sink.close()
        monitor.close()


def wanted(*routes: Route) -> dict[RouteKey, Route | None]:
    return {route.key: route for route in routes}


def settled(sink: KernelSink) -> bool:
    status = sink.status()
    return status.installed == status.wanted
