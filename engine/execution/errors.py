"""Errors of loading a model. The worker turns them into a Failed message; each is a sentence with its remedy.

ExecutionError
├── WeightsError      a tensor is missing, superfluous, misshapen or of a type that Hob cannot read
├── ModelTooLarge     weights or KV cache do not fit the memory
└── Unsupported       a device, a type or a feature that this build or this machine lacks
"""

from __future__ import annotations

NOT_FINITE = (
    "the model computed logits that are not finite numbers at position {}; its weights may be damaged, or it may need "
    "dtype float32"
)
"""What ends a sequence whose logits are NaN or infinite."""


class ExecutionError(Exception):
    """Base of all; `kind` is the one of messages.Failed."""

    kind = "internal"


class WeightsError(ExecutionError):
    """A checkpoint that does not hold the model its configuration describes."""

    kind = "invalid"


class ModelTooLarge(ExecutionError):
    """Memory does not suffice.

    Attributes:
        needs_bytes: what would be needed at least.
        has_bytes: what there is.
    """

    kind = "memory"

    def __init__(self, what: str, needs_bytes: int, has_bytes: int, remedy: str) -> None:
        self.needs_bytes = needs_bytes
        self.has_bytes = has_bytes
        super().__init__(f"{what} needs {mebibytes(needs_bytes)} but {mebibytes(has_bytes)} are free; {remedy}")


class Unsupported(ExecutionError):
    """Something that this machine or this version cannot do."""

    kind = "unsupported"


def mebibytes(num_bytes: int) -> str:
    """ "1536 MiB", or "12.5 GiB" from ten on."""
    if num_bytes >= 10 << 30:
        return f"{num_bytes / (1 << 30):.1f} GiB"
    return f"{num_bytes / (1 << 20):.{0 if num_bytes >= 10 << 20 else 1}f} MiB"
