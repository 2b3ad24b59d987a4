"""Makes small footage with known pictures and sound, faults included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.media.conftest import mux_sound

NAMES = ('it\'s a "quoted" name.mp4', "с пробелом и 'ü' 口 %03d.mp4", "-dash & $HOME;.mp4")


def noise(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """(n,) float32: bursts of noise, softened so that any codec keeps them; each moment differs."""
    draw = np.random.default_rng(seed)
    loud = np.repeat(draw.uniform(0.02, 0.5, int(seconds * 10) + 1), rate // 10)[: round(seconds * rate)]
    soft = np.convolve(draw.uniform(-1, 1, loud.size + 63), np.hanning(66)[1:-1] / 12, "valid")
    return (loud * soft).astype(np.float32)


def moving(k: int, width: int = 64, height: int = 48) -> np.ndarray:
    """(h, w, 3) uint8: a smooth picture with a bar that moves a little from frame to frame."""
    y, x = np.mgrid[0:height, 0:width]
    out = np.stack((x * 255 / width, y * 255 / height, (x + y) % 256), axis=-1).astype(np.uint8)
    at = (2 * k) % max(1, width - 4)
    out[:, at : at + 4] = 255
    return out


def other(k: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Another scene."""
    return (255 - moving(k, width, height)[::-1, :, ::-1]) // 3


def make(
    path: Path,
    frames: int,
    *,
    picture: Callable[[int], np.ndarray] = moving,
    rate: Fraction | int = 25,
    times: Sequence[Fraction] | None = None,
    sound: np.ndarray | None = None,
    sound_rate: int = 16000,
    sound_codec: str = "aac",
    rotation: int | None = None,
    aspect: Fraction | None = None,
    crf: int = 10,
    key_every: int = 12,
    faststart: bool = False,
) -> Path:
    """A file of that many frames, at `rate` or at `times`."""
    with av.open(f"file:{path}", "w", container_options={"movflags": "+faststart"} if faststart else {}) as out:
        tick = Fraction(1, 90000) if times else 1 / Fraction(rate)
        options = {"crf": str(crf), "g": str(key_every), "bf": "2", "preset": "ultrafast"}
        stream: Any = out.add_stream("libx264", rate=Fraction(rate), options=options, time_base=tick)
        first = picture(0)
        stream.width, stream.height, stream.pix_fmt = first.shape[1], first.shape[0], "yuv420p"
        stream.codec_context.time_base = tick
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        track: Any = out.add_stream(sound_codec, rate=sound_rate, layout="mono") if sound is not None else None
        if sound is not None:
            mux_sound(out, track, sound, sound_rate)
        for k in range(frames):
            image = av.VideoFrame.from_ndarray(picture(k), "rgb24")
            image.pts = round((times[k] if times else k / Fraction(rate)) / tick)
            image.time_base = tick
            out.mux(stream.encode(image))
        out.mux(stream.encode(None))
    return path
