"""What the lab looks like now, whether that is as it should be, and pings that go on meanwhile."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from agent.lab.compose.engine import Engine
from agent.lab.compose.plan import OUTSIDE, OUTSIDE_PREFIX, TOR, node_names, planned
from agent.lab.plan import LabError

_LISTEN = f"mosquitto_sub -t 'tortie/v1/default/+/status' --retained-only -C {len(node_names())} -W 2"
"""Ends with the last node's status, or after 2 s."""


@dataclass(frozen=True, slots=True)
class Look:
    """One node at one moment."""

    name: str
    pods: dict[str, list[str]]
    """Pod -> its addresses."""
    routes: dict[str, str]
    """Prefix -> gateway."""
    status: dict[str, Any]
    """As agent.sock answers; has "error" while it does not."""

    def wrong(self) -> Iterator[str]:
        """What keeps this node from being whole."""
        if "error" in self.status:
            yield f"{self.name}: {self.status['error']}"
            return
        for part, good in (("datastore", "in-sync"), ("speaker", "connected")):
            if self.status[part]["state"] != good:
                yield f"{self.name}: {part} {self.status[part]['state']}"
        for peer in self.status["peers"]:
            if peer["state"] != "Established":
                yield f"{self.name}: peer {peer['address']} {peer['state']}"
        yield from self._unrouted()

    def _unrouted(self) -> Iterator[str]:
        """What the kernel should lead to and does not: every other node's blocks, and the outside."""
        via = set(self.routes.values())
        for other in map(planned, node_names()):
            for address in () if other.name == self.name else (other.ipv4, other.ipv6):
                if address not in via:
                    yield f"{self.name}: no route via {other.name} ({address})"
        for version, prefix in OUTSIDE_PREFIX.items():
            if self.routes.get(prefix) != TOR[version]:
                yield f"{self.name}: no route to {prefix} via the ToR router"

    def since(self) -> dict[str, float]:
        """Peer -> when its session came up."""
        return {peer["address"]: peer["since"] for peer in self.status.get("peers", [])}


@dataclass(slots=True)
class Stream:
    """Pings from a pod to an address, 20 a second, until it ends."""

    child: subprocess.Popen[str]
    label: str
    sent: int = 0
    received: int = 0

    def end(self) -> None:
        said = self.child.communicate(timeout=30)[0]
        if self.child.returncode:
            raise LabError(f"the pings {self.label} ended: {said.strip()}")
        counts = json.loads(said.strip().splitlines()[-1])
        self.sent, self.received = counts["sent"], counts["received"]

    @property
    def lost(self) -> int:
        return self.sent - self.received

    def __str__(self) -> str:
        return f"{self.label}: {self.lost} of {self.sent} lost"


@dataclass(slots=True)
class World:
    """The lab behind an engine. Clock and sleep come in."""

    engine: Engine
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    pods: dict[str, list[str]] = field(default_factory=dict)
    """Pod -> its addresses, as seen last."""

    def look(self, names: Iterable[str] = ()) -> dict[str, Look]:
        """Every node, or the named ones."""
        wanted = list(names) or node_names()
        with ThreadPoolExecutor(max_workers=len(wanted)) as pool:
            seen = pool.map(lambda name: Look(name, **self.engine.inside(name, "look")), wanted)
            looks = {look.name: look for look in seen}
        for look in looks.values():
            self.pods |= look.pods
        return looks

    def wrong(self) -> list[str]:
        """What is not whole, in all nodes, and at the ToR router."""
        try:
            found = [phrase for look in self.look().values() for phrase in look.wrong()]
            return found or [*self._tor(), *self._untold()]
        except LabError as error:
            return [str(error)]

    def _tor(self) -> Iterator[str]:
        """Every block should be reachable by every node (ECMP), in both families."""
        for version in (4, 6):
            hops = self.ecmp(version)
            if len(hops) < len(node_names()) or set(hops.values()) != {len(node_names())}:
                yield f"ToR router: IPv{version} blocks have {sorted(hops.values())} next hops"

    def _untold(self) -> Iterator[str]:
        said = self.broker()
        for name in node_names():
            if said.get(name) != "running":
                yield f"broker: {name} is {said.get(name, 'unheard of')}"

    def broker(self) -> dict[str, str]:
        """Node -> what the broker's retained status says: running, stopped or gone."""
        text = self.engine.execute("broker", "sh", "-c", f"{_LISTEN} || test $? = 27  # nothing more to hear")
        statuses = map(json.loads, text.splitlines())
        return {status["node"]: status["state"] for status in statuses}

    def unheard(self) -> list[str]:
        """Whom Prometheus does not hear, and which agents it does not know."""
        try:
            targets = self._targets()
        except LabError as error:
            return [f"Prometheus: {error}"]
        silent = [f"Prometheus does not hear {job} {name}" for (job, name), up in targets.items() if not up]
        agents = {name for job, name in targets if job == "tortie"}
        unknown = [f"Prometheus has not looked for {name} yet" for name in node_names() if name not in agents]
        return [*silent, *unknown]

    def _targets(self) -> dict[tuple[str, str], bool]:
        """(job, instance) -> whether the last scrape succeeded."""
        ask = ("promtool", "query", "instant", "-o", "json", "http://127.0.0.1:9090", "up")
        found = json.loads(self.engine.execute("prometheus", *ask) or "[]")
        return {(one["metric"]["job"], one["metric"]["instance"]): one["value"][1] == "1" for one in found}

    def ecmp(self, version: int) -> dict[str, int]:
        """Prefix -> number of next hops in the ToR router's kernel."""
        said = self.engine.execute("tor", "ip", "-j", f"-{version}", "route", "show", "proto", "bird")
        return {route["dst"]: len(route.get("nexthops", "x")) for route in json.loads(said or "[]")}

    def wait(self, check: Callable[[], list[str]], seconds: float) -> float:
        """Repeat until `check` finds nothing wrong; seconds it took. Raises LabError with what is left."""
        start = self.clock()
        while wrong := check():
            if self.clock() - start > seconds:
                rest = f" (and {len(wrong) - 4} more)" if len(wrong) > 4 else ""
                raise LabError(f"still so after {seconds:g} s: {'; '.join(wrong[:4])}{rest}")
            self.sleep(0.2)
        return self.clock() - start

    def ping_all(self) -> tuple[int, list[str]]:
        """From every pod to every pod and to the outside: pairs tried, and the silent ones."""
        targets = [f"{name}={address}" for name, both in self.pods.items() for address in both]
        targets += [f"outside={address}" for address in OUTSIDE.values()]
        tried, silent = 0, []
        for node in node_names():
            answer = self.engine.inside(node, "ping", *targets)
            tried += answer["tried"]
            silent += [f"{pod} to {', '.join(lost)}" for pod, lost in answer["lost"].items()]
        return tried, silent

    @contextmanager
    def pings(self, *pairs: tuple[str, str]) -> Iterator[list[Stream]]:
        """Streams from the first pod of one node to the first of another; counted when the block ends."""
        streams = [self._stream(source, target) for source, target in pairs]
        try:
            yield streams
        finally:
            for stream in streams:
                stream.end()

    def _stream(self, source: str, target: str) -> Stream:
        address = OUTSIDE[4] if target == "outside" else self.pods[f"{target}-pod-1"][0]
        child = self.engine.start_inside(source, "stream", f"{source}-pod-1", address)
        assert child.stdout is not None
        if child.stdout.readline().strip() != "started":
            raise LabError(f"the pings from {source} to {target} did not start")
        return Stream(child, f"{source} to {target}")
