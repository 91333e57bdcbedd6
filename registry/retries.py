"""Trying again what failed for a passing reason, with growing pauses.

For small requests (manifests, tokens, lists, the steps of a push). Downloads count their tries themselves, a part at a
time, with the same `RetryPolicy`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from registry.errors import RemoteError

Result = TypeVar("Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and after which pauses."""

    max_attempts: int = 5
    first_pause_s: float = 0.5
    max_pause_s: float = 20
    max_retry_after_s: float = 60
    """Longest pause that a server can ask for; one that asks for more is asked again too early."""

    def pause_s(self, num_failures: int, error: RemoteError, fraction: float) -> float:
        """Seconds to wait after the failure number `num_failures` (from 1).

        Args:
            fraction: a random number in [0, 1), so that clients that failed together do not come back together.
        """
        longest = min(self.max_pause_s, self.first_pause_s * 2.0 ** (num_failures - 1))
        pause = longest * (0.5 + fraction / 2)
        if error.retry_after_s is not None:
            pause = max(pause, min(error.retry_after_s, self.max_retry_after_s))
        return pause


NO_RETRIES = RetryPolicy(max_attempts=1)


def with_retries(
    action: Callable[[], Result],
    policy: RetryPolicy,
    sleep: Callable[[float], object] = time.sleep,
    fraction: Callable[[], float] = random.random,
    progress: Callable[[], int] = lambda: 0,
) -> Result:
    """What `action` gives; it is called again while its errors are temporary and tries are left.

    Args:
        sleep: waits some seconds; may raise to give up.
        progress: how far the work is that the calls share; failures are counted anew when it is further than ever.

    Raises:
        RemoteError: the last try's.
    """
    num_failures, furthest = 0, progress()
    while True:
        try:
            return action()
        except RemoteError as error:
            if (reached := progress()) > furthest:
                num_failures, furthest = 0, reached
            num_failures += 1
            if not error.is_temporary or num_failures >= policy.max_attempts:
                raise
            sleep(policy.pause_s(num_failures, error, fraction()))
