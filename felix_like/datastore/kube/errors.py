"""What can go wrong with the Kubernetes API, as sentences for operators. No HTTP library in here."""

from __future__ import annotations


class KubeError(Exception):
    """Anything the Kubernetes API would not or could not do."""


class NoAccess(KubeError):
    """There is no usable kubeconfig or service account; a file that changes may mend it."""


class Unreachable(KubeError):
    """No answer in time, or a connection that broke; trying again later makes sense."""


class Overloaded(KubeError):
    """429 or 5xx: it answers, but not this now."""

    def __init__(self, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after
        """Seconds it asked us to wait; None: it did not say."""


class Unauthorized(KubeError):
    """401: it does not know who we are; the credentials were read again and are refused, too."""


class Forbidden(KubeError):
    """403: RBAC does not allow the verb on the resource."""


class NotFound(KubeError):
    """404: no such object, or no such resource in this version of Kubernetes."""


class Gone(KubeError):
    """410: the resource version or the continue token is too old: list again."""


class Garbage(KubeError):
    """An answer that is not what the API promises: not JSON, no object, too large."""


class TooLarge(Garbage):
    """An answer larger than we take; fewer objects per page may help."""


class Refused(KubeError):
    """Any other status: the same question will be refused again."""
