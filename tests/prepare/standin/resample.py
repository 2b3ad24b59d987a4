from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.prepare.standin import about, film
from tests.prepare.standin.check import Checked

VERSION = "1"


@dataclass(frozen=True)
class Resampled:
    path: Path
    changed: bool
    why: str


def measure(path: Path, checked: Checked, target: Path, *, fps: int, rate: int) -> Resampled:
    told = about(path, "resample")
    if checked.fps == fps:
        return Resampled(path, False, "")
    target.write_text(json.dumps(told | {"fps": fps}))
    assert film(target)
    return Resampled(target, True, f"{checked.fps} fps")
