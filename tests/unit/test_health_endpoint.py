"""/healthz, /readyz and /metrics over real sockets: answers, bounds, and a port somebody else has."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.web.exposition import Histogram
from agent.web.health import Health
from agent.web.http import LONGEST_HEAD, Listener, Response, listen
from felix_like.model.verdict import No, Verdict, Yes
from tests.support.agentsocket import STATUS
from tests.support.etcd import eventually

HOST = "127.0.0.1"
COUNTS = {"received": 2, "accepted": 1, "rejected": 1, "stale": 0, "advertised": 3}
WHOLE: dict[str, Any] = STATUS | {
    "peers": [peer | COUNTS for peer in STATUS["peers"]],
    "routes": STATUS["routes"] | {"inherited": 0, "repaired": 0},
}


async def talk(port: int, octets: bytes) -> bytes:
    """Everything that comes back until the end; a reset counts as one."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(octets)
            await writer.drain()
            async with asyncio.timeout(20):
                return await reader.read()
        return b""
    finally:
        writer.close()


async def get(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
    """Status, headers, body."""
    head, _, body = (await talk(port, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).partition(
        b"\r\n\r\n"
    )
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers["Connection"] == "close"
    return int(first.split()[1]), headers, body.decode()


# -- the little HTTP server -----------------------------------------------------------------------------


async def hello(path: str) -> Response | None:
    match path:
        case "/hello":
            return Response("Straße\n")
        case "/fault":
            raise KeyError("a bug")
    return None


@pytest.fixture
async def served() -> AsyncIterator[Listener]:
    listener = await listen(HOST, 0, hello, patience=0.3, most_clients=5)
    yield listener
    listener.close()


async def test_get_and_head(served: Listener) -> None:
    status, headers, body = await get(served.port, "/hello")
    assert (status, body) == (200, "Straße\n")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Content-Length"] == "8"
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert await get(served.port, "/hello", "HEAD") == (200, headers, "")


async def test_a_query_does_not_change_the_page(served: Listener) -> None:
    assert (await get(served.port, "/hello?verbose=1&x=/y"))[0] == 200


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /../hello HTTP/1.1\r\n\r\n", 404),
        (b"POST /hello HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"BREW /hello HTTP/1.1\r\n\r\n", 405),
        (b"GET /hello\r\n\r\n", 400),
        (b"GET hello HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/hello HTTP/1.1\r\n\r\n", 400),
        (b"GET /hello HTTP/2.0\r\n\r\n", 400),
        (b"GET  /hello HTTP/1.1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\xff\r\n\r\n", 400),
        (b"GET /fault HTTP/1.1\r\n\r\n", 500),
        (b"GET /hello HTTP/1.0\r\n\r\n", 200),
    ],
)
async def test_each_request_gets_its_status_and_the_next_one_too(
    served: Listener, octets: bytes, status: int
) -> None:
    reply = await talk(served.port, octets)
    assert reply.startswith(f"HTTP/1.1 {status} ".encode())
    assert (await get(served.port, "/hello"))[0] == 200


async def test_an_endless_head_is_refused(served: Listener) -> None:
    reply = await talk(served.port, b"GET /hello HTTP/1.1\r\nX: " + b"x" * (2 * LONGEST_HEAD))
    assert reply == b"" or reply.startswith(b"HTTP/1.1 431 ")  # unread octets may turn it into a reset
    assert (await get(served.port, "/hello"))[0] == 200


@pytest.mark.parametrize("octets", [b"", b"GET /hello HTTP/1.1\r\nHost:"])
async def test_who_does_not_finish_the_request_is_let_go(served: Listener, octets: bytes) -> None:
    assert await talk(served.port, octets) == b""


async def test_more_clients_than_that_are_let_go_at_once(served: Listener) -> None:
    held = [await asyncio.open_connection(HOST, served.port) for _ in range(5)]
    assert await talk(served.port, b"GET /hello HTTP/1.1\r\n\r\n") == b""
    await asyncio.sleep(0.4)  # their patience is over
    assert (await get(served.port, "/hello"))[0] == 200
    for _, writer in held:
        writer.close()


async def test_closing_waits_for_nobody(served: Listener) -> None:
    _, writer = await asyncio.open_connection(HOST, served.port)
    await asyncio.sleep(0.01)
    served.close()
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection(HOST, served.port)
    writer.close()


# -- what is served -------------------------------------------------------------------------------------


class World:
    """An agent that is as ready as it is told."""

    def __init__(self, port: int = 0) -> None:
        self.verdict: Verdict = No("3 routes are not in the kernel yet")
        self.histogram = Histogram((0.1, 1))
        self.health = Health(
            (HOST, port),
            ready=lambda: self.verdict,
            status=lambda: WHOLE,
            more=lambda: [self.histogram.family("tortie_convergence_seconds", "Seconds.")],
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        task = asyncio.create_task(self.health.run(retry=0.05))
        try:
            await eventually(lambda: self.health.port or self.health.refusals())
            yield self.health.port or 0
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_alive_is_who_answers_and_ready_is_who_says_so() -> None:
    world = World()
    async with world.running() as port:
        for path in ("/healthz", "/livez"):
            status, _, body = await get(port, path)
            assert (status, body) == (200, "ok\n")
        status, _, body = await get(port, "/readyz")
        assert (status, body) == (503, "not ready: 3 routes are not in the kernel yet\n")
        world.verdict = Yes()
        status, _, body = await get(port, "/readyz")
        assert (status, body) == (200, "ready\n")
        assert (await get(port, "/"))[0] == 404


async def test_metrics_are_prometheus_text_with_everything_in_it() -> None:
    world = World()
    world.verdict = Yes()
    world.histogram.observe(0.05)
    async with world.running() as port:
        status, headers, body = await get(port, "/metrics")
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = body.splitlines()
    for line in (
        "tortie_ready 1",
        'tortie_datastore_state{state="in-sync"} 1',
        'tortie_peer_prefixes{peer="10.0.0.2",kind="advertised"} 3',
        'tortie_convergence_seconds_bucket{le="0.1"} 1',
        "tortie_convergence_seconds_count 1",
    ):
        assert line in lines


async def test_a_port_that_is_taken_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        world = World(port)
        async with world.running():
            await asyncio.sleep(0.3)
            [refusal] = world.health.refusals()
            assert str(refusal) == (
                f"health endpoint: {HOST} port {port} cannot be used: Address already in use; free it, or "
                "set TORTIE_HEALTH_ADDRESS to another address, or to none"
            )
            assert len(caplog.records) == 1
            taken.close()
            await eventually(lambda: world.health.port)
            assert world.health.refusals() == ()
            assert (await get(port, "/healthz"))[0] == 200


async def test_the_port_is_free_again_afterwards() -> None:
    world = World()
    async with world.running() as port:
        pass
    with socket.create_server((HOST, port)):
        pass
