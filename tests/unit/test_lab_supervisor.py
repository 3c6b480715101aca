"""The supervisor with real processes, in no namespace: it restarts, stops, signals, reports and ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.lab import control
from agent.lab.control import UnitReport
from agent.lab.plan import Lab, LabError
from agent.lab.unit import Process, Unit


def unit(folder: Path, name: str, *command: str) -> Unit:
    log = folder / f"{name.replace('/', '-')}.log"
    return Unit(
        name=name, command=list(command), namespace="", cwd=str(folder), log=str(log), env=dict(os.environ)
    )


def until(check: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def lab() -> Iterator[Lab]:
    # Not pytest's own folder: its path may be too long for a unix socket.
    folder = Path(tempfile.mkdtemp(prefix="tl"))
    here = Lab(name="tortie", folder=folder)
    control.launch(here)
    yield here
    control.end(here)
    shutil.rmtree(folder)


def seen(lab: Lab, name: str) -> UnitReport:
    return control.units(lab)[name]


def test_a_killed_process_comes_back_and_its_death_is_told(lab: Lab) -> None:
    control.add(lab, [unit(lab.folder, "node-1/agent", "sleep", "1000")])
    first = seen(lab, "node-1/agent")
    assert first.state == "running"
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: seen(lab, "node-1/agent").deaths == 1)
    assert seen(lab, "node-1/agent").last_end == "killed by SIGKILL"
    until(lambda: seen(lab, "node-1/agent").state == "running")
    assert seen(lab, "node-1/agent").pid != first.pid
    assert "ended: killed by SIGKILL; it starts again in" in Path(first.log).read_text()


LISTENS = """
import socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("s.sock")
listener.listen()
time.sleep(1000)
"""
"""As etcd 3.4: it does not start where the socket of a killed life lies."""


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(str(path)) == 0


def test_what_was_killed_comes_back_though_its_socket_lies_there(lab: Lab) -> None:
    path = lab.folder / "s.sock"
    listens = replace(unit(lab.folder, "etcd", sys.executable, "-c", LISTENS), socket=str(path))
    control.add(lab, [listens])
    until(path.exists)
    first = seen(lab, "etcd").pid
    os.kill(first, signal.SIGKILL)
    until(lambda: seen(lab, "etcd").pid not in (0, first))
    until(lambda: answers(path))
    assert seen(lab, "etcd").deaths == 1


def test_a_socket_belongs_to_whoever_called_sudo_in_every_life(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("only root may give files away")
    monkeypatch.setenv("SUDO_UID", "65534")
    folder = Path(tempfile.mkdtemp(prefix="tl"))
    here = Lab(name="tortie", folder=folder)
    path = folder / "s.sock"
    control.launch(here)
    try:
        listens = replace(unit(folder, "etcd", sys.executable, "-c", LISTENS), socket=str(path))
        control.add(here, [listens])
        until(lambda: path.exists() and path.stat().st_uid == 65534)
        os.kill(seen(here, "etcd").pid, signal.SIGKILL)
        until(lambda: seen(here, "etcd").state == "waiting")
        until(lambda: seen(here, "etcd").state == "running")
        until(lambda: path.exists() and path.stat().st_uid == 65534)
    finally:
        control.end(here)
        shutil.rmtree(folder)


def test_a_command_that_is_not_there_waits_and_says_why(lab: Lab) -> None:
    control.add(lab, [unit(lab.folder, "ghost", "/no/such/command")])
    report = seen(lab, "ghost")
    assert report.state == "waiting"
    assert "could not start" in report.last_end
    assert report.next_start > time.time() - 1


def test_a_stopped_process_stays_down_until_started(lab: Lab) -> None:
    control.add(lab, [unit(lab.folder, "a", "sleep", "1000"), unit(lab.folder, "b", "sleep", "1000")])
    control.stop(lab, ["a"])
    assert (seen(lab, "a").state, seen(lab, "b").state) == ("stopped", "running")
    assert seen(lab, "a").deaths == 0
    control.start(lab, ["a"])
    assert seen(lab, "a").state == "running"


def test_one_that_ignores_sigterm_is_killed(lab: Lab) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 1; done"
    control.add(lab, [unit(lab.folder, "deaf", "sh", "-c", script)])
    report = seen(lab, "deaf")
    until(lambda: "up" in Path(report.log).read_text())
    control.stop(lab, ["deaf"])
    assert not alive(report.pid)


def test_a_frozen_process_can_be_stopped(lab: Lab) -> None:
    control.add(lab, [unit(lab.folder, "a", "sleep", "1000")])
    pid = seen(lab, "a").pid
    control.send_signal(lab, ["a"], signal.SIGSTOP)
    control.remove(lab, ["a"])
    assert not alive(pid)
    assert control.units(lab) == {}


def test_wrong_names_are_sentences(lab: Lab) -> None:
    control.add(lab, [unit(lab.folder, "a", "sleep", "1000")])
    with pytest.raises(LabError, match=r"there is no process 'b'; there are a"):
        control.stop(lab, ["b"])
    with pytest.raises(LabError, match="a exists already"):
        control.add(lab, [unit(lab.folder, "a", "sleep", "1")])
    control.stop(lab, ["a"])
    with pytest.raises(LabError, match="a does not run"):
        control.send_signal(lab, ["a"], signal.SIGKILL)


def test_the_end_takes_everybody_along(lab: Lab) -> None:
    control.add(lab, [unit(lab.folder, f"n{i}", "sleep", "1000") for i in range(5)])
    pids = [report.pid for report in control.units(lab).values()]
    control.end(lab)
    assert not any(alive(pid) for pid in pids)
    assert not lab.control_socket.exists()
    with pytest.raises(LabError, match="there is no lab"):
        control.units(lab)
    control.end(lab)


def test_a_pid_file_of_somebody_else_ends_nobody(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        (tmp_path / "supervisor.pid").write_text(f"{bystander.pid}\n")
        control.end(Lab(name="tortie", folder=tmp_path))
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_deaths_in_a_row_wait_longer(tmp_path: Path) -> None:
    now = [0.0]
    process = Process(unit(tmp_path, "a", "false"), clock=lambda: now[0], chance=lambda: 0.0)
    waits = []
    for death in range(1, 4):
        process.start()
        for _ in range(2000):
            if process.report()["deaths"] == death:
                break
            await asyncio.sleep(0.005)
        waits.append(process.report()["next_start"] - now[0])
    await process.stop()
    assert waits == [1.0, 2.0, 4.0]
    assert process.report()["state"] == "stopped"


def test_a_log_that_grew_too_long_is_emptied(tmp_path: Path) -> None:
    process = Process(unit(tmp_path, "a", "true"), clock=time.time, chance=lambda: 0.0)
    log = Path(process.unit.log)
    log.write_text("x" * 100)
    process.bound_log(200)
    assert log.stat().st_size == 100
    process.bound_log(50)
    assert log.read_text() == "(emptied by the lab at 50 octets)\n"
