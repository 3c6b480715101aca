"""The sink against a real mosquitto: what is told, and what a broker cannot do to us."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from jsonschema import Draft202012Validator

from agent.sinks.mqtt import MqttSink
from agent.telemetry.broker import Broker
from agent.telemetry.payloads import schema
from felix_like.model.verdict import Refusal
from tests.support.agentsocket import STATUS
from tests.support.etcd import HOST, eventually
from tests.support.mosquitto import Mosquitto, mosquitto, reading

pytestmark = pytest.mark.mqtt

BASE = "tortie/v1/default/node-1"


class Agent:
    """A status that the test changes, told by a sink."""

    def __init__(self, url: str, **settings: str) -> None:
        values = {"TORTIE_MQTT_URL": url, **{f"TORTIE_MQTT_{k}": v for k, v in settings.items()}}
        broker = Broker.from_settings(lambda name: values.get(name, ""))
        assert broker is not None
        self.document: dict[str, Any] = STATUS
        self.looks = 0
        self.sink = MqttSink(broker, "node-1", self.status, time.time)

    def status(self) -> dict[str, Any]:
        self.looks += 1
        refusals = [{"subject": r.subject, "reason": r.reason} for r in self.sink.refusals()]
        return self.document | {"time": time.time(), "refusals": refusals}


@contextlib.asynccontextmanager
async def telling(agent: Agent) -> AsyncIterator[Agent]:
    task = asyncio.create_task(agent.sink.run())
    try:
        yield agent
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait((task,), timeout=20)
        assert task.done(), "told to end, it goes on"


@pytest.fixture
def broker() -> Iterator[Mosquitto]:
    with mosquitto() as running:
        yield running


async def test_state_is_retained_and_the_farewell_keeps_the_will_back(broker: Mosquitto) -> None:
    async with telling(Agent(broker.url)) as agent:
        await eventually(lambda: agent.sink.connected)
        async with reading(broker) as early:
            await eventually(lambda: len(early.newest) >= 3)
    async with reading(broker) as late:
        await eventually(lambda: len(late.retained) == 3)
        assert set(late.retained) == {f"{BASE}/{kind}" for kind in ("status", "peers", "counts")}
        assert late.retained[f"{BASE}/status"]["state"] == "stopped"
        assert late.retained[f"{BASE}/peers"]["established"] == 1
        assert late.retained[f"{BASE}/counts"]["routes"]["installed"] == 2
        validator = Draft202012Validator(schema())
        for payload in late.retained.values():
            validator.validate(payload)


async def test_a_change_is_an_event_and_a_new_state(broker: Mosquitto) -> None:
    async with reading(broker) as reader, telling(Agent(broker.url)) as agent:
        await eventually(lambda: reader.events())
        agent.document = STATUS | {"speaker": STATUS["speaker"] | {"state": "down", "reason": "killed"}}
        await eventually(lambda: len(reader.events()) == 2)
        assert [(e["kind"], e["before"], e["after"], e["reason"]) for e in reader.events()] == [
            ("agent", "", "running", ""),
            ("speaker", "connected", "down", "killed"),
        ]
        assert reader.newest[f"{BASE}/status"]["speaker"]["state"] == "down"
    assert not any(topic.endswith("/events") for topic in reader.retained)


async def test_a_broker_that_is_down_at_the_start_and_later(broker: Mosquitto) -> None:
    broker.kill()
    async with telling(Agent(broker.url)) as agent:
        await eventually(lambda: agent.sink.refusals())
        (refusal,) = agent.sink.refusals()
        assert refusal == Refusal(
            f"MQTT broker {broker.url}", "Connection refused; the agent goes on, and tries again"
        )
        agent.document = STATUS | {"speaker": STATUS["speaker"] | {"state": "down"}}
        looks = agent.looks
        await eventually(lambda: agent.looks > looks)
        broker.start()
        async with reading(broker) as reader:
            await eventually(lambda: reader.said("/status", state="running"))
            # What happened while nobody listened is told now.
            await eventually(lambda: [e["kind"] for e in reader.events() if e["kind"] == "speaker"])
            await eventually(lambda: not agent.sink.refusals())
        broker.kill()
        await eventually(lambda: agent.sink.refusals())
        broker.start()
        async with reading(broker) as again:
            await eventually(lambda: again.said("/status", state="running"))
            await eventually(lambda: again.said("/counts") and again.said("/peers"))


async def test_a_frozen_broker_delays_nothing(broker: Mosquitto) -> None:
    """The agent's looks and the loop's other work go on; when it thaws, only the newest state is told."""
    async with reading(broker) as reader, telling(Agent(broker.url)) as agent:
        await eventually(lambda: reader.events())
        broker.freeze()
        turns = 0
        for number in range(5):
            agent.document = STATUS | {"routes": STATUS["routes"] | {"wanted": 100 + number}}
            looks = agent.looks
            await eventually(lambda looks=looks: agent.looks > looks)  # type: ignore[misc]
            turns += 1
        assert turns == 5
        told_before = sum(topic.endswith("/counts") for topic, _ in reader.every)
        broker.thaw()
        await eventually(lambda: reader.newest[f"{BASE}/counts"]["routes"]["wanted"] == 104, 60)
        told = [p["routes"]["wanted"] for topic, p in reader.every if topic.endswith("/counts")][told_before:]
        assert len(told) <= 2, "one that was under way, and the newest"
        assert told[-1] == 104


async def test_an_agent_ends_in_time_with_a_frozen_broker(broker: Mosquitto) -> None:
    async with telling(Agent(broker.url)) as agent:
        await eventually(lambda: agent.sink.connected)
        broker.freeze()
        begun = time.monotonic()
    # main's patience is 4 s; the sink's own bounds are one second for the farewell and one for the leave.
    assert time.monotonic() - begun < 4
    broker.thaw()


async def test_the_sink_ends_whenever_it_is_told(broker: Mosquitto) -> None:
    """A library that waits with asyncio.wait_for loses a cancellation that meets an answer."""
    for number in range(60):
        async with telling(Agent(broker.url)):
            await asyncio.sleep(number * 0.0005)


async def test_a_broker_that_accepts_and_never_answers(broker: Mosquitto) -> None:
    """It listens, that is all: as a frozen one looks to who comes new."""
    broker.freeze()
    agent = Agent(broker.url)
    async with telling(agent):
        looks = agent.looks
        await eventually(lambda: agent.looks >= looks + 3)
        assert not agent.sink.connected
        await eventually(lambda: agent.sink.refusals(), 60)
        assert "it does not answer" in agent.sink.refusals()[0].reason
        broker.thaw()
        await eventually(lambda: agent.sink.connected, 60)


async def test_a_broker_that_talks_nonsense() -> None:
    """Random octets, floods and slammed doors: the sink complains, and is there for the next."""
    answers = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        os.urandom(4096),
        b"\x30" * 200_000,
        b"\x20\xff\xff\xff\xff",
        b"",
    ]
    served: list[bytes] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(answers[len(served) % len(answers)])
        with contextlib.suppress(ConnectionError):
            writer.write(served[-1])
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    async with server, telling(Agent(f"mqtt://{HOST}:{port}")) as agent:
        await eventually(lambda: len(served) >= 2, 60)
        await eventually(lambda: agent.sink.refusals(), 60)
        looks = agent.looks
        await eventually(lambda: agent.looks > looks)


def password_file(directory: Path, name: str, password: str) -> str:
    path = directory / name
    path.write_text(password + "\n")
    path.chmod(0o600)
    return str(path)


async def test_a_wrong_password_is_one_sentence_once_and_a_right_one_mends_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    users = tmp_path / "users"
    command = ["mosquitto_passwd", "-b", "-c", str(users), "node", "right"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    users.chmod(0o644)
    ours = password_file(tmp_path, "ours", "wrong")
    with mosquitto("allow_anonymous false", f"password_file {users}") as broker:
        agent = Agent(broker.url, USERNAME="node", PASSWORD_FILE=ours)
        async with telling(agent):
            await eventually(lambda: agent.sink.refusals())
            await eventually(lambda: broker.log.count("not authorised") >= 2)
            (refusal,) = agent.sink.refusals()
            assert "TORTIE_MQTT_USERNAME" in refusal.reason
            assert "MQTT reason 135" in refusal.reason
            assert "wrong" not in refusal.reason.replace("is wrong", "")
            said = [r for r in caplog.records if "MQTT broker" in r.getMessage()]
            assert len(said) == 1, "the log says it once"
            password_file(tmp_path, "ours", "right")
            await eventually(lambda: agent.sink.connected and not agent.sink.refusals())


def certificates(directory: Path) -> None:
    """An authority, the broker's certificate and a client's."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "ca.key",
            "-out", "ca.crt", "-subj", "/CN=authority",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    # What Python 3.13's stricter checks ask for.
    (directory / "names").write_text(
        f"subjectAltName=IP:{HOST},DNS:localhost\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    for name in ("broker", "node-1"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-out", f"{name}.crt", "-extfile", "names")  # fmt: skip


