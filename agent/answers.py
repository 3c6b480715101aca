"""The agent's socket: one JSON line asks, one JSON line answers. Read-only, for every user of the host.

Every user also means hostile ones: questions, connections, waiting and the loop's time are bounded.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.fair import Fair

log = logging.getLogger(__name__)

MODE: Final = 0o666
"""Whoever may log in may read: nothing is changed here, and no password is told."""
LONGEST_QUESTION: Final = 4096
PATIENCE: Final = 10.0
"""Seconds for a question to come, and for each part of the answer to be taken."""
LONGEST_TALK: Final = 120.0
"""Seconds for one client in all."""
MOST_CLIENTS: Final = 64
_IMPATIENCE: Final = 0.5
"""Seconds for a question that will be sent away."""
_SLICE: Final = 50
"""Entries of a long answer made at a time: about 2 ms."""


@dataclass(frozen=True, slots=True)
class Listing:
    """An answer `{name: [entries]}` that may be long: made and sent slice by slice."""

    name: str
    entries: Iterable[dict[str, Any]]


Answer = Callable[[dict[str, Any]], "dict[str, Any] | Listing"]
"""Raises ValueError with a sentence for a question nobody can answer."""


async def serve(
    path: Path, answer: Answer, *, patience: float = PATIENCE, most_clients: int = MOST_CLIENTS
) -> None:
    """Serve until cancelled; the socket file goes with us. A stale one of an earlier life is replaced."""
    clients = Clients(answer, patience, most_clients)
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(clients.talk, path, limit=LONGEST_QUESTION)
    path.chmod(MODE)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        path.unlink(missing_ok=True)
        server.close()
        clients.close()


class Clients:
    """Those who are asking now."""

    def __init__(self, answer: Answer, patience: float, most: int) -> None:
        self._answer = answer
        self._patience = patience
        self._most = most
        self._writers: set[asyncio.StreamWriter] = set()
        self._fair = Fair()

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: a question, its answer, the end."""
        self._writers.add(writer)
        try:
            async with asyncio.timeout(LONGEST_TALK):
                if len(self._writers) > 2 * self._most:
                    return
                if len(self._writers) > self._most:
                    # Read first: closing a socket with something unread takes the reply away.
                    await self._question(reader, min(self._patience, _IMPATIENCE))
                    await self._send(writer, _line({"error": "too many questions at once; ask again"}))
                else:
                    await self._reply(writer, await self._question(reader, self._patience))
                writer.close()
                async with asyncio.timeout(self._patience):
                    await writer.wait_closed()
        except (TimeoutError, OSError):
            pass  # a client that is slow or gone is its own problem
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _question(self, reader: asyncio.StreamReader, patience: float) -> bytes | None:
        """The line; None for one that is too long."""
        async with asyncio.timeout(patience):
            try:
                return await reader.readline()
            except ValueError:
                return None

    async def _reply(self, writer: asyncio.StreamWriter, line: bytes | None) -> None:
        if line is None:
            await self._send(writer, _line({"error": f"a question has at most {LONGEST_QUESTION} octets"}))
            return
        if not line:
            return  # gone again without a word
        reply = await self._fair.make(lambda: self._asked(line))
        if isinstance(reply, Listing):
            await self._send_listing(writer, reply)
        else:
            await self._send(writer, _line(reply))

    def _asked(self, line: bytes) -> dict[str, Any] | Listing:
        try:
            question = json.loads(line)
            if not isinstance(question, dict):
                raise ValueError("a question is one JSON object on one line")
            return self._answer(question)
        except (ValueError, RecursionError) as error:
            return {"error": str(error)}
        except Exception as error:
            # A fault in an answer must not cost more than the answer.
            log.exception("a question could not be answered: %r", line)
            return {"error": f"a fault of the agent ({type(error).__name__}); its log says more"}

    async def _send_listing(self, writer: asyncio.StreamWriter, listing: Listing) -> None:
        entries = iter(listing.entries)
        before = f'{{"{listing.name}": ['.encode()
        while True:
            texts = await self._fair.make(lambda: [json.dumps(e) for e in itertools.islice(entries, _SLICE)])
            if not texts:
                break
            await self._send(writer, before + ", ".join(texts).encode())
            before = b", "
        await self._send(writer, (before if before != b", " else b"") + b"]}\n")

    async def _send(self, writer: asyncio.StreamWriter, octets: bytes) -> None:
        writer.write(octets)
        async with asyncio.timeout(self._patience):
            await writer.drain()


def _line(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply).encode() + b"\n"
