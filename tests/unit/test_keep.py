"""The reconcile loop: retries, backoff, read-backs, and a bulkhead around each sink."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import pytest

from agent.keep import Report, keep
from agent.latest import Latest
from tests.support.etcd import eventually

Step = Callable[[], Report]


def fail(problem: BaseException) -> Step:
    def raises() -> Report:
        raise problem

    return raises


def well() -> Report:
    return Report()


class Recording:
    """A sink that does what its script says and writes down what it was asked."""

    name = "the sink"

    def __init__(self, *script: Step, starts: tuple[BaseException | None, ...] = ()) -> None:
        self.wake = asyncio.Event()
        self.calls: list[str] = []
        self.times: list[float] = []
        self._script = iter(script)
        self._starts = iter(starts)

    async def start(self) -> None:
        self._note("start")
        problem = next(self._starts, None)
        if problem is not None:
            raise problem

    async def apply(self) -> Report:
        self._note("apply")
        return next(self._script, well)()

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.times.append(asyncio.get_running_loop().time())

    async def reaches(self, number: int) -> None:
        await eventually(lambda: len(self.calls) >= number)


@contextlib.asynccontextmanager
async def kept(sink: Recording, *, resync: float = 1000.0, first: float = 0.01, longest: float = 0.04):  # type: ignore[no-untyped-def]
    told: list[tuple[str, str | None]] = []
    task = asyncio.create_task(
        keep(
            sink,
            resync=resync,
            first_backoff=first,
            longest_backoff=longest,
            tell=lambda name, problem: told.append((name, problem)),
        )
    )
    try:
        yield told
        assert not task.done(), "it runs for ever"
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def test_it_reads_the_world_first_and_then_waits_for_its_wake() -> None:
    sink = Recording()
    async with kept(sink):
        await sink.reaches(2)
        await asyncio.sleep(0.03)
        assert sink.calls == ["start", "apply"]
        sink.wake.set()
        await sink.reaches(3)
        assert sink.calls[2:] == ["apply"]
        assert not sink.wake.is_set()


async def test_a_wake_during_a_turn_leads_to_one_more() -> None:
    sink = Recording()

    def woken() -> Report:
        sink.wake.set()
        return Report()

    sink._script = iter([woken])
    async with kept(sink):
        await sink.reaches(3)
        await asyncio.sleep(0.02)
        assert sink.calls == ["start", "apply", "apply"]


async def test_what_did_not_succeed_is_tried_again_without_reading_back() -> None:
    sink = Recording(lambda: Report(retry_after=0.01), lambda: Report(retry_after=0.01))
    async with kept(sink):
        await sink.reaches(4)
        await asyncio.sleep(0.03)
        assert sink.calls == ["start", "apply", "apply", "apply"]


async def test_the_slow_timer_reads_back_even_while_something_is_retried() -> None:
    sink = Recording(*[lambda: Report(retry_after=0.002)] * 1000)
    async with kept(sink, resync=0.1):
        await eventually(lambda: sink.calls.count("start") >= 3)
    assert sink.calls[:2] == ["start", "apply"]
    assert sink.calls.count("apply") > sink.calls.count("start"), "not at every try"


async def test_a_failure_reads_back_and_backs_off_longer_and_longer_up_to_a_bound() -> None:
    sink = Recording(*[fail(OSError(105, "No buffer space available"))] * 6)
    async with kept(sink, first=0.01, longest=0.04):
        await sink.reaches(14)
    assert sink.calls == ["start", "apply"] * 7
    pauses = [sink.times[2 * n + 2] - sink.times[2 * n + 1] for n in range(6)]
    for pause, least in zip(pauses, (0.008, 0.016, 0.032, 0.032, 0.032, 0.032), strict=True):
        assert pause >= least


async def test_after_a_success_the_backoff_begins_anew() -> None:
    broken = fail(OSError(5, "Input/output error"))
    sink = Recording(*[broken] * 6, well, broken)
    async with kept(sink, first=0.01, longest=100):
        await sink.reaches(14)
        sink.wake.set()
        await sink.reaches(17)
    assert sink.calls[14:] == ["apply", "start", "apply"]
    assert sink.times[15] - sink.times[14] < sink.times[12] - sink.times[11], "0.01 s again, not 0.32 s"


async def test_trouble_is_said_once_until_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    full = OSError(28, "No space left on device")
    sink = Recording(fail(full), fail(full), fail(full))
    async with kept(sink) as told:
        await sink.reaches(8)
        await asyncio.sleep(0)
        assert told == [("the sink", "[Errno 28] No space left on device"), ("the sink", None)]
    said = [(record.levelname, record.getMessage(), bool(record.exc_info)) for record in caplog.records]
    assert said == [
        ("WARNING", "the sink: [Errno 28] No space left on device; trying again", False),
        ("INFO", "the sink: works again", False),
    ]


async def test_a_bug_in_a_sink_is_told_with_its_place_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Recording(fail(ZeroDivisionError("a bug")))
    async with kept(sink) as told:
        await sink.reaches(4)
        await asyncio.sleep(0)
        assert told == [("the sink", "a bug"), ("the sink", None)]
    assert [bool(record.exc_info) for record in caplog.records if record.levelname == "ERROR"] == [True]


async def test_a_world_that_cannot_be_read_at_first_is_tried_again() -> None:
    sink = Recording(starts=(PermissionError(1, "Operation not permitted"),))
    async with kept(sink) as told:
        await sink.reaches(3)
        await asyncio.sleep(0)
        assert sink.calls == ["start", "start", "apply"]
        assert told[0] == ("the sink", "[Errno 1] Operation not permitted")


async def test_a_cancellation_that_nobody_asked_for_is_a_failure_like_another() -> None:
    """A call inside the sink was cancelled, say because its channel closed."""
    sink = Recording(fail(asyncio.CancelledError()))
    async with kept(sink) as told:
        await sink.reaches(4)
        assert sink.calls == ["start", "apply", "start", "apply"]
        assert told[0] == ("the sink", "CancelledError")


@pytest.mark.parametrize("where", ["start", "apply"])
async def test_it_ends_when_it_is_told_to_wherever_it_is(where: str) -> None:
    hang = asyncio.Event()

    class Hanging(Recording):
        async def start(self) -> None:
            await super().start()
            if where == "start":
                await hang.wait()

        async def apply(self) -> Report:
            await super().apply()
            await hang.wait()
            return Report()

    sink = Hanging()
    task = asyncio.create_task(keep(sink))
    await sink.reaches(1 if where == "start" else 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_it_ends_while_it_backs_off() -> None:
    sink = Recording(starts=(OSError(1, "no"),))
    task = asyncio.create_task(keep(sink, first_backoff=1000, longest_backoff=1000))
    await sink.reaches(1)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_mailbox_holds_the_newest_value_only() -> None:
    box: Latest[int] = Latest()
    assert (box.peek(), box.wake.is_set()) == (None, False)
    box.put(1)
    box.put(2)
    assert (box.peek(), box.wake.is_set()) == (2, True)
    box.wake.clear()
    assert box.peek() == 2, "reading takes nothing away"


async def test_the_mailbox_wakes_who_waits() -> None:
    box: Latest[str] = Latest()
    seen: list[str | None] = []

    async def reader() -> None:
        while True:
            await box.wake.wait()
            box.wake.clear()
            seen.append(box.peek())

    task = asyncio.create_task(reader())
    await asyncio.sleep(0)
    box.put("overtaken")
    box.put("first")
    await asyncio.sleep(0.001)
    box.put("second")
    await asyncio.sleep(0.001)
    task.cancel()
    assert seen == ["first", "second"]
