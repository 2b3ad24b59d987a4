from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from latentsync.prepare.records import Span
from tests.prepare.standin import about

VERSION = "1"


@dataclass(frozen=True)
class Cut:
    path: Path
    frames: int


def measure(path: Path, span: Span, target: Path, *, fps: int) -> Cut:
    told = about(path, "cut", f"{float(span.start):g}")
    target.write_text(json.dumps(told | {"span": [str(span.start), str(span.end)]}))
    return Cut(target, round(span.seconds * fps))
