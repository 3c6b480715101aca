"""How the broker is reached: the TORTIE_MQTT_ settings, checked, and a client made of them.

The MQTT library is imported only by `client`: an agent without a broker never loads it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from felix_like.datastore.keys import quoted

if TYPE_CHECKING:
    import aiomqtt

KEEPALIVE = 10
"""Seconds: a broker that froze is noticed within two, a node that lost its power within one and a half."""
PATIENCE = 5.0
"""Seconds for the broker to answer a CONNECT or a PUBLISH."""
CONNECT_PATIENCE = 3.0
"""Seconds for TCP and TLS; less than a process that is told to end has."""
MOST_INCOMING = 10_000
"""Messages that wait for a reader; more are dropped, as whoever floods us is not telling us anything."""
PASSWORD_LIMIT = 65_535
"""Octets (MQTT 5 section 3.1.3.6)."""

DEFAULT_TOPIC = "tortie"
DEFAULT_CLUSTER = "default"

_DEFAULT_PORT = {"mqtt": 1883, "mqtts": 8883}
_LEVEL = re.compile(r"[A-Za-z0-9._-]{1,100}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


class BrokerError(ValueError):
    """A setting that cannot be used, or a broker that cannot be reached: who, what, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Checked settings of the connection."""

    scheme: str
    host: str
    """A name, an address or, for `unix`, a path."""
    port: int
    username: str = ""
    password_file: str = ""
    ca_cert_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    topic: str = DEFAULT_TOPIC
    cluster: str = DEFAULT_CLUSTER

    @property
    def url(self) -> str:
        """For people; there is no password in it."""
        if self.scheme == "unix":
            return f"unix://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @classmethod
    def from_settings(cls, text: Callable[[str], str]) -> Broker | None:
        """`text` gives a setting's value, empty when it is not set. None: no broker is wanted.

        Raises BrokerError naming the setting.
        """
        url = text("TORTIE_MQTT_URL")
        if not url:
            return None
        scheme, host, port = _parse_url(url)
        made = cls(
            scheme=scheme,
            host=host,
            port=port,
            username=text("TORTIE_MQTT_USERNAME"),
            password_file=_existing("TORTIE_MQTT_PASSWORD_FILE", text("TORTIE_MQTT_PASSWORD_FILE")),
            ca_cert_file=_existing("TORTIE_MQTT_CA_CERT_FILE", text("TORTIE_MQTT_CA_CERT_FILE")),
            cert_file=_existing("TORTIE_MQTT_CERT_FILE", text("TORTIE_MQTT_CERT_FILE")),
            key_file=_existing("TORTIE_MQTT_KEY_FILE", text("TORTIE_MQTT_KEY_FILE")),
            topic=_topic(text("TORTIE_MQTT_TOPIC") or DEFAULT_TOPIC),
            cluster=_cluster(text("TORTIE_CLUSTER") or DEFAULT_CLUSTER),
        )
        made._check_pairs()
        return made

    def _check_pairs(self) -> None:
        if self.password_file and not self.username:
            raise BrokerError(
                "TORTIE_MQTT_PASSWORD_FILE: is set without TORTIE_MQTT_USERNAME; use both or none"
            )
        if bool(self.cert_file) != bool(self.key_file):
            given, other = ("CERT", "KEY") if self.cert_file else ("KEY", "CERT")
            raise BrokerError(
                f"TORTIE_MQTT_{given}_FILE: is set without TORTIE_MQTT_{other}_FILE; use both or none"
            )
        for name, value in (("CA_CERT", self.ca_cert_file), ("CERT", self.cert_file)):
            if value and self.scheme != "mqtts":
                raise BrokerError(
                    f"TORTIE_MQTT_{name}_FILE: certificates have no effect with {self.url}; use mqtts://"
                )

    def password(self) -> str | None:
        """Read anew for each connection, so that a changed file is used. Raises BrokerError."""
        if not self.password_file:
            return None
        try:
            with Path(self.password_file).open(encoding="utf-8") as file:
                return file.read(PASSWORD_LIMIT).strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BrokerError(
                f"TORTIE_MQTT_PASSWORD_FILE: {quoted(self.password_file)} cannot be read ({error}); "
                "make it a text file that the agent may read"
            ) from None

    def tls(self) -> ssl.SSLContext | None:
        """Blocks for some milliseconds. Raises BrokerError."""
        if self.scheme != "mqtts":
            return None
        name = "TORTIE_MQTT_CA_CERT_FILE"
        try:
            context = ssl.create_default_context(cafile=self.ca_cert_file or None)
            if self.cert_file:
                name = "TORTIE_MQTT_CERT_FILE and TORTIE_MQTT_KEY_FILE"
                # Without a callback OpenSSL would ask a terminal for an encrypted key's passphrase.
                context.load_cert_chain(self.cert_file, self.key_file, password=lambda: "")
        except (OSError, ValueError) as error:
            raise BrokerError(
                f"{name}: cannot be used ({_short(error)}); give PEM files, the key not encrypted"
            ) from None
        return context


def client(
    broker: Broker, identifier: str | None, *, tls: ssl.SSLContext | None, **options: Any
) -> aiomqtt.Client:
    """A client that is not connected yet: MQTT 5, a clean start, quiet. No identifier: a random one.

    Must be made on the event loop. Raises BrokerError for a password file that cannot be read.
    """
    import logging

    import aiomqtt

    quiet = logging.getLogger("tortie.mqtt.library")
    # What it has to say arrives as exceptions; a hostile broker must not fill the log.
    quiet.setLevel(logging.CRITICAL + 1)
    made = aiomqtt.Client(
        broker.host,
        broker.port or 1883,
        transport="unix" if broker.scheme == "unix" else "tcp",
        username=broker.username or None,
        password=broker.password(),
        identifier=identifier,
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=True,
        keepalive=KEEPALIVE,
        timeout=PATIENCE,
        tls_context=tls,
        logger=quiet,
        max_queued_incoming_messages=MOST_INCOMING,
        **options,
    )
    # Its connection is made in a thread that nobody can interrupt; an agent that ends waits for it.
    made._client.connect_timeout = CONNECT_PATIENCE
    return made


REASONS = {
    133: "it does not take our client identifier",
    134: "the user name or the password is wrong; check TORTIE_MQTT_USERNAME and TORTIE_MQTT_PASSWORD_FILE",
    135: "it does not let us in; check TORTIE_MQTT_USERNAME, TORTIE_MQTT_PASSWORD_FILE or the client "
    "certificate, and the broker's access list",
    136: "it is not available",
    137: "it is busy",
    138: "it has banned us",
    142: "another client came with our identifier; do two agents have the same node name?",
    149: "our message was too large for it",
    151: "our quota there is used up",
}
"""MQTT 5 section 2.4, in an operator's words."""


