"""What a kubeconfig or a service account says: where the API server is, who we are, whom we trust.

A kubeconfig is read by kr8s (its KubeAuth: contexts, client certificates, tokens, exec plugins), which is
imported for one only: it takes 0.6 s and 27 MiB. A service account is two files of fixed names and needs no
library. kubernetes_asyncio would have done both for 1.6 s to 3.7 s and 83 MiB.

Read again when a file changed (`changed`), and when the API server refuses what was read.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from felix_like.datastore.keys import quoted
from felix_like.datastore.kube.access import KubeAccess
from felix_like.datastore.kube.errors import NoAccess

READ_TIMEOUT = 10.0
"""Seconds for a kubeconfig, whose exec plugin may ask somebody else."""

Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Read at one time. Nothing secret is in its repr."""

    server: str
    """URL without a trailing slash."""
    token: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """None: plain HTTP."""
    server_name: str = ""
    """Expected in the server's certificate; empty: the URL's host."""
    proxy: str = ""
    files: Signature = ()
    """What was read, by path, time, size and inode."""

    @property
    def changed(self) -> bool:
        """A file is not the one that was read."""
        return signature(path for path, *_ in self.files) != self.files


def signature(paths: Iterable[str]) -> Signature:
    """What tells one state of files from another; a kubelet replaces them whole."""
    found = []
    for path in sorted(set(paths)):
        try:
            stat = Path(path).stat()
            found.append((path, stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except OSError:
            found.append((path, 0, 0, 0))
    return tuple(found)


async def read(access: KubeAccess) -> Credentials:
    """Raises NoAccess: who, what, what to do."""
    if access.kubeconfig is None:
        return await asyncio.to_thread(from_service_account, access)
    # Off the loop: the import alone takes half a second.
    await asyncio.to_thread(importlib.import_module, "kr8s._auth")
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            return await _from_kubeconfig(access.kubeconfig)
    except TimeoutError:
        raise NoAccess(
            f"{access.source} was not read within {READ_TIMEOUT:.0f} s: does its exec plugin hang?"
        ) from None


def from_service_account(access: KubeAccess) -> Credentials:
    """The kubelet renews the token before it expires; only the file has the new one."""
    token, authority = access.service_account / "token", access.service_account / "ca.crt"
    files = signature((str(token), str(authority)))
    host = f"[{access.host}]" if ":" in access.host else access.host
    text = _token_in(token)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(authority)
    except OSError as error:  # an SSLError is one, too
        raise NoAccess(f"{authority} is no usable authority: {_said(error)}") from None
    return Credentials(f"https://{host}:{access.port}", text, context, files=files)


async def _from_kubeconfig(paths: Path) -> Credentials:
    """`paths`: one, or several joined by colons, as kubectl takes them."""
    from kr8s._auth import KubeAuth
    from kr8s._config import KubeConfigSet

    subject = f"kubeconfig {paths}"
    there = [path for path in str(paths).split(":") if path and Path(path).is_file()]
    if not there:
        raise NoAccess(f"{subject} is not there; correct KUBECONFIG, or remove it")
    auth: Any = KubeAuth(kubeconfig=":".join(there), serviceaccount="")
    named: set[str] = set()
    try:
        _check_inline(await KubeConfigSet(*there))
        await auth.reauthenticate()
        user, cluster = _entries(auth)
        base = Path(auth.kubeconfig.get_path(auth.active_context)).parent
        named = _named_files(user, cluster, base)
        files = signature((*there, *named))
        token = await asyncio.to_thread(_token, auth, user, base)
        tls = await _context(auth) if auth.server.startswith("https://") else None
    except NoAccess:
        raise
    except Exception as error:
        # kr8s lets through whatever a malformed file, a plugin or a certificate makes its parts raise.
        raise NoAccess(f"{subject} cannot be used: {_said(error)}") from None
    finally:
        _remove_copies(auth, named)
    if not auth.server.startswith(("https://", "http://")):
        raise NoAccess(f"{subject}: server {quoted(auth.server)} is no http:// or https:// URL")
    return Credentials(
        auth.server.rstrip("/"), token, tls, auth.tls_server_name or "", auth.proxy or "", files
    )


def _check_inline(config: Any) -> None:
    """Raises ValueError. kr8s would leave an empty file behind for each that is no base64."""
    for entry in (*config.users, *config.clusters):
        for part in (entry.get("user"), entry.get("cluster")):
            for name, value in (part or {}).items():
                if name.endswith("-data") and "-----" not in value:
                    try:
                        base64.b64decode(value)
                    except ValueError as error:
                        raise ValueError(f"{name} of {entry['name']} is no base64: {error}") from None


def _entries(auth: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The user and the cluster of the context in use."""
    context = auth.kubeconfig.get_context(auth.active_context)
    return auth.kubeconfig.get_user(context["user"]), auth.kubeconfig.get_cluster(context["cluster"])


def _named_files(user: Mapping[str, Any], cluster: Mapping[str, Any], base: Path) -> set[str]:
    """The files that the kubeconfig refers to, by either way of reading a relative name."""
    names = (
        cluster.get("certificate-authority"),
        *(user.get(part) for part in ("client-certificate", "client-key", "tokenFile")),
    )
    return {path for name in names if name for path in (str(name), str(base / name))}


def _token(auth: Any, user: Mapping[str, Any], base: Path) -> str:
    """kr8s does not know tokenFile, which wins over token."""
    if user.get("tokenFile"):
        return _token_in(base / str(user["tokenFile"]))
    return _checked(str(auth.token).strip(), "the kubeconfig's token") if auth.token else ""


def _token_in(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NoAccess(f"the token in {path} cannot be read: {_said(error)}") from None
    return _checked(text, f"the token in {path}")


def _checked(token: str, subject: str) -> str:
    """What goes into a header; said here, as the HTTP library's own words would quote it."""
    if not token:
        raise NoAccess(f"{subject} is empty")
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise NoAccess(f"{subject} is not one line of printable ASCII")
    return token


async def _context(auth: Any) -> ssl.SSLContext:
    found = await auth.ssl_context()
    if found is True:
        return ssl.create_default_context()
    assert isinstance(found, ssl.SSLContext)
    if not auth.server_ca_file and found.verify_mode is not ssl.CERT_NONE:
        found.load_default_certs()
    return found


def _remove_copies(auth: Any, named: set[str]) -> None:
    """kr8s writes inline certificates and keys to temporary files and leaves them there."""
    for path in (auth.client_cert_file, auth.client_key_file, auth.server_ca_file):
        if path and str(path) not in named and _named_by_nobody(auth, str(path)):
            with contextlib.suppress(OSError):
                Path(path).unlink()


def _named_by_nobody(auth: Any, path: str) -> bool:
    """Also where reading broke off before we knew which files the kubeconfig names."""
    try:
        entries = (*auth.kubeconfig.users, *auth.kubeconfig.clusters)
    except Exception:
        return False  # what does not parse made no copies either
    return path not in {
        value
        for entry in entries
        for part in (entry.get("user"), entry.get("cluster"))
        if isinstance(part, Mapping)
        for value in part.values()
        if isinstance(value, str)
    }


def _said(error: BaseException) -> str:
    """A sentence that quotes no secret: parsers show the lines that they stumble over."""
    if isinstance(error, OSError):
        return quoted(error.strerror or str(error), 200)
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"it is not YAML (line {mark.line + 1})"
    if isinstance(error, ValueError | RuntimeError) and not isinstance(error, UnicodeError):
        return quoted(str(error), 200)
    return (
        f"it lacks something, or has it in another shape ({type(error).__name__}): current-context, and its "
        "context, cluster and user"
    )
