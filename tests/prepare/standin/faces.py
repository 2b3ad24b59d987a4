from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentsync.errors import InputError
from latentsync.prepare.records import Decision, Span
from tests.prepare.standin import about

VERSION = "1"


@dataclass(frozen=True)
class Track:
    frames: int
    width: float


@dataclass(frozen=True)
class Faces:
    tracks: tuple[Track, ...]
    landmarks: Path | None


def finder(name: str = "mediapipe", home: Path | None = None) -> str:
    return name


def measure(path: Path, span: Span, target: Path, *, backend: Any, fps: int) -> Faces:
    told = about(path, "faces", f"{float(span.start):g}")
    if told.get("faces") == "unreadable":
        raise InputError(f"{path}: its video is damaged")
    target.write_text("landmarks")
    return Faces(tuple(Track(10, w) for w in told.get("faces", [300.0])), target)


def decide(faces: Faces, *, min_face: float, one_person: bool, max_yaw: float | None, min_share: float) -> Decision:
    if not faces.tracks:
        return Decision(False, "shows no face")
    if one_person and len(faces.tracks) > 1:
        return Decision(False, f"shows {len(faces.tracks)} people")
    width = faces.tracks[0].width
    return Decision(width >= min_face, "" if width >= min_face else f"its face is {width:.0f} px wide, less than {min_face:g}")
