"""Media: what decoding, blending and encoding cost per frame, and peak memory against length.

python bench/media.py cost            milliseconds per 1080p and 4K frame for each step
python bench/media.py memory          peak resident memory of 20 s and of 10 minutes of 1080p, forwards and bounced
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from latentsync.media.layout import write_frame
from latentsync.media.picture import Picture
from latentsync.media.timeline import timeline
from latentsync.media.video import open_video
from latentsync.media.writer import VideoWriter


def source(path: Path, seconds: int, width: int, height: int, gop: int = 250) -> Path:
    """A moving synthetic clip of 25 fps: twenty seconds encoded, then repeated as packets up to the length."""
    base = path.with_name(f"base-{path.name}")
    y, x = np.mgrid[0:height, 0:width]
    with av.open(str(base), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": str(gop), "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        luma = ((x + y) % 200 + 20).astype(np.uint8)
        for k in range(500):
            frame = av.VideoFrame(width, height, "yuv420p")
            for i, plane in enumerate(frame.planes):
                lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
                lines[: plane.height, : plane.width] = np.roll(luma, 3 * k, axis=1) if i == 0 else 128
            frame.pts = k
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(str(path), "w") as out, av.open(str(base)) as given:
        kept = given.streams.video[0]
        copy: Any = out.add_stream_from_template(kept)
        tick = Fraction(kept.time_base or 1)
        for turn in range(max(1, seconds // 20)):
            given.seek(0)
            for packet in given.demux(kept):
                if packet.size and packet.pts is not None and packet.dts is not None:
                    shift = int(turn * 20 / tick)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                    out.mux(packet)
    base.unlink()
    return path


def memory_child(path: str, seconds: str, mode: str) -> None:
    """Runs one job and prints its peak resident memory."""
    video = open_video(Path(path))
    patch, alpha = np.full((300, 300, 3), 128, np.float32), np.ones((300, 300), np.float32)
    count = 0
    frames = timeline(video, Fraction(int(seconds)))
    start = time.perf_counter()
    if mode == "write":
        with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder) / "o.mp4", video.info, audio=None) as writer:
            for frame in frames:
                writer.write(frame.__class__(frame.index, frame.time, frame.duration, frame.picture.blend((500, 300, 800, 600), patch, alpha)))
                count += 1
    else:
        for frame in frames:
            frame.picture.small(640)
            frame.picture.blend((500, 300, 800, 600), patch, alpha)
            count += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"frames": count, "peak_mib": round(peak), "fps": round(count / (time.perf_counter() - start), 1)}))


def memory(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        short = source(Path(folder) / "short.mp4", 20, 1920, 1080)
        long = source(Path(folder) / "long.mp4", 600, 1920, 1080)
        jobs = [
            ("forwards, 20 s", short, 20, "read"),
            ("forwards, 10 min", long, 600, "read"),
            ("bounced, 20 s clip over 60 s", short, 60, "read"),
            ("bounced, 20 s clip over 10 min", short, 600, "read"),
            ("encoded to h264, 20 s", short, 20, "write"),
            ("encoded to h264, bounced, 80 s", short, 80, "write"),
        ]
        for name, path, seconds, mode in jobs:
            run = subprocess.run(
                [sys.executable, __file__, "memory-child", str(path), str(seconds), mode], capture_output=True, text=True, check=True
            )
            print(f"{name:32s} {run.stdout.strip()}", flush=True)


def timed(work: Any, count: int = 9) -> float:
    """Milliseconds of the median run."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return 1000 * sorted(found)[len(found) // 2]


def cost(args: argparse.Namespace) -> None:
    for width, height in ((1920, 1080), (3840, 2160)):
        with tempfile.TemporaryDirectory() as folder:
            video = open_video(source(Path(folder) / "a.mp4", 20, width, height))
            start = time.perf_counter()
            frames = [f for _, f in zip(range(20), video.frames(), strict=False)]
            decode = (time.perf_counter() - start) * 1000 / 20
            print(f"{width}x{height}: decode {decode:.1f} ms, {steps(frames[0].picture)}", flush=True)


def steps(picture: Picture) -> str:
    """Milliseconds of what happens to one frame."""
    box = (500, 300, 800, 600)
    patch, alpha = np.full((300, 300, 3), 128, np.float32), np.ones((300, 300), np.float32)
    work = {
        "rgb of 300x300": lambda: picture.rgb(box),
        "rgb of all": picture.rgb,
        "small(640)": lambda: picture.small(640),
        "blend 300x300": lambda: picture.blend(box, patch, alpha),
        "copy to the encoder": lambda: write_frame(*picture.parts[:1], picture.layout, picture.layout.name),
    }
    return ", ".join(f"{name} {timed(run):.2f}" for name, run in work.items())


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "memory-child":
        memory_child(*sys.argv[2:5])
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("what", choices=["cost", "memory"])
        chosen = parser.parse_args()
        {"cost": cost, "memory": memory}[chosen.what](chosen)
