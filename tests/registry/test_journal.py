"""The journal of a download: whatever is left of it, it says nothing that is not so."""

from __future__ import annotations

from registry.journal import Journal, Segment, encode_line, parse_journal
from registry.manifest import Digest

DIGEST = Digest.of(b"x")

LINES = [
    encode_line("blob", "key", 100),
    encode_line("validator", '"v1"'),
    encode_line("have", 0, 10, 1),
    encode_line("have", 50, 60, 2),
    encode_line("have", 10, 20, 3),
    encode_line("lost", 50, 60),
    encode_line("have", 50, 55, 4),
    encode_line("digest", DIGEST.hex),
]


def test_lines_add_up() -> None:
    assert parse_journal(b"".join(LINES)) == Journal(
        "key", 100, '"v1"', DIGEST, [Segment(0, 10, 1), Segment(10, 20, 3), Segment(50, 55, 4)]
    )


def test_a_blob_of_unknown_size() -> None:
    assert parse_journal(encode_line("blob", "key", None)) == Journal("key", None)


def test_cut_anywhere_it_is_that_of_an_earlier_moment() -> None:
    moments = [parse_journal(b"".join(LINES[:num_lines])) for num_lines in range(len(LINES) + 1)]
    data = b"".join(LINES)
    for cut in range(len(data) + 1):
        assert parse_journal(data[:cut]) in moments
    assert moments[0] is None


def test_what_is_no_line_is_passed_over() -> None:
    good = [encode_line("blob", "key", 100), encode_line("have", 0, 10, 1)]
    for bad in (
        bytes(40) + b"\n",
        b"[\n",
        b"\xff\n",
        b"{}\n",
        b"[]\n",
        encode_line("have", 10, 10, 1),
        encode_line("have", -5, 10, 1),
        encode_line("have", 90, 101, 1),
        encode_line("have", "10", 20, 1),
        encode_line("have", 20, 30),
        encode_line("digest", "../../etc/passwd"),
        encode_line("lost", None, 5),
        encode_line("blob", "other", 5),
    ):
        assert parse_journal(good[0] + bad + good[1]) == Journal("key", 100, segments=[Segment(0, 10, 1)])
        assert parse_journal(bad + good[0] + good[1]) is None or bad.startswith(b'["blob"')


def test_segments_do_not_overlap() -> None:
    lines = [encode_line("blob", "key", 100), *(encode_line("have", at, at + 10, at) for at in (0, 20, 5, 25, 10, 30))]
    journal = parse_journal(b"".join(lines))
    assert journal is not None
    assert [segment.start for segment in journal.segments] == [0, 10, 20, 30]
