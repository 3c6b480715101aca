"""A candidate in a process of its own, for tests that stop, freeze and kill it.

    python -m tests.support.candidate ENDPOINT IDENTITY TTL

While it leads it counts up in its own key, as fast as etcd lets it; each line of its output is a JSON object
(`{"leads": true}`, `{"over": "refused"}`). At the end of each term it stubbornly writes once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys

from agent.controllers.election import Election, Leadership
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.errors import EtcdError, GuardFailed

WORK = "/task/"


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


async def count(leadership: Leadership) -> None:
    """One key, `/task/count`: `{"by": identity, "n": ...}`."""
    say(leads=True)
    n = 0
    try:
        while True:
            n += 1
            value = json.dumps({"by": leadership.identity, "n": n}).encode()
            try:
                await leadership.client.put(WORK + "count", value)
            except GuardFailed:
                raise
            except EtcdError as error:
                say(failed=str(error))
            await asyncio.sleep(0.005)
    finally:
        say(over=await uncancelled(asyncio.ensure_future(once_more(leadership))))


async def uncancelled(work: asyncio.Future[str]) -> str:
    """Its outcome, however often we are cancelled: a refused write may end the term just before the watch."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(work)
    return work.result()


async def once_more(leadership: Leadership) -> str:
    """What becomes of a write that is late."""
    try:
        await leadership.client.put(WORK + "count", json.dumps({"by": leadership.identity, "n": 0}).encode())
    except GuardFailed:
        return "refused"
    except EtcdError as error:
        return str(error)
    return "written"


async def main(endpoint: str, identity: str, ttl: int) -> None:
    async with Client(EtcdConfig(endpoints=(endpoint,))) as client:
        work = asyncio.ensure_future(Election(client, identity, ttl=ttl).run(count))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
        await asyncio.wait({work})
        if not work.cancelled() and work.exception() is not None:
            raise work.exception()  # type: ignore[misc]


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
