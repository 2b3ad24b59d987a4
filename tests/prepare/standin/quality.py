from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentsync.prepare.records import Decision
from tests.prepare.standin import about
from tests.prepare.standin.sync import told_span

VERSION = "1"


@dataclass(frozen=True)
class Quality:
    score: float
    scores: tuple[float, ...]
    model: str


def measure(path: Path, *, model: str, device: str, home: str | None) -> Quality:
    score = about(path, "quality", told_span(path)).get("quality", 60.0)
    return Quality(score, (score, score, score), model)


def decide(quality: Quality, *, least: float | None) -> Decision:
    least = 40.0 if least is None else least
    return Decision(quality.score >= least, "" if quality.score >= least else f"quality {quality.score:.1f} is below {least:g}")
