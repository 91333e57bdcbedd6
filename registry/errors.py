"""Everything that can go wrong with names, manifests and the store, as sentences for the person who asked.

    RegistryError
    ├── InvalidName          (ValueError)  text that is no model name
    ├── InvalidDigest        (ValueError)  text that is no sha256 digest
    ├── ManifestError        (ValueError)  bytes that are no manifest
    ├── CreateError          (ValueError)  a create request that cannot become a model
    ├── RemoteError                        a registry or hub could not give what was asked
    │   ├── RemoteUnreachable              no answer came from it at all
    │   ├── RemoteNotFound                 it has no such model
    │   └── RemoteDenied                   it wants other credentials
    └── StoreError                         the disk said no
        ├── ModelNotFound
        ├── BlobNotFound
        ├── BrokenModel                    a manifest or one of its blobs is damaged
        ├── DigestMismatch                 bytes that are not what their digest says
        ├── OutOfSpace                     the disk is full
        └── StoreLocked                    another daemon owns this store

No message holds a path of the server: messages go to whoever can reach the port. The cause (`__cause__`) keeps it for
the log.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What this process lacks just now; it says nothing about the file."""


class RegistryError(Exception):
    """Base of all errors of this folder."""


class InvalidName(RegistryError, ValueError):
    """The text is no model name. The message starts with `invalid model name`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid model name: {reason}")
        self.reason = reason


class InvalidDigest(RegistryError, ValueError):
    """The text is no digest of the form sha256:<64 lower-case hexadecimal digits>."""


class ManifestError(RegistryError, ValueError):
    """The bytes are no manifest that Hob can use."""


class CreateError(RegistryError, ValueError):
    """The request cannot become a model; nothing was changed."""


class RemoteError(RegistryError):
    """A source of models could not be reached, refused, or answered what cannot be used; names its host.

    Args:
        is_temporary: whether the same request may succeed later.
        retry_after_s: seconds to wait before it, where the source says.
    """

    def __init__(self, message: str, *, is_temporary: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary
        self.retry_after_s = retry_after_s


class RemoteUnreachable(RemoteError):
    """No connection to the source could be made, or it ended before an answer came."""


class RemoteNotFound(RemoteError):
    """The source has no such model or blob."""


class RemoteDenied(RemoteError):
    """The source wants credentials, or others than it got."""


class StoreError(RegistryError):
    """The store could not do what was asked."""


class ModelNotFound(StoreError):
    """No manifest under this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f'model "{name}" not found')
        self.name = name


class BlobNotFound(StoreError):
    """No blob under this digest."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"blob {digest} not found; upload it first")
        self.digest = digest


class BrokenModel(StoreError):
    """The model is there but damaged; the message names it and the remedy."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f'model "{name}" is damaged: {reason}; pull or create it again, or remove it')
        self.name = name
        self.reason = reason


class DigestMismatch(StoreError):
    """The bytes have another digest than the one they were announced under."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f'digest mismatch, expected "{expected}", got "{got}"')
        self.expected = expected
        self.got = got


class OutOfSpace(StoreError):
    """The disk, or the quota on it, is full."""


class StoreLocked(StoreError):
    """Another daemon owns the store."""


@contextmanager
def as_store_error(action: str) -> Iterator[None]:
    """Turn the operating system's refusals inside the block into StoreErrors.

    Args:
        action: what was tried, to follow "cannot", such as "write the manifest of tale:latest".
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            remedy = "free some, or keep the models on another disk"
            raise OutOfSpace(f"insufficient storage: cannot {action}: no space left; {remedy}") from error
        if error.errno in NO_PERMISSION:
            raise StoreError(f"cannot {action}: the models folder is not writable for this user") from error
        raise StoreError(f"cannot {action}: {error.strerror or type(error).__name__}") from error


def unreadable(what: str, error: OSError) -> StoreError:
    """The error of reading something in the models folder."""
    return StoreError(f"cannot read {what}: {error.strerror or error}")
