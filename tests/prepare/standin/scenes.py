from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from latentsync.prepare.records import Span
from tests.prepare.standin import about

VERSION = "1"


@dataclass(frozen=True)
class Scenes:
    spans: tuple[Span, ...]


def measure(path: Path, *, threshold: float, fps: int) -> Scenes:
    told = about(path, "scenes")
    assert told["fps"] == fps
    return Scenes(tuple(Span(a, b) for a, b in pairwise(map(Fraction, ["0", *told.get("cuts", []), told["seconds"]]))))
