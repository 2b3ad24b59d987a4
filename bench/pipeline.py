"""CPU time of one second of 1080p by stage: what everything around the networks costs, against the published system's figures.

    python bench/pipeline.py [--out bench/results/pipeline.md] [--seconds 4]

Each stage runs alone over the same frames, held in memory, so that the threads of the decoder and the encoder are counted where they belong;
times are those of all threads of the process. The networks themselves are measured by `bench/networks.py`; here the untrained tiny one runs once,
to see that the loop around it costs nothing. The last table is a whole job, with its stages overlapping as they do in use.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from footage import RATE, Footage

from latentsync import denoise, weights
from latentsync.errors import WeightsError
from latentsync.face.align import alignment, crop
from latentsync.face.given import GivenPoints
from latentsync.face.mask import inpaint_mask
from latentsync.face.paste import paste
from latentsync.face.protocols import FaceBackend
from latentsync.face.track import Tracked, Tracker
from latentsync.media.frame import Frame
from latentsync.media.video import open_video
from latentsync.media.writer import VideoWriter
from latentsync.options import Options
from latentsync.pipeline import LipSync

PUBLISHED_CROP = 0.07 * RATE  # CPU-seconds per second of video: 0.06-0.08 per 1080p frame
PUBLISHED_PASTE = 0.49 * RATE  # 0.44-0.54
PUBLISHED_WINDOW = 20 * 92.6 + 2 * 37.6 + 61.9  # 16 frames at 256 px: 20 guided steps, two encodings, one decoding
PUBLISHED_NETWORK = PUBLISHED_WINDOW / 16 * RATE


class Clock:
    """CPU seconds of the whole process for one second of video, by stage."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self.stages: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        out = work()
        self.stages[name] = (time.process_time() - began) / self._frames * RATE
        return out


def stages(finder: Callable[[], FaceBackend] | None, footage: Footage, seconds: int, resolution: int, folder: Path) -> dict[str, float]:
    """CPU seconds per second of video for every stage but the network."""
    count = seconds * RATE
    clock = Clock(count)
    with open_video(footage.video(footage.unit)) as video:

        def decode() -> list[Frame]:
            frames = video.frames()
            out = [next(frames) for _ in range(count)]
            frames.close()  # type: ignore[attr-defined]
            return out

        frames = clock("decode", decode)
        given: GivenPoints[Frame] = GivenPoints(footage.points(footage.unit), lambda f: f.index)
        tracked: list[Tracked[Frame]] = list(given.track(frames, lambda f: f.picture))
        if finder is not None:
            backend = finder()
            clock("find and follow the face", lambda: list(Tracker(backend).track(frames, lambda f: f.picture)))
        matrices = [alignment(t.points, resolution) for t in tracked if t.points is not None]
        crops = clock("align and crop", lambda: [crop(f.picture, m, resolution) for f, m in zip(frames, matrices, strict=True)])
        faces = [c.astype(np.float32) for c in crops]
        del crops
        mask = inpaint_mask(resolution)
        width, height = video.info.width, video.info.height

        def put_back() -> list[Frame]:
            out = []
            for frame, face, matrix in zip(frames, faces, matrices, strict=True):
                patch = paste(face, matrix, width, height, mask=mask)
                out.append(Frame(frame.index, frame.time, frame.duration, frame.picture.blend(patch.box, patch.rgb, patch.alpha)))
            return out

        done = clock("paste back", put_back)

        def encode() -> None:
            with VideoWriter(folder / "out.mp4", video.info, audio=footage.sound(seconds), length=Fraction(seconds), overwrite=True) as writer:
                for frame in done:
                    writer.write(frame)

        clock("encode (x264 medium, CRF 18) and sound", encode)
    return clock.stages


