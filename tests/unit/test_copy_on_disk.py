"""The copy that the next start begins from is there in time, also when this life is a short one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent import copy_on_disk
from agent.copy_on_disk import CopyOnDisk
from felix_like.datastore import cache
from felix_like.datastore.client import Header
from felix_like.datastore.errors import KeyValue
from felix_like.datastore.watch import Known
from tests.support.etcd import eventually


class World:
    """What is known is a number that grows."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "copy"
        self.number: int | None = None
        self.writes = 0
        self.gate = threading.Event()
        self.gate.set()
        self.copy = CopyOnDisk(self.file, "the copy", self.take, lambda: 0.0)

    def take(self) -> Callable[[], Known] | None:
        if self.number is None:
            return None
        key = str(self.number)

        def made() -> Known:
            self.writes += 1
            self.gate.wait(5)
            return Known(Header(1, 1, 1), {key: KeyValue(key, b"", 1)})

        return made

    def know(self, number: int) -> None:
        self.number = number
        self.copy.changed()

    @property
    def there(self) -> set[str]:
        known = cache.load(self.file).known
        return set(known.kvs) if known is not None else set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.copy.run())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait((task,))
            assert task.cancelled()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is delayed comes after the test."""
    monkeypatch.setattr(copy_on_disk, "SAVE_DELAY", 60.0)


@pytest.mark.usefixtures("patient")
async def test_the_first_one_is_written_at_once(world: World) -> None:
    """A machine that has just joined may lose etcd, or its agent, in the next second."""
    async with world.running():
        world.know(1)
        await eventually(lambda: world.there == {"1"})


async def test_a_burst_is_one_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_on_disk, "SAVE_DELAY", 0.5)
    async with world.running():
        world.know(0)
        await eventually(lambda: world.there == {"0"})
        for number in range(1, 50):
            world.know(number)
            await asyncio.sleep(0)
        await eventually(lambda: world.there == {"49"})
    assert world.writes == 2


@pytest.mark.usefixtures("patient")
async def test_an_orderly_end_leaves_what_was_known_last(world: World) -> None:
    """The next start may find no datastore: then this is all it has."""
    async with world.running():
        world.know(1)
        await eventually(lambda: world.there == {"1"})
        world.know(2)
        await asyncio.sleep(0)
    assert world.there == {"2"}
    assert world.writes == 2


async def test_an_orderly_end_writes_nothing_that_is_there_already(world: World) -> None:
    async with world.running():
        world.know(1)
        await eventually(lambda: world.there == {"1"})
    assert world.writes == 1


@pytest.mark.usefixtures("patient")
async def test_the_end_comes_while_the_disk_is_slow(world: World) -> None:
    """What is written last is what was known last, in whatever order disks and threads work."""
    world.gate.clear()
    async with world.running():
        world.know(1)
        await eventually(lambda: world.writes == 1)
        world.know(2)
        asyncio.get_running_loop().call_later(0.1, world.gate.set)
    assert world.there == {"2"}


async def test_what_should_not_outlive_the_process_does_not(world: World) -> None:
    async with world.running():
        world.know(1)
        await eventually(lambda: world.there == {"1"})
        world.number = None
        world.copy.changed()
    assert world.there == {"1"}


@pytest.mark.usefixtures("patient")
async def test_a_disk_that_refuses_is_said_once_and_not_hurried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path / "here")
    caplog.set_level(logging.WARNING)
    said = f"the copy: {world.file} cannot be written"
    (tmp_path / "here").touch()
    async with world.running():
        world.know(0)
        await eventually(lambda: said in caplog.text)
        for number in range(1, 20):
            world.know(number)
            await asyncio.sleep(0)
        assert world.writes == 1
    assert world.writes == 2, "the end tries once more"
    assert caplog.text.count(said) == 1
    (tmp_path / "here").unlink()
    monkeypatch.setattr(copy_on_disk, "SAVE_DELAY", 0.01)
    async with world.running():
        world.know(20)
        await eventually(lambda: world.there == {"20"})
