"""Talking to the lab's supervisor: one JSON line out, one back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.lab.plan import Lab, LabError
from agent.lab.unit import Unit

START_TIMEOUT = 10.0
REPLY_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitReport:
    """One process as the supervisor sees it; times in seconds since the epoch."""

    name: str
    state: str
    """running, waiting (for its next start) or stopped."""
    pid: int
    since: float
    deaths: int
    last_end: str
    next_start: float
    log: str


def launch(lab: Lab) -> None:
    """Start the supervisor, detached from this terminal. Raises LabError when it does not answer."""
    log = lab.folder / "supervisor.log"
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "agent.lab.supervise", str(lab.folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT
    try:
        while time.monotonic() < deadline and child.poll() is None:
            if lab.control_socket.exists() and running(lab):
                return
            time.sleep(0.02)
    except BaseException:
        # Ctrl-C: one that has not said yet who it is could not be found by `lab down`.
        child.kill()
        child.wait()
        raise
    child.kill()
    child.wait()
    raise LabError(f"the lab's supervisor did not start; its log is {log}: {_tail(log)}")


def running(lab: Lab) -> bool:
    """True when a supervisor answers."""
    try:
        _ask(lab, {"do": "list"})
    except LabError:
        return False
    return True


def units(lab: Lab) -> dict[str, UnitReport]:
    """Every process of the lab by name. Raises LabError when there is no supervisor."""
    return {raw["name"]: UnitReport(**raw) for raw in _ask(lab, {"do": "list"})["units"]}


def add(lab: Lab, new: Iterable[Unit]) -> None:
    _ask(lab, {"do": "add", "units": [asdict(unit) for unit in new]})


def remove(lab: Lab, names: Iterable[str]) -> None:
    """Stop the processes and forget them; returns when they are gone."""
    _ask(lab, {"do": "remove", "names": list(names)})


def stop(lab: Lab, names: Iterable[str]) -> None:
    """Stop them for good: they stay down until `start`."""
    _ask(lab, {"do": "stop", "names": list(names)})


def start(lab: Lab, names: Iterable[str]) -> None:
    _ask(lab, {"do": "start", "names": list(names)})


def send_signal(lab: Lab, names: Iterable[str], number: signal.Signals) -> None:
    _ask(lab, {"do": "signal", "names": list(names), "signal": int(number)})


def end(lab: Lab) -> None:
    """End the supervisor with all its processes; silent when there is none."""
    pid = _supervisor_pid(lab)
    if pid is None:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _supervisor_pid(lab) != pid:
            return
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if not _wait_gone(descriptor, 15.0):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            _wait_gone(descriptor, 5.0)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _wait_gone(descriptor: int, seconds: float) -> bool:
    import select

    return bool(select.select([descriptor], [], [], seconds)[0])


def _supervisor_pid(lab: Lab) -> int | None:
    """The pid in the pid file, if that process still is this lab's supervisor."""
    try:
        pid = int((lab.folder / "supervisor.pid").read_text())
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if b"agent.lab.supervise" in argv and os.fsencode(lab.folder) in argv else None


def _ask(lab: Lab, request: dict[str, Any]) -> dict[str, Any]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(REPLY_TIMEOUT)
            connection.connect(str(lab.control_socket))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer: dict[str, Any] = json.loads(stream.readline() or b"{}")
    except PermissionError:
        raise LabError("only root may control the lab: run it with sudo") from None
    except (OSError, ValueError) as error:
        if not lab.state_file.exists():
            raise LabError(
                f"there is no lab in {lab.folder}: start one with 'tortiectl lab up' (or 'make lab')"
            ) from None
        raise LabError(
            f"the lab's supervisor does not answer ({error}): 'tortiectl lab down', then 'tortiectl lab up'"
        ) from None
    if "error" in answer:
        raise LabError(str(answer["error"]))
    return answer


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    return lines[-1] if lines else "empty"
