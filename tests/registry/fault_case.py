"""One case of the fault server: a kind and a seed, and what must hold afterwards.

A store fetches a blob of 300 KB in small chunks. In every second case the server vanishes on the way. Right bytes lie
under the right digest, or there is a clean RemoteError; nothing else lies in blobs/. After an error the server is sound
and the process a new one: now the bytes come, and only those that had not. tools/fault_sweep.py runs all cases,
test_faults.py two of each kind.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from registry.download import Downloads
from registry.errors import RemoteError
from registry.manifest import Digest
from registry.range_request import open_range
from registry.remote import RangeReply, RemoteBlob
from registry.reply import Timeouts
from registry.retries import RetryPolicy
from registry.store import Store
from registry.transfer_limits import TransferLimits
from registry.transport import Transport
from tests.registry.fault_server import KINDS, PIECE_BYTES, FaultServer
from tests.registry.remote_bytes import random_bytes
from tests.registry.small_models import names_in

SIZE = 300_000
CHUNK_BYTES = 16_384
NUM_STREAMS = 4
TIMEOUTS = Timeouts(connect_s=10, silence_s=0.5, stall_s=0.5, stall_bytes=200)
LIMITS = TransferLimits(
    max_streams=NUM_STREAMS,
    min_chunk_bytes=CHUNK_BYTES,
    max_chunk_bytes=CHUNK_BYTES,
    segment_bytes=CHUNK_BYTES,
    retries=RetryPolicy(max_attempts=5, first_pause_s=0.002, max_pause_s=0.01, max_retry_after_s=0.02),
    min_progress_bytes=1000,
)
MAX_REFETCHED = 0.05 * SIZE + NUM_STREAMS * CHUNK_BYTES
"""5 %, and a chunk for each stream."""


@dataclass(frozen=True)
class CaseResult:
    problem: str
    """What is wrong, "" where nothing is."""
    outcome: str
    """ "right" or the error's sentence."""
    refetched: int = 0
    """Bytes that a second download fetched although they had come before."""
    resumed: int = 0
    """Bytes that it need not fetch; 0 where there was no second one, or nothing could be kept."""


def run_case(kind: str, seed: int, folder: Path) -> CaseResult:
    """Run a case in an empty folder."""
    rng = random.Random(f"case {kind} {seed}")
    data, other = random_bytes(SIZE, seed), random_bytes(SIZE, seed + 1_000_000)
    dies = seed % 2 == 1
    is_hashed = not (kind == "moved to another version" and seed % 4 < 2)
    right = [data] if is_hashed else [data, other]
    with FaultServer(data, kind, seed, other, rng.randrange(SIZE) if dies else None) as server:
        came: list[tuple[int, int]] = []
        first = _fetch(server, folder, data, is_hashed, came)
        problem = _problem(folder, right, first)
        expected = KINDS[kind].outcome
        if not problem and not dies and expected not in ("either", "right" if first == "right" else "error"):
            problem = f"it should have been {expected}, but was: {first}"
        if problem or first == "right":
            return CaseResult(problem, first)

        server.heal()
        num_came = _num_covered(came)
        came.clear()
        second = _fetch(server, folder, data, is_hashed, came)
        problem = _problem(folder, right, second)
        if not problem and second != "right":
            problem = f"the second download failed: {second}"
        if KINDS[kind].spoils:
            return CaseResult(problem, first)
        refetched = max(0, sum(stop - start for start, stop in came) - (SIZE - num_came))
        if not problem and refetched > MAX_REFETCHED:
            problem = f"{refetched} bytes were fetched again"
        return CaseResult(problem, first, refetched, num_came)


def _fetch(server: FaultServer, folder: Path, data: bytes, is_hashed: bool, came: list[tuple[int, int]]) -> str:
    """What comes of a new process's download.

    Args:
        came: the bytes that came are added, as [start, stop).
    """
    digest = Digest.of(data)
    with Transport(TIMEOUTS, use_environment=False) as transport:

        @contextmanager
        def open_logged(start: int, stop: int | None) -> Iterator[RangeReply]:
            with open_range(transport, f"{server.url}/blob", start, stop, what=f"blob {digest.hex[:12]}") as reply:
                yield replace(reply, chunks=_logged(reply, came))

        blob = RemoteBlob(
            key=str(digest),
            label=digest.hex[:12],
            size=len(data),
            digest=digest if is_hashed else None,
            git_hash="",
            open=open_logged,
        )
        downloads = Downloads(Store(folder), LIMITS)
        try:
            downloads.fetch(blob)
        except RemoteError as error:
            return str(error)
        finally:
            downloads.close()
    return "right"


def _logged(reply: RangeReply, came: list[tuple[int, int]]) -> Iterator[bytes]:
    """The body in small pieces, so that little more is read than is used."""
    position = reply.start
    for chunk in reply.chunks:
        for at in range(0, len(chunk), PIECE_BYTES):
            piece = chunk[at : at + PIECE_BYTES]
            came.append((position, position + len(piece)))
            position += len(piece)
            yield piece


def _num_covered(came: list[tuple[int, int]]) -> int:
    """Bytes of the blob that came at least once."""
    covered, end = 0, 0
    for start, stop in sorted(came):
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered


def _problem(folder: Path, right: list[bytes], outcome: str) -> str:
    """What must never be, "" where it is not."""
    store = Store(folder)
    there = names_in(store.blobs)
    wanted = {Digest.of(data).file_name for data in right}
    if there - wanted:
        return f"blobs/ holds {there - wanted}"
    if store.check():
        return f"the store is damaged: {store.check()}"
    if (outcome == "right") != bool(there):
        return f"{outcome}, and blobs/ holds {len(there)} files"
    if outcome != "right" and (str(folder) in outcome or "Traceback" in outcome or len(outcome) > 500):
        return f"no clean sentence: {outcome}"
    return ""
