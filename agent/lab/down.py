"""Undo a lab, also one that was never finished: afterwards nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable

from agent.lab import control, netns, state, sysctls
from agent.lab.plan import Lab, LabError

SETTLE = 5.0


def down(lab: Lab, say: Callable[[str], None] = lambda _: None) -> bool:
    """End the lab's processes, delete its namespaces, put sysctls back, remove its folder.

    Returns False when there was nothing. Every part is tried even when one fails; then raises LabError.
    """
    found = [name for name in netns.names() if lab.owns(name)]
    if not found and not lab.folder.exists():
        return False
    if not found:
        _check_folder(lab)
    troubles: list[str] = []
    with state.locked(lab):
        control.end(lab)
        killed = kill_all(found)
        if killed:
            say(f"ended {killed} more processes that ran in its namespaces")
        try:
            netns.delete(found)
        except LabError as error:
            troubles.append(str(error))
        troubles += sysctls.give_back(lab.name)
        if not troubles:
            _remove(lab)
    if troubles:
        raise LabError("; ".join(troubles))
    return True


def kill_all(namespaces: list[str]) -> int:
    """SIGKILL whatever still runs in these namespaces (an orphan, somebody's shell), and wait."""
    if os.getpid() in netns.pids(namespaces):
        raise LabError("this shell is inside the lab: leave it, and call 'tortiectl lab down' from outside")
    killed: set[int] = set()
    deadline = time.monotonic() + SETTLE
    while found := netns.pids(namespaces):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.add(pid)
        if time.monotonic() > deadline:
            raise LabError(f"processes {', '.join(map(str, found))} do not end: look at them with ps")
        time.sleep(0.02)
    return len(killed)


def _remove(lab: Lab) -> None:
    """Remove the lab's folder with all in it, if it is one."""
    _check_folder(lab)
    shutil.rmtree(lab.folder)


def _check_folder(lab: Lab) -> None:
    """Raises LabError when the folder is not a lab's: TORTIE_LAB_DIR may name anything."""
    foreign = [entry.name for entry in lab.folder.iterdir() if entry.name != "lock"]
    if foreign and not lab.state_file.exists():
        raise LabError(
            f"{lab.folder} is not a lab's folder (it holds {foreign[0]} and no lab.json): it stays"
        )
