"""ExaBGP's own validator, the stock command `exabgp validate -n`, as a check for the publisher.

Nearly all of its cost is importing ExaBGP (0.1 to 0.4 s of CPU), which would hurt where 50 nodes start
on a few cores and each sees its peers come one by one. So it runs as a child process with low priority,
never on the event loop: once per check (`StockValidator`), or from a child that keeps the import for the
next check (`WarmValidator`). The publisher asks for one check at a time, of the newest text only.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from felix_like.model.verdict import No, Verdict, Yes

Check = Callable[[Path], Awaitable[Verdict]]
"""Would the speaker accept this file? Must not change anything. Raises Unchecked when it cannot say."""

TIMEOUT = 30.0
"""Seconds; 500 neighbors take one on an idle core."""
NICENESS = 10
REASON_LENGTH = 400
PASSED_ON = ("HOME", "LANG", "LC_", "LD_LIBRARY_PATH", "PATH", "PYTHON", "TMPDIR", "TZ")
"""How the names of the environment variables begin that the validator gets."""


class Unchecked(Exception):
    """No verdict, because of a fault that has nothing to do with the file (a sentence). Worth another try."""


class StockValidator:
    """`exabgp validate -n FILE` of the interpreter's own environment."""

    def __init__(self, timeout: float = TIMEOUT, command: tuple[str, ...] | None = None) -> None:
        self._timeout = timeout
        # -P: a directory called exabgp in the working directory must not shadow the package.
        self._command = command or (sys.executable, "-P", "-m", "exabgp", "validate", "-n")

    async def __call__(self, path: Path) -> Verdict:
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                str(path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=_environment(),
            )
        except OSError as error:
            raise Unchecked(f"ExaBGP's validator cannot be started: {error}") from error
        try:
            _lower_priority(child.pid)
            output, _ = await asyncio.wait_for(child.communicate(), self._timeout)
        except TimeoutError:
            raise Unchecked(f"ExaBGP's validator did not answer within {self._timeout:g} s") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode == 0:
            return Yes()
        return No(f"ExaBGP's validator refuses it: {complaint(output.decode(errors='replace'))}")


class WarmValidator:
    """The same command from a process that has imported ExaBGP already: milliseconds per check.

    The process starts with the first check and ends after `idle` seconds without one, or with `close`.
    """

    def __init__(self, timeout: float = TIMEOUT, idle: float = 60.0) -> None:
        self._timeout = timeout
        self._idle = idle
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._retirement: asyncio.Task[None] | None = None

    async def __call__(self, path: Path) -> Verdict:
        async with self._turn:
            self._stay()
            answered = False
            try:
                verdict = await asyncio.wait_for(self._ask(path), self._timeout)
                answered = True
            except TimeoutError:
                raise Unchecked(f"ExaBGP's validator did not answer within {self._timeout:g} s") from None
            except (OSError, ValueError) as error:
                raise Unchecked(f"ExaBGP's validator does not run: {error}") from error
            finally:
                if not answered:
                    await self._end()  # its late answer must not be taken for the next one
            self._retirement = asyncio.create_task(self._retire(), name="validator's retirement")
            return verdict

    async def close(self) -> None:
        """End the process, if it runs."""
        async with self._turn:
            self._stay()
            await self._end()

    def _stay(self) -> None:
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None

    async def _retire(self) -> None:
        await asyncio.sleep(self._idle)
        async with self._turn:
            await self._end()

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            if child.returncode is None:
                child.kill()
            await child.wait()

    async def _ask(self, path: Path) -> Verdict:
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "bird_config.validator_worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 24,
                env=_environment(),
            )
            _lower_priority(self._child.pid)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(str(path)).encode() + b"\n")
        await self._child.stdin.drain()
        answer = json.loads(await self._child.stdout.readline() or b"null")
        if not isinstance(answer, dict):
            raise ValueError("it ended without an answer")
        if answer["status"] == 0:
            return Yes()
        return No(f"ExaBGP's validator refuses it: {complaint(answer['output'])}")


def complaint(output: str) -> str:
    """What the validator said, on one line, bounded, without passwords or control characters."""
    said = output.partition("error: ")[2] or output
    said = re.sub(r"(md5-password)[^;]*", r"\1 (hidden)", said)
    said = " ".join(re.sub(r"[^\x20-\x7e]", " ", said).split())
    return said[:REASON_LENGTH] or "no reason given"


def _environment() -> dict[str, str]:
    """What a Python program needs of ours: no passwords, nor ExaBGP's settings, which alter verdicts."""
    return {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}


def _lower_priority(pid: int) -> None:
    """The check may wait; forwarding packets may not."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
    except OSError:
        pass  # it has ended already
