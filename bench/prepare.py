"""What `latentsync prepare` costs: CPU seconds of each step on real clips, and peak memory against the length of a film.

    python bench/prepare.py [--jobs 2] [--only NAME ...]        every clip, or some; the others keep their former numbers
    python bench/prepare.py --parts speed | memory | report     some of it; `report` measures nothing

**Speed**: the first seconds of each clip (packets are copied, pictures not encoded anew) go through all steps, one after the other in one process on
one thread; `--jobs 2` does the same in two processes at once, to see what the second core costs. SyncNet v2 and HyperIQA have random
weights, which cost the same; so what they would drop goes on to the next step. Clips are those of LATENTSYNC_CLIPS, the face finder's files are
looked for in LATENTSYNC_TEST_WEIGHTS.

**Memory**: a film of two minutes and one of twenty go through the engine, with one process. They are made of half a minute that shows the drawn
head of the package, at the end, and before that of scenes that are too short to become clips: so both give the same clips, the longer one far into
its file. Resident memory is that of the process that works and of the one that keeps the books, at its highest.

The numbers are kept in results/prepare.json, the report is results/prepare.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
CLIPS = {
    "1080x1920, 30 fps": "talking/LatentSync__demo3_video.mp4",
    "512x512, 25 fps": "talking/DFRF__cnn2_25fps.mp4",
    "720p, 25 fps, two people": "special/ClearerVoice-Studio__001.avi",
}
CLIP_SECONDS = 10.0  # of a clip, of which HyperIQA sees three pictures
STEPS = ("check", "resample", "scenes", "faces", "align", "sync", "shift", "quality")
LENGTHS = {"2 min": 120, "20 min": 1200}
SIDE, RATE = 160, 30  # pixels and frames a second of the films
SHOWN = 30  # seconds at their end that show the head
CUT_EVERY = 3  # seconds, before that: scenes of which no clip can be made
PUBLISHED_ALIGN = (60, 80)  # CPU milliseconds a 1080p frame, without the detection


def beside(variable: str, name: str) -> Path:
    """A folder of test material, as tests/conftest.py looks for it."""
    return Path(os.environ.get(variable) or BENCH.parents[1] / "shared" / name)


def peak_mib(process: int | str = "self") -> float:
    """Highest resident memory of a process so far, MiB; 0 where it has gone."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


# Speed


def first_seconds(path: Path, target: Path, seconds: float) -> Path:
    """The beginning of a clip, its packets as they are."""
    import av

    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        given = [*source.streams.video[:1], *source.streams.audio[:1]]
        tracks = {s.index: out.add_stream_from_template(s) for s in given}
        for packet in source.demux(given):
            if packet.dts is not None and packet.dts * packet.time_base < seconds:
                packet.stream = tracks[packet.stream.index]
                out.mux(packet)
    return target


def random_judges(folder: Path) -> tuple[Path, Path]:
    """Files of SyncNet v2 and HyperIQA with random weights."""
    import torch

    from latentsync.models.hyperiqa import HyperIQA
    from latentsync.models.syncnet_v2 import SyncNetV2

    torch.manual_seed(0)
    files = folder / "syncnet_v2.model", folder / "hyperiqa.pth"
    for kind, file in zip((SyncNetV2, HyperIQA), files, strict=True):
        torch.save(kind().state_dict(), file)
    return files


def speed_child(folder: Path, files: list[Path]) -> None:
    """All steps over each file; prints a line of JSON for each: {step: [CPU seconds, seconds of film]} and the peak."""
    import torch

    from latentsync.prepare.steps import faces, quality, sync

    torch.set_num_threads(1)
    syncnet, hyperiqa = random_judges(folder)
    sync.judges.load_syncnet_v2(None, syncnet, "cpu")  # loaded before any clock runs
    quality.judges.load_hyperiqa(None, hyperiqa, "cpu")
    backend = faces.finder("mediapipe", beside("LATENTSYNC_TEST_WEIGHTS", "weights"))
    for path in files:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(steps_of(path, Path(name), backend, syncnet, hyperiqa)), flush=True)