async def test_tls_with_client_certificates(tmp_path: Path) -> None:
    certificates(tmp_path)
    config = (
        f"cafile {tmp_path}/ca.crt",
        f"certfile {tmp_path}/broker.crt",
        f"keyfile {tmp_path}/broker.key",
        "require_certificate true",
        "use_identity_as_username true",
    )
    with mosquitto(*config) as broker:
        url = broker.url.replace("mqtt:", "mqtts:")
        ours = {
            "CA_CERT_FILE": f"{tmp_path}/ca.crt",
            "CERT_FILE": f"{tmp_path}/node-1.crt",
            "KEY_FILE": f"{tmp_path}/node-1.key",
        }
        async with telling(Agent(url, **ours)) as agent:
            await eventually(lambda: agent.sink.connected and "u'node-1'" in broker.log)
        async with telling(Agent(url)) as stranger:
            await eventually(lambda: stranger.sink.refusals())
            assert "TORTIE_MQTT_CA_CERT_FILE" in stranger.sink.refusals()[0].reason
        async with telling(Agent(url, CA_CERT_FILE=ours["CA_CERT_FILE"])) as nobody:
            await eventually(lambda: nobody.sink.refusals())
            assert "TORTIE_MQTT_CERT_FILE" in nobody.sink.refusals()[0].reason
            assert not nobody.sink.connected
        async with telling(Agent(broker.url)) as plain:
            await eventually(lambda: plain.sink.refusals())
            assert not plain.sink.connected


