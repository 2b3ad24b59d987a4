"""Scenes become equal clips of five to ten seconds on whole frames."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from latentsync.errors import UsageError
from latentsync.prepare.records import Span
from latentsync.prepare.steps.segments import split


def span(start: float, end: float) -> Span:
    return Span(Fraction(start).limit_denominator(1000), Fraction(end).limit_denominator(1000))


def test_lengths() -> None:
    assert split([span(0, 10)]) == (span(0, 10),)
    assert split([span(0, 5)]) == (span(0, 5),)
    assert split([span(0, 4.96)]) == ()
    assert split([span(0, 4.96)], keep_short=True) == (span(0, 4.96),)
    assert split([span(3, 15)]) == (span(3, 9), span(9, 15))
    assert split([span(0, 10.04)]) == (span(0, 5), span(5, 10.04))
    assert split([]) == ()


@pytest.mark.parametrize("frames", [125, 249, 250, 251, 499, 501, 1000, 1003, 90001])
def test_parts_are_equal_cover_all_and_keep_to_the_limits(frames: int) -> None:
    parts = split([Span(Fraction(7, 25), Fraction(7 + frames, 25))])
    counts = [(p.end - p.start) * 25 for p in parts]
    assert all(c.denominator == 1 and 125 <= c <= 250 for c in counts)
    assert max(counts) - min(counts) <= 1
    assert (parts[0].start, parts[-1].end) == (Fraction(7, 25), Fraction(7 + frames, 25))
    assert all(a.end == b.start for a, b in itertools.pairwise(parts))


def test_scenes_are_never_joined() -> None:
    assert split([span(0, 4), span(4, 8)]) == ()
    assert split([span(0, 4), span(4, 9)]) == (span(4, 9),)


def test_nothing_beyond_the_sound_and_between_frames() -> None:
    assert split([span(0, 8), span(8, 16)], end=Fraction(29, 2)) == (span(0, 8), span(8, 14.48))
    assert split([span(0, 8), span(8, 16)], end=Fraction(12)) == (span(0, 8),)
    assert split([span(0.01, 6.01)]) == (span(0.04, 6),)


def test_where_equal_parts_would_be_too_short() -> None:
    assert split([span(0, 11)], least=8) == (span(0, 10),)
    assert split([span(0, 11)], least=8, keep_short=True) == (span(0, 5.48), span(5.48, 11))


def test_lengths_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="cannot be cut"):
        split([], least=10, most=5)
