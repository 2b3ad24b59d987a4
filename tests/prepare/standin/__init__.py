"""Stand-ins for the steps, with their names and signatures: a film is a text file that says what each step would find in it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any


def film(path: Path) -> dict[str, Any]:
    """What a film says of itself."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def about(path: Path, step: str, where: str = "") -> dict[str, Any]:
    """The film, after noting in its log that a step was begun, and after what it has planned for that step."""
    told = film(path)
    if "log" in told:
        with open(told["log"], "a") as f:
            f.write(f"{step} {told['name']} {where}\n")
    plan = told.get("faults", {}).get(step, "")
    once = Path(told.get("log", path)).with_suffix(f".{step}")
    if plan == "hang":
        time.sleep(60)
    if plan == "die" or (plan == "die once" and not once.exists()):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if plan == "crash":
        raise ZeroDivisionError("planned")
    if "slow" in told:
        busy = Path(told["log"]).with_name(f"busy-{os.getpid()}")  # tells tests which process is in the middle of something
        busy.touch()
        time.sleep(told["slow"])
        busy.unlink()
    return told