CHILD = """
import asyncio, sys, time
from agent.sinks.mqtt import MqttSink
from agent.telemetry.broker import Broker
from tests.support.agentsocket import STATUS

settings = {"TORTIE_MQTT_URL": sys.argv[1]}
broker = Broker.from_settings(lambda name: settings.get(name, ""))
async def run():
    await MqttSink(broker, "node-1", lambda: STATUS, time.time).run()
asyncio.run(run())
"""


async def test_a_killed_agent_is_marked_gone_and_returns(broker: Mosquitto) -> None:
    async with reading(broker) as reader:
        for _ in range(2):
            child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, broker.url)
            try:
                await eventually(lambda: reader.said("/status", state="running"))
            finally:
                child.kill()
                await child.wait()
            await eventually(lambda: reader.said("/status", state="gone"))
    async with reading(broker) as late:
        await eventually(lambda: late.retained.get(f"{BASE}/status", {}).get("state") == "gone")
        Draft202012Validator(schema()).validate(late.retained[f"{BASE}/status"])


async def test_two_agents_with_one_name_are_told_so(broker: Mosquitto) -> None:
    async with telling(Agent(broker.url)) as one:
        await eventually(lambda: one.sink.connected)
        async with telling(Agent(broker.url)) as other:
            hint = "do two agents have the same node name?"
            await eventually(lambda: any(hint in str(r) for a in (one, other) for r in a.sink.refusals()), 60)


# -- tortiectl -----------------------------------------------------------------------------------------