def tiny_network(lipsync: LipSync) -> float:
    """CPU seconds of the untrained tiny network for one second of video, one step without guidance."""
    config = lipsync.model.config
    crops = torch.zeros(1, config.window, config.resolution, config.resolution, 3, dtype=torch.uint8)
    contexts = torch.zeros(1, config.window, 50, config.unet.audio_dim)
    noise = denoise.shared_noise(1, config.vae.latent_channels, config.latent_size, config.latent_size)
    times = []
    for _ in range(4):
        began = time.process_time()
        lipsync.synthesise(crops, contexts, noise=noise, numbers=list(range(config.window)), options=Options(steps=1, guidance=1.0))
        times.append(time.process_time() - began)
    return min(times) / config.window * RATE


def whole(lipsync: LipSync, footage: Footage, folder: Path, seconds: int, find: bool) -> tuple[float, float]:
    """CPU and wall seconds of a whole job for each second of video."""
    points = None if find else footage.points(footage.unit)
    began, wall = time.process_time(), time.monotonic()
    lipsync.sync(footage.video(footage.unit), footage.sound(seconds), folder / "whole.mp4", points=points, steps=1, guidance=1.0, overwrite=True)
    return (time.process_time() - began) / seconds, (time.monotonic() - wall) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pipeline.md")
    parser.add_argument("--seconds", type=int, default=4, help="seconds of video that are held and measured")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = weights.new("tiny", folder / "tiny")
        try:
            lipsync, find = LipSync.load(model, device="cpu", dtype="fp32"), True
        except WeightsError:
            lipsync, find = LipSync.load(model, device="cpu", dtype="fp32", faces=False), False
        footage = Footage(folder)
        finder = lipsync.model.faces if find else None
        found = {r: stages(finder, footage, given.seconds, r, folder) for r in (256, 512)}
        network = tiny_network(lipsync)
        cpu, wall = whole(lipsync, footage, folder, given.seconds, find)
    text = table(found, network, cpu, wall)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text, encoding="utf-8")
    print(text)


def table(found: dict[int, dict[str, float]], network: float, cpu: float, wall: float) -> str:
    """The report."""
    published = {"align and crop": PUBLISHED_CROP, "paste back": PUBLISHED_PASTE}
    lines = [
        "## A second of 1080p, by stage",
        "",
        f"CPU-seconds for each second of 1920x1080 video at {RATE} fps, all threads together; a face about 500 px wide in an "
        f"otherwise still, drawn picture, which is cheaper to decode and encode than footage. {platform.machine()}, torch "
        f"{torch.__version__}, OpenCV {cv2.__version__}. Published: the original code on two CPU threads. Written by `bench/pipeline.py`.",
        "",
        "| stage | 256 px crop | 512 px crop | published, 256 | ratio, 256 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, value in found[256].items():
        known = published.get(name)
        compared = f"{known:.2f} | {value / known:.3f}" if known else "- | -"
        lines.append(f"| {name} | {value:.3f} | {found[512][name]:.3f} | {compared} |")
    small, large = (sum(found[r].values()) for r in (256, 512))
    lines.append(f"| **all but the networks** | **{small:.2f}** | **{large:.2f}** | | |")
    lines += [
        "",
        f"The published networks at 256 px, 20 guided steps, take {PUBLISHED_NETWORK:.0f} CPU-seconds for a second of video in fp32; everything else "
        f"here is {small / PUBLISHED_NETWORK:.2%} of that. On a GPU the networks leave the CPU, and the rest must keep up with it: {small:.2f} or "
        f"{large:.2f} CPU-seconds for a second of video, spread over the threads that read and write.",
        "",
        f"A whole job with the untrained tiny network (64 px, one step without guidance, itself {network:.2f} CPU-seconds a second): {cpu:.2f} "
        f"CPU-seconds and {wall:.2f} seconds of wall time for a second of video, on a machine that was doing other work too.",
    ]
    if "find and follow the face" not in found[256]:
        lines += ["", "The face files were not on this machine: places came from a file, and finding the face was not measured."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
