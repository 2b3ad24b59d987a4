from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from latentsync.prepare.records import Decision
from tests.prepare.standin import about

VERSION = "1"


@dataclass(frozen=True)
class Checked:
    duration: Fraction
    fps: Fraction
    audio_duration: Fraction
    problem: str


def measure(path: Path) -> Checked:
    try:
        told = about(path, "check")
    except ValueError:
        return Checked(Fraction(0), Fraction(0), Fraction(0), "is no film")
    length = Fraction(told["seconds"])
    return Checked(length, Fraction(told.get("fps", 25)), length, "")


def decide(checked: Checked) -> Decision:
    return Decision(not checked.problem, checked.problem)
