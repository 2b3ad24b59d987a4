from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from latentsync.prepare.records import Span
from tests.prepare.standin import about
from tests.prepare.standin.faces import Faces

VERSION = "1"


@dataclass(frozen=True)
class Aligned:
    path: Path
    matrices: Path
    frames: int


def measure(path: Path, span: Span, faces: Faces, target: Path, *, size: int, crop: bool, fps: int) -> Aligned:
    told = about(path, "align", f"{float(span.start):g}")
    assert faces.landmarks is not None
    assert faces.landmarks.read_text() == "landmarks"
    target.with_suffix(".npz").write_text("matrices")
    target.write_text(json.dumps(told | {"size": size, "crop": crop, "span": [str(span.start), str(span.end)]}))
    return Aligned(target, target.with_suffix(".npz"), round(span.seconds * fps))
