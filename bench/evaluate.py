"""What evaluating costs: seconds for a minute of video, by group of metrics; writes bench/results/evaluate.md.

    python bench/evaluate.py [--seconds 2] [--groups sync,picture]

Measured on the sample that comes with the package, with its own judge and face finder. What needs weights that are not here is left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from latentsync.evaluate.tools import GROUPS, Tools
from latentsync.evaluate.video import evaluate
from latentsync.media.audio import open_audio
from latentsync.media.clip_writer import write_clip
from latentsync.media.video import open_video
from latentsync.weights import shipped

RESULT = Path(__file__).resolve().parent / "results" / "evaluate.md"
ALONE = ("sync", "quality", "flicker", "seam")  # need no other video
BESIDE = ("lips", "picture", "lpips", "outside", "identity", "jitter")  # need a reference or a source


def sample(folder: Path, seconds: float) -> Path:
    """The beginning of the shipped sample."""
    path, target = shipped.folder() / "sample.mp4", folder / "sample.mp4"
    frames = []
    for frame in open_video(path).frames():
        if frame.time >= seconds:
            break
        frames.append(frame.picture.rgb())
    samples = np.concatenate(list(open_audio(path, beside=path).samples()))[: round(seconds * 16000)]
    write_clip(target, np.stack(frames), 25, samples)
    return target


def cost(video: Path, group: str, beside: bool) -> tuple[float, float, str]:
    """CPU and wall seconds for a minute of video, and why there is no value."""
    tools = Tools((group,), judge="demo", faces="demo", vad="energy", device="cpu")
    other = video if beside else None
    evaluate(video, None, other, other, tools=tools) if group == "sync" else None  # the first call loads the network
    began, wall = time.process_time(), time.monotonic()
    row = evaluate(video, None, other, other, tools=tools)
    spent, waited = time.process_time() - began, time.monotonic() - wall
    why = "" if row.values else next(iter(row.missing.values()), row.reason)
    return spent / row.seconds * 60, waited / row.seconds * 60, why


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--groups", default="", help="only these")
    given = parser.parse_args()
    wanted = given.groups.split(",") if given.groups else list(GROUPS)
    torch.set_num_threads(1)
    rows, absent = [], []
    with tempfile.TemporaryDirectory() as scratch:
        video = sample(Path(scratch), given.seconds)
        with open_video(video) as shown:
            size = f"{shown.info.width} x {shown.info.height}"
        cost(video, "faces", False)  # loads the face finder
        alone, _, _ = cost(video, "faces", False)
        both, _, _ = cost(video, "faces", True)
        rows.append(("decoding, and following the face", alone, "once, whatever is measured"))
        rows.append(("the same for a source or a reference", both - alone, "once each"))
        for group in (g for g in (*ALONE, *BESIDE) if g in wanted):
            spent, _, why = cost(video, group, group in BESIDE)
            if why:
                absent.append(group)
            else:
                rows.append((f"`{group}`", max(0.0, spent - (both if group in BESIDE else alone)), ", ".join(GROUPS[group])))
    lines = [
        f"CPU seconds for a minute of video (25 frames a second, {size}), one thread; the package's own judge and face finder. Groups come on top of",
        "the first rows.",
        "",
        "| what | CPU s a minute | |",
        "| --- | --- | --- |",
        *(f"| {name} | {f'{spent:.0f}' if spent >= 0.5 else 'under 1'} | {about} |" for name, spent, about in rows),
    ]
    if absent:
        lines += ["", f"Not measured, for want of their weights: {', '.join(absent)}."]
    lines += ["", "`silence`, `faces` and `speed` cost next to nothing. `picture` and `outside` grow with the size of the frame, the others do not."]
    text = "\n".join(lines) + "\n"
    print(text)
    if not given.groups:
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