def tortiectl(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "agent.cli.main", *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def output(process: subprocess.Popen[str]) -> tuple[str, str]:
    return await asyncio.to_thread(process.communicate, None, 60)


async def test_top_shows_the_fleet_and_is_not_broken_by_garbage(broker: Mosquitto) -> None:
    async with aiomqtt.Client(HOST, broker.port, protocol=aiomqtt.ProtocolVersion.V5) as vandal:
        for topic, payload in (
            (f"{BASE}/status", b"\xff\x00not json"),
            ("tortie/v1/default/node-2/status", b'{"version":1,"state":"\x1b[2J"}'),
            ("tortie/v1/default/node-3/peers", b"[" * 100_000),
            ("tortie/v1/default/-;reboot/status", b"{}"),
            ("tortie/v1/default/node-4/counts", json.dumps({"version": 1, "node": "node-1"}).encode()),
        ):
            await vandal.publish(topic, payload, qos=1, retain=True)
    async with telling(Agent(broker.url)) as agent:
        await eventually(lambda: agent.sink.connected)
        async with reading(broker, identifier="r") as reader:
            await eventually(lambda: reader.said("/counts"))
        said, complaint = await output(tortiectl("top", TORTIE_MQTT_URL=broker.url))
    lines = said.splitlines()
    assert len(lines) == 2, said
    assert lines[1].split()[:2] == ["node-1", "running"]
    assert lines[1].split()[3:7] == ["in-sync", "connected", "1/2", "2/2"]
    assert complaint.startswith("Warning: 4 messages do not read as Tortie's, left out; first ")
    assert "\x1b" not in said + complaint


async def test_top_takes_a_thousand_nodes(broker: Mosquitto) -> None:
    """All retained messages are heard before the table is printed."""
    from agent.telemetry import summary

    async with aiomqtt.Client(HOST, broker.port, protocol=aiomqtt.ProtocolVersion.V5) as fleet:
        for number in range(1000):
            document = STATUS | {"node": f"node-{number}", "time": time.time()}
            for kind, make in (
                ("status", summary.status),
                ("peers", summary.peers),
                ("counts", summary.counts),
            ):
                payload = summary.encode(make(document, "default"))
                await fleet.publish(f"tortie/v1/default/node-{number}/{kind}", payload, retain=True)
        await fleet.publish("done", b"", qos=1)
    said, complaint = await output(tortiectl("top", "--once", TORTIE_MQTT_URL=broker.url))
    assert len(said.splitlines()) == 1001
    assert complaint == ""
    assert all(" 1/2 " in row and " 2/2 " in row for row in said.splitlines()[1:])


def test_top_says_why_it_hears_nothing(broker: Mosquitto) -> None:
    broker.kill()
    process = tortiectl("top", TORTIE_MQTT_URL=broker.url)
    said, complaint = process.communicate(timeout=60)
    assert (said, process.returncode) == ("", 1)
    assert complaint == f"Error: MQTT broker {broker.url}: Connection refused\n"


async def test_watch_prints_events_and_the_end_of_agents(broker: Mosquitto) -> None:
    process = tortiectl("watch", "--node", "node-1", TORTIE_MQTT_URL=broker.url, PYTHONUNBUFFERED="1")
    try:
        await eventually(lambda: broker.log.count("SUBACK") >= 1)
        async with telling(Agent(broker.url)) as agent:
            await eventually(lambda: agent.sink.connected)
            looks = agent.looks
            await eventually(lambda: agent.looks > looks)
            agent.document = STATUS | {
                "peers": [p | {"state": "Idle", "info": "no route"} for p in STATUS["peers"]]
            }
            looks = agent.looks
            await eventually(lambda: agent.looks > looks + 1)
        assert process.stdout is not None
        lines = [await asyncio.to_thread(process.stdout.readline) for _ in range(3)]
    finally:
        process.send_signal(signal.SIGINT)
        rest, complaint = await output(process)
    assert [line.split("  ", 1)[1].strip() for line in lines] == [
        "agent tortie-agent 0.1.0: running",
        "peer node-2 (10.0.0.2): Established -> Idle: no route",
        "agent tortie-agent: running -> stopped: ended in order; its routes and sessions stay",
    ]
    assert rest == ""
    assert complaint.startswith("watching 1 node (node-1) at mqtt://")
    assert complaint.count("\n") == 1
