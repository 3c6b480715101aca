"""Where etcd is and who we are to it: the environment and calicoctl's configuration file.

Source: libcalico-go/lib/apiconfig. The environment wins over the file, setting by setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_CONFIG_FILE = "/etc/calico/calicoctl.cfg"
DEFAULT_ENDPOINT = "http://127.0.0.1:2379"
_KIND = "CalicoAPIConfig"

_ENVIRONMENT = {
    "etcdEndpoints": "ETCD_ENDPOINTS",
    "etcdUsername": "ETCD_USERNAME",
    "etcdPassword": "ETCD_PASSWORD",
    "etcdKeyFile": "ETCD_KEY_FILE",
    "etcdCertFile": "ETCD_CERT_FILE",
    "etcdCACertFile": "ETCD_CA_CERT_FILE",
    "etcdDiscoverySrv": "ETCD_DISCOVERY_SRV",
    "datastoreType": "DATASTORE_TYPE",
}
_INLINE = ("etcdKey", "etcdCert", "etcdCACert")


class ConfigError(ValueError):
    """A setting that cannot be used: the sentence names it, its value and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """How to reach etcd. Inline PEM texts (`ca_cert`, `cert`, `key`) exclude the file settings."""

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    """`http://host:port`, `https://host:port` or `unix:///path`; all of one scheme."""
    username: str = ""
    password: str = field(default="", repr=False)
    ca_cert_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    ca_cert: str = field(default="", repr=False)
    cert: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ConfigError("etcd endpoints: none given; use for example https://10.0.0.1:2379")
        schemes = {_scheme(endpoint) for endpoint in self.endpoints}
        if "https" in schemes and len(schemes) > 1:
            raise ConfigError(
                f"etcd endpoints: {', '.join(self.endpoints)} mixes https with plain; use one scheme for all"
            )
        if bool(self.username) != bool(self.password):
            raise ConfigError("etcd username and password: only one of the two is set; set both or neither")
        if bool(self.cert_file or self.cert) != bool(self.key_file or self.key):
            raise ConfigError(
                "etcd client certificate and key: only one of the two is set; set both or neither"
            )
        if (self.ca_cert or self.cert or self.key) and (self.ca_cert_file or self.cert_file or self.key_file):
            raise ConfigError(
                "etcdKey, etcdCert and etcdCACert cannot be mixed with …File settings; use one kind"
            )

    @property
    def secure(self) -> bool:
        return self.endpoints[0].startswith("https://")

    @classmethod
    def from_environment(cls, env: Mapping[str, str], config_file: str | None = None) -> EtcdConfig:
        """Read ETCD_* (or CALICO_ETCD_*) and calicoctl's file.

        `config_file` None means /etc/calico/calicoctl.cfg, which may be absent; a named one may not.
        Raises ConfigError.
        """
        settings = _read_file(config_file)
        for name, variable in _ENVIRONMENT.items():
            for spelled in (variable, "CALICO_" + variable):
                if env.get(spelled):
                    settings[name] = env[spelled]
        if settings.get("datastoreType", "etcdv3") != "etcdv3":
            raise ConfigError(
                f"DATASTORE_TYPE: {settings['datastoreType']!r} is not supported; only etcdv3 is"
                " (the Kubernetes datastore has another data model)"
            )
        if settings.get("etcdDiscoverySrv"):
            raise ConfigError(
                f"ETCD_DISCOVERY_SRV: {settings['etcdDiscoverySrv']!r}: DNS discovery is not supported;"
                " list the members in ETCD_ENDPOINTS instead"
            )
        if any(settings.get(name) for name in ("etcdKeyFile", "etcdCertFile", "etcdCACertFile")) and any(
            settings.get(name) for name in _INLINE
        ):
            raise ConfigError(
                f"{config_file or DEFAULT_CONFIG_FILE}: etcdKey, etcdCert and etcdCACert cannot be mixed with"
                " etcdKeyFile, etcdCertFile and etcdCACertFile; use one kind"
            )
        return cls(
            endpoints=parse_endpoints(settings.get("etcdEndpoints", DEFAULT_ENDPOINT)),
            username=settings.get("etcdUsername", ""),
            password=settings.get("etcdPassword", ""),
            ca_cert_file=_existing("ETCD_CA_CERT_FILE", settings.get("etcdCACertFile", "")),
            cert_file=_existing("ETCD_CERT_FILE", settings.get("etcdCertFile", "")),
            key_file=_existing("ETCD_KEY_FILE", settings.get("etcdKeyFile", "")),
            ca_cert=settings.get("etcdCACert", ""),
            cert=settings.get("etcdCert", ""),
            key=settings.get("etcdKey", ""),
        )


def parse_endpoints(text: str) -> tuple[str, ...]:
    """Read a comma list of endpoints. Raises ConfigError naming the bad one."""
    return tuple(_checked(part.strip()) for part in text.split(",") if part.strip())


def _checked(endpoint: str) -> str:
    allowed = "use http://host:port, https://host:port or unix:///path"
    if not endpoint.isascii() or not endpoint.isprintable() or " " in endpoint:
        raise ConfigError(f"ETCD_ENDPOINTS: {endpoint!a} is not an endpoint; {allowed}")
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError:
        raise ConfigError(f"ETCD_ENDPOINTS: {endpoint!r} is not an endpoint; {allowed}") from None
    if url.scheme == "unix":
        if url.netloc or not url.path.startswith("/"):
            raise ConfigError(f"ETCD_ENDPOINTS: {endpoint!r} needs an absolute path; {allowed}")
        return endpoint
    if url.scheme not in ("http", "https") or not url.hostname or url.path not in ("", "/") or url.username:
        raise ConfigError(f"ETCD_ENDPOINTS: {endpoint!r} is not an endpoint; {allowed}")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}:{port or 2379}"


def _scheme(endpoint: str) -> str:
    return endpoint.partition("://")[0]


def _existing(setting: str, path: str) -> str:
    if path and not Path(path).is_file():
        raise ConfigError(f"{setting}: {path!r} is not a file that can be read; give the path of a PEM file")
    return path


def _read_file(config_file: str | None) -> dict[str, str]:
    """The `spec` of a CalicoAPIConfig as strings; empty when the default file does not exist."""
    path = config_file or DEFAULT_CONFIG_FILE
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        if config_file is None:
            return {}
        raise ConfigError(f"{path}: there is no such file; name an existing CalicoAPIConfig file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    import yaml

    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(document, dict) or document.get("kind") != _KIND:
        raise ConfigError(f"{path}: is not a {_KIND} document; see 'calicoctl' configuration files")
    spec = document.get("spec") or {}
    if not isinstance(spec, dict):
        raise ConfigError(f"{path}: spec must be a mapping of settings")
    known = (*_ENVIRONMENT, *_INLINE)
    for name in known:
        if spec.get(name) is not None and not isinstance(spec[name], str):
            raise ConfigError(f"{path}: spec.{name}: {ascii(spec[name])[:80]} must be a string")
    return {name: spec[name] for name in known if spec.get(name)}
