"""Extents: every byte is here, on its way or missing, whatever happens in whatever order."""

from __future__ import annotations

import random

import pytest

from registry.extents import Extents
from registry.journal import Segment


def segment(start: int, stop: int) -> Segment:
    return Segment(start, stop, crc=0)


def test_holes_lie_between_segments() -> None:
    extents = Extents([segment(10, 20), segment(20, 25), segment(40, 50)], 60)
    extents.check()
    assert extents.first_run == []
    assert [extents.claim(100) for _ in range(3)] == [(0, 10), (25, 40), (50, 60)]
    assert not extents.has_holes
    extents.check()


def test_a_claim_takes_the_beginning_of_the_first_hole() -> None:
    extents = Extents([], 100)
    assert extents.claim(30) == (0, 30)
    assert extents.claim(30) == (30, 60)
    extents.arrive(segment(0, 30))
    extents.give_back(30, 30)  # a claim that was reached; the next one begins where it ended
    extents.check()
    extents.give_back(30, 60)
    assert extents.claim(100) == (30, 60)
    assert extents.first_run == [segment(0, 30)]
    extents.check()


def test_the_end_of_a_blob_of_unknown_size() -> None:
    extents = Extents([], 10**18)
    extents.claim(10**18)
    extents.arrive(segment(0, 7))
    extents.end_at(7)
    extents.check()
    assert not extents.has_holes


def test_nothing_is_an_empty_blob() -> None:
    extents = Extents([], 0)
    extents.check()
    assert not extents.has_holes


@pytest.mark.parametrize("seed", range(20))
def test_no_byte_gets_lost(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(1, 2000)
    extents = Extents([], size)
    claims: list[tuple[int, int]] = []
    arrived: list[Segment] = []
    for _ in range(300):
        what = rng.choice(["claim", "arrive", "arrive", "arrive", "give back", "lose"])
        if what == "claim" and extents.has_holes:
            claims.append(extents.claim(rng.randrange(1, 300)))
        elif what == "arrive" and claims:
            start, stop = claims.pop(rng.randrange(len(claims)))
            middle = rng.randrange(start, stop) + 1
            arrived.append(segment(start, middle))
            extents.arrive(arrived[-1])
            if middle < stop:
                claims.append((middle, stop))
        elif what == "give back" and claims:
            extents.give_back(*claims.pop(rng.randrange(len(claims))))
        elif what == "lose" and arrived:
            extents.lose(arrived.pop(rng.randrange(len(arrived))))
        extents.check()
        for one in arrived:
            assert extents.segment_at(one.start) == one
