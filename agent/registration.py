"""The node's registration as a task: once, as soon as etcd answers; oddities go to the status."""

from __future__ import annotations

import asyncio
import logging
import random

from agent.register import CannotRegister, Registered, register
from agent.settings import Settings
from agent.sinks.links import interfaces
from felix_like.datastore.cas import ResourceStore
from felix_like.datastore.client import Client
from felix_like.datastore.errors import EtcdError
from felix_like.model.verdict import Refusal

log = logging.getLogger(__name__)

FIRST_RETRY, LONGEST_RETRY = 0.5, 10.0


class Registration:
    """Makes the Node resource say what this host says. A datastore that is away only delays it."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._refusals: tuple[Refusal, ...] = ()

    def refusals(self) -> tuple[Refusal, ...]:
        return self._refusals

    async def run(self) -> None:
        """Returns when the node is registered. Raises CannotRegister when it must not be."""
        retry = FIRST_RETRY
        while True:
            try:
                self._done(await self._register())
                return
            except EtcdError as error:
                self._say(f"not registered yet: {error}")
            await asyncio.sleep(retry * random.uniform(0.8, 1.2))
            retry = min(retry * 2, LONGEST_RETRY)

    async def _register(self) -> Registered:
        return await register(
            ResourceStore(self._client), self._settings, await asyncio.to_thread(interfaces)
        )

    def _done(self, registered: Registered) -> None:
        subject = f"Node {self._settings.nodename}"
        self._refusals = tuple(Refusal(subject, note) for note in registered.notes)
        for note in registered.notes:
            log.warning("%s: %s", subject, note)
        addresses = [str(own) for own in (registered.ipv4, registered.ipv6) if own is not None]
        log.info(
            "%s is %s with %s",
            subject,
            "registered" if registered.changed else "as it was",
            " and ".join(addresses),
        )

    def _say(self, reason: str) -> None:
        refusal = Refusal(f"Node {self._settings.nodename}", reason)
        if self._refusals != (refusal,):
            log.warning("%s", refusal)
        self._refusals = (refusal,)


__all__ = ["CannotRegister", "Registration"]
