"""Where `tortiectl top` and `watch` hear of the nodes: a broker when one is set, else the agents' sockets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agent.cli import agentsocket
from agent.cli.errors import Failed
from agent.telemetry.broker import Broker, BrokerError, client, why
from agent.telemetry.payloads import Event
from agent.telemetry.topics import subscriptions

if TYPE_CHECKING:
    import aiomqtt

    from agent.telemetry.fleet import Fleet

Tell = Callable[[list[Event]], None]
POLL = 1.0
"""Seconds between two looks at the sockets."""
ASK = 3.0
"""Seconds an agent may take to answer."""
AT_ONCE = 16
"""Agents asked at the same time."""
QUIET = 0.3
"""Seconds of silence after which all retained messages are taken to have come."""
SETTLED_AT_LAST = 5.0
"""Seconds after which a broker that never falls silent is not waited for any longer."""
RETRY = 3.0


class Source(Protocol):
    """Tells the fleet what it hears, for ever."""

    problem: str
    """Why nothing is heard; empty when all is well."""
    prefix: str
    """Of the topics it hears; empty for sockets."""
    settled: asyncio.Event
    """Set when everything that was there at the start has been heard, or could not be."""

    @property
    def name(self) -> str: ...

    async def run(self, fleet: Fleet, tell: Tell) -> None: ...


def choose(environ: Mapping[str, str] = os.environ) -> Source:
    """Raises Failed for settings of a broker that cannot be used."""
    try:
        broker = Broker.from_settings(lambda name: environ.get(name, "").strip())
    except BrokerError as error:
        raise Failed(str(error)) from None
    if broker is not None:
        return BrokerSource(broker, environ.get("TORTIE_CLUSTER", "").strip() or "+")
    return SocketSource(Path(environ.get("TORTIE_RUN_DIR") or agentsocket.DEFAULT_RUN_DIR))


class BrokerSource:
    """Every node's messages; connects again when the connection is lost."""

    def __init__(self, broker: Broker, cluster: str) -> None:
        self.problem = ""
        self.settled = asyncio.Event()
        self.prefix = broker.topic
        self._broker = broker
        self._filters = subscriptions(broker.topic, cluster)

    @property
    def name(self) -> str:
        return f"{self._broker.url} {self.prefix}"

    async def run(self, fleet: Fleet, tell: Tell) -> None:
        import aiomqtt

        while True:
            try:
                tls = await asyncio.to_thread(self._broker.tls)
                async with client(self._broker, None, tls=tls) as connected:
                    await self._read(connected, fleet, tell)
            except (aiomqtt.MqttError, BrokerError, OSError) as error:
                reason = str(error) if isinstance(error, BrokerError) else why(error, self._broker)
                self.problem = f"MQTT broker {self._broker.url}: {reason}"
                self.settled.set()
            await asyncio.sleep(RETRY)

    async def _read(self, connected: aiomqtt.Client, fleet: Fleet, tell: Tell) -> None:
        last = [time.monotonic()]
        hearing = asyncio.create_task(self._hear(connected, fleet, tell, last))
        try:
            await connected.subscribe([(one, 0) for one in self._filters])
            # A broker answers in order: with the second answer, what was retained is on its way.
            await connected.subscribe([(one, 0) for one in self._filters[-1:]])
            self.problem = ""
            latest = time.monotonic() + SETTLED_AT_LAST
            while (left := min(last[0] + QUIET, latest) - time.monotonic()) > 0 and not hearing.done():
                await asyncio.wait((hearing,), timeout=left)
            self.settled.set()
            await hearing
        finally:
            hearing.cancel()

    async def _hear(self, connected: aiomqtt.Client, fleet: Fleet, tell: Tell, last: list[float]) -> None:
        async for message in connected.messages:
            last[0] = time.monotonic()
            payload = message.payload if isinstance(message.payload, bytes) else b""
            tell(fleet.hear(str(message.topic), payload, retained=bool(message.retain), now=time.time()))


class SocketSource:
    """This host's agent, or all agents of a lab, asked once a second."""

    def __init__(self, run: Path) -> None:
        self.problem = ""
        self.settled = asyncio.Event()
        self.prefix = ""
        self._run = run
        self._names: dict[Path, str] = {}
        """What the agents call their nodes; a directory may be called otherwise."""

    @property
    def name(self) -> str:
        return str(self._run)

    def sockets(self) -> dict[str, Path]:
        """Name -> socket; the name of a single agent is in its answer only, so it is empty here."""
        single = self._run / agentsocket.SOCKET
        if single.exists():
            return {"": single}
        return {name: self._run / name / agentsocket.SOCKET for name in agentsocket.nodes(self._run)}

    async def run(self, fleet: Fleet, tell: Tell) -> None:
        at_once = asyncio.Semaphore(AT_ONCE)
        while True:
            sockets = self.sockets()
            self.problem = "" if sockets else self._nobody()
            asked = (self._ask(fleet, tell, at_once, *one) for one in sockets.items())
            fleet.keep_only(set(await asyncio.gather(*asked)))
            self.settled.set()
            await asyncio.sleep(POLL)

    def _nobody(self) -> str:
        return f"there is no agent below {self._run}: is tortie-agent running?{agentsocket.lab_here()}"

    async def _ask(self, fleet: Fleet, tell: Tell, at_once: asyncio.Semaphore, node: str, path: Path) -> str:
        """The name under which the fleet knows it now."""
        async with at_once:
            try:
                answer = await asyncio.to_thread(agentsocket.ask, path, {"ask": "status"}, ASK)
            except Failed as error:
                name = self._names.get(path) or node or "(this host)"
                tell(fleet.unreachable(name, error.message, time.time()))
            else:
                name = self._names[path] = str(answer.get("node", ""))
                tell(fleet.tell(answer, time.time()))
            return name
