"""Small clips with the number of each frame drawn in it, and a sound in which each moment differs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from latentsync.config import WhisperConfig
from latentsync.speech.whisper import SpeechEncoder

SIDE = 64


def numbered(k: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """(h, w, 3) uint8: the number of the frame as eight black or white bars, in both halves of the picture."""
    bars = (k >> (np.arange(width) * 8 // width)) & 1
    return np.repeat(np.repeat((bars * 255).astype(np.uint8)[None, :, None], height, 0), 3, 2)


def number(picture: np.ndarray | torch.Tensor) -> int:
    """The number drawn in a frame (3, h, w)."""
    bars = np.asarray(picture).mean((0, 1)).reshape(8, -1).mean(1)
    return int(((bars > 128) << np.arange(8)).sum())


def make_clip(
    path: Path,
    frames: int = 60,
    *,
    size: tuple[int, int] = (SIDE, SIDE),
    rate: Fraction | int = 25,
    sound: float | None = -1,
    seed: int = 0,
    faststart: bool = False,
) -> Path:
    """A clip of that many frames with `sound` seconds of noise bursts (-1: as long as the picture, None: without)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    with av.open(f"file:{path}", "w", container_options={"movflags": "+faststart"} if faststart else {}) as out:
        stream: Any = out.add_stream("libx264", rate=Fraction(rate), options={"g": "12", "bf": "2", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        track: Any = out.add_stream("aac", rate=16000, layout="mono") if sound is not None else None
        if sound is not None:
            seconds = float(frames / Fraction(rate)) if sound < 0 else sound
            draw = np.random.default_rng(seed)
            loud = np.repeat(draw.uniform(0.02, 0.5, int(seconds * 10) + 1), 1600)[: int(seconds * 16000)]
            samples = (loud * draw.uniform(-1, 1, loud.size)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            for packet in [*track.encode(frame), *track.encode(None)]:
                out.mux(packet)
        for k in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(k % 256, height, width), "rgb24")))
        out.mux(stream.encode(None))
    return path


def small_whisper() -> SpeechEncoder:
    """An encoder of blocks of 2 s; the same one at every call and in every process."""
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    encoder = SpeechEncoder(WhisperConfig(positions=100, width=16, heads=2, layers=1))
    torch.random.set_rng_state(state)
    return encoder
