"""A TCP MD5 key that the kernel really holds is not in what diags asks of it: nothing known helps here."""

from __future__ import annotations

import shutil
import socket
import struct

import pytest

from agent.diags.gather import command
from agent.diags.items import COMMANDS

pytestmark = pytest.mark.kernel
KEY = b"Kernel-held-5wR"
TCP_MD5SIG = 14


def test_no_program_shows_a_key_of_a_socket() -> None:
    if shutil.which("ss") is None:
        pytest.skip("ss is not installed")
    peer = struct.pack("=H2x4s", socket.AF_INET, socket.inet_aton("127.0.0.9"))
    request = struct.pack("=128sBBHi80s", peer, 0, 0, len(KEY), 0, KEY)
    with socket.socket() as listener, socket.socket() as waiting:
        for one in (listener, waiting):
            one.bind(("127.0.0.1", 0))
            one.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, request)
        listener.listen()
        waiting.setblocking(False)
        waiting.connect_ex(("127.0.0.9", listener.getsockname()[1]))
        port = str(listener.getsockname()[1]).encode()
        shown = {name: command(*words).octets for name, _, words in COMMANDS if words[0] == "ss"}
        # The trap is real: this is how it would have leaked.
        assert KEY in command("ss", "-tanpi").octets
    assert port in shown["kernel/sockets.txt"]
    assert not [name for name, octets in shown.items() if KEY in octets]
