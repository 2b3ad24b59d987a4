"""Footage for the benchmarks of the whole job: the drawn face of tools/sample.py in a 1920x1080 picture, of any length, with its points and sound.

Twenty seconds are drawn and encoded once; longer clips repeat their packets, so ten minutes cost no more to make. Every repetition
starts with a key frame and the drawn motion does not close, so the joins are cuts: each shot is 20 s long.
"""

from __future__ import annotations

import importlib.util
import wave
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, RATE = 1920, 1080, 25
UNIT = 20  # seconds that are drawn
ENLARGED = 3
GOP = 250  # x264's default: the hard case for playing backwards


def drawer() -> ModuleType:
    """tools/sample.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("sample", Path(__file__).parents[1] / "tools" / "sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(path: Path, width: int = WIDTH, height: int = HEIGHT, seconds: int = UNIT) -> np.ndarray:
    """Encode the drawn face in the middle of a width x height picture; its points (n, 3, 2)."""
    sample = drawer()
    side = min(width, height) // ENLARGED * ENLARGED
    left, top = (width - side) // 2, (height - side) // 2
    places = []
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "20", "g": str(GOP)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Drawn small and enlarged: the drawing costs more than everything that is measured, and its sharpness does not matter.
        for k in range(seconds * RATE):
            t = k / RATE
            small = sample.draw(t, side // ENLARGED)
            frame = np.full((height, width, 3), 150, np.uint8)
            frame[top : top + side, left : left + side] = small.repeat(ENLARGED, 0).repeat(ENLARGED, 1)
            frame[: height // 8, : width // 8] = np.arange(width // 8, dtype=np.uint8)[None, :, None] + k % 200  # something that always moves
            places.append(sample.points(t, side // ENLARGED) * ENLARGED + (ENLARGED - 1) / 2 + [left, top])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    return np.stack(places).astype(np.float32)


def repeat(base: Path, path: Path, times: int, seconds: int = UNIT) -> None:
    """The packets of `base` one after another, that many times."""
    with av.open(str(path), "w") as out, av.open(str(base)) as given:
        kept = given.streams.video[0]
        copy: Any = out.add_stream_from_template(kept)
        shift = round(seconds / Fraction(kept.time_base or 1))
        for turn in range(times):
            given.seek(0)
            for packet in given.demux(kept):
                if packet.size and packet.pts is not None and packet.dts is not None:
                    packet.pts, packet.dts, packet.stream = packet.pts + turn * shift, packet.dts + turn * shift, copy
                    out.mux(packet)


def sound(path: Path, seconds: float, rate: int = 16000) -> Path:
    """Vowels, a minute of them repeated."""
    minute = (drawer().speech(min(60.0, seconds), rate) * 32767).astype("<i2")
    left = round(seconds * rate)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        while left > 0:
            out.writeframes(minute[:left].tobytes())
            left -= min(left, len(minute))
    return path


class Footage:
    """Clips of several lengths in one folder, made when first asked for."""

    def __init__(self, folder: Path, width: int = WIDTH, height: int = HEIGHT, unit: int = UNIT) -> None:
        self.folder, self.unit = folder, unit
        self._base = folder / f"{unit}s.mp4"
        self._places = draw(self._base, width, height, unit)

    def video(self, seconds: int) -> Path:
        """A clip of that many seconds, a multiple of the unit."""
        if seconds == self.unit:
            return self._base
        path = self.folder / f"{seconds}s.mp4"
        if not path.exists():
            repeat(self._base, path, seconds // self.unit, self.unit)
        return path

    def points(self, seconds: int) -> Path:
        """The places of the face in `video(seconds)`, as `--points` takes them."""
        path = self.folder / f"{seconds}s.npz"
        if not path.exists():
            np.savez(path, points=np.tile(self._places, (seconds // self.unit, 1, 1)))
        return path

    def sound(self, seconds: float) -> Path:
        """Speech-like sound of that length."""
        path = self.folder / f"{seconds:g}s.wav"
        return path if path.exists() else sound(path, seconds)
