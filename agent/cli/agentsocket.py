"""Asking an agent: `agent.sock`, one JSON line each way, read-only and open to every user."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.cli.errors import Failed, printable

DEFAULT_RUN_DIR = "/run/tortie"
SOCKET = "agent.sock"
TIMEOUT = 10.0
"""Seconds; 100,000 routes take an agent about one."""


def find(node: str | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The socket of this host's agent, or of a lab's node. Raises Failed with the names there are."""
    run = Path(environ.get("TORTIE_RUN_DIR") or DEFAULT_RUN_DIR)
    if node is not None:
        if "/" in node or node in ("", ".", ".."):
            raise Failed(f"node name {node!r}: give a name such as node-1")
        path = run / node / SOCKET
        if path.exists():
            return path
        if path.parent.is_dir():
            raise Failed(f"the agent of node {node} does not run: there is no {path}; look at its log")
        raise Failed(f"there is no agent of node {node} below {run}{_others(run)}")
    path = run / SOCKET
    if path.exists():
        return path
    names = nodes(run)
    if names:
        raise Failed(f"several agents run below {run}: choose one with --node NAME ({', '.join(names)})")
    raise Failed(f"there is no agent at {path}: is tortie-agent running?{lab_here(environ)}")


def nodes(run: Path) -> list[str]:
    """Names of the nodes that have an agent below the run directory."""
    return sorted(path.parent.name for path in run.glob(f"*/{SOCKET}"))


def ask(path: Path, question: Mapping[str, Any], timeout: float = TIMEOUT) -> dict[str, Any]:
    """One question, one answer. Raises Failed with the agent's own sentence or why it did not answer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
    except ConnectionRefusedError:
        raise Failed(
            f"no agent listens at {path}: it has ended; look at its log, or start tortie-agent"
        ) from None
    except PermissionError:
        raise Failed(f"{path}: permission denied; ask as a user who may open it") from None
    except TimeoutError:
        raise Failed(
            f"the agent at {path} did not answer within {timeout:g} s: it hangs or is stopped"
        ) from None
    except OSError as error:
        raise Failed(f"the agent at {path} could not be asked: {error.strerror or error}") from None
    if not line:
        raise Failed(f"the agent at {path} closed the connection without an answer; look at its log")
    try:
        answer = json.loads(line)
    except ValueError:
        raise Failed(f"the agent at {path} answered with something that is not JSON") from None
    if not isinstance(answer, dict):
        raise Failed(f"the agent at {path} answered with a {type(answer).__name__}, not an object")
    if "error" in answer:
        raise Failed(printable(str(answer["error"])))
    return answer


def _others(run: Path) -> str:
    names = nodes(run)
    if names:
        return f"; there are {', '.join(names)}"
    return ": no agent runs there (TORTIE_RUN_DIR says where to look)"


def lab_here(environ: Mapping[str, str] = os.environ) -> str:
    """The same for somebody who has not said where to look for agents."""
    return "" if environ.get("TORTIE_RUN_DIR") else lab_hint(environ)


def lab_hint(environ: Mapping[str, str] = os.environ) -> str:
    """A sentence for somebody who looks elsewhere while a lab runs here; empty when none does."""
    from agent.lab.plan import Lab, LabError

    try:
        lab = Lab.from_environment(environ)
    except LabError:
        return ""
    return ' A lab runs here: eval "$(tortiectl lab env)"' if lab.state_file.exists() else ""
