"""What the service manager hears: when we have started, how we are, that we live; the speaker, too."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.systemd import Notifier, keep_told
from felix_like.model.verdict import No, Verdict, Yes
from tests.support.etcd import eventually


class Manager:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def notifier(self, **environment: str) -> Notifier:
        return Notifier({"NOTIFY_SOCKET": self.address, **environment})

    def listen(self) -> list[dict[str, str]]:
        while True:
            try:
                message = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in message.split("\n")))

    def last(self, word: str) -> str | None:
        return next((words[word] for words in reversed(self.listen()) if word in words), None)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


class World:
    """A process that is as ready as it is told."""

    def __init__(self, notifier: Notifier, patience: float = 1000, status_every: float = 10) -> None:
        self.verdict: Verdict = No("etcd has not answered")
        self.established = 2
        self.task = asyncio.create_task(
            keep_told(
                notifier,
                ready=lambda: self.verdict,
                sentence=lambda: f"{self.established} of 3 sessions established",
                patience=patience,
                status_every=status_every,
            )
        )

    async def end(self) -> None:
        assert not self.task.done()
        self.task.cancel()
        await asyncio.wait([self.task])


async def test_it_has_started_when_it_is_ready_and_says_meanwhile_what_is_missing(manager: Manager) -> None:
    world = World(manager.notifier())
    await eventually(manager.listen)
    assert manager.heard == [{"STATUS": "etcd has not answered; 2 of 3 sessions established"}]
    world.verdict = Yes()
    await eventually(lambda: manager.last("READY"))
    assert manager.heard[1:] == [{"READY": "1", "STATUS": "2 of 3 sessions established"}]
    await world.end()


async def test_whoever_is_ordered_after_us_does_not_wait_for_a_dead_etcd(manager: Manager) -> None:
    world = World(manager.notifier(), patience=0.3)
    await eventually(lambda: manager.last("READY"))
    assert manager.last("STATUS") == "etcd has not answered; 2 of 3 sessions established"
    await world.end()


async def test_a_new_sentence_is_said_and_the_same_one_is_not_repeated(manager: Manager) -> None:
    world = World(manager.notifier(), status_every=0.02)
    world.verdict = Yes()
    await eventually(lambda: manager.last("READY"))
    await asyncio.sleep(0.2)
    assert sum("STATUS" in words for words in manager.listen()) == 1
    world.established = 3
    await eventually(lambda: manager.last("STATUS") == "3 of 3 sessions established")
    await world.end()


async def test_the_watchdog_is_fed_three_times_in_its_time(manager: Manager) -> None:
    world = World(manager.notifier(WATCHDOG_USEC="300000"))
    world.verdict = Yes()
    loop = asyncio.get_running_loop()
    await eventually(lambda: manager.last("READY"))
    began = loop.time()
    await eventually(lambda: sum("WATCHDOG" in words for words in manager.listen()) >= 10)
    assert loop.time() - began >= 0.8, "not more often than it must"
    assert sum("STATUS" in words for words in manager.heard) == 1, "the same sentence is said once"
    await world.end()


async def test_a_loop_that_stands_still_feeds_no_watchdog(manager: Manager) -> None:
    world = World(manager.notifier(WATCHDOG_USEC="60000"))
    world.verdict = Yes()
    await eventually(lambda: manager.last("WATCHDOG"))
    manager.heard.clear()
    signal.sigtimedwait([], 0.3)  # the whole thread, loop included
    assert len(manager.listen()) == 0
    await world.end()


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
async def test_without_a_service_manager_nothing_is_said_and_nothing_is_woken(
    environment: dict[str, str],
) -> None:
    notifier = Notifier(environment)
    assert not notifier
    notifier.say(READY="1")
    world = World(notifier)
    world.verdict = Yes()
    await asyncio.sleep(0.4)
    await world.end()


async def test_a_manager_that_went_away_stops_nothing(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "absent")})
    notifier.say(READY="1")
    world = World(notifier)
    await asyncio.sleep(0.05)
    await world.end()


def test_an_abstract_socket_and_one_line_per_word() -> None:
    manager = Manager(f"@tortie-test-{os.getpid()}")
    manager.notifier().say(STATUS="one\ntwo\nREADY=1", STOPPING="1")
    assert manager.listen() == [{"STATUS": "one two READY=1", "STOPPING": "1"}]
    manager.close()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_meant_for_us_or_not(environment: dict[str, str], seconds: float) -> None:
    assert Notifier(environment).watchdog == seconds


async def test_the_speaker_says_it_started_lives_and_stops(manager: Manager, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "agent.speaker.worker", "--listen-port", "0")
    environment = {
        **os.environ,
        "TORTIE_RUN_DIR": str(tmp_path),
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "300000",
    }
    speaker = await asyncio.create_subprocess_exec(*command, env=environment, stderr=subprocess.DEVNULL)
    try:
        await eventually(lambda: manager.last("WATCHDOG"))
        assert manager.last("READY") == "1"
        assert manager.last("STATUS") == "0 of 0 sessions established; at work"
        speaker.terminate()
        await eventually(lambda: manager.last("STOPPING"))
        assert await speaker.wait() == 0
    finally:
        if speaker.returncode is None:
            speaker.kill()
            await speaker.wait()
