"""Publishing exabgp.conf: checked first, replaced whole, and the last good file stays."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bird_config.publish import Published, Publisher
from bird_config.validator import StockValidator, Unchecked, WarmValidator, complaint
from felix_like.model.verdict import No, Verdict, Yes

GOOD = "template { }\n"


class Checker:
    """Answers as told and remembers what it was shown."""

    def __init__(self, *answers: Verdict | Exception) -> None:
        self.answers = list(answers)
        self.shown: list[str] = []
        self.target_then: list[str | None] = []
        self.target: Path | None = None

    async def __call__(self, path: Path) -> Verdict:
        self.shown.append(path.read_text())
        if self.target is not None:
            self.target_then.append(self.target.read_text() if self.target.exists() else None)
        answer = self.answers.pop(0) if self.answers else Yes()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "exabgp.conf"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_a_new_text_is_checked_and_replaces_the_file_whole(target: Path) -> None:
    checker = Checker()
    checker.target = target
    publisher = Publisher(target, checker)
    assert await publisher.publish("one") == Published(changed=True)
    before = target.stat()
    assert await publisher.publish("two") == Published(changed=True)
    assert target.read_text() == "two"
    assert target.stat().st_ino != before.st_ino, "replaced, not written over"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert checker.shown == ["one", "two"]
    assert checker.target_then == [None, "one"], "the old text was in place while the new one was checked"
    assert names(target.parent) == ["exabgp.conf"]


async def test_equal_bytes_are_neither_checked_nor_written(target: Path) -> None:
    checker = Checker()
    publisher = Publisher(target, checker)
    await publisher.publish("one")
    before = target.stat()
    assert await publisher.publish("one") == Published(changed=False)
    assert await Publisher(target, checker).publish("one") == Published(changed=False), "after a restart, too"
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert checker.shown == ["one"]


async def test_a_file_others_could_read_or_changed_is_replaced(target: Path) -> None:
    publisher = Publisher(target, Checker())
    await publisher.publish("one")
    target.chmod(0o644)
    assert await publisher.publish("one") == Published(changed=True)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.write_text("one and a hand edit")
    assert await publisher.publish("one") == Published(changed=True)
    assert target.read_text() == "one"


async def test_a_refused_text_leaves_the_last_good_one_and_says_why_once(target: Path) -> None:
    checker = Checker(Yes(), No("line 3 is nonsense"))
    publisher = Publisher(target, checker)
    await publisher.publish("good")
    refusal = await publisher.publish("bad")
    assert isinstance(refusal, No)
    assert "line 3 is nonsense" in refusal.reason
    assert target.read_text() == "good"
    refused = target.with_name("exabgp.conf.refused")
    assert refused.read_text() == "bad"
    assert stat.S_IMODE(refused.stat().st_mode) == 0o600
    assert await publisher.publish("bad") == refusal
    assert checker.shown == ["good", "bad"], "the same bad text costs one check"
    assert await publisher.publish("good") == Published(changed=False)
    assert await publisher.publish("better") == Published(changed=True)
    assert names(target.parent) == ["exabgp.conf"], "the refused text goes with the fault"


async def test_a_check_that_could_not_be_made_is_made_again(target: Path) -> None:
    checker = Checker(Unchecked("the speaker is away"), Yes())
    publisher = Publisher(target, checker)
    answer = await publisher.publish("one")
    assert isinstance(answer, No)
    assert "the speaker is away" in answer.reason
    assert not target.exists()
    assert names(target.parent) == []
    assert await publisher.publish("one") == Published(changed=True)


class Crash(BaseException):
    """kill -9, as seen from inside."""


async def test_a_crash_between_stage_and_rename_leaves_the_old_file(target: Path) -> None:
    await Publisher(target, Checker()).publish("old")

    async def dies(path: Path) -> Verdict:
        assert path.read_text() == "new"
        raise Crash

    with pytest.raises(Crash):
        await Publisher(target, dies).publish("new")
    assert target.read_text() == "old"
    reborn = Publisher(target, Checker())
    assert await reborn.publish("new") == Published(changed=True), "the left-over does not stand in the way"
    assert names(target.parent) == ["exabgp.conf"]


async def test_a_link_laid_in_the_way_is_not_followed(target: Path) -> None:
    victim = target.with_name("victim")
    victim.write_text("precious")
    target.with_name(".exabgp.conf.staged").symlink_to(victim)
    target.symlink_to(victim)
    assert await Publisher(target, Checker()).publish("new") == Published(changed=True)
    assert victim.read_text() == "precious"
    assert not target.is_symlink()


async def test_a_directory_that_is_not_there_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    answer = await Publisher(tmp_path / "no" / "exabgp.conf", Checker()).publish("text")
    assert isinstance(answer, No)
    assert "cannot be written" in answer.reason


async def test_publications_do_not_overtake_each_other(target: Path) -> None:
    running = 0
    most = 0

    async def slow(path: Path) -> Verdict:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return Yes()

    publisher = Publisher(target, slow)
    await asyncio.gather(*(publisher.publish(f"text {n}") for n in range(5)))
    assert most == 1
    assert target.read_text() == "text 4"


async def test_exabgps_own_validator_decides(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("exabgp_debug_configuration", "true")  # would turn the verdict into a traceback
    publisher = Publisher(target, StockValidator())
    assert await publisher.publish(GOOD) == Published(changed=True)
    bad = 'neighbor 10.0.0.2 {\n    md5-password "hunter2" extra;\n    local-as nonsense;\n}\n'
    refusal = await publisher.publish(bad)
    assert isinstance(refusal, No)
    assert "ExaBGP's validator refuses it" in refusal.reason
    assert "hunter2" not in refusal.reason
    assert target.read_text() == GOOD


async def test_a_validator_that_hangs_is_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(Unchecked, match="within 1 s"):
        await StockValidator(1.0, (sys.executable, "-c", script))(tmp_path / "x")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


async def test_a_validator_that_does_not_exist_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match="cannot be started"):
        await StockValidator(1.0, ("/nonexistent/exabgp",))(tmp_path / "x")


def test_a_complaint_is_one_bounded_line_without_passwords() -> None:
    said = 'noise\nerror: x\n\nline 3: \x1b[31mmd5-password  "aHVudGVyMg==" ;' + "y" * 999
    assert "aHVu" not in complaint(said)
    assert complaint(said).startswith("x line 3: [31mmd5-password (hidden);")
    assert len(complaint(said)) <= 400
    assert complaint("") == "no reason given"


async def test_the_warm_validator_says_what_the_stock_one_says(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(GOOD)
    bad.write_text("neighbor 10.0.0.2 {\n    local-as nonsense;\n}\n")
    warm, stock = WarmValidator(), StockValidator()
    try:
        for file in (good, bad, good, bad, tmp_path / "missing", good):  # a refusal poisons nothing
            verdict = await warm(file)
            assert verdict == await stock(file)
            assert bool(verdict) is (file == good)
        assert warm._child is not None
        pid = warm._child.pid
        await warm(good)
        assert warm._child.pid == pid, "one process for all of them"
        os.kill(pid, 9)
        with pytest.raises(Unchecked):
            await warm(good)
        assert await warm(good) == Yes(), "a new one takes over"
    finally:
        await warm.close()


async def test_the_validator_is_told_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_PASSWORD", "planted-secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    good = tmp_path / "good"
    good.write_text(GOOD)
    warm = WarmValidator()
    try:
        assert await warm(good) == Yes()
        assert warm._child is not None
        told = Path(f"/proc/{warm._child.pid}/environ").read_bytes()
        assert b"LC_ALL=C.UTF-8" in told
        assert b"planted-secret" not in told
    finally:
        await warm.close()


async def test_the_warm_validator_goes_when_nobody_asks(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text(GOOD)
    warm = WarmValidator(idle=0.05)
    assert await warm(good) == Yes()
    child = warm._child
    assert child is not None
    assert await asyncio.wait_for(child.wait(), 10) != 0
    assert await warm(good) == Yes()
    await warm.close()


async def test_the_warm_validator_that_hangs_is_ended(tmp_path: Path) -> None:
    warm = WarmValidator(timeout=0.001)
    with pytest.raises(Unchecked, match="did not answer"):
        await warm(tmp_path / "x")
    assert warm._child is None


NO_NAME_SERVER = (
    "import socket\n"
    "def refuse(*_: object) -> None: raise SystemExit('a name server was asked')\n"
    "socket.gethostbyaddr = socket.gethostbyname = socket.getaddrinfo = refuse\n"
)


def test_the_check_asks_no_name_server(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text(GOOD)
    script = NO_NAME_SERVER + "from bird_config import validator_worker; validator_worker.main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=f"{json.dumps(str(good))}\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == 0


def test_the_speaker_starts_without_a_name_server() -> None:
    script = NO_NAME_SERVER + (
        "from agent.speaker import worker\n"
        "import socket\n"
        "assert socket.getfqdn.__module__ == 'socket', 'the module is as it was'"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