def steps_of(path: Path, out: Path, backend: Any, syncnet: Path, hyperiqa: Path) -> dict[str, Any]:
    """What each step takes of one file."""
    from latentsync.prepare.steps import align, check, faces, quality, resample, scenes, segments, sync

    spent: dict[str, list[float]] = {}

    def timed(step: str, length: float, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = work()
        cost = time.process_time() - begin
        before = spent.get(step, [0.0, 0.0])
        spent[step] = [before[0] + cost, before[1] + length]
        return result

    checked = timed("check", 0.0, lambda: check.measure(path))
    length = spent["check"][1] = float(checked.duration)
    film = timed("resample", length, lambda: resample.measure(path, checked, out / "film.mp4"))
    found = timed("scenes", length, lambda: scenes.measure(film.path))
    spans = segments.split(found.spans, least=1, end=min(checked.duration, checked.audio_duration))
    people = 0
    for number, span in enumerate(spans):
        seconds, clip = float(span.seconds), out / f"{number}.mp4"
        seen = timed("faces", seconds, lambda: faces.measure(film.path, span, clip.with_suffix(".faces.npz"), backend=backend))  # noqa: B023
        people = max(people, len(seen.tracks))
        if not seen.tracks:
            continue
        made = timed("align", seconds, lambda: align.measure(film.path, span, seen, clip))  # noqa: B023
        timed("sync", seconds, lambda: sync.measure(clip, points=made.matrices, weights=syncnet))  # noqa: B023
        timed("shift", seconds, lambda: sync.shift(clip, out / "moved.mp4", 3))  # noqa: B023
        timed("quality", CLIP_SECONDS, lambda: quality.measure(clip, weights=hyperiqa))  # noqa: B023
    return {"spent": spent, "peak": peak_mib(), "people": people, "clips": len(spans), "size": [checked.width, checked.height], "why": film.why}


def speed(only: list[str], jobs: int, seconds: float) -> Iterator[dict[str, Any]]:
    """{clip and number of processes: what `steps_of` found, the mean over the processes}, one by one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {}
        for label, file in CLIPS.items():
            source = beside("LATENTSYNC_CLIPS", "clips") / file
            if (only and not any(word in label for word in only)) or not source.is_file():
                print(f"{label}: left out", flush=True)
                continue
            suffix = ".mkv" if source.suffix == ".avi" else source.suffix  # AVI says nothing about when sound is heard
            files[label] = first_seconds(source, folder / (source.stem + suffix), seconds)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running = []
        for number in range(jobs):
            (folder / str(number)).mkdir()
            command = [sys.executable, __file__, "--child", str(folder / str(number)), *map(str, files.values())]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        for label in files:
            told = [json.loads(child.stdout.readline()) for child in running if child.stdout is not None]
            spent = {s: [statistics.fmean(t["spent"][s][i] for t in told) for i in (0, 1)] for s in told[0]["spent"]}
            print(label, jobs, {s: round(v[0], 2) for s, v in spent.items()}, flush=True)
            yield {f"{label}|{jobs}": told[0] | {"spent": spent}}
        for child in running:
            child.wait()


# Memory


def make_film(path: Path, seconds: int) -> Path:
    """A film as the top of this file tells. Pictures are encoded once and repeated as packets."""
    import av
    import numpy as np

    from latentsync.media.clip import frames_between
    from latentsync.weights import shipped

    head = [f.picture.small(SIDE) for f in frames_between(shipped.folder() / "sample.mp4", Fraction(0), Fraction(6), RATE)]
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    scene = [np.stack((x, y, 0 * x), -1).astype(np.uint8), 255 - np.stack((y, 0 * x, x), -1).astype(np.uint8)]
    cut = CUT_EVERY * RATE
    scenes = [np.roll(scene[k // cut], k % cut, axis=1) for k in range(2 * cut)]
    bases = []
    for number, frames in enumerate((scenes, head)):
        base = path.with_name(f"base{number}-{path.name}")
        with av.open(str(base), "w") as out:
            stream: Any = out.add_stream("libx264", rate=RATE, options={"g": str(RATE), "bf": "0", "crf": "20"})
            stream.width = stream.height = SIDE
            stream.pix_fmt = "yuv420p"
            for k, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
                frame.pts = k
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        bases.append((base, len(frames)))
    draw = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        with av.open(str(bases[0][0])) as given:
            picture_track: Any = out.add_stream_from_template(given.streams.video[0])
        sound: Any = out.add_stream("aac", rate=44100, layout="mono")
        done = 0
        while done < seconds * RATE:
            base, count = bases[int(done >= (seconds - SHOWN) * RATE)]
            with av.open(str(base)) as given:
                tick = Fraction(given.streams.video[0].time_base or 1)
                for packet in given.demux(given.streams.video[0]):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        shift = round(Fraction(done, RATE) / tick)
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, picture_track
                        out.mux(packet)
            first, last = done * 44100 // RATE, (done + count) * 44100 // RATE
            chunk = av.AudioFrame.from_ndarray(draw.normal(0, 0.05, (1, last - first)).astype(np.float32), "fltp", "mono")
            chunk.sample_rate, chunk.pts = 44100, first
            out.mux(sound.encode(chunk))
            done += count
        out.mux(sound.encode(None))
    for base, _ in bases:
        base.unlink()
    return path


def memory_child(film: Path, folder: Path) -> None:
    """The engine over one film; prints peaks and what came of it."""
    from latentsync.prepare import engine
    from latentsync.prepare.config import PrepareConfig, Running

    peaks = {"worker": 0.0}

    def look(_: engine.Progress) -> None:
        for child in multiprocessing.active_children():
            peaks["worker"] = max(peaks["worker"], peak_mib(child.pid or 0))

    raw = folder / "raw"
    raw.mkdir(parents=True)
    film.rename(raw / film.name)
    config = PrepareConfig(skip=("sync",), face_backend="demo", quality_model="sharpness", min_quality=0, min_share=0)
    outcome = engine.prepare(raw, folder / "out", config, Running(jobs=1, devices=("cpu",), keep_work=True), progress=look)
    steps = {s: dataclasses.asdict(t) for s, t in outcome.progress.steps.items()}
    print(json.dumps(peaks | {"books": peak_mib(), "clips": outcome.progress.clips, "kept": outcome.progress.kept, "steps": steps}))


def memory(only: list[str]) -> Iterator[dict[str, Any]]:
    """{length: peaks} of the films, one by one."""
    for label, seconds in LENGTHS.items():
        if only and label not in only:
            continue
        with tempfile.TemporaryDirectory() as name:
            film = make_film(Path(name) / "film.mp4", seconds)
            size = film.stat().st_size
            command = [sys.executable, __file__, "--memory-child", str(film), name + "/run"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            print(label, done.stdout.splitlines()[-1], flush=True)
            yield {label: json.loads(done.stdout.splitlines()[-1]) | {"bytes": size}}


# Report


def report(numbers: dict[str, Any]) -> str:
    """The result file."""
    import av
    import torch

    parts = [
        "## Preparing footage\n",
        f"CPU time of one thread ({platform.machine()}, torch {torch.__version__}, PyAV {av.__version__}), with other work beside it: what counts"
        " is CPU time and ratios. SyncNet v2 and HyperIQA have random weights, which cost the same. Written by `bench/prepare.py`.\n",
    ]
    found = numbers.get("speed", {})
    ones = {label: found[f"{label}|1"] for label in CLIPS if f"{label}|1" in found}
    if ones:
        length = next(iter(ones.values()))["spent"]["align"][1]
        parts.append(
            "CPU milliseconds for a frame (of 25 a second), and in brackets seconds of film for a CPU second (x real time of one core);"
            f" the first {length:.0f} seconds of each clip.\n"
        )
        parts.append("| step | " + " | ".join(ones) + " |\n|" + " --- |" * (len(ones) + 1))
        parts += [f"| {step} | " + " | ".join(_cell(one["spent"].get(step)) for one in ones.values()) + " |" for step in STEPS]
        parts.append("| **all** | " + " | ".join(_cell((sum(_ms(one).values()) / 40, 1.0)) for one in ones.values()) + " |")
        parts.append("| peak memory, networks included | " + " | ".join(f"{one['peak']:.0f} MiB" for one in ones.values()) + " |\n")
        whys = "; ".join(f"{label}: {one['why']}" for label, one in ones.items())
        parts.append(f"Why each was resampled: {whys}. Where only the sound differs, pictures are copied.\n")
        parts += [text for text in (_twos(found), _published(ones)) if text]
    films = {label: numbers.get("memory", {})[label] for label in LENGTHS if label in numbers.get("memory", {})}
    if films:
        parts.append(
            f"### Memory against length\n\nFilms of {SIDE}x{SIDE} at {RATE} fps with sound of 44.1 kHz, steps check to align and the"
            " plain quality, one process. Both give the same clips, out of their last half minute.\n"
        )
        parts.append("| film | process that works, peak | process that keeps the books, peak | clips |\n| --- | --- | --- | --- |")
        parts += [f"| {label} | {one['worker']:.0f} MiB | {one['books']:.0f} MiB | {one['clips']} |" for label, one in films.items()]
        parts.append("")
        if len(films) == len(LENGTHS):
            short, long = films.values()
            times = " and ".join(f"{long['steps'][s]['seconds'] / short['steps'][s]['seconds']:.2f} of the time of {s}" for s in ("faces", "align"))
            parts.append(
                f"So ten times the length takes {long['worker'] / short['worker']:.3f} of the memory. The same clips, twenty minutes into"
                f" the file, take {times} (wall time, so roughly).\n"
            )
    return "\n".join(parts)


def _ms(one: dict[str, Any]) -> dict[str, float]:
    """CPU milliseconds of each step for a frame of 25 a second."""
    return {step: 40 * cpu / film for step, (cpu, film) in one["spent"].items() if film}


def _cell(spent: Any) -> str:
    if not spent or not spent[1]:
        return ""
    ms = 40 * spent[0] / spent[1]
    return f"{ms:.1f} ({40 / ms:.1f})" if ms >= 0.05 else f"{ms:.2f}"


def _twos(found: dict[str, Any]) -> str:
    said = []
    for label in CLIPS:
        if f"{label}|1" in found and f"{label}|2" in found:
            one, two = (sum(_ms(found[f"{label}|{jobs}"]).values()) for jobs in (1, 2))
            said.append(f"{two / one:.2f} for {label} ({80 / two:.1f} seconds of film for a second of two cores)")
    return f"Two processes at once cost each, against one alone: {'; '.join(said)}.\n" if said else ""


def _published(ones: dict[str, Any]) -> str:
    label = next((name for name, one in ones.items() if max(one["size"]) >= 1080), "")
    if not label:
        return ""
    ms = _ms(ones[label])
    low, high = PUBLISHED_ALIGN
    judges = ms["sync"] + ms["quality"]
    left = sum(ms.values()) - judges
    lines = [
        f"### Where the published code would spend it\n\nCPU milliseconds for a frame of 1080p, here of the clip {label}:\n",
        "| part | published | here | why |\n| --- | --- | --- | --- |",
        f"| face and crop | {low}-{high} for its align step alone, and its detection in each frame (not measured) | {ms['faces'] + ms['align']:.0f}:"
        f" following faces {ms['faces']:.0f}, cropping and encoding {ms['align']:.0f}, decoding included | landmarks lead from frame to frame;"
        " only the crop is warped |",
        f"| SyncNet v2 | the same network, and a face detector of its own before it | {ms['sync']:.0f} | the face is where align has found it |",
        f"| HyperIQA, three pictures a clip | the same network | {ms['quality']:.1f} | |",
        f"| encoding whole pictures | by each step that writes its own place | {ms['resample']:.0f}, once, where the frame rate differs |"
        " scenes and segments are spans; moving the sound copies packets |",
        f"\nThe judges' networks are the same, and take {judges:.0f} of {left + judges:.0f} ms on a CPU. The other {left:.0f} ms are what a machine"
        f" spends whose GPU does the judging; the published align step alone is {low}-{high}.\n",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["speed", "memory", "report"], default=["speed", "memory", "report"])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts of clips' names, or lengths of films")
    parser.add_argument("--jobs", type=int, default=1, help="processes that work on a clip at once")
    parser.add_argument("--seconds", type=float, default=10, help="of each clip")
    parser.add_argument("--child", nargs="+", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-child", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        speed_child(given.child[0], given.child[1:])
    elif given.memory_child:
        memory_child(*given.memory_child)
    else:
        file = RESULTS / "prepare.json"
        numbers = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for part, work in (("speed", lambda: speed(given.only, given.jobs, given.seconds)), ("memory", lambda: memory(given.only))):
            for found in work() if part in given.parts else ():
                numbers[part] = numbers.get(part, {}) | found
                file.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "prepare.md").write_text(report(numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
