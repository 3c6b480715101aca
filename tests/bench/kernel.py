"""Kernel programming alone, in routes a second: `python tests/bench/kernel.py [--sizes 1000,10000] [--json]`.

Needs root; works in a network namespace of its own. `sink` is the agent's real path: `KernelSink.want` to the
last acknowledgement, comparison, ledger and all; `packer` the netlink module alone, packing included.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agent.netlink.rtnetlink import CREATE, DELETE
from agent.netlink.sockets import RouteWriter
from agent.sinks.kernel import KernelSink, dump_ours
from agent.sinks.monitor import RouteMonitor
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import PROTO_BGP, KernelNextHop, Route, RouteKey

Figures = dict[str, dict[str, float]]
"""Case -> what was done -> routes a second (`lag` in milliseconds)."""


def _prefixes(version: int, count: int) -> Iterator[Prefix]:
    for number in range(count):
        if version == 4:
            yield Prefix(Address((0x14000000 + (number << 6)).to_bytes(4, "big")), 26)
        else:
            yield Prefix(Address(((0x20010DB8 << 96) + (number << 64)).to_bytes(16, "big")), 64)


def _table(version: int, count: int, lasts: tuple[int, ...], link: int) -> dict[RouteKey, Route | None]:
    base = "10.0.0.%d" if version == 4 else "fd00::%d"
    hops = tuple(KernelNextHop(Address.parse(base % last), link) for last in lasts)
    keys = (RouteKey(prefix) for prefix in _prefixes(version, count))
    return {key: Route(key, "unicast", PROTO_BGP, hops) for key in keys}


async def _timed(sink: KernelSink, changes: dict[RouteKey, Route | None]) -> tuple[float, float]:
    """Routes a second from `want` to the last acknowledgement, and the loop's longest stall in ms."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before - 0.001)

    items = list(changes.items())
    slices = [dict(items[start : start + 1000]) for start in range(0, len(items), 1000)]
    ticker = asyncio.create_task(tick())
    begun = time.perf_counter()
    for changed in slices:  # as the calculation hands them on, a batch at a time
        sink.want(changed)
        await asyncio.sleep(0)
    await sink.apply()
    took = time.perf_counter() - begun
    ticker.cancel()
    status = sink.status()
    assert status.installed == status.wanted, status
    assert not status.failed, status.failed[:3]
    return len(items) / took, longest * 1000


async def _sink(version: int, count: int, ecmp: bool, link: int) -> dict[str, float]:
    monitor = RouteMonitor()
    sink = KernelSink(monitor)
    await sink.start()
    before, after = ((2, 3), (3, 4)) if ecmp else ((2,), (3,))
    table = _table(version, count, before, link)
    try:
        added, lag = await _timed(sink, table)
        changed, lag_changed = await _timed(sink, _table(version, count, after, link))
        begun = time.perf_counter()
        await sink.start()
        read = count / (time.perf_counter() - begun)
        deleted, lag_deleted = await _timed(sink, dict.fromkeys(table))
    finally:
        sink.close()
        monitor.close()
    lag = max(lag, lag_changed, lag_deleted)
    return {"add": added, "replace": changed, "delete": deleted, "read back": read, "lag": lag}


def _packer(version: int, count: int, link: int) -> dict[str, float]:
    writer = RouteWriter()
    routes = [route for route in _table(version, count, (2,), link).values() if route is not None]
    figures = {}
    for name, operation in (("add", CREATE), ("delete", DELETE)):
        begun = time.perf_counter()
        failures = writer.write([(operation, route) for route in routes])
        figures[name] = count / (time.perf_counter() - begun)
        assert not failures, failures[:3]
    writer.close()
    assert dump_ours() == []
    return figures


def measure(sizes: tuple[int, ...] = (1_000, 10_000, 100_000)) -> Figures:
    """Run every case in a network namespace of its own, in a thread that ends afterwards."""
    figures: Figures = {}
    problems: list[BaseException] = []

    def work() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
                raise PermissionError("a network namespace of its own needs root")
            for command in (
                "link set lo up",
                "link add eth0 type veth peer name eth1",
                "link set eth0 up",
                "link set eth1 up",
                "addr add 10.0.0.1/24 dev eth0",
                "addr add fd00::1/64 dev eth0 nodad",
            ):
                subprocess.run(["ip", *command.split()], check=True)
            link = socket.if_nametoindex("eth0")
            for count in sizes:
                figures[f"sink IPv4 {count}"] = asyncio.run(_sink(4, count, False, link))
                figures[f"sink IPv6 {count}"] = asyncio.run(_sink(6, count, False, link))
                figures[f"sink IPv4 ECMP {count}"] = asyncio.run(_sink(4, count, True, link))
                figures[f"sink IPv6 ECMP {count}"] = asyncio.run(_sink(6, count, True, link))
                figures[f"packer IPv4 {count}"] = _packer(4, count, link)
                figures[f"packer IPv6 {count}"] = _packer(6, count, link)
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=work, name="bench")
    thread.start()
    thread.join()
    if problems:
        raise problems[0]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,100000", help="numbers of routes, with commas")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("this makes a network namespace: run it as root")
    figures = measure(tuple(int(size) for size in chosen.sizes.split(",")))
    if chosen.json:
        print(json.dumps(figures))
        return
    columns: list[Any] = ["add", "replace", "delete", "read back", "lag"]
    print(f"{'routes/s (lag: ms)':24}" + "".join(f"{name:>12}" for name in columns))
    for case, row in figures.items():
        print(
            f"{case:24}"
            + "".join(f"{row[name]:>12,.0f}" if name in row else f"{'-':>12}" for name in columns)
        )


if __name__ == "__main__":
    main()
