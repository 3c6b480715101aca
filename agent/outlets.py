"""How the agent tells how it is: agent.sock, HTTP for probes and Prometheus, MQTT, the service manager."""

from __future__ import annotations

import os
import time
from collections.abc import Coroutine
from typing import Any, Final

from agent.answers import serve
from agent.readiness import Readiness
from agent.settings import Settings
from agent.sinks.mqtt import MqttSink
from agent.status import Status
from agent.systemd import Notifier, keep_told
from agent.web import metrics
from agent.web.exposition import Family, Histogram
from agent.web.health import Health
from felix_like.model.verdict import Refusal

CONVERGENCE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Seconds."""


class Outlets:
    """Those that the settings ask for. None of them computes anything, and none matters to forwarding."""

    def __init__(
        self, settings: Settings, status: Status, readiness: Readiness, convergence: Histogram
    ) -> None:
        self._socket = settings.run_dir / "agent.sock"
        self._status = status
        self._readiness = readiness
        self._convergence = convergence
        self._notifier = Notifier(os.environ)
        self._mqtt = None
        if settings.broker is not None:
            self._mqtt = MqttSink(settings.broker, settings.nodename, status.status, time.time)
        self._health = None
        if settings.health_address is not None:
            self._health = Health(
                settings.health_address,
                ready=readiness.verdict,
                status=status.status,
                more=self._more,
            )

    def refusals(self) -> list[Refusal]:
        """What is wrong with the outlets themselves."""
        return [r for outlet in (self._mqtt, self._health) if outlet is not None for r in outlet.refusals()]

    def work(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run, by name; each for ever."""
        work: dict[str, Coroutine[Any, Any, None]] = {
            "agent.sock": serve(self._socket, self._status.answer),
            "service manager": keep_told(
                self._notifier, ready=self._readiness.verdict, sentence=self._status.sentence
            ),
        }
        if self._mqtt is not None:
            work[self._mqtt.name] = self._mqtt.run()
        if self._health is not None:
            work["health endpoint"] = self._health.run()
        return work

    def close(self) -> None:
        """We are going."""
        self._notifier.say(STOPPING="1")

    def _more(self) -> list[Family]:
        """The metrics that the status does not have."""
        connected = self._mqtt.connected if self._mqtt is not None else None
        return [metrics.broker(connected), metrics.convergence(self._convergence)]
