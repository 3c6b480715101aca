"""/healthz, /readyz and /metrics: what Kubernetes' probes and Prometheus ask."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from agent.fair import Fair
from agent.web import exposition, http
from agent.web.http import Response
from agent.web.metrics import families
from felix_like.model.verdict import Refusal, Verdict

log = logging.getLogger(__name__)

RETRY: Final = 5.0
"""Seconds before a port that somebody else has is tried again."""


class Health:
    """Serves for ever. `ready` says why not; `status` gives the document that `agent.sock` gives; `more` the
    metrics that are not in it.

    A port that is taken (by the calico-node we take over from, say) is said, and tried again: nothing that
    forwards packets depends on it.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        ready: Callable[[], Verdict],
        status: Callable[[], Mapping[str, Any]],
        more: Callable[[], list[exposition.Family]] = list,
    ) -> None:
        self._address = address
        self._ready = ready
        self._status = status
        self._more = more
        self._fair = Fair()
        self._refusal: Refusal | None = None
        self.port: int | None = None
        """The port in use; None while there is none."""

    def refusals(self) -> tuple[Refusal, ...]:
        return (self._refusal,) if self._refusal is not None else ()

    async def run(self, *, retry: float = RETRY) -> None:
        listener: http.Listener | None = None
        try:
            while listener is None:
                try:
                    listener = await http.listen(*self._address, self.respond)
                except OSError as error:
                    # asyncio puts the address into strerror; the errno's own words are enough.
                    self._say(os.strerror(error.errno) if error.errno else str(error))
                    await asyncio.sleep(retry * random.uniform(0.8, 1.2))
            self._refusal = None
            self.port = listener.port
            await asyncio.get_running_loop().create_future()
        finally:
            if listener is not None:
                listener.close()

    async def respond(self, path: str) -> Response | None:
        match path:
            case "/healthz" | "/livez":
                # Whoever gets this answer has seen the event loop turn.
                return Response("ok\n")
            case "/readyz":
                verdict = await self._fair.make(self._ready)
                return Response("ready\n") if verdict else Response(f"not ready: {verdict.reason}\n", 503)
            case "/metrics":
                return Response(await self._fair.make(self._metrics), kind=exposition.CONTENT_TYPE)
        return None

    def _metrics(self) -> str:
        ready = bool(self._ready())
        return exposition.text([*families(self._status(), ready=ready), *self._more()])

    def _say(self, reason: str) -> None:
        host, port = self._address
        refusal = Refusal(
            "health endpoint",
            f"{host} port {port} cannot be used: {reason}; free it, or set TORTIE_HEALTH_ADDRESS to another "
            "address, or to none",
        )
        if refusal != self._refusal:
            log.warning("%s", refusal)
        self._refusal = refusal
