"""ExaBGP's own validator, the stock command, as a check for the publisher.

It costs about 0.5 s of CPU per run, nearly all of it importing ExaBGP. So it runs as a child process
with low priority, never on the event loop, and the agent asks the speaker first (the same parser in a
process that is warm): see `first_answer`.
"""

from __future__ import annotations

import asyncio
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


def first_answer(first: Check, *others: Check) -> Check:
    """Ask in order; whoever cannot say (the speaker is away) leaves it to the next."""

    async def ask(path: Path) -> Verdict:
        try:
            return await first(path)
        except Unchecked:
            if not others:
                raise
            return await first_answer(*others)(path)

    return ask


def complaint(output: str) -> str:
    """What the validator said, on one line, bounded, without passwords or control characters."""
    said = output.partition("error: ")[2] or output
    said = re.sub(r"(md5-password)[^;]*", r"\1 (hidden)", said)
    said = " ".join(re.sub(r"[^\x20-\x7e]", " ", said).split())
    return said[:REASON_LENGTH] or "no reason given"


def _environment() -> dict[str, str]:
    """Ours without ExaBGP's settings: an exabgp_log_… or exabgp_debug_… must not change the verdict."""
    return {name: value for name, value in os.environ.items() if not name.lower().startswith("exabgp")}


def _lower_priority(pid: int) -> None:
    """The check may wait; forwarding packets may not."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
    except OSError:
        pass  # it has ended already
