"""What can go wrong with the datastore, as sentences for operators. No gRPC in here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key at one revision. Keys that are not UTF-8 carry surrogate escapes."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int = 0
    version: int = 0
    lease: int = 0


class EtcdError(Exception):
    """Anything etcd would not or could not do."""


class Unavailable(EtcdError):
    """No endpoint answered in time; trying again later makes sense."""


class OutcomeUnknown(Unavailable):
    """The connection broke during a write: it may or may not have been executed. Read, then decide."""


class Unauthenticated(EtcdError):
    """etcd does not accept our user, password or certificate."""


class Denied(EtcdError):
    """The user is known, but its role does not allow the operation."""


class Compacted(EtcdError):
    """The revision asked for is no longer (or not yet) there: list again."""

    def __init__(self, sentence: str, revision: int = 0) -> None:
        super().__init__(sentence)
        self.revision = revision
        """The oldest revision etcd still has; 0 when it did not say."""


class Refused(EtcdError):
    """etcd refuses this request and will refuse it again: too large, invalid, out of space."""


class GuardFailed(EtcdError):
    """A condition that all of this writer's transactions carry does not hold any more: it may not write."""


class CasConflict(EtcdError):
    """Someone else was faster. `current` is what is there now; None: nothing."""

    def __init__(self, sentence: str, current: KeyValue | None = None) -> None:
        super().__init__(sentence)
        self.current = current


class AlreadyExists(CasConflict):
    """Create of a key that is there."""


class NotFound(CasConflict):
    """Update or delete of a key that is not there."""
