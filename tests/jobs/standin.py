"""What the worker processes of these tests do in place of networks: a job takes as many steps as it asks for, and writes down what it did."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from latentsync.errors import DeviceError, NoFaceError
from latentsync.jobs.limits import Limits
from latentsync.jobs.records import Job
from latentsync.jobs.store import Pulse
from latentsync.jobs.worker import Made, Setting

STEP = 0.05  # seconds


class Standin:
    """Options of a job: `steps` of STEP seconds each; `codec` is read as what to do, as no codec is used."""

    name = "standin"

    def prepare(self, say: Callable[[str], None]) -> None:
        say("loading nothing")

    def perform(self, job: Job, folder: Path, limits: Limits, said: Pulse, check: Callable[[], None], number: int) -> Made:
        seed = job.request.options["seed"]
        if seed == 13:
            raise NoFaceError(f"no face in {folder / job.request.video}")
        if seed == 666 or (seed == 667 and job.attempts == 1):
            os._exit(3)
        if seed == 668:
            raise DeviceError("out of memory on a device")
        if seed == 669:
            return [][1]
        said.message, said.total, said.steps = "syncing", 10, job.request.options.get("steps", 1)
        for step in range(said.steps):
            time.sleep(STEP)
            said.step = step + 1
            if seed != 670:  # deaf
                check()
        out = folder / f"result-{number}.mp4"
        out.write_text(f"attempt {job.attempts}")
        with open(folder.parent.parent / "finished.txt", "a") as f:
            f.write(f"{job.id}\n")
        said.done = 10
        return Made(out.name, {"frames": 10, "seconds": 0.4, "elapsed_seconds": 1.0})


def performer(setting: Setting) -> Standin:
    return Standin()
