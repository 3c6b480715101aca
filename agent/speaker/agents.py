"""The agent's unix socket at the speaker's end: one agent at a time, never waited for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from pathlib import Path
from typing import Protocol

from agent.speaker.feed import Feed
from agent.speaker.protocol import (
    Ack,
    Command,
    ConfigApplied,
    Lines,
    Nack,
    ProtocolError,
    decode_command,
    encode,
)

_logger = logging.getLogger("tortie.speaker")
_READ = 256 * 1024
_CHUNK = 64 * 1024
"""Octets of the feed turned into lines per turn of the loop."""
_COMMANDS = 32
"""Commands carried out per turn of the loop."""


class AgentHost(Protocol):
    def agent_came(self) -> Feed: ...
    def agent_left(self) -> None: ...
    def command(self, command: Command) -> ConfigApplied | None: ...


class AgentServer:
    """Accepts an agent; a newer connection replaces the older."""

    def __init__(self, path: Path, host: AgentHost) -> None:
        self._path = path
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._agent: _Agent | None = None

    async def start(self) -> None:
        """Raises OSError with a sentence when another speaker lives there or the path is no good."""
        await asyncio.to_thread(_remove_stale, self._path)
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            _bind_private(listener, self._path)
            listener.listen(8)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, f"cannot listen on {self._path}: {error.strerror or error}") from None
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._accept)

    def wake(self) -> None:
        """The feed has something to say."""
        if self._agent is not None:
            self._agent.wake()

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close("the speaker stops")
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            io, _ = self._listener.accept()
        except OSError:
            return
        io.setblocking(False)
        if self._agent is not None:
            self._agent.close("a newer agent has connected")
        self._agent = _Agent(io, self._host.agent_came(), self)

    def carry_out(self, command: Command, agent: _Agent) -> None:
        """Do a command and say how it went; a failure is the command's, not the session's."""
        try:
            report = self._host.command(command)
        except Exception as error:
            _logger.exception("command %s failed", type(command).__name__)
            agent.feed.say(Nack(command.seq, f"{type(command).__name__}: {error}"))
            return
        if report is not None:
            agent.feed.say(report)
        agent.feed.say(Ack(command.seq))

    def left(self, agent: _Agent) -> None:
        if self._agent is agent:
            self._agent = None
            self._host.agent_left()


class _Agent:
    """One connection. Reads commands, writes the feed as fast as the agent takes it and no faster."""

    def __init__(self, io: socket.socket, feed: Feed, server: AgentServer) -> None:
        self.feed = feed
        self._io: socket.socket | None = io
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._lines = Lines()
        self._commands: list[bytes] = []
        self._out = bytearray()
        self._awake = False
        self._working = False
        _logger.info("an agent has connected")
        self._loop.add_reader(io.fileno(), self._readable)
        self.wake()

    def wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._write)

    def close(self, reason: str) -> None:
        if self._io is None:
            return
        _logger.info("the agent's connection is closed: %s", reason)
        self._loop.remove_reader(self._io.fileno())
        self._loop.remove_writer(self._io.fileno())
        self._io.close()
        self._io = None
        self._server.left(self)

    def _readable(self) -> None:
        assert self._io is not None
        try:
            octets = self._io.recv(_READ)
            if not octets:
                self.close("the agent went away")
                return
            self._commands += self._lines.feed(octets)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(error.strerror or str(error))
            return
        except ProtocolError as error:
            self._refuse(str(error))
            return
        if self._commands and not self._working:
            # Not read on until these are done: the agent's window bounds what waits here.
            self._working = True
            self._loop.remove_reader(self._io.fileno())
            self._work()

    def _work(self) -> None:
        if self._io is None:
            return
        for line in self._commands[:_COMMANDS]:
            try:
                command = decode_command(line)
            except ProtocolError as error:
                self._refuse(str(error))
                return
            self._server.carry_out(command, self)
        del self._commands[:_COMMANDS]
        self.wake()
        if self._commands:
            self._loop.call_soon(self._work)
        else:
            self._working = False
            self._loop.add_reader(self._io.fileno(), self._readable)

    def _refuse(self, reason: str) -> None:
        _logger.error("%s: the connection is closed", reason)
        with contextlib.suppress(OSError):
            if self._io is not None and not self._out:
                self._io.send(encode(Nack(0, reason)))
        self.close(reason)

    def _write(self) -> None:
        self._awake = False
        if self._io is None:
            return
        if self.feed.overflowing:
            self.close("it does not read its acknowledgements")
            return
        if not self._out:
            self._out += self.feed.take(_CHUNK)
        try:
            while self._out:
                sent = self._io.send(self._out)
                del self._out[:sent]
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._io.fileno(), self._writable)
            return
        except OSError as error:
            self.close(error.strerror or str(error))
            return
        if self.feed.busy:
            self.wake()

    def _writable(self) -> None:
        assert self._io is not None
        self._loop.remove_writer(self._io.fileno())
        self.wake()


def _remove_stale(path: Path) -> None:
    """Remove the socket of a speaker that is no more. Raises OSError when one still answers."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                path.unlink(missing_ok=True)
                return
            raise
    raise OSError(errno.EADDRINUSE, f"another tortie-speaker is running on {path}; stop it first")


def _bind_private(listener: socket.socket, path: Path) -> None:
    """Bind with mode 0600 from the first moment: until `listen` nobody can connect."""
    listener.bind(str(path))
    path.chmod(0o600)
