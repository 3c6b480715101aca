"""Tells a broker how the node is, as long as there is one; whatever it does, the agent goes on.

Two tasks: one looks at the status once a second and notes what is to be told, the other tells it. Only the
second ever waits for the broker.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from agent.telemetry import broker as brokers
from agent.telemetry import summary, topics
from agent.telemetry.broker import Broker, BrokerError
from agent.telemetry.outgoing import Message, Outgoing
from felix_like.model.verdict import Refusal

if TYPE_CHECKING:
    import aiomqtt

log = logging.getLogger(__name__)

LOOK_PAUSE = 1.0
"""Seconds between two looks at the status."""
LOOK_SHARE = 0.02
"""Share of the agent's time that looking may take; with very many peers it looks less often."""
FIRST_RETRY, LONGEST_RETRY = 1.0, 60.0
STEADY = 30.0
"""Seconds a connection must have lasted before the next loss starts with the shortest pause again."""
SUSPICIOUS = 3
"""Connections in a row, each lost before it was steady, that look like two clients with one identifier."""
EXPIRY = 86_400
"""Seconds after which a broker forgets what nobody has refreshed: nodes that were removed for good."""
FAREWELL = 1.0
"""Seconds for the last word of an agent that ends in order."""


class MqttSink:
    """`status` gives the document of `agent.sock`; `wall` seconds since the epoch."""

    name = "MQTT telemetry"

    def __init__(
        self, broker: Broker, node: str, status: Callable[[], dict[str, Any]], wall: Callable[[], float]
    ) -> None:
        self._broker = broker
        self._node = node
        self._status = status
        self._wall = wall
        self._base = topics.base(broker.topic, broker.cluster, node)
        self._outgoing = Outgoing(node, broker.cluster)
        self._news = asyncio.Event()
        self._problem: str | None = None
        self._connected_at = 0.0
        self._short_lives = 0
        """Connections in a row that did not last; not every broker says why it ends one."""
        self.connected = False

    def refusals(self) -> tuple[Refusal, ...]:
        """Why the broker is not told anything; empty while it is."""
        return (Refusal(f"MQTT broker {self._broker.url}", self._problem),) if self._problem else ()

    async def run(self) -> None:
        """For ever. Never raises but for its own cancellation; then a connected broker hears the farewell."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look(), name="MQTT look")
            group.create_task(self._keep_connected(), name="MQTT connection")

    async def _look(self) -> None:
        while True:
            begun = time.perf_counter()
            try:
                self._outgoing.observe(self._status())
            except Exception:
                log.exception("the status could not be told")  # telemetry never ends the agent
            self._news.set()
            took = time.perf_counter() - begun
            await asyncio.sleep(max(LOOK_PAUSE, took / LOOK_SHARE))

    async def _keep_connected(self) -> None:
        retry = FIRST_RETRY
        clock = asyncio.get_running_loop().time
        while True:
            self._connected_at = 0.0
            try:
                await self._talk()
            except Exception as error:
                self._count_life(clock())
                self._complain(error)
            if self._short_lives == 0 and self._connected_at:
                retry = FIRST_RETRY
            # A broker that comes back meets a whole cluster: the pauses are spread widely.
            await asyncio.sleep(retry * random.uniform(0.5, 1.5))
            retry = min(retry * 2, LONGEST_RETRY)

    async def _talk(self) -> None:
        """One connection, from beginning to end."""
        client = await self._client()
        await client.__aenter__()
        _end_if_told()
        self.connected, self._connected_at = True, asyncio.get_running_loop().time()
        self._outgoing.connected()
        tasks = (
            asyncio.create_task(_until_lost(client), name="MQTT reading"),
            asyncio.create_task(self._tell(client), name="MQTT writing"),
        )
        try:
            # No TaskGroup: on Python 3.11 one that failed leaves this task looking cancelled.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        except asyncio.CancelledError:
            await _end(tasks)
            await self._farewell(client)
            raise
        finally:
            self.connected = False
            await _end(tasks)
            client.timeout = FAREWELL
            await _leave(client)

    async def _client(self) -> aiomqtt.Client:
        tls = await asyncio.to_thread(self._broker.tls)
        import aiomqtt

        will = summary.encode(summary.will(self._node, self._broker.cluster, self._wall()))
        return brokers.client(
            self._broker,
            self._base,
            tls=tls,
            will=aiomqtt.Will(f"{self._base}/status", will, 1, True, _expiring("WILLMESSAGE")),
        )

    async def _tell(self, client: aiomqtt.Client) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._news.clear()
            while (message := self._outgoing.next(clock())) is not None:
                await self._publish(client, message)
                _end_if_told()
                self._outgoing.delivered(message, clock())
                self._solved(clock())
            try:
                async with asyncio.timeout(self._outgoing.wait(clock())):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _publish(self, client: aiomqtt.Client, message: Message) -> None:
        properties = _expiring("PUBLISH") if message.retain else None
        topic = f"{self._base}/{message.kind}"
        await client.publish(topic, message.payload, qos=1, retain=message.retain, properties=properties)

    async def _farewell(self, client: aiomqtt.Client) -> None:
        """Ended in order: the retained status says so, and a clean DISCONNECT keeps the last will back."""
        self._outgoing.stop(self._wall())
        message = self._outgoing.next(asyncio.get_running_loop().time())
        if message is None:
            return
        try:
            async with asyncio.timeout(FAREWELL):
                await self._publish(client, message)
        except Exception as error:
            log.info("the broker did not hear the farewell: %s", brokers.why(error, self._broker))

    def _count_life(self, now: float) -> None:
        if self._connected_at:
            self._short_lives = self._short_lives + 1 if now - self._connected_at < STEADY else 0

    def _solved(self, now: float) -> None:
        """The broker took a message; one that ends each connection soon is still a problem."""
        if self._short_lives >= SUSPICIOUS and now - self._connected_at < STEADY:
            return
        if self._problem is not None:
            log.info("MQTT broker %s: connected again", self._broker.url)
        self._problem = None

    def _complain(self, error: BaseException) -> None:
        problem = str(error) if isinstance(error, BrokerError) else brokers.why(error, self._broker)
        if self._short_lives >= SUSPICIOUS:
            problem += ", as often before: do two agents have the same node name?"
        problem = f"{problem}; the agent goes on, and tries again"
        if problem != self._problem:
            log.warning("MQTT broker %s: %s", self._broker.url, problem)
        self._problem = problem


async def _until_lost(client: aiomqtt.Client) -> None:
    """We subscribe to nothing; what comes is dropped. Raises MqttError when the connection ends."""
    async for _ in client.messages:
        pass


def _end_if_told() -> None:
    """The library's asyncio.wait_for loses a cancellation that meets an answer (Python 3.11)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _leave(client: aiomqtt.Client) -> None:
    try:
        # Why it was lost has to be asked once more, or the loop logs it when it is thrown away.
        async with asyncio.timeout(0.05):
            await _until_lost(client)
    except Exception as error:
        log.debug("the connection: %s", error or type(error).__name__)
    try:
        await client.__aexit__(None, None, None)
    except Exception as error:
        log.debug("the connection did not end in order: %s", error)


def _expiring(packet: str) -> Any:
    """MQTT 5's message expiry interval."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    properties: Any = Properties(getattr(PacketTypes, packet))  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = EXPIRY
    return properties
