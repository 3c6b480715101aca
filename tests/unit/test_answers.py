"""agent.sock: one line asks, one line answers, and no client costs more than its share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.answers import LONGEST_QUESTION, Answer, Listing, serve
from tests.support.etcd import eventually

ENTRY = {"prefix": "10.1.0.0/26", "text": "x" * 500}


class Answers:
    """Answers what it is scripted to, and writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.made = 0

    def __call__(self, question: dict[str, Any]) -> dict[str, Any] | Listing:
        self.asked.append(question)
        match question:
            case {"ask": "bug"}:
                raise KeyError("peer")
            case {"ask": "long", "entries": int(count)}:
                return Listing("routes", self._entries(count))
            case {"ask": "status"}:
                return {"version": 1, "text": "Straße\n\ud800"}
        raise ValueError(f"nobody can answer {question.get('ask')!r}")

    def _entries(self, count: int) -> Iterator[dict[str, Any]]:
        for _ in range(count):
            self.made += 1
            yield ENTRY


@contextlib.asynccontextmanager
async def served(path: Path, answer: Answer, **settings: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(serve(path, answer, **settings))
    await eventually(lambda: task.done() or listens(path))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def say(path: Path, octets: bytes) -> bytes:
    """What comes back until the end."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(octets)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    try:
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def ask(path: Path, question: dict[str, Any]) -> Any:
    reply = await say(path, json.dumps(question).encode() + b"\n")
    assert reply.endswith(b"\n")
    assert reply.count(b"\n") == 1, "one line"
    return json.loads(reply)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


async def test_a_question_gets_its_answer_on_one_line(path: Path) -> None:
    answers = Answers()
    async with served(path, answers):
        assert await ask(path, {"ask": "status"}) == {"version": 1, "text": "Straße\n\ud800"}
    assert answers.asked == [{"ask": "status"}]


async def test_everyone_may_ask_and_the_socket_goes_with_us(path: Path) -> None:
    async with served(path, Answers()):
        assert path.stat().st_mode & 0o777 == 0o666
    assert not path.exists()


async def test_the_socket_of_a_killed_agent_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with served(path, Answers()):
        assert await ask(path, {"ask": "status"})


@pytest.mark.parametrize(
    ("octets", "error"),
    [
        (b"\n", "Expecting value: line 2 column 1 (char 1)"),
        (b"status\n", "Expecting value: line 1 column 1 (char 0)"),
        (b'"status"\n', "a question is one JSON object on one line"),
        (b"[]\n", "a question is one JSON object on one line"),
        (b'{"ask": "who"}\n', "nobody can answer 'who'"),
        (b"\xff\xfe\n", None),
        (b"[" * 4000 + b"\n", None),
        (b'{"ask": ' + b"9" * 4000 + b"}\n", None),
        (b"x" * (LONGEST_QUESTION + 2) + b"\n", f"a question has at most {LONGEST_QUESTION} octets"),
        (b"x" * 1_000_000, f"a question has at most {LONGEST_QUESTION} octets"),
    ],
)
async def test_garbage_gets_a_sentence_and_the_next_one_an_answer(
    path: Path, octets: bytes, error: str | None
) -> None:
    async with served(path, Answers()):
        reply = await say(path, octets)
        if reply:  # a client that still writes when it is answered may see a reset instead
            said = json.loads(reply)
            assert set(said) == {"error"}
            assert error is None or said["error"] == error
        assert await ask(path, {"ask": "status"})


async def test_a_question_without_a_line_end_counts_when_the_client_is_done_writing(path: Path) -> None:
    async with served(path, Answers()):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"ask": "status"}')
        writer.write_eof()
        assert json.loads(await reader.read())["version"] == 1
        writer.close()


async def test_a_fault_in_an_answer_costs_the_answer_only(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(path, Answers()):
        assert await ask(path, {"ask": "bug"}) == {
            "error": "a fault of the agent (KeyError); its log says more"
        }
        assert await ask(path, {"ask": "status"})
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 1234])
async def test_a_long_answer_is_the_same_json_as_a_short_one(path: Path, count: int) -> None:
    async with served(path, Answers()):
        assert await ask(path, {"ask": "long", "entries": count}) == {"routes": [ENTRY] * count}


async def test_the_loop_serves_others_while_a_long_answer_is_made(path: Path) -> None:
    answers = Answers()
    async with served(path, answers):
        long = asyncio.create_task(ask(path, {"ask": "long", "entries": 20_000}))
        await eventually(lambda: answers.made)
        between = 0
        while not long.done():
            await asyncio.sleep(0)
            between += 1
        assert len((await long)["routes"]) == 20_000
        assert between > 100


async def test_who_does_not_read_a_long_answer_stops_its_making_and_is_let_go(path: Path) -> None:
    answers = Answers()
    async with served(path, answers, patience=0.2):
        reader, writer = await asyncio.open_unix_connection(path, limit=1024)
        writer.write(b'{"ask": "long", "entries": 1000000}\n')
        await eventually(lambda: answers.made)
        await asyncio.sleep(0.1)
        stood = answers.made
        assert stood < 50_000
        assert await ask(path, {"ask": "status"})
        await asyncio.sleep(0.5)
        assert answers.made <= stood + 100, "let go, not made to its end"
        with contextlib.suppress(ConnectionError):
            assert not (await reader.read()).endswith(b"]}\n")
        writer.close()


async def test_who_says_nothing_is_let_go(path: Path) -> None:
    async with served(path, Answers(), patience=0.1):
        reader, writer = await asyncio.open_unix_connection(path)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_more_clients_than_that_are_sent_away_until_one_leaves(path: Path) -> None:
    async with served(path, Answers(), most_clients=3):
        await ask(path, {"ask": "status"})  # whoever probed is gone
        silent = [await asyncio.open_unix_connection(path) for _ in range(3)]
        assert await ask(path, {"ask": "status"}) == {"error": "too many questions at once; ask again"}
        silent.pop()[1].close()
        for _ in range(1000):
            if "version" in await ask(path, {"ask": "status"}):
                break
        else:
            raise AssertionError("still sent away")
        for _, writer in silent:
            writer.close()


async def test_many_at_once_all_get_theirs(path: Path) -> None:
    async with served(path, Answers()):
        replies = await asyncio.gather(*(ask(path, {"ask": "long", "entries": 200}) for _ in range(40)))
    assert all(len(reply["routes"]) == 200 for reply in replies)


async def test_clients_that_leave_at_any_point_cost_nothing(path: Path) -> None:
    answers = Answers()
    async with served(path, answers):
        for octets in (b"", b"{", b'{"ask": "status"}\n', b'{"ask": "long", "entries": 100000}\n'):
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(octets)
            await asyncio.sleep(0.01)
            writer.transport.abort()
        assert await ask(path, {"ask": "status"})
        await asyncio.sleep(0.05)
        made = answers.made
        await asyncio.sleep(0.05)
        assert answers.made == made < 100_000


async def test_the_end_does_not_wait_for_anyone(path: Path) -> None:
    answers: Callable[..., Any] = Answers()
    async with served(path, answers, patience=1000):
        hears, silent = await asyncio.open_unix_connection(path)
        _, slow = await asyncio.open_unix_connection(path)
        slow.write(b'{"ask": "long", "entries": 1000000}\n')
        await asyncio.sleep(0.05)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 5
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(hears.read(), 10) == b"", "let go, not forgotten"
    for writer in (silent, slow):
        writer.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait(others, timeout=10) if others else None
    assert all(task.done() for task in others)


async def test_a_path_that_cannot_be_bound_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        await serve(tmp_path / "absent" / "agent.sock", Answers())
