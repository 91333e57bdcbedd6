"""What can go wrong in the engine, on either side of the channel.

    EngineError
    +-- SchedulerError      a sequence that cannot be served: the request's fault
    +-- ChannelError        a frame that is no message: the two sides do not fit together
    +-- LoadFailed          the worker could not load, wake or resize
    +-- RequestFailed       one request ended without its text
    +-- EngineDied          the worker process is gone, and every stream with it

Every message is a sentence for the user: what, the value, the limit, the remedy.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of the engine's errors."""


class SchedulerError(EngineError, ValueError):
    """A sequence that can never run."""


class ChannelError(EngineError):
    """A frame that cannot be read or is too large."""


class LoadFailed(EngineError):
    """A control message that the worker answered with Failed."""

    def __init__(self, message: str, kind: str = "internal") -> None:
        super().__init__(message)
        self.kind = kind
        """As in messages.Failed: "invalid", "memory", "unsupported" or "internal"."""


class RequestFailed(EngineError):
    """A request that the worker refused or that failed in a step."""

    def __init__(self, message: str, kind: str = "internal") -> None:
        super().__init__(message)
        self.kind = kind
        """As in messages.Failed: "invalid", "memory", "unsupported" or "internal"."""


class EngineDied(EngineError):
    """The worker process has ended; nothing more will come from it."""
