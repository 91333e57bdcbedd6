"""Journal: what is known of a blob that is only partly here, as lines of JSON that are only ever added to.

    ["blob", key, size]             the first line: which blob; size is null where it is not known
    ["validator", text]             the version of the bytes, as their server names it
    ["have", start, stop, crc32]    bytes [start, stop) were written, and this is their checksum
    ["lost", start, stop]           of what stands above, whatever overlaps [start, stop) does not count
    ["digest", hex]                 all is here and verified; the file is on its way to this name, or there

A line counts if it is whole. So a process that dies at any moment leaves a journal that is right, and after a power
loss, where lines may have reached the disk without the bytes that they tell of, the checksums do not fit.
`registry.partials` reads and writes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from registry.errors import InvalidDigest
from registry.manifest import Digest


@dataclass(frozen=True, order=True)
class Segment:
    """Bytes [start, stop) of a blob and their CRC-32."""

    start: int
    stop: int
    crc: int


@dataclass
class Journal:
    """What the lines add up to."""

    key: str
    size: int | None
    validator: str = ""
    digest: Digest | None = None
    segments: list[Segment] = field(default_factory=list)
    """In order; no two overlap."""


def encode_line(*words: str | int | None) -> bytes:
    return msgspec.json.encode(words) + b"\n"


def parse_journal(data: bytes) -> Journal | None:
    """Read a journal; None where its first line is not whole, so that nothing can be known."""
    lines = [_words(line) for line in data.split(b"\n")[:-1]]
    match lines[:1]:
        case [["blob", str(key), (int() | None) as size]]:
            journal = Journal(key, size)
        case _:
            return None
    for words in lines[1:]:
        match words:
            case ["validator", str(text)]:
                journal.validator = text
            case ["have", int(start), int(stop), int(crc)] if 0 <= start < stop and (size is None or stop <= size):
                journal.segments.append(Segment(start, stop, crc))
            case ["lost", int(start), int(stop)]:
                journal.segments = [one for one in journal.segments if one.stop <= start or stop <= one.start]
            case ["digest", str(digits)]:
                try:
                    journal.digest = Digest(digits)
                except InvalidDigest:
                    continue
    journal.segments = _without_overlaps(journal.segments)
    return journal


def _words(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _without_overlaps(segments: Iterable[Segment]) -> list[Segment]:
    """In order, leaving out what overlaps its predecessor; only a damaged journal has such segments."""
    kept: list[Segment] = []
    for segment in sorted(segments):
        if not kept or kept[-1].stop <= segment.start:
            kept.append(segment)
    return kept
