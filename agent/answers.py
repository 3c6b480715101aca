"""The agent's socket: one JSON line asks, one JSON line answers. Read-only, for every user of the host."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MODE = 0o666
"""Whoever may log in may read: nothing is changed here, and no password is told."""
LONGEST_QUESTION = 4096
PATIENCE = 10.0
"""Seconds for a question to come, and for the answer to be taken."""

Answer = Callable[[dict[str, Any]], dict[str, Any]]


async def serve(path: Path, answer: Answer) -> None:
    """Serve until cancelled; the socket file goes with us. A stale one of an earlier life is replaced."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                line = await reader.readline()
                reply = _reply(line, answer)
                # Encoding a large table takes a while; the loop has sessions and routes to look after.
                writer.write(await asyncio.to_thread(_encode, reply))
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            pass  # a client that is slow, gone or talks nonsense is its own problem
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await writer.wait_closed()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(talk, path, limit=LONGEST_QUESTION)
    path.chmod(MODE)
    try:
        async with server:
            await server.serve_forever()
    finally:
        path.unlink(missing_ok=True)


def _reply(line: bytes, answer: Answer) -> dict[str, Any]:
    try:
        question = json.loads(line)
        if not isinstance(question, dict):
            raise ValueError("a question is one JSON object on one line")
        return answer(question)
    except (ValueError, RecursionError) as error:
        return {"error": str(error)}


def _encode(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply).encode() + b"\n"