def why(error: BaseException, broker: Broker) -> str:
    """A connection's end as a phrase for people."""
    code = getattr(error, "rc", None) or getattr(error.__cause__, "rc", None)
    number = getattr(code, "value", code)
    if isinstance(number, int) and number in REASONS:
        return f"{REASONS[number]} (MQTT reason {number})"
    if isinstance(number, int):
        # 128 is what the library makes of a connection that ends without a word; below are its own codes.
        told = number > 128
        return f"it said: {_short(code)} (MQTT reason {number})" if told else "the connection was lost"
    text = re.sub(r"^\[Errno -?\d+\] ", "", _short(error)) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"{text}; check TORTIE_MQTT_CA_CERT_FILE and the host's name in TORTIE_MQTT_URL"
    if text != "Operation timed out":
        return text
    if broker.scheme == "mqtts" and not broker.cert_file:
        return "it does not answer (if it wants client certificates: set TORTIE_MQTT_CERT_FILE)"
    return "it does not answer"


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _parse_url(url: str) -> tuple[str, str, int]:
    allowed = "use mqtt://HOST:PORT, mqtts://HOST:PORT or unix:///PATH"
    wrong = BrokerError(f"TORTIE_MQTT_URL: {_without_password(url)} is not a broker's address; {allowed}")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise wrong
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if "@" in parts.netloc:
        raise BrokerError(
            f"TORTIE_MQTT_URL: {_without_password(url)} holds a user; use TORTIE_MQTT_USERNAME and "
            "TORTIE_MQTT_PASSWORD_FILE for it: this setting is shown in logs"
        )
    if parts.query or parts.fragment:
        raise wrong
    if parts.scheme == "unix" and not parts.netloc and len(parts.path) > 1:
        return "unix", parts.path, 0
    if parts.scheme not in _DEFAULT_PORT or not parts.hostname or parts.path not in ("", "/") or port == 0:
        raise wrong
    return parts.scheme, parts.hostname, port or _DEFAULT_PORT[parts.scheme]


def _without_password(url: str) -> str:
    return quoted(re.sub(r"//.*@", "//…@", url))


def _existing(setting: str, path: str) -> str:
    if path and not Path(path).is_file():
        raise BrokerError(f"{setting}: {quoted(path)} is not a file that can be read; give the path of one")
    return path


def _topic(text: str) -> str:
    if len(text) > 200 or not _TOPIC.fullmatch(text):
        raise BrokerError(
            f"TORTIE_MQTT_TOPIC: {quoted(text)} is not allowed; use letters, digits, '-', '_' and '.', "
            "with '/' between levels, such as tortie or site-1/tortie"
        )
    return text


def _cluster(text: str) -> str:
    if not _LEVEL.fullmatch(text):
        raise BrokerError(
            f"TORTIE_CLUSTER: {quoted(text)} is not allowed; use up to 100 letters, digits, '-', '_' and '.'"
        )
    return text
