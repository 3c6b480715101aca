"""How it goes with the Kubernetes API, for people: of one informer, and of all of them together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from agent.follow import StoreState
from felix_like.datastore.kube.informer import InSync, KubeBatch, Stale

log = logging.getLogger(__name__)

STATES: Final = ("idle", "in-sync", "connecting", "stale")
"""From good to bad. `idle`: nothing that needs Kubernetes is configured."""


class Track:
    """The state of one informer. `subject`: what it follows, for the log; `wall`: the time of day."""

    def __init__(self, subject: str, wall: Callable[[], float]) -> None:
        self._subject = subject
        self._wall = wall
        self.state = StoreState("idle", wall())

    def needed(self, needed: bool) -> None:
        """There is something to follow, or no longer."""
        if needed != (self.state.state != "idle"):
            self._enter("connecting" if needed else "idle")

    def hear(self, event: KubeBatch[Any] | Stale | InSync) -> None:
        if self.state.state == "idle":
            return
        match event:
            case InSync():
                if self.state.state != "in-sync":
                    log.info("in sync with Kubernetes: %s", self._subject)
                self._enter("in-sync")
            case Stale(reason):
                log.warning(
                    "Kubernetes cannot be followed: %s; what is known of %s stays", reason, self._subject
                )
                self._enter("stale", reason)
            case KubeBatch():
                pass

    def _enter(self, state: str, reason: str = "") -> None:
        if (state, reason) != (self.state.state, self.state.reason):
            since = self.state.since if state == self.state.state else self._wall()
            self.state = StoreState(state, since, reason)


def worst(states: Iterable[StoreState]) -> StoreState:
    """What is said of all together."""
    return max(states, key=lambda one: STATES.index(one.state))
