"""Scenes cut into clips of five to ten seconds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from fractions import Fraction

from latentsync.errors import UsageError
from latentsync.prepare.records import Span

VERSION = "1"


def split(
    spans: Iterable[Span],
    *,
    least: Fraction | float = 5,
    most: Fraction | float = 10,
    keep_short: bool = False,
    fps: Fraction | int = 25,
    end: Fraction | None = None,
) -> tuple[Span, ...]:
    """Each span in equal parts of whole frames, as few as keep within `most` seconds.

    Parts under `least` seconds are left out, unless `keep_short`. `end`: nothing reaches beyond it, such as the end of the sound.
    Borders are multiples of 1 / fps; a span that begins or ends between two loses what lies outside. Raises UsageError for lengths that do not fit.
    """
    rate = Fraction(fps)
    longest, shortest = math.floor(Fraction(most) * rate), math.ceil(Fraction(least) * rate)
    if not longest > 0 or shortest > longest:
        raise UsageError(f"clips of {float(least):g} to {float(most):g} s cannot be cut at {float(rate):g} fps; the longest must be longer")
    out = []
    for span in spans:
        first = math.ceil(span.start * rate)
        last = math.floor((span.end if end is None else min(span.end, end)) * rate)
        count = last - first
        if count <= 0:
            continue
        parts = -(-count // longest)
        borders = [first + count * i // parts for i in range(parts + 1)]
        if any(b - a < shortest for a, b in itertools.pairwise(borders)) and not keep_short:
            borders = _no_leftover(first, count, longest, shortest)
        out += [Span(a / rate, b / rate) for a, b in itertools.pairwise(borders)]
    return tuple(out)


def _no_leftover(first: int, count: int, longest: int, shortest: int) -> list[int]:
    """Borders where equal parts would be too short: as many of the full length as there are, without the rest."""
    whole = count // longest
    return [first + longest * i for i in range(whole + 1)] if whole else []
