"""What a run says of clips that it left out, whichever process met them, and of its rows where it goes on in another folder."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentsync.train import log
from tests.train.test_loop import Line, go, settings, told


class Held(Line):
    """A line one of whose held-out samples comes with something to say."""

    def held_out(self, *, rank: int, world: int) -> Iterable[dict[str, Any]]:
        for batch in super().held_out(rank=rank, world=world):
            yield batch | {"bad": ["held.mp4: is cut off"], "notes": ["the cache is full"]}


def test_clips_left_out_of_a_validation_are_named_and_counted_once(tmp_path: Path) -> None:
    run = settings(tmp_path, steps=2, validate_every=1, log_every=1)
    words: list[str] = []
    _, outcome = go(run, task=Held(run), say=words.append)
    assert outcome.bad == ["held.mp4: is cut off"]
    assert words.count("left out a clip that cannot be read (1 so far): held.mp4: is cut off") == 1
    assert words.count("note: the cache is full") == 1
    assert [row["bad_clips"] for _, row in told(tmp_path)] == [0, 1], "it is known after the first validation"


def test_a_clip_that_fails_in_every_epoch_counts_once(tmp_path: Path) -> None:
    run = settings(tmp_path, steps=3, log_every=1)
    task = Line(run)
    task.words = {micro: {"bad": ["b.mp4: no sound"]} for micro in range(3)}
    _, outcome = go(run, task=task)
    assert outcome.bad == ["b.mp4: no sound"]


def test_clips_that_another_process_left_out_are_named(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from tests.train.test_loop import Line, go, settings
import os

run = settings(Path(sys.argv[1]), steps=2, log_every=2)
task = Line(run)
rank = int(os.environ["RANK"])
task.words = {0: {"bad": [f"{rank}.mp4: no sound"], "notes": ["the cache is full"]}}
_, outcome = go(run, task=task, say=lambda line: print(line, flush=True))
assert sorted(outcome.bad) == ["0.mp4: no sound", "1.mp4: no sound"], outcome.bad
"""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], [err for _, err in said]
    lines = said[0][0].splitlines()
    assert "left out a clip that cannot be read (1 so far): 0.mp4: no sound" in lines
    assert "left out a clip that cannot be read (2 so far): 1.mp4: no sound" in lines
    assert lines.count("note: the cache is full") == 1
    assert said[1][0] == "", "only one process speaks"
    assert [row["bad_clips"] for _, row in told(tmp_path)] == [2]


def test_a_run_that_goes_on_in_another_folder_keeps_its_rows(tmp_path: Path) -> None:
    run = settings(tmp_path / "one", steps=4, log_every=1, checkpoint_every=2, keep=9)
    go(run)
    there = replace(run, out=str(tmp_path / "two"), resume=str(tmp_path / "one" / "checkpoints" / "step-00000002"))
    go(there)
    assert told(tmp_path / "two") == told(tmp_path / "one")
    assert [row.step for row in log.read(tmp_path / "two" / log.EVENTS) if row.split == "train"] == [1, 2, 3, 4]


def test_a_run_that_has_ended_names_its_checkpoint(tmp_path: Path) -> None:
    run = settings(tmp_path)
    _, first = go(run)
    _, second = go(run)
    assert first.checkpoint == second.checkpoint == tmp_path / "checkpoints" / "step-00000006"
