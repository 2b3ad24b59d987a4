"""Peak memory of the main job against its length: the same job on 20 s, 2 min and 10 min of 1080p, and on a 20 s clip under 10 min of sound.

    python bench/memory.py [--out bench/results/memory.md] [--long 600] [--limit 900] [--only base ...]

Every job runs in a process of its own, through `LipSync.sync`, from an H.264 file to an H.264 file with sound. What is measured is the highest
resident memory of that process (VmHWM on Linux), not of its children or its parent. The 20 s job runs three times, because threads and allocators
make it differ from run to run, and the others are compared with the median. `medium` is the encoder setting that is shipped, for shorter jobs.

So that ten minutes of video are done in minutes on two cores, the encoder runs at its fastest setting, and the network is a stand-in that gives
each face back unchanged: it holds no more at the end of an hour than at the end of a second, and its own memory is in `networks.md`. The
numbers are kept in memory.json beside the report, so that `--only` can measure some jobs anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ALLOWED = 1.10  # of the 20 s job: what the project asks of itself
# name -> (seconds of video, seconds of sound, x264's preset); 0 is the longest
JOBS = {
    "base": (20, 20, "ultrafast"),
    "base, again": (20, 20, "ultrafast"),
    "base, once more": (20, 20, "ultrafast"),
    "2 min": (120, 120, "ultrafast"),
    "long": (0, 0, "ultrafast"),
    "bounced": (20, 0, "ultrafast"),
    "base, medium": (20, 20, "medium"),
    "bounced, medium": (20, 100, "medium"),
}


PRESETS = tuple({preset: None for _, _, preset in JOBS.values()})


def peak_mib() -> float:
    """Highest resident memory of this process so far, MiB. Not ru_maxrss on Linux, which a child inherits from its parent."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


class OutOfTime(Exception):
    """The job took longer than it was allowed."""


def child(job: dict[str, Any]) -> None:
    """Run one job and print what it took."""
    import torch

    from latentsync.media import encoding
    from latentsync.pipeline import LipSync, Progress

    torch.set_num_threads(1)
    encoding.PRESET = job["preset"]
    lipsync = LipSync.load(job["model"], device="cpu", dtype="fp32", faces=False)
    lipsync.synthesise = lambda crops, contexts, **_: crops.float()  # type: ignore[method-assign, assignment]
    began = time.monotonic()
    seen: list[tuple[float, float]] = []  # seconds of video, MiB

    def progress(p: Progress) -> None:
        if p.done % 500 == 0:
            seen.append((p.done / 25, round(peak_mib(), 1)))
            if time.monotonic() - began > job["limit"]:
                raise OutOfTime

    try:
        lipsync.sync(job["video"], job["audio"], job["out"], points=job["points"], steps=1, guidance=1.0, progress=progress)
        done = True
    except OutOfTime:
        done = False
    took = time.monotonic() - began
    print(json.dumps({"done": done, "peak": peak_mib(), "seen": seen, "wall": took, "cpu": time.process_time()}))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One job in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)], capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL
    )
    if found.returncode:
        raise SystemExit(f"the job failed: {found.stderr}")
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.md")
    parser.add_argument("--long", type=int, default=600, help="seconds of the longest job, a multiple of 20")
    parser.add_argument("--limit", type=float, default=900, help="seconds of wall time for each job; a longer one is reported as far as it came")
    parser.add_argument("--only", nargs="*", choices=JOBS, default=list(JOBS), metavar="JOB", help=f"of {', '.join(JOBS)}; the others stay")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(json.loads(given.child))
        return
    from footage import Footage

    from latentsync import weights

    numbers = given.out.with_suffix(".json")
    kept: dict[str, Any] = json.loads(numbers.read_text()) if numbers.exists() else {}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = weights.new("tiny", folder / "tiny")
        footage = Footage(folder)
        for wanted in given.only:
            video, audio, preset = JOBS[wanted]
            video, audio = video or given.long, audio or given.long
            out = folder / "out.mp4"
            job = {
                "model": str(model),
                "video": str(footage.video(video)),
                "audio": str(footage.sound(audio)),
                "points": str(footage.points(video)),
                "out": str(out),
                "preset": preset,
                "limit": given.limit,
            }
            kept[wanted] = {"video": video, "audio": audio, "preset": preset, **run(job)}
            out.unlink(missing_ok=True)
            numbers.write_text(json.dumps({n: kept[n] for n in JOBS if n in kept}, indent=1) + "\n", encoding="utf-8")
            print(f"{wanted}: {kept[wanted]['peak']:.0f} MiB in {kept[wanted]['wall']:.0f} s", file=sys.stderr, flush=True)
    text = table({n: kept[n] for n in JOBS if n in kept})
    given.out.write_text(text, encoding="utf-8")
    print(text)


def table(found: dict[str, dict[str, Any]]) -> str:
    """The report."""
    base = {preset: statistics.median(f["peak"] for n, f in found.items() if n.startswith("base") and f["preset"] == preset) for preset in PRESETS}
    lines = [
        "## Memory against length",
        "",
        "The main job, 1920x1080 at 25 fps, H.264 in and out, AAC sound; faces from a file of points; a stand-in for the network that gives each "
        f"face back unchanged. {platform.machine()}, one process for each job, highest resident memory. The 20 s job runs three times and the median "
        f"counts. Asked for: {ALLOWED:.2f} of it. Written by `bench/memory.py`.",
        "",
        "| video | sound | result | x264 preset | peak, MiB | of the 20 s job | wall seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for job in found.values():
        video, audio, seen = job["video"], job["audio"], job["seen"]
        reached = audio if job["done"] else seen[-1][0] if seen else 0
        shown = length(reached) + ("" if job["done"] else f" of {length(audio)} (stopped by the time limit)")
        how = length(audio) + (", bounced" if audio > video else "")
        part = job["peak"] / base[job["preset"]]
        lines.append(f"| {length(video)} | {how} | {shown} | {job['preset']} | {job['peak']:.0f} | {part:.3f} | {job['wall']:.0f} |")
    for name in ("long", "bounced"):
        seen = found.get(name, {}).get("seen", [])
        marks = [seen[i] for i in sorted({0, len(seen) // 10, len(seen) // 2, len(seen) - 1}) if seen]
        if marks:
            lines += ["", f"Peak so far in the job '{name}': " + ", ".join(f"{m:.0f} MiB after {length(s)}" for s, m in marks) + "."]
    missed = [n for n, f in found.items() if f["peak"] > ALLOWED * base[f["preset"]]]
    if missed:
        lines += [
            "",
            f"**Above {ALLOWED:.2f}: {', '.join(missed)}.** Playing backwards holds up to 64 MiB of frames besides "
            "(`media/video.py`), whatever the length; with the encoder setting that is shipped, or a model of full size, that is a smaller part.",
        ]
    return "\n".join(lines) + "\n"


def length(seconds: float) -> str:
    """20 s, 2 min, 2 min 20 s"""
    minutes, rest = divmod(round(seconds), 60)
    return " ".join(([f"{minutes} min"] if minutes else []) + ([f"{rest} s"] if rest or not minutes else []))


if __name__ == "__main__":
    main()
