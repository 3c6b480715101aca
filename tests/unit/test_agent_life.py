"""The agent's process: one per directory, nothing ends unnoticed, told to stop it stops, one line a log."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.life import EndedByItself, Stop, failing_callbacks, lasting
from agent.logs import OneLine, plain
from agent.run_dir import claimed
from agent.settings_values import SettingsError
from tests.support.etcd import eventually

# -- the run directory ----------------------------------------------------------------------------------


def test_the_directory_is_made_and_only_we_write_in_it(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    before = os.umask(0)
    try:
        with claimed(run):
            assert run.stat().st_mode & 0o777 == 0o755
            assert (run / "agent.lock").stat().st_mode & 0o777 == 0o600
            assert (run / "agent.lock").read_text() == f"{os.getpid()}\n"
    finally:
        os.umask(before)


def test_a_second_agent_is_told_who_is_there_and_touches_nothing(tmp_path: Path) -> None:
    with claimed(tmp_path):
        (tmp_path / "agent.sock").touch()
        with pytest.raises(SettingsError) as refused, claimed(tmp_path):
            pass
        assert str(refused.value) == (
            f"TORTIE_RUN_DIR: another tortie-agent (process {os.getpid()}) uses {tmp_path}; end that one, "
            "or give this one a directory of its own"
        )
        assert (tmp_path / "agent.sock").exists()
    with claimed(tmp_path):
        pass  # free again


def test_a_killed_agent_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\nfrom agent.run_dir import claimed\n"
        f"with claimed(pathlib.Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(SettingsError, match=f"process {child.pid}"), claimed(tmp_path):
            pass
        child.kill()
    with claimed(tmp_path):
        assert (tmp_path / "agent.lock").read_text() == f"{os.getpid()}\n"


def test_a_directory_that_everyone_may_write_in_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(SettingsError, match=r"everyone may write in .* chmod o-w"), claimed(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory away")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with (
        pytest.raises(SettingsError, match=r"belongs to user 65534, who could .* chown 0"),
        claimed(tmp_path),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("content")
    run = tmp_path / "run"
    run.mkdir()
    (run / "agent.lock").symlink_to(target)
    with pytest.raises(SettingsError, match="cannot be written"), claimed(run):
        pass
    assert target.read_text() == "content"


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is too long for sockets in it; use at most 94 octets"):
        with claimed(tmp_path / ("r" * 100)):
            pass


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(SettingsError, match=r"^TORTIE_RUN_DIR: .*/run cannot be made: File exists$"):
        with claimed(tmp_path / "run"):
            pass


# -- tasks and callbacks --------------------------------------------------------------------------------


async def test_a_task_that_returns_is_a_bug() -> None:
    async def short() -> None:
        pass

    with pytest.raises(EndedByItself, match=r"^the watch ended by itself$"):
        await lasting(short(), "the watch")


async def test_a_stray_cancellation_is_a_bug_and_a_real_one_is_not() -> None:
    async def stray() -> None:
        raise asyncio.CancelledError

    with pytest.raises(EndedByItself):
        await lasting(stray(), "the watch")
    task = asyncio.create_task(lasting(asyncio.sleep(1000), "the watch"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_a_task_raises_goes_on() -> None:
    async def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await lasting(broken(), "the watch")


async def watched() -> asyncio.Task[None]:
    task = asyncio.create_task(failing_callbacks())
    await asyncio.sleep(0)
    return task


async def test_a_bug_in_a_callback_of_ours_ends_the_process() -> None:
    task = await watched()
    stop = Stop()
    # `ask` is ours, and an argument that is no collection of tasks makes it raise.
    asyncio.get_running_loop().call_soon(stop.ask, None)
    with pytest.raises(TypeError):
        await asyncio.wait_for(task, 10)
    stop.done()


async def test_a_fault_in_somebody_elses_callback_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    """grpc's poller is known to raise BlockingIOError there, and goes on."""
    task = await watched()

    def foreign() -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    asyncio.get_running_loop().call_soon(foreign)
    await asyncio.sleep(0.01)
    assert not task.done()
    assert "Exception in callback" in caplog.text
    task.cancel()
    await asyncio.wait([task])
    assert asyncio.get_running_loop().get_exception_handler() is None


# -- the end --------------------------------------------------------------------------------------------


async def test_the_first_signal_ends_the_tasks_and_the_second_the_process() -> None:
    left: list[int] = []
    stop = Stop(patience=60, leave=left.append)
    task = asyncio.create_task(asyncio.sleep(1000))
    stop.on_signals([task])
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait([task], timeout=10)
        assert task.cancelled()
        assert left == []
        os.kill(os.getpid(), signal.SIGINT)
        await eventually(lambda: left == [1])
    finally:
        stop.done()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


async def test_an_end_that_hangs_is_cut_short_even_if_it_is_the_loop_that_hangs() -> None:
    left = threading.Event()
    stop = Stop(patience=0.05, leave=lambda code: left.set())
    stop.ask([])
    assert left.wait(10), "nothing awaited: the loop stood still all the time"


async def test_an_end_in_time_is_not_cut_short() -> None:
    left: list[int] = []
    stop = Stop(patience=0.05, leave=left.append)
    stop.hurry()
    stop.done()
    await asyncio.sleep(0.1)
    assert left == []


# -- log lines ------------------------------------------------------------------------------------------


def line(message: str, *arguments: object) -> str:
    record = logging.LogRecord("agent", logging.WARNING, "x.py", 1, message, arguments, None)
    return OneLine("%(levelname)s %(message)s").format(record)


def test_what_a_peer_writes_stays_on_its_line() -> None:
    said = "bye\n2026-01-01 INFO tortie.agent: all is well\x1b[2J"
    assert line("peer %s: session lost: %s", "10.0.0.1", said) == (
        "WARNING peer 10.0.0.1: session lost: bye\\n2026-01-01 INFO tortie.agent: all is well\\x1b[2J"
    )


def test_text_is_left_as_it_is_and_its_length_is_bounded() -> None:
    assert plain("Straße → 10.0.0.1") == "Straße → 10.0.0.1"
    assert plain("x" * 1_000_000) == "x" * 2000 + "…"
    assert plain("\ud800 \u202e") == "\\ud800 \\u202e"


def test_a_traceback_of_ours_keeps_its_lines() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        record = logging.LogRecord("agent", logging.ERROR, "x.py", 1, "a bug", (), sys.exc_info())
    assert "Traceback" in OneLine("%(message)s").format(record)
    assert OneLine("%(message)s").format(record).count("\n") >= 3
