"""The TORTIE_MQTT_ settings: every wrong value is one sentence, and no password is ever shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.telemetry.broker import Broker, BrokerError, why


def read(**settings: str) -> Broker | None:
    return Broker.from_settings(lambda name: settings.get(name, ""))


def broker(**settings: str) -> Broker:
    made = read(**{"TORTIE_MQTT_URL": "mqtt://b"} | settings)
    assert made is not None
    return made


def test_no_url_no_broker() -> None:
    assert read(TORTIE_MQTT_USERNAME="x", TORTIE_MQTT_CERT_FILE="/nowhere") is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mqtt://broker", "mqtt://broker:1883"),
        ("mqtts://Broker.example/", "mqtts://broker.example:8883"),
        ("mqtt://10.0.0.1:1234", "mqtt://10.0.0.1:1234"),
        ("mqtts://[fd00::1]:99", "mqtts://[fd00::1]:99"),
        ("unix:///run/mqtt.sock", "unix:///run/mqtt.sock"),
    ],
)
def test_addresses(url: str, shown: str) -> None:
    assert broker(TORTIE_MQTT_URL=url).url == shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TORTIE_MQTT_URL", "broker:1883"),
        ("TORTIE_MQTT_URL", "http://broker"),
        ("TORTIE_MQTT_URL", "mqtt://"),
        ("TORTIE_MQTT_URL", "mqtt://b:0"),
        ("TORTIE_MQTT_URL", "mqtt://b:99999"),
        ("TORTIE_MQTT_URL", "mqtt://b/topic"),
        ("TORTIE_MQTT_URL", "mqtt://b?x=1"),
        ("TORTIE_MQTT_URL", "mqtt://b c"),
        ("TORTIE_MQTT_URL", "mqtt://b\x1b[2J"),
        ("TORTIE_MQTT_URL", "mqtt://b\xe9"),
        ("TORTIE_MQTT_URL", "unix://run/x"),
        ("TORTIE_MQTT_URL", "mqtt://[::1"),
        ("TORTIE_MQTT_PASSWORD_FILE", "/nonexistent"),
        ("TORTIE_MQTT_CA_CERT_FILE", "/nonexistent"),
        ("TORTIE_MQTT_CERT_FILE", "/"),
        ("TORTIE_MQTT_TOPIC", "tortie/#"),
        ("TORTIE_MQTT_TOPIC", "/tortie"),
        ("TORTIE_MQTT_TOPIC", "tortie/"),
        ("TORTIE_MQTT_TOPIC", "a b"),
        ("TORTIE_MQTT_TOPIC", "x" * 201),
        ("TORTIE_CLUSTER", "a/b"),
        ("TORTIE_CLUSTER", "+"),
        ("TORTIE_CLUSTER", "x" * 101),
    ],
)
def test_a_wrong_value_is_one_sentence(name: str, value: str) -> None:
    with pytest.raises(BrokerError) as caught:
        broker(**{name: value})
    sentence = str(caught.value)
    assert sentence.startswith(f"{name}: ")
    assert sentence.isprintable()
    assert "use " in sentence or "give the path" in sentence


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(BrokerError) as caught:
        broker(TORTIE_MQTT_URL="mqtt://node:hunter2@broker")
    assert "hunter2" not in str(caught.value)
    assert "TORTIE_MQTT_PASSWORD_FILE" in str(caught.value)
    with pytest.raises(BrokerError) as caught:
        broker(TORTIE_MQTT_URL="mqtt://node:hunter2@b:0 ")
    assert "hunter2" not in str(caught.value)


def test_what_belongs_together(tmp_path: Path) -> None:
    there = tmp_path / "file"
    there.write_text("x")
    for settings, name in (
        ({"TORTIE_MQTT_PASSWORD_FILE": str(there)}, "TORTIE_MQTT_PASSWORD_FILE"),
        ({"TORTIE_MQTT_CERT_FILE": str(there)}, "TORTIE_MQTT_CERT_FILE"),
        ({"TORTIE_MQTT_KEY_FILE": str(there)}, "TORTIE_MQTT_KEY_FILE"),
        ({"TORTIE_MQTT_CA_CERT_FILE": str(there)}, "TORTIE_MQTT_CA_CERT_FILE"),
    ):
        with pytest.raises(BrokerError, match=f"^{name}: "):
            broker(**settings)


def test_the_password_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\r\n")
    made = broker(TORTIE_MQTT_USERNAME="n", TORTIE_MQTT_PASSWORD_FILE=str(file))
    assert made.password() == "one"
    file.write_text(" two ")
    assert made.password() == " two "
    file.unlink()
    with pytest.raises(BrokerError, match=r"^TORTIE_MQTT_PASSWORD_FILE: .* cannot be read"):
        made.password()


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_text("no certificate")
    tls = {"TORTIE_MQTT_URL": "mqtts://b"}
    with pytest.raises(BrokerError, match=r"^TORTIE_MQTT_CA_CERT_FILE: "):
        broker(**tls, TORTIE_MQTT_CA_CERT_FILE=str(file)).tls()
    with pytest.raises(BrokerError, match=r"^TORTIE_MQTT_CERT_FILE and TORTIE_MQTT_KEY_FILE: "):
        broker(**tls, TORTIE_MQTT_CERT_FILE=str(file), TORTIE_MQTT_KEY_FILE=str(file)).tls()
    assert broker().tls() is None


def test_what_the_broker_says_is_one_printable_line() -> None:
    class Said(Exception):
        rc = 151

    assert "quota" in why(Said(), broker())
    assert why(OSError(111, "Connection\nrefused\x1b[2J"), broker()).isprintable()


def test_nobody_loads_the_library_without_a_broker() -> None:
    script = (
        "import sys, agent.main, agent.cli.top, agent.cli.watch\n"
        "loaded = [m for m in ('aiomqtt', 'paho') if m in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
