from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from latentsync.prepare.records import Span


def split(spans: Sequence[Span], *, least: float, most: float, keep_short: bool, fps: int, end: Fraction) -> tuple[Span, ...]:
    out = []
    for span in spans:
        length = span.end - span.start
        parts = math.ceil(length / Fraction(most))
        if length / parts >= Fraction(least) or keep_short:
            out += [Span(span.start + length * i / parts, span.start + length * (i + 1) / parts) for i in range(parts)]
    return tuple(out)
